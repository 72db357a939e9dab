"""How geometry grows with the share of broad data in a mixture, and from which share on it is kept.

The curve is the rising step-wise line closest to the points (isotonic regression, weighted by their precision), joined
by straight lines; the threshold is where it first reaches a limit. No functional form is assumed: four shares could not
tell one from another. It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression


@dataclass(frozen=True)
class Threshold:
    """The smallest share that reaches the limit, None if the curve never does, with its 95 % interval.

    `reached`: the share of draws that reach the limit within the tested shares. An end of the interval beyond the
    largest tested share is None. `fitted`: the curve at the shares.
    """

    share: float | None
    low: float | None
    high: float | None
    reached: float
    fitted: tuple[float, ...]


def threshold(
    shares: Sequence[float],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    limit: float,
    seed: int,
    *,
    draws: int = 2000,
) -> Threshold:
    """Fit the curve through (share, value) points, share 0 included, and find where it reaches `limit`.

    Points are drawn anew from normals of the width of their 95 % `intervals`. Raises ValueError below three points.
    """
    if len(shares) < 3:
        raise ValueError("a threshold needs at least three shares, the one without a mixture included")
    order = np.argsort(shares)
    x, y = np.asarray(shares, float)[order], np.asarray(values, float)[order]
    widths = np.array([(high - low) / (2 * 1.959964) for low, high in np.asarray(intervals, float)[order]])
    # a point without any width would otherwise be the only one that counts
    error = np.maximum(widths, max(widths.max() * 0.05, 1e-9))
    fitted = _fit(y, error)
    rng = np.random.default_rng(seed)
    found = [_crossing(x, _fit(row, error), limit) for row in rng.normal(y, error, (draws, len(y)))]
    reached = sum(share is not None for share in found) / draws
    shares = np.sort([np.inf if share is None else share for share in found])
    low, high = (shares[round(tail * (draws - 1))] for tail in (0.025, 0.975))
    ends = [float(end) if np.isfinite(end) else None for end in (low, high)]
    return Threshold(_crossing(x, fitted, limit), *ends, reached, tuple(map(float, fitted)))


def _fit(values: np.ndarray, error: np.ndarray) -> np.ndarray:
    return isotonic_regression(values, weights=error**-2.0).x


def _crossing(x: np.ndarray, curve: np.ndarray, limit: float) -> float | None:
    above = np.flatnonzero(curve >= limit)
    if not len(above):
        return None
    first = above[0]
    if first == 0:
        return float(x[0])
    span = curve[first] - curve[first - 1]
    return float(x[first - 1] + (limit - curve[first - 1]) / span * (x[first] - x[first - 1]))
