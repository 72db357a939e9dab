"""A page to read completions in: every reply of an experiment with its prompt and what each scorer said of it.

`payload` turns tables into columns of small numbers over lists of distinct values; `page` puts them, compressed, and
the programs of workflow/report/browser into one HTML file that needs no server and no network. It computes no result:
the rates it shows are counts of the labels given, and intervals are those of the analysis's own cell table.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from spillover.provenance import canonical_json

MODEL = ["run", "seed", "checkpoint"]
PROMPT = ["suite", "prompt_id", "cell", "item", "system", "user"]
KEY = [*MODEL, "suite", "prompt_id", "sample"]
MISSING = -1
# Scorers that answer one question, so that two of them can disagree; any other scorer is a question of its own.
FAMILIES = {
    "langdetect": "language",
    "lingua": "language",
    "judge": "language",
    "marker": "marker",
    "marker_strict": "marker",
}
# The names under which the analyses' cell tables know a column of the page.
CELL_COLUMNS = {"cell": ("cell", "language", "persona"), "scorer": ("scorer", "label_source")}
INTERVALS = (("low", "high"), ("wilson_low", "wilson_high"))


def payload(completions: pd.DataFrame, labels: pd.DataFrame, cells: pd.DataFrame | None = None, **about) -> dict:
    """The page's data: lists of distinct models, prompts, texts and labels, and one column of indices for each.

    `completions` and `labels` have the columns of completions.parquet and labels.parquet, `cells` those of a cell table
    of the analysis; `about` (title, question) is kept as it is. Columns `label`, `outcome`, `raw` exist once a scorer;
    -1 stands for "no value". Rows keep the order of `completions`. Raises ValueError if a completion or a label of one
    scorer appears twice, or if there are labels of unknown completions.
    """
    completions = completions.reset_index(drop=True)
    if completions.duplicated(KEY).any():
        raise ValueError(f"the completion {_first_repeated(completions, KEY)} is there twice.")
    models, model = _distinct(completions, MODEL)
    prompts, prompt = _distinct(completions, PROMPT)
    columns = {"model": model, "prompt": prompt, "sample": completions["sample"].astype(int).tolist()}
    lists = {}
    for name, column in (("text", "text"), ("finish", "finish_reason")):
        lists[f"{name}s"], columns[name] = _encoded(completions[column])
    columns["tokens"] = _numbers(completions["completion_tokens"])
    columns["seed"] = _numbers(completions["sample_seed"])
    scorers, scored = _scored(completions, labels)
    return {
        **about,
        "models": models,
        "prompts": prompts,
        "scorers": scorers,
        **lists,
        **{f"{name}s": scored[name][0] for name in scored},
        "columns": columns | {name: scored[name][1] for name in scored},
        "cells": _cells(cells, models),
        "targets": _targets(cells, models),
    }


def page(data: dict, folder: str | Path) -> str:
    """The whole page; `folder` is workflow/report with the page's own files and the grid it uses."""
    folder = Path(folder)
    packed = base64.b64encode(gzip.compress(canonical_json(data).encode(), compresslevel=6, mtime=0)).decode()
    parts = {
        "TITLE": html.escape(data.get("title", "Completions")),
        "GRID_STYLE": _read(folder / "vendor/tabulator_simple.min.css"),
        "STYLE": _read(folder / "browser/browser.css"),
        "GRID": _read(folder / "vendor/tabulator.min.js"),
        "PROGRAM": _read(folder / "browser/browser.js"),
        "DATA": packed,
    }
    text = _read(folder / "browser/browser.html")
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part).replace(f"/*{name}*/", part)
    return text


def _distinct(table: pd.DataFrame, columns: list[str]) -> tuple[list[dict], list[int]]:
    """Distinct rows of some columns in order of appearance, and which of them each row is."""
    groups = table.groupby(columns, dropna=False, sort=False).ngroup()
    first = table.loc[~groups.duplicated(), columns].astype(object)
    return first.where(first.notna(), None).to_dict("records"), groups.tolist()


