"""Rates corrected for a fallible labeller, from a gold set on which the truth is known.

Translations are a gold set for language labels: their language is known by construction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST_INFORMATION = 1e-9


@dataclass(frozen=True)
class Corrected:
    """The corrected rate with its interval; `clipped` where the estimate lay outside [0, 1]."""

    rate: float
    low: float
    high: float
    clipped: bool


def rogan_gladen(
    k: int, n: int, true_positives: int, positives: int, true_negatives: int, negatives: int, confidence: float = 0.95
) -> Corrected:
    """Rogan and Gladen (1978): (p + specificity - 1) / (sensitivity + specificity - 1), with a delta-method interval.

    k of n rows carry the label; of the gold set, `true_positives` of `positives` truly positive rows carry it and
    `true_negatives` of `negatives` truly negative ones do not. The interval counts the sampling of all three (Lee et
    al. 2025, arXiv 2511.21140). nan throughout when the labeller is no better than chance: nothing can be corrected.
    """
    if min(n, positives, negatives) == 0:
        return Corrected(math.nan, math.nan, math.nan, False)
    p, sensitivity, specificity = k / n, true_positives / positives, true_negatives / negatives
    information = sensitivity + specificity - 1
    if information <= LEAST_INFORMATION:
        return Corrected(math.nan, math.nan, math.nan, False)
    rate = (p + specificity - 1) / information
    variance = (
        p * (1 - p) / n
        + rate**2 * sensitivity * (1 - sensitivity) / positives
        + (1 - rate) ** 2 * specificity * (1 - specificity) / negatives
    ) / information**2
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(variance)
    return Corrected(
        rate=min(1.0, max(0.0, rate)),
        low=min(1.0, max(0.0, rate - reach)),
        high=min(1.0, max(0.0, rate + reach)),
        clipped=not 0 <= rate <= 1,
    )


def corrected_shares(observed: Sequence[float], confusion: np.ndarray) -> np.ndarray:
    """True shares of several labels, (labels,) float64 adding to 1: the multi-class form of `rogan_gladen`.

    `confusion[t, l]` counts gold rows of truth t that were labelled l. Non-negative least squares of observed = C^T
    true. Raises ValueError when a truth has no gold rows or two truths are labelled alike (nothing tells them apart).
    """
    from scipy.optimize import nnls

    confusion = np.asarray(confusion, float)
    rows = confusion.sum(axis=1, keepdims=True)
    if (rows == 0).any():
        raise ValueError(f"no gold row for label number {int(np.flatnonzero(rows[:, 0] == 0)[0])}")
    conditional = confusion / rows
    if np.linalg.matrix_rank(conditional, tol=1e-9) < len(conditional):
        raise ValueError("the labeller does not tell all labels apart, so their shares cannot be corrected")
    shares, _ = nnls(conditional.T, np.asarray(observed, float))
    return shares / shares.sum()
