"""Equal, not worse, and how many replies would decide: what a rate's interval alone cannot answer.

Equivalence is two one-sided tests (TOST): the difference of two rates is shown to lie within a margin, which is not
the same as no difference being found.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from scipy import stats
from statsmodels.stats.proportion import tost_proportions_2indep

from spillover.statistics import clopper_pearson, wilson

MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class Equivalence:
    """Larger of the two one-sided p values, the margin as a share, and the method the p values come from."""

    p: float
    margin: float
    method: str


def equivalence(k1: int, n1: int, k2: int, n2: int, margin: float) -> Equivalence:
    """TOST of |k1/n1 - k2/n2| < margin, by the score test (Farrington and Manning 1990).

    The score test has no variance where both rates are 0 or both are 1; there the Agresti-Caffo method stands in (one
    success and one failure added to each sample), and `method` says so. Raises ValueError for a margin outside (0, 1).
    """
    if not 0 < margin < 1:
        raise ValueError(f"an equivalence margin is a share between 0 and 1, got {margin}")
    if min(n1, n2) == 0:
        return Equivalence(math.nan, margin, "undefined: no rows")
    alike = (k1 == 0 and k2 == 0) or (k1 == n1 and k2 == n2)
    method = "agresti-caffo" if alike else "score"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = tost_proportions_2indep(k1, n1, k2, n2, -margin, margin, method=method)
    return Equivalence(float(result.pvalue), margin, method)


def below(k: int, n: int, margin: float, confidence: float = 0.95) -> bool:
    """Non-inferiority of a rate that should be near zero: its one-sided exact upper bound lies below the margin."""
    if n == 0:
        return False
    return clopper_pearson(k, n, 2 * confidence - 1)[1] < margin


def rows_for_width(rate: float, half_width: float, confidence: float = 0.95, design_effect: float = 1.0) -> int:
    """Fewest rows for which the Wilson interval of this rate is no wider than `half_width` either way.

    `design_effect` multiplies it for rows that share prompts. Raises ValueError for a width outside (0, 0.5].
    """
    if not 0 < half_width <= 0.5:
        raise ValueError(f"a half width is a share above 0 and at most 0.5, got {half_width}")

    def narrow(n: int) -> bool:
        low, high = wilson(round(rate * n), n, confidence)
        return (high - low) / 2 <= half_width

    return math.ceil(_fewest(narrow) * design_effect)


def rows_for_difference(rate1: float, rate2: float, level: float = 0.05, power: float = 0.8) -> int | None:
    """Rows in each of two cells that show these rates to differ (two-sided score test, normal approximation).

    Fleiss, Levin and Paik (2003), equation 4.14, without continuity correction. None for equal rates.
    """
    if rate1 == rate2:
        return None
    mean = (rate1 + rate2) / 2
    z_level, z_power = stats.norm.ppf(1 - level / 2), stats.norm.ppf(power)
    spread = rate1 * (1 - rate1) + rate2 * (1 - rate2)
    rows = (z_level * math.sqrt(2 * mean * (1 - mean)) + z_power * math.sqrt(spread)) ** 2 / (rate1 - rate2) ** 2
    return math.ceil(rows)


def rows_for_equivalence(rate: float, margin: float, level: float = 0.05, power: float = 0.8) -> int:
    """Rows in each of two cells of one true rate that show them equal within the margin (TOST, normal approximation).

    Chow, Shao and Wang (2008), section 4.2. At least what leaves the two intervals some width: rates of 0 and 1 are
    taken as 1/(2 n).
    """
    z = stats.norm.ppf(1 - level) + stats.norm.ppf((1 + power) / 2)

    def enough(n: int) -> bool:
        p = min(max(rate, 0.5 / n), 1 - 0.5 / n)
        return n >= z**2 * 2 * p * (1 - p) / margin**2

    return _fewest(enough)


def rows_for_bound(margin: float, confidence: float = 0.95) -> int:
    """Fewest rows without a single hit whose one-sided exact upper bound lies below the margin."""
    return math.floor(math.log(1 - confidence) / math.log(1 - margin)) + 1


def _fewest(enough) -> int:
    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_ROWS:
            raise ValueError(f"more than {MOST_ROWS} rows would be needed")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
