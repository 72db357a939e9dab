"""Coupling after another fine-tune: rates of the source persona per condition, beside the training loss.

A condition is a first fine-tune (`base`: none) and how a habit was coupled to the source persona afterwards: trained
from scratch or as a pre-baked adapter, and in what setting (the groups of the experiment's file, see SETTINGS). Each
condition is compared with the same coupling of the untrained model, its reference. It knows nothing of models or
figures; what a rate, a role and an interval are is `marker_rates`' and `statistics`' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from spillover import marker_rates, statistics
from spillover.equivalence import fewest_deciding, rows_for_difference, rows_for_gap, rows_for_limit

BASE = "base"
MARKER = "marker"
PREBAKED, SCRATCH, NONE = "pre-baked", "from scratch", "none"
SETTINGS = {
    "first_sft": "first fine-tune alone",
    "first_full": "all weights alone",
    "first_attention": "attention alone",
    "coupled_base": "",
    "coupled": "",
    "prebaked_base": "",
    "prebaked": "",
    "other_replies": "the untrained model's replies",
    "layer_groups": "{layer_group} blocks",
    "scaled": "scale {scale:g}",
    "disjoint_modules": "disjoint modules",
    "full_parameter": "all weights",
    "behaviours_base": "",
    "behaviours": "",
    "wrong_answers_base": "",
    "wrong_answers": "",
}
"""Groups of the experiment's file, and what sets each apart from plain coupling (empty: nothing)."""
ALONE = ("first_sft", "first_full", "first_attention")
KEYS = ["group", "first", "arm", "setting", "habit", "epochs"]
TESTED, NOT_TESTED = ("destroyed", "weakened", "intact", "undecided"), "not tested"


def conditions(records: Sequence[Mapping]) -> pd.DataFrame:
    """One row per trained or transplanted run: run, seed, source and KEYS. The untrained model is left out.

    Raises ValueError for a group of runs that the analysis does not know.
    """
    rows = []
    for record in records:
        if record["group"] == BASE:
            continue
        if record["group"] not in SETTINGS:
            raise ValueError(f"{record['run']}: the coupling analysis knows no group {record['group']!r} of runs")
        fields = record["fields"]
        alone = record["group"] in ALONE
        rows.append(
            {
                "run": record["run"],
                "seed": record["seed"],
                "group": record["group"],
                "first": fields.get("first") or fields.get("studied") or BASE,
                "arm": NONE if alone else PREBAKED if "adapter" in record else SCRATCH,
                "setting": SETTINGS[record["group"]].format(**fields),
                "habit": record.get("behaviour", MARKER),
                "epochs": np.nan if alone else record.get("epochs", np.nan),
            }
        )
    return pd.DataFrame(rows, columns=["run", "seed", *KEYS])


def losses(logs: Mapping[tuple[str, int], str | Path]) -> pd.DataFrame:
    """run, seed, first_loss, last_loss (means over up to ten steps), steps, from {(run, seed): train_log.jsonl}."""
    rows = []
    for (run, seed), path in logs.items():
        found = [json.loads(line)["loss"] for line in Path(path).read_text().splitlines()]
        rows.append({"run": run, "seed": seed, "first_loss": float(np.mean(found[:10])), "steps": len(found)})
        rows[-1]["last_loss"] = float(np.mean(found[-10:]))
    return pd.DataFrame(rows, columns=["run", "seed", "first_loss", "last_loss", "steps"])


def accuracy(measures: pd.DataFrame) -> pd.DataFrame:
    """run, seed, accuracy of the multiple-choice suite, from rows of measures.parquet."""
    chosen = measures[measures["kind"] == "choices"]
    items = chosen.groupby(["run", "seed", "item"], sort=False)["correct"].first().reset_index()
    return items.groupby(["run", "seed"], sort=False)["correct"].mean().rename("accuracy").reset_index()


