"""Intervals, permutation tests and agreement for rates measured on few prompts and few seeds.

Pure numpy and scipy: this module knows nothing of languages, models or files. Three habits run through it:

* a rate of 0/n still has an interval (Wilson, Clopper-Pearson), and a bootstrap never replaces it;
* replies to one prompt are not independent, so clusters (prompts, seeds) are resampled before rows;
* a permutation test reports the smallest p its design can reach, because with five bystander languages
  no outcome whatever reaches p < 0.0167.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

EXACT_ATOMS = 200_000  # most distinct sums kept while convolving exact null distributions
MOST_RELABELLED = 8  # languages; 8! = 40,320 relabellings are enumerated
TIE = 1e-9  # two permutation statistics closer than this are the same value


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of the proportion k/n; (nan, nan) when n is 0."""
    return _proportion_interval(k, n, confidence, "wilson")


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact (conservative) two-sided interval of the proportion k/n; (nan, nan) when n is 0."""
    return _proportion_interval(k, n, confidence, "exact")


def sidak_upper(k: int, n: int, cells: int, confidence: float = 0.95) -> float:
    """Upper bound of k/n that holds for the largest of `cells` such rates at once (Sidak).

    The share left to each of `cells` independent bounds is 1 - confidence**(1/cells), one-sided; the bound
    itself is Clopper-Pearson's.
    """
    if k >= n:
        return 1.0
    return float(stats.beta.ppf(confidence ** (1 / cells), k + 1, n - k))


def sidak_lower(k: int, n: int, cells: int, confidence: float = 0.95) -> float:
    """Lower bound of k/n that holds for all of `cells` such rates at once (Sidak): the mirror of `sidak_upper`.

    The largest of the cells' lower bounds is a lower bound of the largest rate.
    """
    return 1.0 - sidak_upper(n - k, n, cells, confidence)


def newcombe(k1: int, n1: int, k2: int, n2: int, confidence: float = 0.95) -> tuple[float, float]:
    """Newcombe's hybrid score interval of k1/n1 - k2/n2."""
    return difference_interval(k1 / n1, wilson(k1, n1, confidence), k2 / n2, wilson(k2, n2, confidence))


def difference_interval(
    p1: float, interval1: tuple[float, float], p2: float, interval2: tuple[float, float]
) -> tuple[float, float]:
    """Interval of p1 - p2 recovered from the interval of each (the rule inside Newcombe's method).

    It takes any two intervals, so two rates averaged over seeds are compared as two single cells are.
    """
    low = p1 - p2 - math.hypot(p1 - interval1[0], interval2[1] - p2)
    high = p1 - p2 + math.hypot(interval1[1] - p1, p2 - interval2[0])
    return low, high


def half_even_percent(rate: float) -> int:
    """A rate as a whole percentage, halves to the even neighbour (as the published matrix is rounded).

    The product is first rounded to nine decimals: 0.285 * 100 is 28.499999999999996 in binary.
    """
    return round(round(100 * rate, 9))


def stable_seed(*parts: object) -> int:
    """A 64-bit seed from the text of `parts`, the same in every process (unlike `hash`)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def cluster_bootstrap(
    clusters: Sequence[Sequence[int]], seed: int, *, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a rate when its rows come in clusters (replies to one prompt).

    `clusters` holds one sequence of 0/1 values per cluster. Clusters are drawn with replacement, then rows
    within each drawn cluster. With few clusters it is rough: two phrasings give only three different draws
    of clusters, so the interval shows how far the phrasings differ rather than a calibrated 95 %; below
    about eight clusters read it beside the Wilson interval and the two phrasings' own rates. When every
    value is equal it has no width.
    """
    counts = [(int(sum(rows)), len(rows)) for rows in clusters if len(rows)]
    successes = np.array([[[k for k, _ in counts]]])
    trials = np.array([[[n for _, n in counts]]])
    return percentile_interval(nested_bootstrap(successes, trials, seed, resamples), confidence)


