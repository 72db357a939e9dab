"""The tables behind the convergence summary: rates over seeds, arms against each other, what moved and by how much.

Lists of plain records, made from the tables of `convergence`; verdicts and sentences are made elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from . import convergence, statistics


@dataclass(frozen=True)
class Limits:
    """Declared limits, as shares: when a marker is gone or kept, what makes an adapter narrow; and the test level."""

    gone: float = 0.10  # the marker is gone when its rate's upper bound lies below this
    kept: float = 0.50  # and kept when its rate's lower bound lies above this share of the rate at the start
    narrow_source: float = 0.50  # a narrow adapter shows the marker in its source at least this often
    narrow_others: float = 0.10  # and in no other persona more often than this
    equal: float = 0.10  # two rates are equal when the interval of their difference lies within this
    flat: float = 0.05  # a cosine that changes by less than this is flat
    level: float = 0.05


def pool_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """Points with the replies of all seeds together: rates, intervals, the range over seeds, `is_last`.

    A seed is a training of its own, not more replies: an interval is Wilson's of all replies, widened to hold every
    seed's own rate.
    """
    rows = []
    for (arm, source, step), of in points.groupby(["arm", "source", "step"], sort=False):
        row = {"arm": arm, "source": source, "step": step, "seeds": of["seed"].nunique()}
        for role in ("source", "assistant"):
            hits, n = int(of[f"{role}_hits"].sum()), int(of[f"{role}_n"].sum())
            low, high = statistics.wilson(hits, n)
            least, most = of[f"{role}_rate"].min(), of[f"{role}_rate"].max()
            row |= {f"{role}_hits": hits, f"{role}_n": n, f"{role}_rate": hits / n if n else math.nan}
            row |= {f"{role}_low": min(low, least), f"{role}_high": max(high, most)}
            row |= {f"{role}_least": least, f"{role}_most": most}
        for name in ("bystander_mean", "bystander_mean_low", "bystander_mean_high", "bystander_max"):
            row[name] = of[name].mean()
        row["bystander_mean_low"] = min(row["bystander_mean_low"], of["bystander_mean"].min())
        row["bystander_mean_high"] = max(row["bystander_mean_high"], of["bystander_mean"].max())
        top = of.loc[of["bystander_max"].idxmax()] if of["bystander_max"].notna().any() else of.iloc[0]
        rows.append(row | {"max_bystander": top["max_bystander"], "bystander_max_high": of["bystander_max_high"].max()})
    table = pd.DataFrame(rows)
    table["is_last"] = table["step"] == table.groupby(["arm", "source"])["step"].transform("max")
    return table


def baseline(pooled: pd.DataFrame, rates: pd.DataFrame, records: list[dict], scorer: str, limits: Limits) -> list[dict]:
    """Per source: the marker adapter before any second training, its pattern, and the untrained model's own rate."""
    base_runs = {r["run"] for r in records if r["group"] == "base"}
    untrained = rates[rates["run"].isin(base_runs) & (rates["scorer"] == scorer)]
    hits, n = int(untrained["hits"].sum()), int(untrained["n"].sum())
    rows = []
    for row in pooled[pooled["step"] == 0].drop_duplicates("source").to_dict("records"):
        row["pattern"] = pattern(row, limits)
        row["untrained"] = {"hits": hits, "n": n, "high": statistics.wilson(hits, n)[1]} if n else None
        rows.append(row)
    return rows


def pattern(row: dict, limits: Limits) -> str:
    """narrow, inverted (another persona shows the marker more than the source), global or weak."""
    others = max(row["assistant_rate"], row["bystander_max"])
    if others > row["source_rate"]:
        return "inverted"
    if row["source_rate"] < limits.narrow_source:
        return "weak"
    return "narrow" if others <= limits.narrow_others else "global"


def relation(first: tuple[int, int], second: tuple[int, int]) -> tuple[str, float, float]:
    """ ">", "<" or "≈" (not told apart) of two counts (hits, n), with Newcombe's 95 % interval of the difference."""
    low, high = statistics.newcombe(*first, *second)
    return _sign(low, high), low, high


def apart(first: Mapping, second: Mapping, role: str) -> tuple[str, float, float]:
    """`relation` of one role's rates in two rows of `pool_seeds`; of one seed the interval is Newcombe's."""
    ends = [(row[f"{role}_rate"], (row[f"{role}_low"], row[f"{role}_high"])) for row in (first, second)]
    low, high = statistics.difference_interval(*ends[0], *ends[1])
    return _sign(low, high), low, high


def _sign(low: float, high: float) -> str:
    return ">" if low > 0 else "<" if high < 0 else "≈"


def comparisons(pooled: pd.DataFrame, published: dict) -> list[dict]:
    """Each pair of trained arms at the last step, per source and role, beside the relation that print gives."""
    n = published["design"]["replies_per_persona"]
    last = pooled[pooled["is_last"] & (pooled["step"] > 0)].set_index(["arm", "source"])
    rows = []
    for source in dict.fromkeys(last.index.get_level_values("source")):
        for role in ("source", "assistant"):
            for a, b in combinations(convergence.TRAINED_ARMS, 2):
                if (a, source) not in last.index or (b, source) not in last.index:
                    continue
                first, second = (last.loc[(arm, source)] for arm in (a, b))
                sign, low, high = apart(first, second, role)
                row = {"source": source, "role": role, "first": a, "second": b, "measured": sign, "low": low}
                row |= {"high": high, "difference": first[f"{role}_rate"] - second[f"{role}_rate"]}
                printed = published["at_100"].get(source)
                if printed:
                    hits = [(round(printed[arm][role] / 100 * n), n) for arm in (a, b)]
                    row["published"] = relation(*hits)[0]
                rows.append(row)
    return rows