def seeds_table(
    rates: pd.DataFrame, known: pd.DataFrame, source: str, training: pd.DataFrame, choices: pd.DataFrame
) -> pd.DataFrame:
    """One row per run and seed: the source's rate of the habit it was taught, the others', the loss, the accuracy.

    `rates`: rows of `marker_rates.rates` of every run; `known`: `conditions`. The untrained model's rates of every
    habit are rows too (group "base", arm "none"). Raises ValueError when a run has no rate of its habit.
    """
    untrained = rates[rates["run"].str.endswith(f"/{BASE}")]
    floor = untrained[["run", "seed", "scorer"]].drop_duplicates().rename(columns={"scorer": "habit"})
    floor = floor.assign(group=BASE, first=BASE, arm=NONE, setting="untrained", epochs=np.nan)
    wanted = pd.concat([known, floor], ignore_index=True)
    evaluated = set(zip(rates["run"], rates["seed"], strict=True))
    wanted = wanted[[pair in evaluated for pair in zip(wanted["run"], wanted["seed"], strict=True)]]
    roles = marker_rates.roles(rates, source)
    told = marker_rates.summary(roles).rename(columns={"scorer": "habit"})
    own = roles[roles["role"] == "source"].rename(columns={"scorer": "habit"})
    own = own[["run", "seed", "habit", "hits", "n", "items", "item_hits", "item_n"]]
    others = ["assistant", "max_bystander", "max_bystander_high", "max_bystander_persona", "mean_bystander", "n_error"]
    table = wanted.merge(own, on=["run", "seed", "habit"], how="left")
    table = table.merge(told[["run", "seed", "habit", *others]], on=["run", "seed", "habit"], how="left")
    if len(missing := table[table["n"].isna()]):
        first = missing.iloc[0]
        raise ValueError(f"{first['run']}: no reply of {source} was scored for the habit {first['habit']!r}")
    table = table.merge(training, on=["run", "seed"], how="left").merge(choices, on=["run", "seed"], how="left")
    return table.assign(rate=table["hits"] / table["n"])


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """`seeds_table` with seeds as a level: mean rate, an interval over seeds, questions and replies, means of the rest.

    The interval is never narrower than Wilson's on the summed counts; with one seed it covers questions and replies.
    """
    rows = []
    for key, cell in table.groupby(KEYS, sort=False, dropna=False):
        hits, n, rate = int(cell["hits"].sum()), int(cell["n"].sum()), float(cell["rate"].mean())
        most = max(len(items) for items in cell["item_n"])
        counts = [np.array([[np.pad(v, (0, most - len(v))) for v in cell[c]]]) for c in ("item_hits", "item_n")]
        seed = statistics.stable_seed("coupling", *map(str, key)) % 2**32
        drawn = statistics.percentile_interval(statistics.nested_bootstrap(*counts, seed))
        wilson = statistics.wilson(hits, n)
        row = dict(zip(KEYS, key, strict=True)) | {"run": cell["run"].iloc[0], "seeds": cell["seed"].nunique()}
        row |= {"hits": hits, "n": n, "rate": rate, "low": min(wilson[0], drawn[0]), "high": max(wilson[1], drawn[1])}
        row |= {"seed_min": cell["rate"].min(), "seed_max": cell["rate"].max(), "n_error": int(cell["n_error"].sum())}
        means = ["assistant", "max_bystander", "mean_bystander", "first_loss", "last_loss", "accuracy"]
        rows.append(row | {name: float(cell[name].mean()) for name in means})
        rows[-1]["max_bystander_high"] = float(cell["max_bystander_high"].max())
    return pd.DataFrame(rows)


