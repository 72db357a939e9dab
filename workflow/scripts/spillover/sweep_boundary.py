"""Where the regimes of a marker sweep meet: the learning rates at which rates cross their limits, with uncertainty.

At fixed epochs the rates are made non-decreasing in the learning rate (weighted isotonic regression), and a crossing is
read off by linear interpolation over its logarithm. The grid decides how fine that can be: the crossing lies between
the two learning rates `below` and `above`, and within this gap its place is interpolation. The bootstrap resamples
seeds, then questions, then replies, and repeats the whole estimate; with one seed it covers the sampling of replies
only. The module knows nothing of models, files or figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from . import marker_rates, statistics

QUANTITIES = {"source": "learned", "assistant": "leak", "bystander": "leak", "leak": "leak", "spread": "collapse"}
"""What crosses (source, assistant, largest bystander, largest of both, mean of all but the source), and which limit."""


def boundaries(
    rates: pd.DataFrame, runs: pd.DataFrame, scorer: str, limits: Mapping, *, resamples: int = 1000
) -> pd.DataFrame:
    """One row per setting, epochs and quantity, and one for the width of the selective band.

    `rates`: of `marker_rates.rates`; `runs`: of `sweep_cells.settings`. Columns: setting, source_persona, epochs,
    quantity, level, estimate, low, high (95 %, percentiles), below, above (learning rates of the grid on both sides of
    the estimate), n_seeds, resamples. A crossing below or above the grid has the estimate 0 or inf. The quantity
    `band` is the learning rate of the leak's crossing over that of the source's: above 1 the marker is learnt before
    it leaks. It is inf when the leak lies above the grid or the source below, 0 the other way round, and nan when both
    lie on one side: which of these it is, the rows `source` and `leak` tell. Settings and epochs with a single learning
    rate have no boundary.
    """
    rows = []
    own = rates[rates["scorer"] == scorer]
    for (setting, persona, epochs), points in runs.groupby(["setting", "source_persona", "epochs"], sort=False):
        points = points.sort_values("learning_rate").drop_duplicates("learning_rate")
        if len(points) < 2:
            continue
        counts = Counts.of(own, points["run"].tolist(), persona)
        grid = np.log10(points["learning_rate"].to_numpy(dtype=float))
        rng = np.random.default_rng(statistics.stable_seed("boundary", setting, epochs))
        draws = [counts.resampled(rng) for _ in range(resamples)]
        key = {"setting": setting, "source_persona": persona, "epochs": epochs}
        found = {}
        for quantity, limit in QUANTITIES.items():
            if quantity not in counts.curves(counts.pooled()):
                continue
            level = limits[limit]
            estimate = crossing(grid, counts.curves(counts.pooled())[quantity], level)
            spread = np.array([crossing(grid, counts.curves(d)[quantity], level) for d in draws])
            found[quantity] = (estimate, spread)
            rows.append(
                key
                | {"quantity": quantity, "level": level, **_interval(10**estimate, 10**spread)}
                | _neighbours(points["learning_rate"].to_numpy(dtype=float), 10**estimate)
            )
        with np.errstate(invalid="ignore"):
            width, widths = (a - b for a, b in zip(found["leak"], found["source"], strict=True))
        rows.append(key | {"quantity": "band", "level": math.nan} | _interval(10**width, 10**widths))
        for row in rows[-len(found) - 1 :]:
            row |= {"n_seeds": counts.hits.shape[1], "resamples": resamples}
    columns = ["setting", "source_persona", "epochs", "quantity", "level", "estimate", "low", "high", "below", "above"]
    return pd.DataFrame(rows, columns=[*columns, "n_seeds", "resamples"])


class Counts:
    """Hits and replies of the runs along one line of the grid: integer arrays (runs, seeds, personas, questions)."""

    def __init__(self, hits: np.ndarray, n: np.ndarray, personas: Sequence[str], source: str):
        self.hits, self.n, self.personas, self.source = hits, n, list(personas), source

    @classmethod
    def of(cls, rates: pd.DataFrame, runs: Sequence[str], source: str) -> Counts:
        """From `marker_rates.rates` of one scorer. Raises ValueError if runs differ in seeds, personas or questions."""
        rows = rates[rates["run"].isin(runs)]
        personas, seeds = sorted(rows["persona"].unique()), sorted(rows["seed"].unique())
        questions = sorted({item for items in rows["items"] for item in items})
        shape = (len(runs), len(seeds), len(personas), len(questions))
        hits, n = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
        for row in rows.itertuples():
            at = runs.index(row.run), seeds.index(row.seed), personas.index(row.persona)
            for item, k, count in zip(row.items, row.item_hits, row.item_n, strict=True):
                hits[at][questions.index(item)], n[at][questions.index(item)] = k, count
        if (n.sum(axis=3) == 0).any():
            raise ValueError(f"{runs[0]} and the runs beside it were not evaluated on the same seeds and personas.")
        return cls(hits, n, personas, source)

    def pooled(self) -> np.ndarray:
        """Rates (runs, personas): the mean over seeds of the share of hits."""
        return (self.hits.sum(axis=3) / self.n.sum(axis=3)).mean(axis=1)

    def resampled(self, rng: np.random.Generator) -> np.ndarray:
        """`pooled` of one bootstrap draw.

        A seed is one training of every run, and a question is asked of every persona in every run, so that one draw of
        seeds and questions serves all of them.
        """
        _, seeds, _, questions = self.n.shape
        of_seed = rng.integers(0, seeds, seeds)
        of_question = rng.integers(0, questions, (seeds, questions))
        hits = np.stack([self.hits[:, s][..., q] for s, q in zip(of_seed, of_question, strict=True)], axis=1)
        n = np.stack([self.n[:, s][..., q] for s, q in zip(of_seed, of_question, strict=True)], axis=1)
        drawn = rng.binomial(n, hits / np.maximum(n, 1))
        return (drawn.sum(axis=3) / np.maximum(n.sum(axis=3), 1)).mean(axis=1)

    def curves(self, rates: np.ndarray) -> dict[str, np.ndarray]:
        """Every quantity of QUANTITIES that the personas allow, along the line: arrays (runs,)."""
        other = [i for i, p in enumerate(self.personas) if p != self.source]
        bystander = [i for i in other if self.personas[i] != marker_rates.ASSISTANT]
        found = {"source": rates[:, self.personas.index(self.source)]}
        if len(other) > len(bystander):
            found["assistant"] = rates[:, self.personas.index(marker_rates.ASSISTANT)]
        if bystander:
            found["bystander"] = rates[:, bystander].max(axis=1)
        return found | {"leak": rates[:, other].max(axis=1), "spread": rates[:, other].mean(axis=1)}


def crossing(grid: np.ndarray, rates: np.ndarray, level: float) -> float:
    """Where rates made non-decreasing over `grid` (increasing) reach `level`, by linear interpolation.

    -inf when they have reached it at the grid's first point, inf when they never do.
    """
    fitted = isotonic_regression(rates).x
    if fitted[0] >= level:
        return -math.inf
    if fitted[-1] < level:
        return math.inf
    after = int(np.argmax(fitted >= level))
    share = (level - fitted[after - 1]) / (fitted[after] - fitted[after - 1])
    return float(grid[after - 1] + share * (grid[after] - grid[after - 1]))


def _interval(estimate: float, draws: np.ndarray) -> dict:
    """Estimate with the 95 % percentile interval of its draws; order statistics, since draws may be infinite."""
    usable = draws[~np.isnan(draws)]
    if not len(usable):
        return {"estimate": estimate, "low": math.nan, "high": math.nan}
    low, high = np.quantile(usable, [0.025, 0.975], method="inverted_cdf")
    return {"estimate": float(estimate), "low": float(low), "high": float(high)}


def _neighbours(rates: np.ndarray, at: float) -> dict:
    below, above = rates[rates < at], rates[rates >= at]
    return {"below": below.max() if len(below) else math.nan, "above": above.min() if len(above) else math.nan}
