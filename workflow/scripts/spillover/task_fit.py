"""How well a model has learnt a task: its loss on held-out rows, beside the untrained model's and a baseline's.

Two figures, since neither says enough alone. The ratio to the baseline's loss is the published criterion; the untrained
model may meet it too. The share of the loss reduction that the baseline achieved is 0 for the untrained model and 1 for
the baseline. Reads rows of measures.parquet of kind `loss`; it knows nothing of recipes or geometry.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np
import pandas as pd

from .statistics import percentile_interval

KEY = ["run", "seed", "checkpoint", "suite"]
UNTRAINED = "base"


def fits(
    measures: pd.DataFrame, baselines: Mapping[str, tuple[str, str]], seed: int, *, resamples: int = 1000
) -> pd.DataFrame:
    """One row per run, seed, checkpoint and loss suite: rows, loss, ratio and learnt, each with `_low` and `_high`.

    loss: nats per scored token, -sum(logprob) / sum(tokens) over the suite's rows. `baselines`: {suite: (run,
    checkpoint)}, the run's name without its experiment. ratio and learnt compare with the baseline of the same seed and
    with the untrained model (`base`) of the same seed, or of the only seed it was measured with; they are nan where one
    of the two is missing. Intervals resample the held-out rows, the same ones for every model. Raises ValueError if two
    models were measured on different rows of a suite.
    """
    losses = measures[measures["kind"] == "loss"].copy()
    losses["run"] = losses["run"].str.rsplit("/", n=1).str[-1]
    rows = []
    for suite, of_suite in losses.groupby("suite", sort=False):
        at = {key: frame.set_index("item").sort_index() for key, frame in of_suite.groupby(KEY[:3], sort=False)}
        items = reduce(pd.Index.intersection, (frame.index for frame in at.values()))
        for key, frame in at.items():
            if 2 * len(items) < len(frame):
                raise ValueError(f"{'/'.join(map(str, key))}: was measured on other rows of {suite} than the rest")
            at[key] = frame.loc[items]
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, len(items), (resamples, len(items)))
        counts = np.stack([np.bincount(row, minlength=len(items)) for row in drawn])
        loss = {key: _loss(frame, np.ones((1, len(items))))[0] for key, frame in at.items()}
        draws = {key: _loss(frame, counts) for key, frame in at.items()}
        run, checkpoint = baselines.get(suite, (None, None))
        for key in at:
            base = _untrained(list(at), key[1])
            baseline = (run, key[1], checkpoint) if (run, key[1], checkpoint) in at else None
            row = dict(zip(KEY, (*key, suite), strict=True)) | {"rows": len(items)}
            row |= _interval("loss", loss[key], draws[key])
            ratio = (loss[key] / loss[baseline], draws[key] / draws[baseline]) if baseline else None
            row |= _interval("ratio", *(ratio or (np.nan, None)))
            learnt = [
                _share(values[key], values[base], values[baseline]) if base and baseline else None
                for values in (loss, draws)
            ]
            row |= _interval("learnt", np.nan if learnt[0] is None else learnt[0], learnt[1])
            rows.append(row)
    return pd.DataFrame(rows)


def _untrained(keys: list[tuple[str, int, str]], seed: int) -> tuple[str, int, str] | None:
    """The untrained model's key: that of the same seed, else the only one; weights are the same for every seed."""
    found = [key for key in keys if key[0] == UNTRAINED]
    same = [key for key in found if key[1] == seed]
    return (same or found or [None])[0]


def _loss(frame: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """(draws,) losses when row i counts counts[draw, i] times."""
    return -(counts @ frame["logprob"].to_numpy(float)) / (counts @ frame["tokens"].to_numpy(float))


def _share(loss, base, baseline):
    """Share of the baseline's loss reduction; nan where the baseline itself reduced nothing."""
    reduction = np.asarray(base - baseline, dtype=float)
    return np.divide(base - loss, reduction, out=np.full(reduction.shape, np.nan), where=reduction > 0)


def _interval(name: str, value, draws) -> dict[str, float]:
    low, high = (np.nan, np.nan)
    if draws is not None and np.isfinite(draws).all():
        low, high = percentile_interval(np.asarray(draws))
    return {name: float(value), f"{name}_low": low, f"{name}_high": high}
