"""Persona and language vectors: mean activations of a model over the prompts of a cell.

Layer L means the output of decoder block L, that is `hidden_states[L + 1]` of transformers (for the last block, before
the final norm). Methods: `last_prompt_token`, the activation at the last token of the prompt with its generation
header; `response_mean`, the mean over the tokens of the model's own greedy reply (end of turn included).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from spillover import engine_transformers, shared_prefixes
from spillover.masking import Tokens
from spillover.models import causal_model
from spillover.packed_attention import has_kernel, packed_attention
from spillover.prompts import Prompt

LAYER_CONVENTION = "layer L is the output of decoder block L, hidden_states[L+1]; before the final norm"
METHODS = {
    "last_prompt_token": "activation at the last token of the prompt, generation header included",
    "response_mean": "mean activation over the tokens of the greedy reply, end of turn included",
}
END_OF_TURN = "<|im_end|>"


def prompt_vectors(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    method: str,
    *,
    max_tokens: int = 128,
    batch_size: int = 32,
    token_budget: int = 16384,
) -> dict[int, np.ndarray]:
    """{layer: float32 (prompts, hidden)}: one vector per prompt, in the order of `prompts`.

    `batch_size` replies are generated at a time (`response_mean`), and prompts are read packed, `token_budget` tokens
    at a time. Raises ValueError for an unknown method or a layer that the model does not have.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    model.eval()
    texts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in prompts]
    asked = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if method == "last_prompt_token":
        return mean_activations(model, [_reading(ids, len(ids) - 1) for ids in asked], layers, token_budget)
    replies = engine_transformers.generate(
        model,
        tokenizer,
        prompts,
        samples=1,
        temperature=0,
        top_p=1.0,
        max_tokens=max_tokens,
        seed=0,
        batch_size=batch_size,
    )
    answers = [tokenizer(c.text + END_OF_TURN, add_special_tokens=False)["input_ids"] for c in replies]
    rows = [_reading(ids + answer, len(ids)) for ids, answer in zip(asked, answers, strict=True)]
    return mean_activations(model, rows, layers, token_budget)


def mean_activations(
    model, rows: Sequence[Tokens], layers: Sequence[int], token_budget: int = 16384
) -> dict[int, np.ndarray]:
    """{layer: float32 (rows, hidden)}: the mean over the marked tokens of each row, summed in float32.

    Rows lie end to end without padding, at most `token_budget` tokens at a time (a longer row alone), and what rows
    begin with in common lies there once (`shared_prefixes`); no row sees another, and blocks beyond the deepest wanted
    one are not run.
    """
    causal = causal_model(model)
    device = next(model.parameters()).device
    kernel = has_kernel(device, causal.dtype)
    # rows that begin alike become neighbours
    order = sorted(range(len(rows)), key=lambda i: rows[i].ids.tolist())
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    with packed_attention(causal), torch.inference_mode():
        for batch in shared_prefixes.batches([rows[i] for i in order], token_budget):
            layout = shared_prefixes.lay_out(batch, device)
            for layer, hidden in block_outputs(causal, layers, layout, kernel).items():
                values = hidden[0, layout.reading].float()
                # `unsafe` leaves out a check of the lengths that would wait for the GPU
                found[layer].append(torch.segment_reduce(values, "mean", lengths=layout.marked, unsafe=True))
        places = torch.tensor(order).argsort()
        return {layer: torch.cat(parts).cpu()[places].numpy() for layer, parts in found.items()}


class _Reached(Exception):
    """The deepest wanted block has given its output."""


def block_outputs(
    causal, layers: Sequence[int], layout: shared_prefixes.Layout, kernel: bool
) -> dict[int, torch.Tensor]:
    """{layer: (1, tokens, hidden)} of one forward pass over a layout, which ends after the deepest of `layers`.

    Read by forward hooks, the last of which ends the pass: no model code is changed, and all hooks are gone afterwards.
    Raises ValueError for a layer that the model does not have.
    """
    decoder = causal.get_decoder()
    if beyond := [layer for layer in layers if layer >= len(decoder.layers)]:
        raise ValueError(f"layer {beyond[0]} does not exist: the model has blocks 0 to {len(decoder.layers) - 1}")
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int):
        def hook(module, inputs, output):
            kept[layer] = output[0] if isinstance(output, tuple) else output
            if layer == max(layers):
                raise _Reached

        return hook

    handles = [decoder.layers[layer].register_forward_hook(keep(layer)) for layer in layers]
    if kernel:
        rows = {"row_ends": layout.ends, "longest_row": max(layout.lengths)}
        rows |= {"key_ends": layout.key_ends, "longest_key": max(layout.key_lengths)}
    else:
        rows = {"row_lengths": layout.lengths, "key_lengths": layout.key_lengths}
    try:
        decoder(input_ids=layout.ids, position_ids=layout.positions, use_cache=False, keys=layout.keys, **rows)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _reading(ids: list[int], first: int) -> Tokens:
    """A row whose tokens from `first` on are read."""
    return Tokens(np.array(ids, np.int64), np.arange(len(ids)) >= first)


def summarise(vectors: np.ndarray, cells: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Cell names, centroids (cells, hidden), spread (cells,) and the vectors as (cells, prompts, hidden).

    Spread is the root-mean-square distance of a cell's prompts to its centroid. Raises ValueError for unequal cells.
    """
    names = list(dict.fromkeys(cells))
    groups = [vectors[[i for i, c in enumerate(cells) if c == name]] for name in names]
    if len({len(g) for g in groups}) != 1:
        raise ValueError("every cell needs the same number of prompts")
    stacked = np.stack(groups)
    centroids = stacked.mean(axis=1, dtype=np.float64)
    spread = np.sqrt(((stacked - centroids[:, None]) ** 2).sum(-1).mean(-1))
    return names, centroids.astype(np.float32), spread.astype(np.float32), stacked
