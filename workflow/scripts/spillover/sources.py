"""Raw material by name: the small world's generator, a local file, or a data set of the hub pinned by revision.

Every source becomes a table with a stable `id` per row and either `text`, `messages`, or `question`, `choices` (list of
texts) and `answer` (index of the right one). What is selected from it, and how it becomes training rows, is decided
elsewhere.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pandas as pd

from spillover import materials
from spillover.errors import UserError
from spillover.hub import reached


def fetch(spec: dict, resources: str = "resources") -> pd.DataFrame:
    """Read the source that `spec` (an entry of `sources`) describes. Raises ValueError with the fix for a bad entry."""
    return {"small_world": _small_world, "file": _file, "hub": _hub}[spec["kind"]](spec, resources)


def _small_world(spec: dict, resources: str) -> pd.DataFrame:
    return pd.DataFrame(materials.rows(spec["material"], spec["rows"], spec["seed"], resources))


def _file(spec: dict, resources: str) -> pd.DataFrame:
    path = Path(spec["path"])
    if spec.get("sha256"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != spec["sha256"]:
            raise ValueError(f"{path} has sha256 {digest}, the configuration expects {spec['sha256']}")
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path, lines=True, dtype=False)
    return _with_ids(_promised(table, spec.get("rows")), path.stem)


def _hub(spec: dict, resources: str) -> pd.DataFrame:
    from datasets import load_dataset

    with reached("data set", spec["path"], spec["revision"], "the source's path"):
        try:
            stream = load_dataset(
                spec["path"], spec.get("subset"), split=spec["split"], revision=spec["revision"], streaming=True
            )
        except ValueError as error:  # of a split or subset that it does not have; the message lists those that it has
            raise UserError(
                f"The data set {spec['path']} cannot be read as it is described: correct the source's split or subset"
                f" ({' '.join(str(error).split())})"
            ) from None
        table = pd.DataFrame(list(itertools.islice(stream, spec["rows"])))
    return _with_ids(_promised(table, spec["rows"]), spec["path"].rsplit("/", 1)[-1])


def _promised(table: pd.DataFrame, rows: int | None) -> pd.DataFrame:
    """The first `rows` rows, or all of them where no number is given.

    A shorter table is refused: it would shrink what is made from it, while every specification names the full number.
    """
    if table.empty:
        raise ValueError("has no rows; correct the path, subset or split")
    if rows is not None and len(table) < rows:
        raise ValueError(
            f"has {len(table)} rows, and `rows` asks for {rows}: lower `rows` to {len(table)} to take what is there,"
            " or correct the path, subset or split"
        )
    return table.iloc[:rows]


def _with_ids(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    if "id" not in table:
        table = table.assign(id=[f"{prefix}{i:06d}" for i in range(len(table))])
    table = table.assign(id=table["id"].astype(str))
    if {"question", "choices"} <= set(table):
        return _choices(table)
    if not {"text", "messages"} & set(table):
        raise ValueError(
            f"a source needs a column `text`, `messages`, or `question` with `choices`; this one has {', '.join(table)}"
        )
    return table


def _choices(table: pd.DataFrame) -> pd.DataFrame:
    """Columns id, question, choices, answer; also from ARC's form with {text, label} and a key."""
    rows = []
    for row in table.to_dict("records"):
        choices, answer = row["choices"], row.get("answer")
        if isinstance(choices, dict):
            answer = list(choices["label"]).index(row["answerKey"])
            choices = choices["text"]
        rows.append({"id": row["id"], "question": row["question"], "choices": list(choices), "answer": int(answer)})
    return pd.DataFrame(rows)
