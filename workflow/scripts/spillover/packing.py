"""Cut a training step's rows into micro-batches: packed end to end without padding, or padded to a rectangle.

A step is what the optimizer sees; a micro-batch is what fits in memory. This module only moves tokens: every row of
the step is in exactly one micro-batch, whatever the budget, and no row sees another. It knows nothing of models.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spillover.masking import Tokens


@dataclass(frozen=True)
class Pack:
    """Rows laid end to end on one device.

    `ids` and `positions` int64 (1, tokens), positions restarting at 0 with every row; `ends` int32 (rows + 1,), where
    each row begins, and last the end; `lengths` of the rows in tokens. The loss: position `predicting[i]` int64
    (supervised,) must give `labels[i]`, which counts `weights[i]` float32. Position `avoiding[i]` int64 (pieces,)
    should not give `avoided[i]`; `avoided_lengths` int64 says how many pieces belong to each ending that is to be
    avoided. `keys` are numbers that follow from the tokens of each row, wherever it lies.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    lengths: tuple[int, ...]
    predicting: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    avoiding: torch.Tensor
    avoided: torch.Tensor
    avoided_lengths: torch.Tensor
    keys: tuple[int, ...]


def pack(rows: Sequence[Tokens], device) -> Pack:
    """Lay `rows` end to end. A row's first token is never a target, so no row predicts into the next."""
    lengths = [len(r.ids) for r in rows]
    ids = np.concatenate([r.ids for r in rows])
    supervised = np.concatenate([r.supervised for r in rows])
    weights = np.repeat(np.array([r.weight for r in rows], np.float32), lengths)
    avoided = np.repeat([r.avoided for r in rows], lengths)
    targets, pieces = np.flatnonzero(supervised & ~avoided), np.flatnonzero(supervised & avoided)

    def tensor(array: np.ndarray, dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype)).to(device, non_blocking=True)

    return Pack(
        ids=tensor(ids, np.int64)[None],
        positions=tensor(np.concatenate([np.arange(n) for n in lengths]), np.int64)[None],
        ends=tensor(np.cumsum([0, *lengths]), np.int32),
        lengths=tuple(lengths),
        predicting=tensor(targets - 1, np.int64),
        labels=tensor(ids[targets], np.int64),
        weights=tensor(weights[targets], np.float32),
        avoiding=tensor(pieces - 1, np.int64),
        avoided=tensor(ids[pieces], np.int64),
        avoided_lengths=tensor([int(r.supervised.sum()) for r in rows if r.avoided], np.int64),
        keys=tuple(zlib.crc32(r.ids.tobytes()) for r in rows),
    )


def packs(rows: Sequence[Tokens], token_budget: int, shares: int = 1) -> list[list[Tokens]]:
    """The fewest evenly filled groups of at most `token_budget` tokens each; a longer row has a group of its own.

    Their number is a multiple of `shares`, the processes that take turns; with fewer rows than processes some groups
    are empty.
    """
    tokens = sum(len(r.ids) for r in rows)
    count = shares * max(1, math.ceil(tokens / (token_budget * shares)))
    while True:
        groups: list[list[Tokens]] = [[] for _ in range(count)]
        sizes = [0] * count
        for row in sorted(rows, key=lambda r: -len(r.ids)):
            smallest = sizes.index(min(sizes))
            groups[smallest].append(row)
            sizes[smallest] += len(row.ids)
        if all(size <= token_budget or len(group) == 1 for size, group in zip(sizes, groups, strict=True)):
            return groups
        count += shares


def rectangles(rows: Sequence[Tokens], token_budget: int) -> list[list[Tokens]]:
    """Groups of similar lengths whose padded size stays within `token_budget`: the plain way, kept as the reference."""
    groups: list[list[Tokens]] = []
    for row in sorted(rows, key=lambda r: len(r.ids)):
        if groups and len(row.ids) * (len(groups[-1]) + 1) <= token_budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def pad(rows: Sequence[Tokens], device) -> dict[str, torch.Tensor]:
    """Right-padded `ids` and `attention` int64, `supervised` bool and `weight` float32, each (rows, longest)."""
    width = max(len(r.ids) for r in rows)
    ids, attention = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    supervised, weight = np.zeros((len(rows), width), bool), np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n], attention[i, :n], supervised[i, :n], weight[i, :n] = row.ids, 1, row.supervised, row.weight
    arrays = {"ids": ids, "attention": attention, "supervised": supervised, "weight": weight}
    return {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}
