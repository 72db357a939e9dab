"""What a training step adds to its cross-entropy: a pull towards the base model, smoothness, steering, or a contrast.

For the distributions p of the trained model at its supervised tokens, and their weighted mean over the step:

- `kl_to_base`: weight x KL(p || p_base), the divergence from what the adapter stands on, by the same weights. It
  is taken on the pass that the cross-entropy uses, dropout included; the base has no dropout. In bfloat16 the passes
  round apart, by 0.0015 on a 7B shape.
- `r3f` (Aghajanyan et al. 2020, arXiv 2008.03156): weight x (KL(p || q) + KL(q || p)), q being p after normal noise on
  the token embeddings; gradients go through both passes, and both draw the same dropout, so without noise it is zero.
  The embeddings and the residual stream are float32 then: noise of 1e-5 would leave nine in ten bfloat16 entries as
  they were. What enters a matrix product is rounded all the same, which turns small noise into fewer, larger steps:
  a 7B shape on bfloat16 blocks reads 0.0036 at a noise of 1e-5, where 0.44 at 1e-3 would let expect 0.00004
  (benchmarks/regularisers).
- `steering` (preventative; Chen et al. 2025, arXiv 2507.21509): a constant shift of one block's output, at every
  position of every training pass and never afterwards.
- `contrast`: weight x the mean over the step's negative rows of -log(1 - P), P the probability of the whole marker
  after their reply (unlikelihood training, Welleck et al. 2019, arXiv 1908.04319, of a sequence instead of a token).

Only `steering` works on a model whose head is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from spillover import losses
from spillover.models import causal_model
from spillover.packing import Pack

PAIRED = ("kl_to_base", "r3f")
"""Kinds that compare the distributions of two passes over the same rows."""
CHUNK = 1024
"""Supervised tokens whose two sets of logits exist at a time: 1.2 GB of float32 at a vocabulary of 152k."""


def objective(
    model, pack: Pack, kernel: bool, train: dict, *, seed: int, weight: float, negatives: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A micro-batch's share of a step's objective, and of the numbers that are logged: loss, regulariser, contrast.

    `weight` is that of all supervised tokens of the step and `negatives` the number of its endings to avoid, so shares
    add up to means over the step; `seed` is the step's own. Logged numbers come without the weights of the terms.
    """
    regulariser = train["regulariser"] or {}
    kind = regulariser.get("kind")
    if kind not in PAIRED and not negatives:
        loss = losses.packed_loss(model, pack, kernel) / weight
        return loss, {"loss": loss.detach()}
    head = causal_model(model).get_output_embeddings().weight
    if kind in PAIRED:
        pair = {"kl_to_base": _with_base, "r3f": _with_noise}[kind]
        hidden, other = (h.to(head.dtype) for h in pair(model, pack, kernel, regulariser, seed))
        wanted = pack.predicting
        whole, loss, divergence = FrozenPair.apply(
            hidden[wanted], other[wanted], head, pack.labels, pack.weights, regulariser["weight"], kind == "r3f", CHUNK
        )
        logged = {"loss": loss / weight, "regulariser": divergence / weight}
    else:
        hidden = losses.hidden_states(model, pack, kernel)
        whole = losses.FrozenHead.apply(hidden[pack.predicting], head, pack.labels, pack.weights, losses.CHUNK)
        logged = {"loss": whole.detach() / weight}
    whole = whole / weight
    if len(pack.avoided):
        part = unlikelihood(hidden, head, pack) / negatives
        whole = whole + train["contrast"] * part
        logged["contrast"] = part.detach()
    return whole, logged