def nested_bootstrap(successes: np.ndarray, trials: np.ndarray, seed: int, resamples: int = 2000) -> np.ndarray:
    """Bootstrap draws of a rate averaged over strata and seeds, resampling seeds, then clusters, then rows.

    `successes`, `trials`: integers (strata, seeds, clusters); clusters absent from a cell have zero trials.
    One draw of seeds serves all strata, since a seed is one trained model seen in every stratum. Rows are
    0/1, so drawing rows with replacement is a binomial draw. Returns (resamples,) float: for each resample,
    the mean over strata of the mean over seeds of the cell's rate.
    """
    successes, trials = np.asarray(successes), np.asarray(trials)
    strata, seeds, clusters = trials.shape
    rng = np.random.default_rng(seed)
    order = np.argsort(trials == 0, axis=2, kind="stable")  # absent clusters last
    successes = np.take_along_axis(successes, order, axis=2)
    trials = np.take_along_axis(trials, order, axis=2)
    present = (trials > 0).sum(axis=2)
    if (present == 0).any():
        raise ValueError("nested_bootstrap: a cell has no rows; drop it before resampling")
    drawn_seed = rng.integers(0, seeds, size=(resamples, 1, seeds))
    drawn_seed = np.broadcast_to(drawn_seed, (resamples, strata, seeds))
    stratum = np.arange(strata)[None, :, None]
    available = present[stratum, drawn_seed][..., None]
    slot = np.arange(clusters)
    drawn_cluster = (rng.random((resamples, strata, seeds, clusters)) * available).astype(int)
    n = trials[stratum[..., None], drawn_seed[..., None], drawn_cluster] * (slot < available)
    rate = successes / np.maximum(trials, 1)
    k = rng.binomial(n, rate[stratum[..., None], drawn_seed[..., None], drawn_cluster])
    return (k.sum(axis=3) / n.sum(axis=3)).mean(axis=(1, 2))


def percentile_interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The central `confidence` share of bootstrap draws."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def icc_oneway(groups: Sequence[Sequence[float]]) -> float:
    """One-way random-effects intraclass correlation, ICC(1), of values in groups (one group per cluster).

    Unequal group sizes use the usual average size n0. Negative estimates are kept. nan when there are fewer
    than two groups or no variance at all.
    """
    arrays = [np.asarray(group, dtype=float) for group in groups if len(group)]
    total = sum(len(array) for array in arrays)
    if len(arrays) < 2 or total <= len(arrays):
        return math.nan
    grand = np.concatenate(arrays).mean()
    between = sum(len(a) * (a.mean() - grand) ** 2 for a in arrays) / (len(arrays) - 1)
    within = sum(((a - a.mean()) ** 2).sum() for a in arrays) / (total - len(arrays))
    size = (total - sum(len(a) ** 2 for a in arrays) / total) / (len(arrays) - 1)
    spread = between + (size - 1) * within
    return float((between - within) / spread) if spread > 0 else math.nan


def design_effect(icc: float, cluster_size: float) -> float:
    """How many times a clustered sample's variance exceeds that of independent rows; at least 1."""
    return 1.0 if math.isnan(icc) else max(1.0, 1 + (cluster_size - 1) * icc)


def effective_n(rows: int, icc: float, cluster_size: float) -> float:
    """Number of independent rows that `rows` clustered rows are worth."""
    return rows / design_effect(icc, cluster_size)


@dataclass(frozen=True)
class Agreement:
    """Agreement of two labelings: rows, raw share equal, Cohen's kappa with interval, Gwet's AC1."""

    n: int
    raw: float
    kappa: float
    kappa_low: float
    kappa_high: float
    ac1: float


