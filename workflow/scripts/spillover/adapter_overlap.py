"""How far two adapters' updates share their subspaces, beside what chance gives.

Of each update the leading directions count: those it reads from (right singular vectors of B A) and those it writes to
(left ones). The overlap of two k-dimensional subspaces is |U'V|^2 / k (Frobenius): the mean squared cosine of their
principal angles, 1 for equal spaces, k / d on average for random ones in d dimensions (Hu et al. 2021, section 7.2,
use the same measure). All of A's row space would mislead: it is mostly the random start of A.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pandas as pd

from spillover.adapters import Adapter, layer_index

DIRECTIONS = 8
DRAWS = 400
READS, WRITES, PASSED = "reads", "writes", "written, then read"
WRITERS, READERS = ("o_proj",), ("gate_proj", "up_proj")


def directions(a: np.ndarray, b: np.ndarray, count: int = DIRECTIONS) -> tuple[np.ndarray, np.ndarray]:
    """Leading directions that the update B A reads (in, k) and writes (out, k), orthonormal, k at most `count`.

    `a` (rank, in), `b` (out, rank). Through r x r matrices: the update itself is never formed. Directions of singular
    value zero are left out, so an update of zero has none.
    """
    q_out, r_out = np.linalg.qr(b.astype(np.float64))
    q_in, r_in = np.linalg.qr(a.T.astype(np.float64))
    left, singular, right = np.linalg.svd(r_out @ r_in.T)
    k = min(count, int((singular > max(singular.max(), 1e-30) * 1e-6).sum()))
    return q_in @ right[:k].T, q_out @ left[:, :k]


def overlap(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Overlap of two orthonormal bases (d, k1) and (d, k2), over the smaller k; and the largest cosine of an angle."""
    cosines = np.linalg.svd(first.T @ second, compute_uv=False)
    return float((cosines**2).sum() / min(first.shape[1], second.shape[1])), float(cosines[0])


@lru_cache
def chance(d: int, k1: int, k2: int) -> tuple[float, float]:
    """Overlap of random subspaces: its mean, max(k1, k2) / d, and the value that 2.5 % of random pairs exceed.

    One space is held fixed and the other drawn, since only their relative position counts.
    """
    rng = np.random.default_rng(d * 1000 + k1 * 100 + k2)
    drawn = [np.linalg.qr(rng.standard_normal((d, k2)))[0][:k1] for _ in range(DRAWS)]
    found = [(block**2).sum() / min(k1, k2) for block in drawn]
    return max(k1, k2) / d, float(np.quantile(found, 0.975))


def compare(first: Adapter, second: Adapter) -> pd.DataFrame:
    """One row per module that both have and direction of flow, and per block for what one writes and the other reads.

    Columns layer, projection, space ("reads", "writes", "written, then read"), k, overlap, largest_cosine, expected,
    chance_high. The last space compares what the first writes into the residual stream through attention with what the
    second's feed-forward part of the same block reads from it: all that adapters of disjoint modules can share.
    """
    spaces = [
        {m: directions(a.float().numpy(), b.float().numpy()) for m, (a, b) in x.factors.items()}
        for x in (first, second)
    ]
    rows = []
    for module, projection, space, one, other in _pairs(*spaces):
        if not one.shape[1] or not other.shape[1]:
            continue
        shared, largest = overlap(one, other)
        expected, high = chance(one.shape[0], one.shape[1], other.shape[1])
        row = {"layer": layer_index(module), "projection": projection, "space": space}
        row |= {"k": min(one.shape[1], other.shape[1]), "overlap": shared, "largest_cosine": largest}
        rows.append(row | {"expected": expected, "chance_high": high})
    return pd.DataFrame(rows)


def _pairs(first: dict, second: dict) -> Iterator[tuple]:
    for module in sorted(set(first) & set(second)):
        projection = module.rsplit(".", 1)[1]
        for index, space in enumerate((READS, WRITES)):
            yield module, projection, space, first[module][index], second[module][index]
    for module in sorted(first):
        block, projection = module.rsplit(".", 2)[0], module.rsplit(".", 1)[1]
        for reader in READERS if projection in WRITERS else ():
            if (other := f"{block}.mlp.{reader}") in second:
                yield module, f"{projection} to {reader}", PASSED, first[module][1], second[other][0]