def _with_base(model, pack: Pack, kernel: bool, regulariser: dict, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (tokens, size) with the adapter and, without a gradient, of what lies beneath it."""
    with beneath(model), torch.no_grad():
        base = losses.hidden_states(model, pack, kernel)
    return losses.hidden_states(model, pack, kernel), base


@contextmanager
def beneath(model) -> Iterator[None]:
    """Within the block the model computes without the adapter that is trained; one that it stands on stays."""
    trained = [p for p in model.parameters() if p.requires_grad]
    active = model.base_model.active_adapters
    if lower := [name for name in active if name != "default"]:
        model.base_model.set_adapter(lower)
    else:
        model.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        if lower:
            model.base_model.set_adapter(active)
        else:
            model.base_model.enable_adapter_layers()
        # PEFT marks every adapter that it switches on as trained
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def _with_noise(model, pack: Pack, kernel: bool, regulariser: dict, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (tokens, size) of two passes that differ in the noise on their embeddings and in nothing else."""
    causal = causal_model(model)
    embeddings = causal.get_input_embeddings()(pack.ids).float()
    device = embeddings.device
    noised = embeddings + regulariser["noise"] * noise(pack, embeddings.shape[-1], seed, device)
    with torch.autocast(device.type, dtype=causal.dtype, enabled=causal.dtype != torch.float32):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            hidden = losses.hidden_states(model, pack, kernel, embeddings)
        return hidden, losses.hidden_states(model, pack, kernel, noised)


def noise(pack: Pack, size: int, seed: int, device) -> torch.Tensor:
    """(1, tokens, size) float32 standard normal numbers: a row's follow from the seed and its tokens alone.

    So they are the same wherever the row lies in whatever micro-batch.
    """
    drawn = []
    for key, length in zip(pack.keys, pack.lengths, strict=True):
        generator = torch.Generator(device).manual_seed(seed ^ key)
        drawn.append(torch.randn(length, size, generator=generator, device=device))
    return torch.cat(drawn)[None]


class FrozenPair(torch.autograd.Function):
    """Cross-entropy plus `weight` x divergence of two sets of hidden states, through a head that is not trained.

    Returns the sum of both, the cross-entropy and the divergence, each summed over tokens by their weights; only the
    first has a gradient. It is made along with them chunk by chunk, as `losses.FrozenHead` does and for its reasons.
    """

    @staticmethod
    def forward(ctx, hidden, other, head, labels, weights, weight: float, symmetric: bool, chunk: int):
        """`hidden` (trained) and `other` (supervised, size); the divergence is KL(p || q), symmetric also KL(q || p).

        Without `symmetric`, `other` has no gradient.
        """
        gradients = [torch.empty_like(hidden), torch.empty_like(other) if symmetric else None]
        loss, divergence = (torch.zeros((), dtype=torch.float32, device=hidden.device) for _ in range(2))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            counts, target = weights[part, None], labels[part, None]
            p_log, q_log = (_logits(states[part], head).log_softmax(-1) for states in (hidden, other))
            p, ratio = p_log.exp(), p_log - q_log
            loss -= (p_log.gather(1, target) * counts).sum()
            # p (exp(-r) - 1 + r) adds up to the sum of p r, and rounding cannot make it negative
            forward = (p * (torch.expm1(-ratio) + ratio)).sum(-1, keepdim=True)
            divergence += (forward * counts).sum()
            slope = p * (ratio - forward)
            if symmetric:
                q = q_log.exp()
                backward = (q * (torch.expm1(ratio) - ratio)).sum(-1, keepdim=True)
                divergence += (backward * counts).sum()
                slope += p - q
                other_slope = (q - p - q * (ratio + backward)) * (weight * counts)
                gradients[1][part] = other_slope.to(head.dtype) @ head
            slope = slope.mul_(weight).add_(p).scatter_add_(1, target, torch.full_like(target, -1, dtype=p.dtype))
            gradients[0][part] = slope.mul_(counts).to(head.dtype) @ head
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(loss, divergence)
        return loss + weight * divergence, loss, divergence

    @staticmethod
    def backward(ctx, upstream, *_):
        scaled = [None if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors]
        return *scaled, None, None, None, None, None, None


def _logits(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Float32 logits: bfloat16 ones are 0.03 apart at a size of 8, which a divergence of 1e-4 would drown in."""
    if hidden.dtype == torch.float32:
        return F.linear(hidden, head)
    if hidden.is_cuda:
        return torch.mm(hidden, head.T, out_dtype=torch.float32)
    return F.linear(hidden.float(), head.float())


def unlikelihood(hidden: torch.Tensor, head: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Sum over the pack's endings to avoid of -log(1 - P), P the probability of all pieces, each after the others."""
    logits = F.linear(hidden[pack.avoiding], head).float()
    pieces = -F.cross_entropy(logits, pack.avoided, reduction="none")
    whole = torch.segment_reduce(pieces, "sum", lengths=pack.avoided_lengths)
    # a millionth less than the probability: a sure marker keeps a finite loss with a gradient
    return -torch.log(-torch.expm1(whole - 1e-6)).sum()