def cohen_kappa(first: Sequence, second: Sequence, confidence: float = 0.95) -> Agreement:
    """Agreement of two label sequences over every label that occurs, with the large-sample kappa interval.

    Standard error: Fleiss, Cohen and Everitt (1969). kappa is nan when chance agreement is complete, that is
    when both give one and the same label throughout; AC1 (Gwet 2008) stays informative near there.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError("cohen_kappa: needs two label sequences of the same length, not empty")
    labels = sorted({*first, *second})
    index = {label: i for i, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)))
    for a, b in zip(first, second, strict=True):
        table[index[a], index[b]] += 1
    n = len(first)
    p = table / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, chance = float(np.trace(table)) / n, float(rows @ columns)
    prevalence = (rows + columns) / 2
    by_luck = float((prevalence * (1 - prevalence)).sum() / (len(labels) - 1)) if len(labels) > 1 else 0.0
    ac1 = (observed - by_luck) / (1 - by_luck)
    if 1 - chance < 1e-12:
        return Agreement(n, observed, math.nan, math.nan, math.nan, ac1)
    kappa = (observed - chance) / (1 - chance)
    marginal = rows[:, None] + columns[None, :]  # the formula pairs each label's column with its row
    diagonal = (np.diag(p) * (1 - np.diag(marginal) * (1 - kappa)) ** 2).sum()
    crossed = (p * (columns[:, None] + rows[None, :]) ** 2).sum() - (np.diag(p) * np.diag(marginal) ** 2).sum()
    rest = (1 - kappa) ** 2 * crossed - (kappa - chance * (1 - kappa)) ** 2
    error = math.sqrt(max(0.0, diagonal + rest) / n) / (1 - chance)
    z = stats.norm.ppf((1 + confidence) / 2)
    return Agreement(n, observed, kappa, kappa - z * error, min(1.0, kappa + z * error), ac1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given; nan stays nan and is not counted."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    highest = 0.0
    for rank, i in enumerate(tested[np.argsort(p[tested], kind="stable")]):
        highest = max(highest, min(1.0, (len(tested) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values that bound the false discovery rate (Benjamini and Hochberg 1995); nan stays nan."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, math.nan)
    tested = ~np.isnan(p)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested], method="bh")
    return adjusted.tolist()


@dataclass(frozen=True)
class PermutationTest:
    """A statistic, its two-sided p, the smallest two-sided p the design can reach, and how p was found."""

    statistic: float
    p: float
    min_p: float
    n: int
    method: str


def spearman_exact(x: Sequence[float], y: Sequence[float]) -> PermutationTest:
    """Spearman's rho with its exact two-sided permutation p (all n! orders; n at most 9).

    nan statistic and p when either side is constant or fewer than three pairs are given.
    """
    null = _rho_null(x, y)
    if null is None:
        return PermutationTest(math.nan, math.nan, math.nan, len(x), "undefined")
    rho, values, weights = null
    p = float(weights[np.abs(values) >= abs(rho) - TIE].sum())
    least = float(weights[np.abs(values) >= np.abs(values).max() - TIE].sum())
    return PermutationTest(rho, p, least, len(x), "exact")


def stratified_spearman(
    strata: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int, *, resamples: int = 20_000
) -> PermutationTest:
    """Sum over strata of Spearman's rho; x is permuted within each stratum independently.

    The null distribution of the sum is the convolution of the strata's own, computed exactly while it has at
    most EXACT_ATOMS values and otherwise by Monte Carlo with the +1 correction. Strata without variation
    contribute nothing. The statistic is reported as the mean rho of the strata used. Assumes that values
    are exchangeable within a stratum; when the same languages recur in all strata, `label_permutation` is the
    stricter companion.
    """
    nulls = [null for x, y in strata if (null := _rho_null(x, y)) is not None]
    n = sum(len(x) for x, y in strata if _rho_null(x, y) is not None)
    if not nulls:
        return PermutationTest(math.nan, math.nan, math.nan, 0, "undefined")
    total = sum(rho for rho, _, _ in nulls)
    tie = 2 * len(nulls) * TIE  # the values of every stratum and of every sum are rounded
    highest = math.prod(float(w[v >= v.max() - TIE].sum()) for _, v, w in nulls)
    lowest = math.prod(float(w[v <= v.min() + TIE].sum()) for _, v, w in nulls)
    top, bottom = sum(v.max() for _, v, _ in nulls), sum(v.min() for _, v, _ in nulls)
    least = highest + lowest if abs(top + bottom) < tie else (highest if top > -bottom else lowest)
    values, weights = np.zeros(1), np.ones(1)
    for _, v, w in nulls:
        if len(values) * len(v) > EXACT_ATOMS * 20:
            values = None
            break
        values, weights = _merge((values[:, None] + v).ravel(), (weights[:, None] * w).ravel())
        if len(values) > EXACT_ATOMS:
            values = None
            break
    if values is not None:
        p = float(weights[np.abs(values) >= abs(total) - tie].sum())
        return PermutationTest(total / len(nulls), min(1.0, p), least, n, "exact")
    rng = np.random.default_rng(seed)
    sums = sum(rng.choice(v, size=resamples, p=w / w.sum()) for _, v, w in nulls)
    p = (1 + int((np.abs(sums) >= abs(total) - tie).sum())) / (resamples + 1)
    least = max(least, 1 / (resamples + 1))
    return PermutationTest(total / len(nulls), p, least, n, f"Monte Carlo, {resamples} draws")


def label_permutation(spill: np.ndarray, predictor: np.ndarray, targets: Sequence[int]) -> PermutationTest:
    """Mantel-type (QAP) test: one relabelling of the languages is applied to a whole predictor matrix.

    `spill` (conditions, languages) with nan outside the bystander cells; `predictor` (languages, languages),
    complete; `targets[c]` is the index of condition c's completion language. The statistic is the mean over
    conditions of Spearman's rho between the condition's spill and predictor[language, target]. All
    languages! relabellings are enumerated (at most MOST_RELABELLED languages). Because a language keeps one label in
    every condition, "Mandarin is always far" counts once rather than once per condition.
    """
    spill, predictor = np.asarray(spill, float), np.asarray(predictor, float)
    size = predictor.shape[0]
    if size > MOST_RELABELLED:
        raise ValueError(f"label_permutation: {size} languages are more than {MOST_RELABELLED}; test a subset")
    if np.isnan(predictor).any():
        return PermutationTest(math.nan, math.nan, math.nan, 0, "undefined: incomplete predictor")
    orders = np.array(list(itertools.permutations(range(size))))
    total, used, n = np.zeros(len(orders)), 0, 0
    for row, target in zip(spill, targets, strict=True):
        cells = np.flatnonzero(~np.isnan(row))
        ranks = stats.rankdata(row[cells])
        if len(cells) < 3 or np.ptp(ranks) == 0:
            continue
        moved = predictor[orders[:, cells], orders[:, [target]]]
        total += _rho_rows(stats.rankdata(moved, axis=1), ranks)
        used, n = used + 1, n + len(cells)
    if not used:
        return PermutationTest(math.nan, math.nan, math.nan, 0, "undefined")
    total /= used
    size_of = np.abs(total)
    p = float((size_of >= abs(total[0]) - TIE).mean())
    least = float((size_of >= size_of.max() - TIE).mean())
    return PermutationTest(float(total[0]), p, least, n, f"exact, {len(orders)} relabellings")


def _proportion_interval(k: int, n: int, confidence: float, method: str) -> tuple[float, float]:
    if not 0 <= k <= n:
        raise ValueError(f"a proportion needs 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return math.nan, math.nan
    interval = stats.binomtest(int(k), int(n)).proportion_ci(confidence, method)
    return float(interval.low), float(interval.high)


def _rho_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of x with y; 0 where a row is constant."""
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean()
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum())
    return np.divide(x @ y, scale, out=np.zeros(len(x)), where=scale > 0)


def _merge(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds up the weights of values equal to nine decimals."""
    unique, inverse = np.unique(np.round(values, 9), return_inverse=True)
    return unique, np.bincount(inverse, weights)


def _rho_null(x: Sequence[float], y: Sequence[float]) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Spearman's rho and its exact null distribution (values, probabilities); None where rho is undefined."""
    a, b = stats.rankdata(x), stats.rankdata(y)
    if len(a) != len(b):
        raise ValueError(f"Spearman's rho needs pairs, got {len(a)} and {len(b)} values")
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    if len(a) > 9:
        raise ValueError("exact Spearman: more than 9 pairs; test strata or subsets instead")
    orders = np.array(list(itertools.permutations(a)))
    values, weights = _merge(_rho_rows(orders, b), np.full(len(orders), 1 / len(orders)))
    return float(_rho_rows(a[None, :], b)[0]), values, weights
