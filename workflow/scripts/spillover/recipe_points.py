"""Every recipe as a point: geometry kept, task learnt and conduct of one run at one checkpoint.

Joins what the runs' records say with the tables of `persona_geometry`, `task_fit` and `conduct`. The untrained model is
always a point of its own, at step 0. It decides nothing: see `recipe_rule`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import pandas as pd

from .persona_geometry import QUANTITIES, Attribution, attribute
from .plan import BASE, FINAL

SHOWN = ("bad_advice", "misaligned", "misaligned_coherent")
"""Measures of conduct that show whether the narrow data's behaviour was taken over."""


def points(
    records: Iterable[Mapping],
    geometry: pd.DataFrame,
    fits: pd.DataFrame,
    conduct: pd.DataFrame,
    options: Mapping,
    personas: int,
) -> pd.DataFrame:
    """One row per run, seed and checkpoint that has geometry at the rule's method and layer.

    Columns: run (name alone), seed, checkpoint, group, phase, narrow, step, role (untrained, baseline, control,
    recipe), eligible (may end the search), what the record says of the recipe (mix, share, unit, rank, learning_rate,
    regulariser, method, batch_size), every quantity of the geometry with `_low` and `_high`, ratio and general_loss
    (published criterion's suite), learnt and task_loss (the narrow set's own suite), from_offset and from_spread (parts
    of the rise of M1), shown (see `shown_share`), conduct_asked (the narrow set has a behaviour to show) and obeys
    (share of instructions followed).
    """
    rule = options["rule"]
    at_rule = geometry[(geometry["method"] == rule["method"]) & (geometry["layer"] == rule["layer"])]
    wide = {key: frame.set_index("quantity") for key, frame in at_rule.groupby(["run", "seed", "checkpoint"])}
    fitted = {(row.run, row.seed, row.checkpoint, row.suite): row._asdict() for row in fits.itertuples(index=False)}
    rows = []
    for record in records:
        for checkpoint in record["checkpoints"]:
            key = (record["run"].rsplit("/", 1)[-1], record["seed"], checkpoint)
            if key in wide:
                rows.append(_identity(record, *key, options) | _numbers(wide[key]))
    table = pd.DataFrame(rows)
    untrained = table[table["role"] == "untrained"].iloc[0]
    for index, row in table.iterrows():
        key = (row["run"], row["seed"], FINAL if row["role"] == "untrained" else row["checkpoint"])
        own = options["baselines"].get(row["narrow"], {}).get("task", options["general"])
        general, task = fitted.get((*key, options["general"]), {}), fitted.get((*key, own), {})
        found = {"general_loss": general.get("loss"), "task_loss": task.get("loss"), "rows": general.get("rows")}
        for name, source in {"ratio": general, "learnt": task}.items():
            found |= {f"{name}{end}": source.get(f"{name}{end}") for end in ("", "_low", "_high")}
        parts = rise(untrained, row, personas)
        found |= {"from_offset": parts.from_offset, "from_spread": parts.from_spread}
        shown = shown_share(conduct, row, options) or (None, None, None)
        found |= dict(zip(("shown", "shown_low", "shown_high"), shown, strict=True)) | {"obeys": _obeys(conduct, key)}
        for name, value in found.items():
            table.loc[index, name] = float("nan") if value is None else value
    return table


def rise(untrained: pd.Series, point: pd.Series, personas: int) -> Attribution:
    """How much of a point's rise of M1 over the untrained model a larger common offset implies, and how much a
    smaller spread."""
    before, after = ((row["offset"], row["spread"]) for row in (untrained, point))
    return attribute(before, after, personas)


def shown_share(conduct: pd.DataFrame, point: pd.Series, options: Mapping) -> tuple[float, float, float] | None:
    """The narrow data's behaviour as a share of what the same data alone induce, at worst over the system prompts.

    With an interval that divides the ends of the two rates' intervals by each other, which is wide. None where it was
    not measured, where the narrow set has no such behaviour, or where the narrow data alone induce too little (a rate
    below `options.behaviour.least_rate`) for a share of it to mean anything.
    """
    behaviour = options["behaviour"]
    if point["narrow"] != behaviour["narrow"]:
        return None
    alone = options["baselines"][point["narrow"]]
    ours = _rates(conduct, (point["run"], point["seed"], point["checkpoint"]))
    theirs = _rates(conduct, (alone["run"], point["seed"], alone["checkpoint"]))
    shares = [
        (ours[cell]["rate"] / of["rate"], ours[cell]["low"] / of["high"], ours[cell]["high"] / max(of["low"], 1e-9))
        for cell, of in theirs.items()
        if cell in ours and of["rate"] >= behaviour["least_rate"]
    ]
    return min(shares) if shares else None


def _rates(conduct: pd.DataFrame, key: tuple) -> dict[str, pd.Series]:
    """{system prompt: row} of the first measure of SHOWN that there is."""
    of_run = _of(conduct, key)
    for measure in SHOWN:
        found = of_run[of_run["measure"] == measure]
        if len(found):
            return {row["cell"]: row for _, row in found.iterrows()}
    return {}


def _obeys(conduct: pd.DataFrame, key: tuple) -> float | None:
    found = _of(conduct, key)
    found = found[found["measure"] == "obeys"]
    return found["hits"].sum() / found["n"].sum() if len(found) and found["n"].sum() else None


def _of(conduct: pd.DataFrame, key: tuple) -> pd.DataFrame:
    run, seed, checkpoint = key
    names = conduct["run"].astype(str).str.rsplit("/", n=1).str[-1]
    return conduct[(names == run) & (conduct["seed"] == seed) & (conduct["checkpoint"] == checkpoint)]


def _identity(record: Mapping, name: str, seed: int, checkpoint: str, options: Mapping) -> dict:
    baselines = [(b["run"], b["checkpoint"]) for b in options["baselines"].values()]
    control = record["group"] in options["controls"] or record.get("phase") is None
    if name == BASE:
        role = "untrained"
    elif (name, checkpoint) in baselines:
        role = "baseline"
    else:
        role = "control" if control else "recipe"
    mix = (record.get("mix") or [{}])[0]
    return {
        "run": name,
        "seed": seed,
        "checkpoint": "step0" if name == BASE else checkpoint,
        "group": record["group"],
        "phase": record.get("phase"),
        "narrow": record.get("source"),
        "step": _step(record, checkpoint),
        "role": role,
        "eligible": name != BASE and not control,
        "mix": mix.get("source"),
        "share": mix.get("share", 0.0),
        "unit": mix.get("unit"),
        "regulariser": (record.get("regulariser") or {}).get("kind"),
        "conduct_asked": record.get("source") == options["behaviour"]["narrow"],
        **{key: record.get(key) for key in ("rank", "learning_rate", "method", "batch_size")},
    }


def _numbers(frame: pd.DataFrame) -> dict[str, float]:
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {f"{q}{end}": float(frame.loc[q, column]) for q in QUANTITIES for end, column in ends.items()}


def _step(record: Mapping, checkpoint: str) -> int:
    """Optimizer steps behind a checkpoint; 0 for the untrained model."""
    if record["group"] == BASE:
        return 0
    saved = re.fullmatch(r"(step|pct)(\d+)", checkpoint)
    if not saved:
        return record["steps"]
    return int(saved[2]) if saved[1] == "step" else round(record["steps"] * int(saved[2]) / 100)
