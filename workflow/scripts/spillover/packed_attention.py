"""Attention over rows packed end to end: each row attends to its own past only.

Rows may have a common beginning that lies there once (`shared_prefixes`): each then attends to that and to itself.

Registered with transformers by name, so no model code is changed. On a GPU in bfloat16 or float16 it is torch's
variable-length kernel; elsewhere (a CPU, float32) one scaled dot product a row, which is exact and slower.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional as F

NAME = "packed_rows"
KERNEL_DTYPES = (torch.bfloat16, torch.float16)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the variable-length kernel serves tensors like these."""
    return device.type == "cuda" and dtype in KERNEL_DTYPES


def packed_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    row_ends: torch.Tensor | None = None,
    row_lengths: Sequence[int] = (),
    longest_row: int = 0,
    keys: torch.Tensor | None = None,
    key_ends: torch.Tensor | None = None,
    key_lengths: Sequence[int] = (),
    longest_key: int = 0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row. `query` (1, heads, tokens, size), `key` and `value` with their own heads.

    Returns (1, tokens, heads, size), as transformers expects it. The row boundaries come as keyword arguments of the
    model's own call: `row_ends` and `longest_row` for the kernel, `row_lengths` for the exact path. Where rows attend
    to more than themselves, `keys` are the tokens that they attend to, row by row and each row's own last, with the
    boundaries `key_ends` and `longest_key`, or `key_lengths`. Raises ValueError when a mask was made or boundaries are
    missing: either means that the rows would run into each other.
    """
    if attention_mask is not None or (row_ends is None and not row_lengths):
        raise ValueError("packed rows need their boundaries and no mask")
    # under autocast the rotary embedding leaves queries and keys in the precision of the residual stream
    query, key = query.to(value.dtype), key.to(value.dtype)
    if keys is None:
        key_ends, key_lengths, longest_key = row_ends, row_lengths, longest_row
    else:
        key, value = key.index_select(2, keys), value.index_select(2, keys)
    if row_ends is not None:
        groups = query.shape[1] // key.shape[1]
        query, key, value = (t[0].transpose(0, 1) for t in (query, key, value))
        return _kernel(query, key, value, row_ends, key_ends, longest_row, longest_key, scaling, groups)[None], None
    queries = query.split(list(row_lengths), dim=2)
    attended = zip(*(t.split(list(key_lengths), dim=2) for t in (key, value)), strict=True)
    rows = [_row(q, k, v, scaling) for q, (k, v) in zip(queries, attended, strict=True)]
    return torch.cat(rows, dim=2).transpose(1, 2), None


def _row(query, key, value, scaling) -> torch.Tensor:
    """One row, whose last query stands at its last key."""
    before = key.shape[2] - query.shape[2]
    mask = None
    if before:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(before)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


def _kernel(query, key, value, row_ends, key_ends, longest_row, longest_key, scaling, groups) -> torch.Tensor:
    """torch's kernel on (tokens, heads, size); its signature has changed with torch 2.10, 2.11 and 2.12.

    Of a row with more keys than queries the last query stands at the last key, as flash attention counts since 2.1.
    """
    from torch.nn.attention.varlen import varlen_attn

    options = {"window_size": (-1, 0)} if "window_size" in KERNEL_OPTIONS else {"is_causal": True}
    if "scale" in KERNEL_OPTIONS:
        options["scale"] = scaling
    if groups > 1 and "enable_gqa" in KERNEL_OPTIONS:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return varlen_attn(query, key, value, row_ends, key_ends, longest_row, longest_key, **options)


def _kernel_options() -> frozenset[str]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


KERNEL_OPTIONS = _kernel_options()


@contextmanager
def packed_attention(causal) -> Iterator[None]:
    """Within the block, `causal` (a transformers model) attends within packed rows; its own way returns afterwards.

    The name is registered as an attention function and deliberately not as a mask function: transformers then makes
    no mask at all, while a registered one is preceded by a look at the positions that waits for the GPU.
    Raises ValueError for a model with other than full attention.
    """
    from transformers import AttentionInterface

    if other := set(getattr(causal.config, "layer_types", None) or []) - {"full_attention"}:
        raise ValueError(f"packed rows need full attention in every layer, and this model has {sorted(other)[0]}")
    AttentionInterface.register(NAME, packed_rows)
    before = causal.config._attn_implementation
    causal.config._attn_implementation = NAME
    try:
        yield
    finally:
        causal.config._attn_implementation = before
