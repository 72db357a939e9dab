"""Do two square matrices over the same items agree? Items are relabelled, never single cells."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import stats

from spillover.statistics import MOST_RELABELLED, TIE, PermutationTest

DRAWS = 20_000


def mantel(first: np.ndarray, second: np.ndarray, seed: int = 0) -> PermutationTest:
    """Mantel's test (1967) of two square matrices (items, items): Spearman over the cells off the diagonal.

    One relabelling of the items moves the rows and columns of `second` together. All items! relabellings up to
    MOST_RELABELLED items, else DRAWS random ones with the +1 correction. Cells that are nan in either are left out;
    nan statistic where fewer than three cells vary.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    size = len(first)
    rows, columns = np.nonzero(~np.eye(size, dtype=bool) & ~np.isnan(first))
    if np.isnan(second[~np.eye(size, dtype=bool)]).any():
        return PermutationTest(math.nan, math.nan, math.nan, 0, "undefined: incomplete second matrix")
    values = first[rows, columns]
    if len(values) < 3 or np.ptp(values) == 0:
        return PermutationTest(math.nan, math.nan, math.nan, len(values), "undefined")
    if size <= MOST_RELABELLED:
        orders = np.array(list(itertools.permutations(range(size))))
        method = f"exact, {len(orders)} relabellings"
    else:
        rng = np.random.default_rng(seed)
        orders = np.array([np.arange(size), *(rng.permutation(size) for _ in range(DRAWS))])
        method = f"Monte Carlo, {DRAWS} draws"
    ranks = stats.rankdata(values)
    ranks = ranks - ranks.mean()
    moved = stats.rankdata(second[orders[:, rows], orders[:, columns]], axis=1)
    moved = moved - moved.mean(axis=1, keepdims=True)
    scale = np.sqrt((moved**2).sum(axis=1) * (ranks**2).sum())
    rho = np.divide(moved @ ranks, scale, out=np.zeros(len(orders)), where=scale > 0)
    p = float((np.abs(rho) >= abs(rho[0]) - TIE).mean())
    least = float((np.abs(rho) >= np.abs(rho).max() - TIE).mean())
    return PermutationTest(float(rho[0]), p, least, len(values), method)