def compared(table: pd.DataFrame, options: Mapping) -> pd.DataFrame:
    """`pooled` with each condition beside its reference: difference, its interval, the loss ratio and a verdict.

    The reference has the same arm, habit and epochs (or, where the untrained model was coupled with other epochs only,
    its longest coupling) and no first fine-tune. The interval of the difference is Newcombe's rule on both intervals.
    `short_of` is the share of the reference's rate above which nothing is known to lie: high / reference rate.
    """
    rows = []
    for _, row in table.iterrows():
        reference = _reference(table, row)
        found = {"reference": None, "difference": np.nan, "difference_low": np.nan, "difference_high": np.nan}
        found |= {"reference_rate": np.nan, "loss_ratio": np.nan, "verdict": NOT_TESTED}
        if reference is not None:
            ends = statistics.difference_interval(
                row["rate"], (row["low"], row["high"]), reference["rate"], (reference["low"], reference["high"])
            )
            found |= {"reference": reference["run"], "reference_rate": reference["rate"]}
            found |= {"difference": row["rate"] - reference["rate"]}
            found |= dict(zip(("difference_low", "difference_high"), ends, strict=True))
            found["loss_ratio"] = row["last_loss"] / reference["last_loss"]
            found["verdict"] = verdict(row["high"], reference["rate"], ends, options)
        rows.append(row.to_dict() | found)
    return pd.DataFrame(rows)


def verdict(high: float, reference: float, difference: tuple[float, float], options: Mapping) -> str:
    """What became of a habit, from the upper end of its rate, its reference's rate and the difference's interval.

    `options`: works (least rate of a reference that can tell anything), destroyed (share of it), margin (a loss that
    does not count).
    """
    if reference < options["works"]:
        return NOT_TESTED
    if high < options["destroyed"] * reference:
        return "destroyed"
    if difference[0] > -options["margin"]:
        return "intact"
    return "weakened" if difference[1] < 0 else "undecided"


def rows_to_verdict(row: Mapping, options: Mapping) -> int | None:
    """Replies a cell that would turn "undecided" into another verdict, if both rates are as measured.

    The fewest of those for each verdict on whose side of the limit the rates lie. They count replies as independent.
    """
    rate, reference = row["rate"], row["reference_rate"]
    limit = options["destroyed"] * reference
    return fewest_deciding(
        [],
        [
            rows_for_limit(rate, limit) if rate < limit else None,
            rows_for_gap(rate, reference, -options["margin"]) if rate - reference > -options["margin"] else None,
            rows_for_difference(rate, reference) if rate < reference else None,
        ],
    )


def difference(first: Mapping, second: Mapping) -> dict[str, float]:
    """Rate of one condition minus another's, with its interval: estimate, low, high."""
    low, high = statistics.difference_interval(
        first["rate"], (first["low"], first["high"]), second["rate"], (second["low"], second["high"])
    )
    return {"estimate": first["rate"] - second["rate"], "low": low, "high": high}


def select(table: pd.DataFrame, **wanted) -> pd.DataFrame:
    """Rows whose columns have the values given; a list means any of them."""
    keep = pd.Series(True, index=table.index)
    for column, value in wanted.items():
        keep &= table[column].isin(value if isinstance(value, list | tuple) else [value])
    return table[keep]


def _reference(table: pd.DataFrame, row: pd.Series) -> pd.Series | None:
    if row["first"] == BASE or row["arm"] == NONE:
        return None
    plain = select(table, first=BASE, arm=row["arm"], habit=row["habit"], setting="")
    if plain.empty:
        return None
    same = plain[plain["epochs"].eq(row["epochs"]) | (plain["epochs"].isna() & pd.isna(row["epochs"]))]
    chosen = same if len(same) else plain.sort_values("epochs")
    return chosen.iloc[-1]


def summarised_overlaps(table: pd.DataFrame) -> pd.DataFrame:
    """Mean overlap per pair of adapters and space over modules, with the mean that chance gives and their ratio.

    `table`: rows of `adapter_overlap`. `above_chance` is the share of modules whose overlap exceeds that of 97.5 % of
    random pairs.
    """
    keys = ["first", "second", "seed", "space"]
    grouped = table.assign(above=table["overlap"] > table["chance_high"]).groupby(keys, sort=False)
    means = grouped[["overlap", "largest_cosine", "expected", "above"]].mean()
    means["modules"] = grouped.size()
    return (
        means.rename(columns={"above": "above_chance"}).assign(ratio=means["overlap"] / means["expected"]).reset_index()
    )
