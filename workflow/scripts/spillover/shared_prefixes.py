"""Rows that begin alike, laid end to end with their common beginning once: for reading activations, not for training.

In a causal model what a token becomes depends on the tokens before it alone. The system prompt of a persona is then
computed once for all its questions, and every question attends to it and to itself; the result is that of the whole
row. This module only arranges tokens; `packed_attention` attends over the arrangement, and nothing here knows models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from spillover.masking import Tokens


@dataclass(frozen=True)
class Family:
    """Rows whose first `shared` tokens are the same; no marked token is among them."""

    shared: int
    rows: list[Tokens]


@dataclass(frozen=True)
class Layout:
    """Segments end to end on one device: the common beginning of each family, then the rest of each of its rows.

    `ids` and `positions` int64 (1, tokens), positions being those within the whole row. `lengths` of the segments in
    tokens, `key_lengths` of what they attend to, and both as int32 `ends` and `key_ends` (segments + 1,) that begin
    with 0. `keys` int64 (keys,): the tokens that each segment attends to, its family's beginning and itself. `reading`
    int64 (marked,): the marked tokens, `marked` int64 (rows,) how many each row has.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    ends: torch.Tensor
    key_ends: torch.Tensor
    keys: torch.Tensor
    reading: torch.Tensor
    marked: torch.Tensor


def families(rows: Sequence[Tokens]) -> list[Family]:
    """Cut consecutive rows into families where that saves tokens; sorted rows, which lie by their relatives, save most.

    A row without a relative is a family of its own with nothing shared.
    """
    alike = np.array([_common(a, b) for a, b in pairwise(rows)], np.int64)
    _, cuts = _families(alike, 0, len(rows)) if rows else (0, [])
    return [Family(shared, list(rows[start:end])) for start, end, shared in cuts]


def _families(alike: np.ndarray, start: int, end: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Tokens saved, and (start, end, shared) of each family, of the rows from `start` to `end`.

    They are one family, or are cut wherever neighbours have the least in common, if the pieces save more.
    """
    if end - start == 1:
        return 0, [(start, end, 0)]
    inside = alike[start : end - 1]
    least = int(inside.min())
    cuts = [start, *(start + 1 + np.flatnonzero(inside == least)).tolist(), end]
    pieces = [_families(alike, *piece) for piece in pairwise(cuts)]
    saved = sum(piece[0] for piece in pieces)
    whole = least * (end - start - 1)
    if whole > saved:
        return whole, [(start, end, least)]
    return saved, [family for _, found in pieces for family in found]


def batches(rows: Sequence[Tokens], token_budget: int) -> Iterator[list[Family]]:
    """The rows in their order, at most `token_budget` tokens of a layout together; a longer row comes alone.

    A family that does not fit is continued in the next batch, which has its common beginning as well.
    """
    batch: list[Family] = []
    tokens = 0
    for family in families(rows):
        part = Family(family.shared, [])
        for row in family.rows:
            needed = len(row.ids) - (family.shared if part.rows else 0)
            if tokens and tokens + needed > token_budget:
                yield [*batch, part] if part.rows else batch
                batch, part, tokens = [], Family(family.shared, []), 0
                needed = len(row.ids)
            part.rows.append(row)
            tokens += needed
        batch.append(part)
    if batch:
        yield batch


def lay_out(batch: Sequence[Family], device) -> Layout:
    """Lay families end to end, each beginning once; `reading` and `marked` follow the order of their rows."""
    ids, positions, keys, reading, lengths, key_lengths = [], [], [], [], [], []
    at = 0
    for family in batch:
        beginning = np.arange(at, at + family.shared)
        segments = [(family.rows[0].ids[: family.shared], 0, beginning)] if family.shared else []
        at += family.shared
        for row in family.rows:
            own = np.arange(at, at + len(row.ids) - family.shared)
            segments.append((row.ids[family.shared :], family.shared, np.concatenate([beginning, own])))
            reading.append(np.flatnonzero(row.supervised) - family.shared + at)
            at += len(own)
        for part, first, attended in segments:
            ids.append(part)
            positions.append(np.arange(first, first + len(part)))
            keys.append(attended)
            lengths.append(len(part))
            key_lengths.append(len(attended))

    def tensor(array, dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype)).to(device, non_blocking=True)

    return Layout(
        ids=tensor(np.concatenate(ids), np.int64)[None],
        positions=tensor(np.concatenate(positions), np.int64)[None],
        lengths=tuple(lengths),
        key_lengths=tuple(key_lengths),
        ends=tensor(np.cumsum([0, *lengths]), np.int32),
        key_ends=tensor(np.cumsum([0, *key_lengths]), np.int32),
        keys=tensor(np.concatenate(keys), np.int64),
        reading=tensor(np.concatenate(reading), np.int64),
        marked=tensor([len(read) for read in reading], np.int64),
    )


def _common(a: Tokens, b: Tokens) -> int:
    """Tokens that two rows begin with in common, as far as neither has a marked one."""
    most = min(int(a.supervised.argmax()), int(b.supervised.argmax()))
    differing = np.flatnonzero(a.ids[:most] != b.ids[:most])
    return int(differing[0]) if len(differing) else most
