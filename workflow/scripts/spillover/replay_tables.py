"""Completions and labels that were made elsewhere, in this project's columns.

Known are this project's own tables (.parquet), one JSON object a line with the same columns (.jsonl), and the layout of
the published language-spill files (.json). What a file does not record is missing, not invented.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from spillover import published
from spillover.languages import Registry

NEEDED = ("cell", "text")
LABELLED = ("prompt_id", "sample", "cell", "scorer", "label")
TEXTS = ("checkpoint", "suite", "prompt_id", "cell", "item", "system", "user", "text", "finish_reason")
NUMBERS = ("sample", "sample_seed", "prompt_tokens", "completion_tokens")
KEY = ["run", "seed", "checkpoint", "suite", "prompt_id", "cell", "item", "sample"]
LABEL_COLUMNS = [*KEY, "scorer", "scorer_id", "label", "outcome", "raw"]


def completions(path: str, run: str, seed: int, suite: str, registry: Registry) -> pd.DataFrame:
    """The completions of one run, columns as completions.parquet; run and seed are those of the plan.

    A file needs `cell` and `text`; prompts are then told apart by `user` and samples counted in their order. Raises
    ValueError naming the file and the column for anything else that is missing, or replies given twice.
    """
    if Path(path).suffix == ".json":
        table = (
            published.read_completions(path, registry, run) if _has_texts(path) else _without_texts(path, registry, run)
        )
    else:
        table = _rows(path)
        _require(path, table, NEEDED)
    table = table.assign(run=run, seed=seed)
    defaults = {"checkpoint": "final", "suite": suite, "user": None, "system": None}
    table = table.assign(**{name: value for name, value in defaults.items() if name not in table})
    if "item" not in table:
        table["item"] = table["user"].fillna("")
    if "prompt_id" not in table:
        table["prompt_id"] = table["cell"] + "/" + table["item"]
    if "sample" not in table:
        table["sample"] = table.groupby(["checkpoint", "suite", "prompt_id"]).cumcount()
    for name in (*TEXTS, *NUMBERS):
        table[name] = table[name] if name in table else None
    for name in TEXTS:
        table[name] = table[name].astype("str").where(table[name].notna())
    for name in NUMBERS:
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    if (twice := table.duplicated(KEY)).any():
        row = table[twice].iloc[0]
        raise ValueError(f"{path}: {row['prompt_id']}, sample {row['sample']} is there twice")
    columns = [*KEY[:-1], "system", "user", "sample", "sample_seed", "text", *TEXTS[-1:], *NUMBERS[2:]]
    return table[columns].astype({"sample": "int64"})


def labels(path: str, run: str, seed: int, suite: str, registry: Registry) -> pd.DataFrame:
    """The labels that a file holds, columns as labels.parquet; a label that failed keeps its outcome and has no label.

    Of this project's completions.parquet the labels.parquet beside it is read. Raises ValueError where there are none.
    """
    if Path(path).suffix == ".json":
        return published.read_labels(path, registry, run).assign(run=run, seed=seed)[LABEL_COLUMNS]
    beside = Path(path).with_name("labels.parquet")
    table = _rows(str(beside) if Path(path).name == "completions.parquet" and beside.is_file() else path)
    _require(path, table, LABELLED)
    defaults = {"checkpoint": "final", "suite": suite, "item": table["prompt_id"], "raw": None, "outcome": "ok"}
    defaults["scorer_id"] = table["scorer"] + ", as given"
    table = table.assign(**{name: value for name, value in defaults.items() if name not in table}, run=run, seed=seed)
    if (unsaid := table["label"].isna() & (table["outcome"] == "ok")).any():
        raise ValueError(f"{path}: {int(unsaid.sum())} rows have no label and outcome ok; say in `outcome` what failed")
    return table[LABEL_COLUMNS]


def outcomes(labels: pd.DataFrame) -> pd.DataFrame:
    """How many labels of each run and scorer ended how: run, seed, scorer, scorer_id, outcome, labels, of."""
    by = ["run", "seed", "scorer", "scorer_id"]
    counts = labels.groupby([*by, "outcome"], sort=False).size().rename("labels").reset_index()
    return counts.assign(of=counts.groupby(by)["labels"].transform("sum"))


def _has_texts(path: str) -> bool:
    return "completions" in published.read(path)


def _without_texts(path: str, registry: Registry, run: str) -> pd.DataFrame:
    """A row per labelled reply of a file that kept the labels alone."""
    known = published.read_labels(path, registry, run)
    rows = known.loc[known["scorer"] == known["scorer"].iloc[0]]
    columns = ["checkpoint", "suite", "prompt_id", "cell", "item", "user", "sample"]
    return rows[[c for c in columns if c in rows]].assign(text=None)


def _rows(path: str) -> pd.DataFrame:
    try:
        return pd.read_parquet(path) if path.endswith(".parquet") else pd.read_json(path, lines=True, dtype=False)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as a table: {error}") from None


def _require(path: str, table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"{path}: the column {missing[0]!r} is missing; needed are {', '.join(columns)}")
