"""The training loss of a micro-batch: the weighted sum of the cross-entropy over its supervised tokens.

Logits are computed at supervised positions only: with a vocabulary of 152k they are most of the memory.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from spillover.models import causal_model
from spillover.packing import Pack

CHUNK = 2048
"""Supervised tokens whose logits exist at a time: 1.2 GB of float32 at a vocabulary of 152k."""


def packed_loss(model, pack: Pack, kernel: bool = False) -> torch.Tensor:
    """Float32 scalar; the model must be within `packed_attention`, and `kernel` says which way that goes."""
    causal = causal_model(model)
    head = causal.get_output_embeddings()
    if head.weight.requires_grad:
        # through the model's own forward: its weights may be shards that only exist whole within it
        logits = causal(input_ids=pack.ids, logits_to_keep=pack.predicting, **_where(pack, kernel)).logits[0].float()
        return (F.cross_entropy(logits, pack.labels, reduction="none") * pack.weights).sum()
    hidden = hidden_states(model, pack, kernel)[pack.predicting]
    return FrozenHead.apply(hidden, head.weight, pack.labels, pack.weights, CHUNK)


def hidden_states(model, pack: Pack, kernel: bool = False, embeddings: torch.Tensor | None = None) -> torch.Tensor:
    """What the head reads of every token, (tokens, size); `embeddings` (1, tokens, size) replace the model's own."""
    inputs = {"input_ids": pack.ids} if embeddings is None else {"inputs_embeds": embeddings}
    return causal_model(model).get_decoder()(**inputs, **_where(pack, kernel)).last_hidden_state[0]


def _where(pack: Pack, kernel: bool) -> dict:
    rows = {"row_ends": pack.ends, "longest_row": max(pack.lengths)} if kernel else {"row_lengths": pack.lengths}
    return {"position_ids": pack.positions, "use_cache": False, **rows}


def padded_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same of a padded batch, in the plainest way: the reference."""
    causal = causal_model(model)
    hidden = causal.get_decoder()(input_ids=batch["ids"], attention_mask=batch["attention"]).last_hidden_state
    targets = batch["supervised"][:, 1:]
    logits = causal.get_output_embeddings()(hidden[:, :-1][targets]).float()
    losses = F.cross_entropy(logits, batch["ids"][:, 1:][targets], reduction="none")
    return (losses * batch["weight"][:, 1:][targets]).sum()


class FrozenHead(torch.autograd.Function):
    """Weighted cross-entropy through a linear head without bias that is not trained.

    The gradient of the hidden states is made along with the loss, chunk by chunk: the logits of all supervised tokens
    never exist at once and are never computed twice.
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, weights, chunk: int) -> torch.Tensor:
        """`hidden` (supervised, size), `weight` (vocabulary, size), `labels` and `weights` (supervised,)."""
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = F.linear(hidden[part], weight).float()
            target = labels[part, None]
            normaliser = logits.logsumexp(-1, keepdim=True)
            total += ((normaliser - logits.gather(1, target))[:, 0] * weights[part]).sum()
            slope = logits.sub_(normaliser).exp_()
            slope.scatter_add_(1, target, torch.full_like(target, -1, dtype=slope.dtype))
            slope.mul_(weights[part, None])
            gradient[part] = slope.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None