def _encoded(values: pd.Series) -> tuple[list, list[int]]:
    codes, distinct = pd.factorize(values)
    return [str(value) for value in distinct], codes.tolist()


def _numbers(values: pd.Series) -> list[int]:
    return pd.to_numeric(values).fillna(MISSING).astype(int).tolist()


def _scored(completions: pd.DataFrame, labels: pd.DataFrame) -> tuple[list[dict], dict]:
    """Who scored, and per field its distinct values with one column of codes a scorer, in the order of completions."""
    index = pd.MultiIndex.from_frame(completions[KEY])
    fields: dict = {}
    scorers, tables = [], []
    for name, table in labels.groupby("scorer", sort=False):
        if table.duplicated(KEY).any():
            raise ValueError(f"scorer {name}: the label of {_first_repeated(table, KEY)} is there twice.")
        own = pd.MultiIndex.from_frame(table[KEY])
        if len(unknown := own.difference(index)):
            raise ValueError(f"scorer {name}: there is no completion {unknown[0]}.")
        ids = sorted(table["scorer_id"].unique())
        scorers.append({"name": name, "id": "; ".join(ids), "family": FAMILIES.get(name, name)})
        tables.append(table.set_index(own).reindex(index))
    for field in ("label", "outcome", "raw"):
        stacked = pd.concat([table[field] for table in tables]) if tables else pd.Series(dtype=object)
        values, codes = _encoded(stacked)
        size = len(completions)
        fields[field] = (values, [codes[i * size : (i + 1) * size] for i in range(len(tables))])
    return scorers, fields


def _cells(cells: pd.DataFrame | None, models: list[dict]) -> list[dict]:
    """What the analysis says about a model's cell by a scorer: rate, 95 % interval, role, where it has them."""
    found = []
    for row in _rows(cells):
        model = _model_of(row, models)
        cell, scorer = (next((row[c] for c in CELL_COLUMNS[k] if c in row), None) for k in ("cell", "scorer"))
        ends = next((pair for pair in INTERVALS if pair[0] in row), None)
        if model is None or cell is None or scorer is None or ends is None:
            continue
        known = {"model": model, "cell": cell, "scorer": scorer, "rate": row["rate"]}
        known |= {"low": row[ends[0]], "high": row[ends[1]]}
        found.append(known | {name: row[name] for name in ("role", "n", "label", "completion") if row.get(name)})
    return found


def _targets(cells: pd.DataFrame | None, models: list[dict]) -> list[str | None]:
    """Per model the label that its training aimed at (the completion language), None where there is none."""
    targets: list[str | None] = [None] * len(models)
    for row in _rows(cells):
        model = _model_of(row, models)
        if model is not None and row.get("directive") and row.get("completion"):
            targets[model] = row["completion"]
    return targets


def _rows(cells: pd.DataFrame | None) -> Iterable[dict]:
    if cells is None:
        return []
    plain = cells.astype(object)
    return plain.where(plain.notna(), None).to_dict("records")


def _model_of(row: dict, models: list[dict]) -> int | None:
    """The model of a row; a table without checkpoints speaks of a run's last one."""
    matches = [
        index
        for index, model in enumerate(models)
        if (row["run"], row["seed"]) == (model["run"], model["seed"])
        and row.get("checkpoint", model["checkpoint"]) == model["checkpoint"]
    ]
    return matches[-1] if matches else None


def _first_repeated(table: pd.DataFrame, columns: list[str]) -> str:
    return " / ".join(map(str, table.loc[table.duplicated(columns), columns].iloc[0]))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def read_payload(text: str) -> dict:
    """The data inside a finished page: what `payload` gave."""
    start = text.index('id="data">') + len('id="data">')
    return json.loads(gzip.decompress(base64.b64decode(text[start : text.index("</script>", start)])))
