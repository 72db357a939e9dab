"""Tests whose unit is a block of dependent points: the checkpoints of one source persona, the personas of one model.

Five checkpoints of one training run are not five observations. So whole trajectories are permuted between sources, and
signs are flipped per source, never per point. As in `statistics`, every test names the smallest p its design can reach.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from .statistics import TIE, PermutationTest, spearman_exact

MOST_BLOCKS = 8  # 8! = 40,320 orders are enumerated
MOST_SIGNS = 16  # 2**16 sign patterns are enumerated
MOST_EXACT = 9  # pairs; 9! orders are enumerated by spearman_exact


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rho; nan where a side is constant or fewer than three pairs are given."""
    a, b = stats.rankdata(x), stats.rankdata(y)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def partial_spearman(x: Sequence[float], y: Sequence[float], given: Sequence[float]) -> float:
    """Spearman's rho of x and y with the ranks of `given` held fixed; nan where it is undefined.

    (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)) over the three rank correlations (Kendall and Stuart).
    """
    xy, xz, yz = spearman(x, y), spearman(x, given), spearman(y, given)
    left = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / math.sqrt(left)) if left > TIE else math.nan


def spearman_test(x: Sequence[float], y: Sequence[float], seed: int, *, resamples: int = 20_000) -> PermutationTest:
    """Spearman's rho with a two-sided permutation p: exact up to nine pairs, beyond them Monte Carlo with +1."""
    if len(x) <= MOST_EXACT:
        return spearman_exact(x, y)
    observed = spearman(x, y)
    if math.isnan(observed):
        return PermutationTest(math.nan, math.nan, math.nan, len(x), "undefined")
    rng = np.random.default_rng(seed)
    a, b = stats.rankdata(x), stats.rankdata(y)
    orders = rng.permuted(np.tile(a, (resamples, 1)), axis=1)
    drawn = (orders - a.mean()) @ (b - b.mean()) / (len(a) * a.std() * b.std())
    p = (1 + int((np.abs(drawn) >= abs(observed) - TIE).sum())) / (resamples + 1)
    return PermutationTest(observed, p, 1 / (resamples + 1), len(x), f"Monte Carlo, {resamples} draws")


def block_permutation(
    x: Sequence[Sequence[float]], y: Sequence[Sequence[float]], given: Sequence[Sequence[float]] | None = None
) -> PermutationTest:
    """Pooled Spearman's rho of x and y, both (blocks, points), with whole rows of x permuted between blocks.

    With `given` (blocks, points), which stays with y, the statistic is the partial rho. All blocks! orders are
    enumerated (at most MOST_BLOCKS), two-sided. `n` is the number of blocks, the units of the test: four of them cannot
    give a p below 2/24 where the statistic is unique, two give p = 1. nan where the statistic is undefined.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"block_permutation needs two tables of one shape, got {x.shape} and {y.shape}")
    if len(x) > MOST_BLOCKS:
        raise ValueError(f"block_permutation: {len(x)} blocks are more than {MOST_BLOCKS}; test a subset")
    held = None if given is None else np.asarray(given, float).ravel()

    def statistic(table: np.ndarray) -> float:
        if held is None:
            return spearman(table.ravel(), y.ravel())
        return partial_spearman(table.ravel(), y.ravel(), held)

    observed = statistic(x)
    if math.isnan(observed) or len(x) < 2:
        return PermutationTest(observed, math.nan, math.nan, len(x), "undefined")
    values = np.abs([statistic(x[list(order)]) for order in itertools.permutations(range(len(x)))])
    values = values[~np.isnan(values)]
    p, least = (float((values >= bound - TIE).mean()) for bound in (abs(observed), values.max()))
    return PermutationTest(observed, p, least, len(x), f"exact, {len(values)} orders of blocks")


def sign_flip(values: Sequence[float]) -> PermutationTest:
    """Mean of one value a block, and its two-sided p when each block's sign may as well be the other.

    All sign patterns are enumerated (at most MOST_SIGNS blocks); nan values are left out. With n blocks the smallest
    possible p is 2 / 2**n.
    """
    kept = np.asarray([value for value in values if not math.isnan(value)], float)
    if not 1 <= len(kept) <= MOST_SIGNS:
        return PermutationTest(math.nan, math.nan, math.nan, len(kept), "undefined")
    signs = np.array(list(itertools.product((-1, 1), repeat=len(kept))))
    means = np.abs(signs @ kept) / len(kept)
    p = float((means >= abs(kept.mean()) - TIE).mean())
    return PermutationTest(float(kept.mean()), p, 2 / len(signs), len(kept), f"exact, {len(signs)} sign patterns")
