"""Persona and language vectors: mean activations of a model over the prompts of a cell.

Layer L means the output of decoder block L, that is `hidden_states[L + 1]` of transformers (for the last block, before
the final norm). Methods: `last_prompt_token`, the activation at the last token of the prompt with its generation
header; `response_mean`, the mean over the tokens of the model's own greedy reply (end of turn included).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from spillover import engine_transformers
from spillover.prompts import Prompt

LAYER_CONVENTION = "layer L is the output of decoder block L, hidden_states[L+1]; before the final norm"
METHODS = {
    "last_prompt_token": "activation at the last token of the prompt, generation header included",
    "response_mean": "mean activation over the tokens of the greedy reply, end of turn included",
}


def block_outputs(model, layers: Sequence[int], ids: torch.Tensor, attention: torch.Tensor) -> dict[int, torch.Tensor]:
    """{layer: (rows, tokens, hidden)} of one forward pass, read by hooks that are removed afterwards.

    Raises ValueError for a layer that the model does not have.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    blocks = causal.get_decoder().layers
    if beyond := [layer for layer in layers if layer >= len(blocks)]:
        raise ValueError(f"layer {beyond[0]} does not exist: the model has blocks 0 to {len(blocks) - 1}")
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int):
        def hook(module, inputs, output):
            kept[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        with torch.inference_mode():
            causal.get_decoder()(input_ids=ids, attention_mask=attention)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def prompt_vectors(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    method: str,
    *,
    max_tokens: int = 128,
    batch_size: int = 32,
) -> dict[int, np.ndarray]:
    """{layer: float32 (prompts, hidden)}: one vector per prompt, in the order of `prompts`."""
    device = next(model.parameters()).device
    model.eval()
    texts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in prompts]
    prompt_ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    rows, spans = prompt_ids, [(len(ids) - 1, len(ids)) for ids in prompt_ids]
    if method == "response_mean":
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
        rows = [
            a + tokenizer(c.text + "<|im_end|>", add_special_tokens=False)["input_ids"]
            for a, c in zip(prompt_ids, replies, strict=True)
        ]
        spans = [(len(a), len(b)) for a, b in zip(prompt_ids, rows, strict=True)]
    elif method != "last_prompt_token":
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    result = {layer: np.zeros((len(rows), model.config.hidden_size), np.float32) for layer in layers}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(rows[i]) for i in batch)
        # Right padding leaves the positions of real tokens as they are; causal attention never sees what follows.
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        attention = torch.zeros((len(batch), width), dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(rows[i])] = torch.tensor(rows[i])
            attention[row, : len(rows[i])] = 1
        outputs = block_outputs(model, layers, ids.to(device), attention.to(device))
        for layer, hidden in outputs.items():
            for row, i in enumerate(batch):
                first, last = spans[i]
                result[layer][i] = hidden[row, first:last].float().mean(0).cpu().numpy()
    return result


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