def cosine_change(paths: pd.DataFrame, layer: int, method: str) -> list[dict]:
    """First and last centred cosine of each arm and source, and whether it came closer beyond both intervals."""
    chosen = paths[(paths["layer"] == layer) & (paths["method"] == method)]
    rows = []
    for (stage, arm, source), of in chosen.groupby(["stage", "arm", "source"], sort=False):
        mean = of.groupby("step").mean(numeric_only=True).sort_index()
        trained = mean[mean.index > 0]
        starts = [0.0] if 0.0 in mean.index and len(trained) else []
        starts += [trained.index[0]] if len(trained) > 1 else []
        for since in starts:
            first, last = mean.loc[since], mean.iloc[-1]
            row = {"stage": stage, "arm": arm, "source": source, "since": since, "until": mean.index[-1]}
            row |= {f"{name}_{k}": end[f"centred{k2}"] for name, end in (("first", first), ("last", last))
                    for k, k2 in (("value", ""), ("low", "_low"), ("high", "_high"))}  # fmt: skip
            row |= {"raw_first": first["raw"], "raw_last": last["raw"]}
            row["direction"] = _direction(first, last)
            rows.append(row)
    return rows


def bystanders(pooled: pd.DataFrame) -> list[dict]:
    """Assistant rate against the mean of the bystanders at the last step of each arm, with an interval."""
    rows = []
    for row in pooled[pooled["is_last"] & (pooled["step"] > 0)].to_dict("records"):
        if row["bystander_mean"] != row["bystander_mean"]:
            continue
        low, high = statistics.difference_interval(
            row["assistant_rate"], (row["assistant_low"], row["assistant_high"]),
            row["bystander_mean"], (row["bystander_mean_low"], row["bystander_mean_high"]),
        )  # fmt: skip
        found = {k: row[k] for k in ("arm", "source", "step", "source_rate", "assistant_rate", "bystander_mean")}
        found |= {"difference": row["assistant_rate"] - row["bystander_mean"], "low": low, "high": high}
        rows.append(found)
    return rows


def steering(pooled: pd.DataFrame, paths: pd.DataFrame, layer: int, method: str) -> list[dict]:
    """Every coefficient of the steered arm: rates, the cosine reached, and the leak's change against coefficient 0."""
    of_arm = pooled[pooled["arm"] == "steered"].set_index(["source", "step"])
    chosen = paths[(paths["arm"] == "steered") & (paths["layer"] == layer) & (paths["method"] == method)]
    cosine = chosen.groupby(["source", "step"])[["centred", "raw"]].mean()
    rows = []
    for (source, step), row in of_arm.iterrows():
        found = {"source": source, "coefficient": step} | row.to_dict()
        if (source, step) in cosine.index:
            found |= cosine.loc[(source, step)].to_dict()
        if step != 0 and (source, 0.0) in of_arm.index:
            start = of_arm.loc[(source, 0.0)]
            found["relation"], found["change_low"], found["change_high"] = apart(row, start, "assistant")
            found |= {"source_before": start["source_rate"], "assistant_before": start["assistant_rate"]}
        rows.append(found)
    return rows


def trends(summary: dict) -> list[dict]:
    """Arm B from its first checkpoint to its last, per source: where the cosine goes, and the assistant's leakage."""
    cosines = {
        (r["source"], r["since"]): r for r in summary["cosine_changes"] if (r["stage"], r["arm"]) == ("evaluated", "B")
    }
    leaks: dict[tuple, list] = {}
    for row in summary["changes"]:
        if row["arm"] == "B" and row["quantity"] == "assistant":
            leaks.setdefault((row["source"], row["since"]), []).append(row)
    rows = []
    for (source, since), found in leaks.items():
        if since == 0 or (source, since) not in cosines:
            continue
        signs = {"up" if r["low"] > 0 else "down" if r["high"] < 0 else "not clearly" for r in found}
        leak = signs.pop() if len(signs) == 1 else "not clearly"
        row = {name: sum(r[name] for r in found) / len(found) for name in ("before", "after", "change")}
        row |= {"low": min(r["low"] for r in found), "high": max(r["high"] for r in found), "leak": leak}
        cosine = cosines[source, since]
        rows.append({"source": source, "cosine": cosine, "direction": cosine["direction"], **row})
    return rows


def _direction(first, last) -> str:
    if last["centred_low"] > first["centred_high"]:
        return "closer"
    return "away" if last["centred_high"] < first["centred_low"] else "not clearly"


def percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def in_points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def rho_words(value: float) -> str:
    return "undefined" if value is None or value != value else f"{value:+.2f}"


def p_words(value: float) -> str:
    return "–" if value is None or value != value else f"{value:.3f}" if value >= 0.001 else "< 0.001"
