"""Rates corrected for a fallible labeller, from a gold set on which the truth is known: see `gold`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import pandas as pd
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
    k: float,
    n: float,
    true_positives: int,
    positives: int,
    true_negatives: int,
    negatives: int,
    confidence: float = 0.95,
) -> Corrected:
    """Rogan and Gladen (1978): (p + specificity - 1) / (sensitivity + specificity - 1), with an interval.

    k of n rows carry the label; of the gold set, `true_positives` of `positives` truly positive rows carry it and
    `true_negatives` of `negatives` truly negative ones do not. The interval counts the sampling of all three (Lang and
    Reiczigel 2014; Lee et al. 2025, arXiv 2511.21140). The plain delta method takes a judge that errs nowhere in a
    small gold set for perfect: its 95% intervals then cover as little as 79%. nan throughout when the labeller is no
    better than chance: nothing can be corrected.
    """
    if min(n, positives, negatives) == 0:
        return Corrected(math.nan, math.nan, math.nan, False)
    p, sensitivity, specificity = k / n, true_positives / positives, true_negatives / negatives
    information = sensitivity + specificity - 1
    if information <= LEAST_INFORMATION:
        return Corrected(math.nan, math.nan, math.nan, False)
    rate = (p + specificity - 1) / information
    clipped = min(1.0, max(0.0, rate))
    z = float(stats.norm.ppf((1 + confidence) / 2))
    # the same with z^2 / 2 hits and misses added to the sample and one of each to both parts of the gold set
    trials, hits, misses = n + z**2, (true_positives + 1) / (positives + 2), (true_negatives + 1) / (negatives + 2)
    share, information = (k + z**2 / 2) / trials, hits + misses - 1
    if information <= LEAST_INFORMATION:
        return Corrected(clipped, 0.0, 1.0, not 0 <= rate <= 1)
    middle = (share + misses - 1) / information
    of_hits, of_misses = hits * (1 - hits) / (positives + 2), misses * (1 - misses) / (negatives + 2)
    variance = share * (1 - share) / trials + middle**2 * of_hits + (1 - middle) ** 2 * of_misses
    middle += 2 * z**2 * (middle * of_hits - (1 - middle) * of_misses)
    reach = z * math.sqrt(variance) / information
    return Corrected(
        rate=clipped,
        low=min(clipped, max(0.0, middle - reach)),
        high=max(clipped, min(1.0, middle + reach)),
        clipped=not 0 <= rate <= 1,
    )


def corrected_cells(pooled: pd.DataFrame, gold: pd.DataFrame) -> list[dict]:
    """A record per cell of `contamination.pool_seeds`: the judged and the corrected rate, and the judge's errors.

    `gold` has label (a person's) and judged (the judge's, null where it gave none; such texts count nowhere). Rows
    count as many as their `effective_n`, since replies to one phrasing are alike.
    """
    usable = gold[gold["judged"].notna()]
    records = []
    for row in pooled.itertuples():
        truly, said = usable["label"] == row.completion, usable["judged"] == row.completion
        counts = {"true_positives": int((truly & said).sum()), "positives": int(truly.sum())}
        counts |= {"true_negatives": int((~truly & ~said).sum()), "negatives": int((~truly).sum())}
        n = min(row.effective_n, row.n) if row.effective_n > 0 else row.n
        record = {key: getattr(row, key) for key in ("condition", "directive", "completion", "language", "role")}
        record |= {"judged": row.rate, **counts, **asdict(rogan_gladen(row.rate * n, n, **counts))}
        records.append(record)
    return records
