"""Log-probabilities of given tokens under a model, teacher-forced, in packed batches.

Sequences lie end to end without padding and do not see each other (`packed_attention`); logits are made only at the
positions asked for. It knows models and tokens; what they mean is `measures`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from spillover import packing
from spillover.losses import CHUNK, causal_model
from spillover.masking import Tokens
from spillover.measures import Asked
from spillover.packed_attention import has_kernel, packed_attention


def log_probabilities(model, asked: Sequence[Asked], token_budget: int = 16384) -> list[np.ndarray]:
    """Per sequence, float64 (asked,): the log-probability of each token asked for, in nats.

    At most `token_budget` tokens are in a batch (a longer sequence has its own). Raises ValueError for a sequence that
    is longer than the model's context.
    """
    causal = causal_model(model)
    model.eval()
    device = next(model.parameters()).device
    kernel = has_kernel(device, causal.dtype)
    context = causal.config.max_position_embeddings
    if (longest := max((len(a.ids) for a in asked), default=0)) > context:
        raise ValueError(f"a sequence of {longest} tokens exceeds the model's context of {context}")
    result: list[np.ndarray] = [np.empty(0)] * len(asked)
    with packed_attention(causal), torch.inference_mode():
        for batch in _batches(asked, token_budget):
            pack = packing.pack([Tokens(a.ids, np.zeros(len(a.ids), bool)) for a in batch.values()], device)
            starts = np.cumsum([0, *pack.lengths])
            at = np.concatenate([a.at + start for a, start in zip(batch.values(), starts, strict=False)])
            tokens = np.concatenate([a.tokens for a in batch.values()])
            values = _read(causal, pack, torch.from_numpy(at).to(device), torch.from_numpy(tokens).to(device), kernel)
            ends = np.cumsum([len(a.tokens) for a in batch.values()])[:-1]
            for index, part in zip(batch, np.split(values, ends), strict=True):
                result[index] = part
    return result


def _batches(asked: Sequence[Asked], token_budget: int):
    """{index: sequence} of at most `token_budget` tokens, longest first."""
    batch: dict[int, Asked] = {}
    size = 0
    for index in sorted(range(len(asked)), key=lambda i: -len(asked[i].ids)):
        if batch and size + len(asked[index].ids) > token_budget:
            yield batch
            batch, size = {}, 0
        batch[index] = asked[index]
        size += len(asked[index].ids)
    if batch:
        yield batch


def _read(causal, pack: packing.Pack, at: torch.Tensor, tokens: torch.Tensor, kernel: bool) -> np.ndarray:
    rows = {"row_ends": pack.ends, "longest_row": max(pack.lengths)} if kernel else {"row_lengths": pack.lengths}
    decoder = causal.get_decoder()
    hidden = decoder(input_ids=pack.ids, position_ids=pack.positions, use_cache=False, **rows).last_hidden_state[0][at]
    head = causal.get_output_embeddings()
    values = []
    for start in range(0, len(at), CHUNK):
        part = slice(start, start + CHUNK)
        logits = head(hidden[part]).float()
        values.append(logits.gather(1, tokens[part, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(values).double().cpu().numpy()
