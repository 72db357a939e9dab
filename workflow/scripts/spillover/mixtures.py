"""How many rows of each source a mixture has, and in which order its rows are trained on.

Pure arithmetic over numbers of rows and tokens; it knows neither text nor models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def counts_by_rows(rows: int, shares: Sequence[float]) -> list[int]:
    """Rows of each mixed source among `rows` in all. Raises ValueError when a share is no whole number of rows."""
    counts = [round(rows * share) for share in shares]
    for share, count in zip(shares, counts, strict=True):
        if not np.isclose(rows * share, count):
            raise ValueError(f"a share of {share:g} of {rows} rows is no whole number: change rows")
    return counts


def count_by_tokens(narrow: Sequence[int], mixed: Sequence[int], rows: int, share: float) -> int:
    """How many of `rows` rows are mixed ones, so that they hold `share` of all tokens, to within one row.

    `narrow` and `mixed` are the tokens of the rows of either kind, in the order in which they are taken. Raises
    ValueError when there are too few rows of a kind to come that near.
    """
    counts = np.arange(max(0, rows - len(narrow)), min(rows, len(mixed)) + 1)
    if not len(counts):
        raise ValueError(f"{rows} rows are wanted, and only {len(narrow)} + {len(mixed)} exist")
    narrow_tokens, mixed_tokens = np.cumsum([0, *narrow]), np.cumsum([0, *mixed])
    reached = mixed_tokens[counts] / (mixed_tokens[counts] + narrow_tokens[rows - counts])
    if not reached[0] <= share <= reached[-1]:
        raise ValueError(
            f"a share of {share:g} of the tokens cannot be reached with {len(narrow)} rows and {len(mixed)} mixed "
            f"ones: it lies between {reached[0]:.4f} and {reached[-1]:.4f}"
        )
    return int(counts[np.abs(reached - share).argmin()])


def interleaved(strata: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """A random order, int64 (rows,), in which every stratum is spread evenly over the whole.

    The rows of each stratum are permuted, and the j-th of n among N takes place (j + 1/2) N / n. Cut into steps of B
    rows, every step then has exactly B n / N rows of the stratum wherever that is a whole number.
    """
    strata = np.asarray(strata)
    order, places = [], []
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        order.append(rows)
        places.append((np.arange(len(rows)) + 0.5) * len(strata) / len(rows))
    return np.concatenate(order)[np.argsort(np.concatenate(places), kind="stable")]
