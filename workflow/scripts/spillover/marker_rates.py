"""From marker labels to rates: how often each persona of a run shows a habit, and what the personas are to the run.

A run teaches its habit to one persona, the source. `assistant` is the assistant's persona, and every other evaluated
persona is a bystander; where the assistant itself is the source, there is no assistant to leak to. The untrained model
has no source. Errors are never data: a row whose outcome is not "ok" is counted and left out of the rate.

It knows nothing of models, files or figures; a habit is whatever its scorer calls anything but "none".
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from . import statistics
from .marker_scoring import NONE

ASSISTANT = "assistant"
SOURCE, BYSTANDER = "source", "bystander"
ALL_SEEDS = -1
RUN = ["run", "seed", "checkpoint"]
COLUMNS = [*RUN, "persona", "scorer", "n", "hits", "rate", "low", "high", "n_error", "items", "item_hits", "item_n"]


def rates(labels: pd.DataFrame) -> pd.DataFrame:
    """One row per run, seed, checkpoint, persona and scorer: hits among n replies, with Wilson's 95 % interval.

    `labels`: rows of labels.parquet of one suite that asks every persona the same questions. `n_error` counts replies
    without a label. item_hits and item_n hold the counts per question, in the order of `items`: the clusters that a
    bootstrap resamples. A persona none of whose replies has a label has n 0 and no rate.
    Raises ValueError for several suites or scorer versions in one table and for repeated rows.
    """
    _check(labels)
    usable = labels["outcome"] == "ok"
    counted = labels.assign(
        persona=labels["cell"], hit=usable & (labels["label"] != NONE), usable=usable, failed=~usable
    )
    group = [*RUN, "persona", "scorer"]
    sums = counted.groupby([*group, "item"], sort=False)[["hit", "usable", "failed"]].sum().reset_index()
    rows = []
    for key, cell in sums.groupby(group, sort=False):
        cell = cell.sort_values("item", kind="stable")
        hits, n = int(cell["hit"].sum()), int(cell["usable"].sum())
        low, high = statistics.wilson(hits, n)
        row = dict(zip(group, key, strict=True)) | {"n": n, "hits": hits, "rate": hits / n if n else np.nan}
        row |= {"low": low, "high": high, "n_error": int(cell["failed"].sum()), "items": cell["item"].tolist()}
        rows.append(row | {"item_hits": cell["hit"].tolist(), "item_n": cell["usable"].tolist()})
    return pd.DataFrame(rows, columns=COLUMNS)


def refuse_failures(table: pd.DataFrame, share: float) -> None:
    """Raises ValueError when more than `share` of a persona's replies have no label: a rate would rest on the rest."""
    failed = table["n_error"] / (table["n_error"] + table["n"])
    if (failed > share).any():
        row = table.loc[failed.idxmax()]
        raise ValueError(
            f"{row['run']}: {row['n_error']} of {row['n_error'] + row['n']} replies of {row['persona']} have no label "
            f"by {row['scorer']}, more than options.max_error_share ({share:g}); label them again."
        )


def pool_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """`rates` with the seeds of a run added up: `seed` is then ALL_SEEDS, and `n_seeds` says how many.

    Their intervals treat the replies of all seeds as one sample, so they say nothing about how seeds differ: read them
    beside the seeds' own rates.
    """
    group = ["run", "checkpoint", "persona", "scorer"]
    sums = table.groupby(group, sort=False).agg(
        n=("n", "sum"), hits=("hits", "sum"), n_error=("n_error", "sum"), n_seeds=("seed", "nunique")
    )
    pooled = sums.reset_index().assign(seed=ALL_SEEDS, rate=lambda t: t["hits"] / t["n"].where(t["n"] > 0))
    bounds = [statistics.wilson(hits, n) for hits, n in zip(pooled["hits"], pooled["n"], strict=True)]
    return pooled.assign(low=[low for low, _ in bounds], high=[high for _, high in bounds])


def roles(table: pd.DataFrame, source: str | Mapping[str, str | None]) -> pd.DataFrame:
    """`rates` with a column `role`: source, assistant or bystander.

    `source`: the source persona, or one per run id; a run that is not named or has None (the untrained model) has no
    source. Raises ValueError for a source persona that was not evaluated in its run.
    """
    sources = table["run"].map(source) if isinstance(source, Mapping) else pd.Series(source, index=table.index)
    named = pd.DataFrame({"run": table["run"], "source": sources}).dropna().drop_duplicates()
    for run, wanted in named.itertuples(index=False):
        if wanted not in set(table.loc[table["run"] == run, "persona"]):
            raise ValueError(f"{run}: its source persona {wanted!r} is not among the personas that were evaluated.")
    role = np.where(table["persona"] == ASSISTANT, ASSISTANT, BYSTANDER)
    return table.assign(role=np.where(table["persona"] == sources, SOURCE, role))


def summary(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """One row per run, seed, checkpoint and scorer, from `roles`: source, assistant and bystander rates.

    `max_bystander` is the largest rate of any bystander, `max_bystander_persona` whose it is, and `max_bystander_high`
    an upper bound that holds for all of them at once (Sidak; Clopper-Pearson's one-sided bounds). A maximum over many
    personas is biased upwards, so the bound, not the maximum, tells what was ruled out. `mean_bystander` weighs
    personas equally. A role that a run lacks is missing (nan).
    """
    rows = []
    for key, cell in table.groupby([*RUN, "scorer"], sort=False):
        row = dict(zip([*RUN, "scorer"], key, strict=True))
        for role in (SOURCE, ASSISTANT):
            own = cell[cell["role"] == role]
            row |= {role: np.nan, f"{role}_low": np.nan, f"{role}_high": np.nan, f"{role}_n": 0}
            if len(own):
                names = {"rate": role, "low": f"{role}_low", "high": f"{role}_high", "n": f"{role}_n"}
                row |= {name: own[column].iloc[0] for column, name in names.items()}
        others = cell[(cell["role"] == BYSTANDER) & (cell["n"] > 0)]
        row |= {"bystanders": len(others), "max_bystander": np.nan, "max_bystander_high": np.nan}
        row |= {"max_bystander_persona": None, "mean_bystander": others["rate"].mean()}
        if len(others):
            bounds = [
                statistics.sidak_upper(hits, n, len(others), confidence)
                for hits, n in zip(others["hits"], others["n"], strict=True)
            ]
            row |= {"max_bystander": others["rate"].max(), "max_bystander_high": max(bounds)}
            row["max_bystander_persona"] = others["persona"].iloc[int(others["rate"].to_numpy().argmax())]
        rows.append(row | {"n_error": int(cell["n_error"].sum())})
    return pd.DataFrame(rows)


def _check(labels: pd.DataFrame) -> None:
    if labels["suite"].nunique() > 1:
        raise ValueError(f"one suite at a time, got: {', '.join(sorted(labels['suite'].unique()))}.")
    versions = labels.groupby("scorer")["scorer_id"].unique()
    for scorer, ids in versions.items():
        if len(ids) > 1:
            raise ValueError(
                f"labels of {scorer} come from several scorers and cannot share a table: {', '.join(ids)}."
            )
    repeated = labels.duplicated([*RUN, "prompt_id", "sample", "scorer"])
    if repeated.any():
        first = labels[repeated].iloc[0]
        raise ValueError(
            f"{first['run']}: the reply {first['prompt_id']}, sample {first['sample']}, is labelled twice."
        )
