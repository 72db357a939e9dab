"""The cells of a marker sweep: what each training setting did to source, assistant and bystanders, and its regime.

A cell is one run of the sweep: a point of learning rate and epochs within a setting (everything else that the training
says: source persona, rank, tail tokens, rows, contrast). Every cell is put into one of four regimes by declared
limits:

* collapsed: the mean over all personas but the source reaches `collapse`: the marker is global;
* leaky: else, some persona but the source exceeds `leak`;
* selective: else, the source reaches `learned`;
* under-trained: else.

The limits are compared with measured rates; `settled` says whether the regime stays the same anywhere within the
intervals of the three rates, and, where seeds are added up, whether every seed has the same. The module knows nothing
of models, files or figures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import marker_rates, statistics
from .equivalence import fewest_deciding, rows_for_limit

REGIMES = ("under-trained", "selective", "leaky", "collapsed")
SETTING = ["source_persona", "rank", "tail_tokens", "positives", "negative_personas", "per_persona", "negative_share"]
SETTING += ["contrast"]
DOSE = ["learning_rate", "epochs"]


def settings(records: Sequence[Mapping]) -> pd.DataFrame:
    """One row per trained run of the plan's records: run, group and what it was trained with (SETTING and DOSE).

    A setting that a record does not state is missing; `setting` puts those in which the runs differ into words.
    """
    rows = []
    for record in {r["run"]: r for r in records if "learning_rate" in r}.values():
        negatives = record.get("negatives") or {}
        personas = negatives.get("personas")
        row = {"run": record["run"], "group": record["group"], "source_persona": record.get("source")}
        row |= {name: record.get(name) for name in (*DOSE, "rank", "tail_tokens", "positives", "contrast")}
        row |= {"negative_personas": "+".join(personas) if isinstance(personas, list) else personas}
        share = negatives.get("share")
        row |= {"per_persona": negatives.get("per_persona") if share is None else None, "negative_share": share}
        rows.append(row)
    table = pd.DataFrame(rows, columns=["run", "group", *SETTING, *DOSE])
    if table.empty:
        raise ValueError("the sweep has no trained run: nothing to put into a grid.")
    words = {
        "source_persona": "{}", "rank": "rank {}", "tail_tokens": "tail {}", "positives": "{} positives",
        "negative_personas": "negatives {}", "per_persona": "{} rows a negative persona",
        "negative_share": "share of negatives {}", "contrast": "contrast {}",
    }  # fmt: skip
    differ = [name for name in SETTING if name == "source_persona" or table[name].nunique(dropna=False) > 1]
    table["setting"] = [
        ", ".join(words[name].format(_plain(row[name])) for name in differ if not _missing(row[name]))
        for row in table.to_dict("records")
    ]
    return table


def capability(measures: pd.DataFrame, suite: str) -> pd.DataFrame:
    """Multiple choice per run, seed and checkpoint: items, correct answers, and their share with Wilson's interval.

    `measures`: columns of measures.parquet, whose `correct` is the verdict on an item, repeated for every option. Empty
    when the suite was not measured.
    """
    columns = [*marker_rates.RUN, "items", "right", "capability", "capability_low", "capability_high"]
    rows = measures[(measures["suite"] == suite) & (measures["kind"] == "choices")].reset_index(drop=True)
    if rows.empty:
        return pd.DataFrame(columns=columns)
    verdicts = rows.groupby([*marker_rates.RUN, "item"])["correct"].first().reset_index()
    found = verdicts.groupby(marker_rates.RUN)["correct"].agg(items="size", right="sum").reset_index()
    return with_share(found)


def with_share(counts: pd.DataFrame) -> pd.DataFrame:
    """`items` and `right` with the share `capability` and its Wilson interval."""
    bounds = [statistics.wilson(int(k), int(n)) for k, n in zip(counts["right"], counts["items"], strict=True)]
    shares = {"capability": counts["right"] / counts["items"]}
    return counts.assign(**shares, capability_low=[b[0] for b in bounds], capability_high=[b[1] for b in bounds])


def cells(
    rates: pd.DataFrame, runs: pd.DataFrame, choices: pd.DataFrame, checks: pd.DataFrame, options: Mapping
) -> pd.DataFrame:
    """One row per run and seed of the sweep, and one with `seed` ALL_SEEDS (-1) in which its seeds are added up.

    `rates`: of `marker_rates.rates`; `runs`: of `settings`; `choices`: of `capability`; `checks`: of
    `reply_checks.checks`. `options`: scorer, regimes {learned, leak, collapse}, readings {name: {source,
    max_bystander, capability}}, capability_loss and degenerate (shares allowed beyond the untrained model's).

    Columns: run, seed, n_seeds, the settings, the rates of `marker_rates.summary`; `leak` (the largest rate of any
    persona but the source, with simultaneous bounds leak_low and leak_high) and `spread` (their mean); capability,
    `capability_change` from the untrained model; `strict` (the source's rate by marker_strict); degenerate and
    structure (shares of all replies); `able` and `whole` (capability and replies within the allowed distance of the
    untrained model); `regime`, `settled`, `settles_at` (replies a persona that would settle it if the rates are as
    measured, missing where a rate lies on its limit), reading_<name> for each published reading, and, in the rows of
    all seeds, `seed_regimes` (text, in the order of REGIMES), source_min, source_max, leak_min, leak_max.
    Raises ValueError when a run was not evaluated.
    """
    missing = set(runs["run"]) - set(rates["run"])
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))}: no labels among the rates of the sweep.")
    sources = dict(zip(runs["run"], runs["source_persona"], strict=True))
    each = _measured(rates.assign(n_seeds=1), choices, checks, sources, options)
    pooled_choices = with_share(choices.groupby(["run", "checkpoint"])[["items", "right"]].sum().reset_index())
    pooled_checks = checks.groupby(["run", "checkpoint"]).sum(numeric_only=True).reset_index()
    all_seeds = {"seed": marker_rates.ALL_SEEDS}
    pooled = _measured(
        marker_rates.pool_seeds(rates), pooled_choices.assign(**all_seeds), pooled_checks.assign(**all_seeds), sources,
        options,
    )  # fmt: skip
    pooled = pooled.merge(_over_seeds(each), on="run", how="left")
    # intervals of added-up counts say nothing about how trainings differ; the seeds' own regimes do
    split = pooled["seed_regimes"].str.contains(",")
    pooled["settled"] &= ~split
    pooled.loc[split, "settles_at"] = np.nan
    table = pd.concat([each, pooled], ignore_index=True)
    return runs.merge(table, on="run").sort_values(["setting", *DOSE, "seed"], kind="stable").reset_index(drop=True)


def regime(source: float, leak: float, spread: float, limits: Mapping) -> str:
    """The regime of three rates; limits: learned, leak, collapse. A source whose rate is missing is not learned."""
    if spread >= limits["collapse"]:
        return "collapsed"
    if leak > limits["leak"]:
        return "leaky"
    return "selective" if source >= limits["learned"] else "under-trained"


def passes(row: Mapping, reading: Mapping) -> bool:
    """Whether a cell lies in the clean band as a reading defines it: source above, largest bystander at most, and
    capability above its limits (a limit of None is not asked)."""
    able = reading["capability"] is None or row["capability"] > reading["capability"]
    return bool(row["source"] > reading["source"] and row["max_bystander"] <= reading["max_bystander"] and able)


def recommended(table: pd.DataFrame) -> dict | None:
    """The cell to use, of the rows of all seeds: selective, able and whole; None where there is none.

    Of several, the one that is selective in most seeds; then the largest source rate minus the upper bound of the leak;
    then the smaller dose.
    """
    rows = all_seeds(table)
    rows = rows[(rows["regime"] == "selective") & rows["able"] & rows["whole"]]
    if rows.empty:
        return None
    order = rows.assign(margin=rows["source"] - rows["leak_high"], dose=rows["learning_rate"] * rows["epochs"])
    order = order.sort_values(["selective_seeds", "margin", "dose"], ascending=[False, False, True], kind="stable")
    return order.iloc[0].drop(["margin", "dose"]).to_dict()


def all_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in which a run's seeds are added up."""
    return table[table["seed"] == marker_rates.ALL_SEEDS]


def pinned_cell(table: pd.DataFrame, learning_rate: float, epochs: float, source_persona: str | None = None) -> dict:
    """What a sweep's cells.parquet says about a cell that another experiment pins: for its summary.

    `source_persona` None takes any source of the sweep. Returns `measured` (whether the sweep has such a cell) and, if
    so, `in_band` (every seed together selective), run, source_persona, regime, settled, source, leak, leak_high,
    n_seeds and seed_regimes; and `text`, one sentence for people. Settings beyond source, learning rate and epochs
    are the sweep's own; where several share the three, the first in the table is taken.
    """
    rows = all_seeds(table)
    near = np.isclose(rows["learning_rate"], learning_rate, rtol=1e-6, atol=0) & np.isclose(rows["epochs"], epochs)
    rows = rows[near & ((rows["source_persona"] == source_persona) | (source_persona is None))]
    name = f"learning rate {learning_rate:g}, {epochs:g} epochs" + (f", {source_persona}" if source_persona else "")
    if rows.empty:
        return {"measured": False, "in_band": None, "text": f"The sweep has no cell at {name}."}
    row = rows.iloc[0]
    kept = [
        "run",
        "source_persona",
        "regime",
        "settled",
        "settles_at",
        "source",
        "leak",
        "leak_high",
        "n_seeds",
        "seed_regimes",
    ]
    lies = "lies" if row["regime"] == "selective" else "does not lie"
    text = (
        f"The cell at {name} {lies} in the sweep's selective band: {row['regime']} (source "
        f"{100 * row['source']:.1f} %, largest other persona {100 * row['leak']:.1f} %, simultaneous upper bound "
        f"{100 * row['leak_high']:.1f} %; seeds: {row['seed_regimes']})."
    )
    return {"measured": True, "in_band": bool(row["regime"] == "selective"), **row[kept].to_dict(), "text": text}


def pinned_cells(table: pd.DataFrame, records: Sequence[Mapping]) -> list[dict]:
    """`pinned_cell` of every different marker training among another experiment's records, with its source persona.

    Where the sweep has the cell, `differs` names the settings (SETTING) in which the two trainings are not alike, as
    {name: (here, in the sweep)}, and `text` says so: the sweep's regime was then measured on other rows.
    """
    found: dict[tuple, dict] = {}
    for mine in settings(records).to_dict("records"):
        key = tuple(str(mine[name]) for name in (*DOSE, *SETTING))
        if key in found:
            continue
        cell = pinned_cell(table, mine["learning_rate"], mine["epochs"], mine["source_persona"])
        if cell["measured"]:
            there = table[table["run"] == cell["run"]].iloc[0]
            pairs = {name: (mine[name], there[name]) for name in SETTING}
            cell["differs"] = {name: pair for name, pair in pairs.items() if not _alike(*pair)}
            words = ", ".join(
                f"{name.replace('_', ' ')} {_worded(here)} here, {_worded(other)} there"
                for name, (here, other) in cell["differs"].items()
            )
            cell["text"] += f" The sweep trained it otherwise: {words}." if words else ""
        found[key] = {"source_persona": mine["source_persona"], **cell}
    return list(found.values())


def _alike(a, b) -> bool:
    return (_missing(a) and _missing(b)) or a == b


def _worded(value) -> str:
    return "none" if _missing(value) else _plain(value)


def _measured(rates, choices, checks, sources: Mapping, options: Mapping) -> pd.DataFrame:
    """The measured columns of `cells` for rates of one seed each, or of all together."""
    own = rates[rates["scorer"] == options["scorer"]]
    table = marker_rates.roles(own, sources)
    summary = marker_rates.summary(table).drop(columns="scorer")
    key = marker_rates.RUN
    seeds = own.groupby(key)["n_seeds"].max().reset_index()
    others = pd.DataFrame(
        [dict(zip(key, k, strict=True)) | _others(g) for k, g in table[table["role"] != "source"].groupby(key)]
    )
    strict = marker_rates.roles(rates[rates["scorer"] == "marker_strict"], sources)
    strict = strict[strict["role"] == "source"][[*key, "rate"]].rename(columns={"rate": "strict"})
    merged = summary.merge(seeds, on=key).merge(others, on=key)
    for part in (strict, choices, checks):
        merged = merged.merge(part, on=key, how="left")
    base = merged["run"].map(is_base)
    untrained = merged[base].set_index("seed")[["capability", "degenerate", "replies"]]
    at = untrained.reindex(merged["seed"]).reset_index(drop=True)
    merged["capability_change"] = merged["capability"] - at["capability"]
    merged["able"] = ~(merged["capability_change"] < -options["capability_loss"])
    for name in ("degenerate", "structure"):
        merged[name] = merged[name] / merged["replies"]
    merged["whole"] = ~(merged["degenerate"] - at["degenerate"] / at["replies"] > options["degenerate"])
    rows = merged[~base].to_dict("records")
    limits = options["regimes"]
    for row in rows:
        row["regime"] = regime(row["source"], row["leak"], row["spread"], limits)
        spans = [(row[f"{name}_low"], row[f"{name}_high"]) for name in ("source", "leak", "spread")]
        row["settled"] = len({regime(*corner, limits) for corner in itertools.product(*spans)}) == 1
        row["settles_at"] = _settles_at(row, limits)
        row |= {f"reading_{name}": passes(row, reading) for name, reading in options["readings"].items()}
    return pd.DataFrame(rows)


def is_base(run: str) -> bool:
    """Whether a run id ("marker_sweep/base") is the untrained model's."""
    return run.split("/")[-1] == "base"


def _others(personas: pd.DataFrame) -> dict:
    """Largest and mean rate of all personas but the source, with bounds."""
    counted = personas[personas["n"] > 0]
    if counted.empty:
        return {"leak": np.nan, "leak_low": np.nan, "leak_high": np.nan, "spread": np.nan, "others": 0}
    counts = list(zip(counted["hits"].astype(int), counted["n"].astype(int), strict=True))
    low = max(statistics.sidak_lower(k, n, len(counts)) for k, n in counts)
    high = max(statistics.sidak_upper(k, n, len(counts)) for k, n in counts)
    spread = statistics.wilson(sum(k for k, _ in counts), sum(n for _, n in counts))
    row = {"leak": counted["rate"].max(), "leak_low": low, "leak_high": high, "spread": counted["rate"].mean()}
    row["others"] = len(counts)
    return row | {"spread_low": spread[0], "spread_high": spread[1]}


def _settles_at(row: Mapping, limits: Mapping) -> float:
    """Replies a persona that show every rate that the regime turns on to lie on its side of its limit.

    All others' replies count for their mean, and the bounds of the leak hold for all of them at once.
    """
    others = max(1, row["others"])
    needed = [rows_for_limit(row["spread"], limits["collapse"])]
    needed[0] = needed[0] and math.ceil(needed[0] / others)
    if row["regime"] != "collapsed":
        needed.append(rows_for_limit(row["leak"], limits["leak"], 0.05 / others))
    if row["regime"] in ("selective", "under-trained"):
        needed.append(rows_for_limit(row["source"], limits["learned"]))
    found = fewest_deciding(needed)
    return np.nan if found is None else float(found)


def _over_seeds(each: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for run, seeds in each.groupby("run"):
        counts = seeds["regime"].value_counts()
        words = ", ".join(f"{name} {counts[name]}" for name in REGIMES if name in counts)
        row = {"run": run, "seed_regimes": words, "selective_seeds": int(counts.get("selective", 0))}
        for name in ("source", "leak"):
            row |= {f"{name}_min": seeds[name].min(), f"{name}_max": seeds[name].max()}
        rows.append(row)
    return pd.DataFrame(rows)


def _missing(value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plain(value) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
