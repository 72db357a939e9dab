"""Equal, not worse, and how many replies would decide: what a rate's interval alone cannot answer.

Equivalence is two one-sided tests (TOST): the difference of two rates is shown to lie within a margin, which is not
the same as no difference being found.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
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

    Fleiss, Levin and Paik (2003), equation 4.14, without continuity correction. None for equal or missing rates.
    """
    if not abs(rate1 - rate2) > 0:
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


def rows_for_limit(rate: float, limit: float, level: float = 0.05, power: float = 0.8) -> int | None:
    """Rows that show a rate to lie on its side of a limit (two-sided score test, whose inversion is Wilson's interval).

    Normal approximation, the one-sample counterpart of `rows_for_difference`. None for a rate on the limit or a
    missing one.
    """
    if not abs(rate - limit) > 0:
        return None
    z_level, z_power = stats.norm.ppf(1 - level / 2), stats.norm.ppf(power)
    spread = z_level * math.sqrt(limit * (1 - limit)) + z_power * math.sqrt(rate * (1 - rate))
    return math.ceil((spread / (rate - limit)) ** 2)


def rows_for_gap(rate1: float, rate2: float, limit: float, level: float = 0.05, power: float = 0.8) -> int | None:
    """Rows in each of two cells that show rate1 - rate2 to lie on its side of a limit (two-sided).

    Normal approximation: Chow, Shao and Wang (2008), section 4.2, with one success and one failure added to each cell
    (Agresti and Caffo 2000), which leaves rates of 0 and 1 their width. None for a difference on the limit or so near
    that more than MOST_ROWS would be needed, and for a missing rate.
    """
    beyond = rate1 - rate2 - limit
    if not abs(beyond) > 1e-9:
        return None
    z = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)

    def enough(n: int) -> bool:
        added = [(rate * n + 1) / (n + 2) for rate in (rate1, rate2)]
        return n + 2 >= z**2 * sum(p * (1 - p) for p in added) / beyond**2

    return _fewest(enough) if enough(MOST_ROWS) else None


def rows_for_agreement(rate1: float, rate2: float, margin: float, level: float = 0.05) -> int | None:
    """Rows in each of two cells of these rates that show them equal within the margin.

    None if they lie further apart, or as far as the margin to within what `rows_for_gap` can show.
    Both one-sided tests are asked for at `level`. Two equal rates need `rows_for_equivalence`.
    """
    if not abs(rate1 - rate2) < margin:
        return None
    if rate1 == rate2:
        return rows_for_equivalence(rate1, margin, level)
    needed = [rows_for_gap(rate1, rate2, limit, 2 * level) for limit in (-margin, margin)]
    return None if None in needed else max(needed)


def fewest_deciding(every: Iterable[int | None], one: Iterable[int | None] = ()) -> int | None:
    """Fewest rows that decide a claim which needs all of `every` or any of `one`: None where no number of rows does.

    An entry is the number of rows that its own comparison needs, None if the rates measured will never settle it.
    """
    every, one = list(every), [rows for rows in one if rows is not None]
    if every and None not in every:
        one.append(max(every))
    return min(one, default=None)


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
