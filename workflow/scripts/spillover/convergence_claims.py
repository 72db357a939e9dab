"""The careful reading of a convergence result: does the leak follow the cosine, and where does it differ from print?

Every verdict comes from the tables of `convergence` and a limit of `Limits`; nothing is typed. Verdicts: "appears", "does
not appear", "undecided" (the intervals or the number of sources cannot tell) and "not tested" (the models are absent).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import combinations

import pandas as pd

from . import convergence, statistics

APPEARS, ABSENT, UNDECIDED, UNTESTED = "appears", "does not appear", "undecided", "not tested"


@dataclass(frozen=True)
class Limits:
    """Declared limits, as shares: when a marker is gone or kept, what makes an adapter narrow; and the test level."""

    gone: float = 0.10  # the marker is gone when its rate's upper bound lies below this
    kept: float = 0.50  # and kept when its rate's lower bound lies above this share of the rate at the start
    narrow_source: float = 0.50  # a narrow adapter shows the marker in its source at least this often
    narrow_others: float = 0.10  # and in no other persona more often than this
    flat: float = 0.05  # a cosine that changes by less than this is flat
    level: float = 0.05


def summarise(
    points: pd.DataFrame,
    paths: pd.DataFrame,
    tests: pd.DataFrame,
    rates: pd.DataFrame,
    records: list[dict],
    *,
    scorer: str,
    layers: list[int],
    method: str,
    published: dict,
    sweep: dict | None = None,
    limits: Limits | None = None,
) -> dict:
    """Everything the summary says, as data: tables, claims with verdicts, differences from the published experiment.

    `layers` names the layers that stand for the published ones, the first being the headline; `sweep` is what
    the marker sweep says about the learning rate and epochs used here, if it was run.
    """
    limits = limits or Limits()
    pooled = pool_seeds(points)
    layer = layers[0]
    table = convergence.joined(points, paths, layer, method)
    cosine_changes = cosine_change(paths, layer, method)
    summary: dict = {
        "limits": asdict(limits),
        "design": _design(points, rates, records, scorer, layers, method),
        "baseline": baseline(pooled, rates, records, scorer, limits),
        "last": [row for row in pooled.to_dict("records") if row["step"] > 0 and row["is_last"]],
        "comparisons": comparisons(pooled, published),
        "cosine_changes": cosine_changes,
        "changes": convergence.changes(table).to_dict("records"),
        "tests": tests[(tests["layer"] == layer) | tests["layer"].isna()].to_dict("records"),
        "tests_at_all_layers": tests[tests["test"] == "within"].to_dict("records"),
        "bystanders": bystanders(pooled, published),
        "steering": steering(pooled, paths, layer, method),
        "sweep": sweep,
    }
    summary["claims"] = claims(summary, limits)
    summary["differences"] = differences(summary, tests, layers, published)
    summary["caveats"] = caveats(summary)
    summary["answer"] = answer(summary)
    return summary


def pool_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """Points with the replies of all seeds together: rates, Wilson intervals, the range over seeds, `is_last`."""
    rows = []
    for (arm, source, step), of in points.groupby(["arm", "source", "step"], sort=False):
        row = {"arm": arm, "source": source, "step": step, "seeds": of["seed"].nunique()}
        for role in ("source", "assistant"):
            hits, n = int(of[f"{role}_hits"].sum()), int(of[f"{role}_n"].sum())
            low, high = statistics.wilson(hits, n)
            row |= {f"{role}_hits": hits, f"{role}_n": n, f"{role}_rate": hits / n if n else math.nan}
            row |= {f"{role}_low": low, f"{role}_high": high}
            row |= {f"{role}_least": of[f"{role}_rate"].min(), f"{role}_most": of[f"{role}_rate"].max()}
        for name in ("bystander_mean", "bystander_mean_low", "bystander_mean_high", "bystander_max"):
            row[name] = of[name].mean()
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
    """">", "<" or "≈" (not told apart) of two counts (hits, n), with Newcombe's 95 % interval of the difference."""
    low, high = statistics.newcombe(*first, *second)
    return (">" if low > 0 else "<" if high < 0 else "≈"), low, high


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
                counts = [
                    (int(last.loc[(arm, source), f"{role}_hits"]), int(last.loc[(arm, source), f"{role}_n"]))
                    for arm in (a, b)
                ]
                sign, low, high = relation(*counts)
                row = {"source": source, "role": role, "first": a, "second": b, "measured": sign, "low": low}
                row |= {"high": high, "difference": counts[0][0] / counts[0][1] - counts[1][0] / counts[1][1]}
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


def bystanders(pooled: pd.DataFrame, published: dict) -> list[dict]:
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
    for (source, step), row in of_arm.sort_index().iterrows():
        found = {"source": source, "coefficient": step} | row.to_dict()
        if (source, step) in cosine.index:
            found |= cosine.loc[(source, step)].to_dict()
        if step != 0 and (source, 0.0) in of_arm.index:
            start = of_arm.loc[(source, 0.0)]
            counts = [(int(r["assistant_hits"]), int(r["assistant_n"])) for r in (row, start)]
            found["relation"], found["change_low"], found["change_high"] = relation(*counts)
        rows.append(found)
    return rows


def claims(summary: dict, limits: Limits) -> list[dict]:
    """The write-up's claims and the causal hypothesis behind them: claim, verdict, text."""
    return [
        _closer_leaks_more(summary),
        _closer_leaks_less(summary),
        _who_comes_closer(summary),
        _gone_in_arm_a(summary, limits),
        _kept_when_narrow(summary, limits),
        _leak_is_global(summary),
        _sources_rank_alike(summary, limits),
        _breadth_beats_cosine(summary, limits),
        _steering_raises_the_leak(summary),
    ]


def differences(summary: dict, tests: pd.DataFrame, layers: list[int], published: dict) -> list[str]:
    """Every way in which this run is not the published one: its design, then its results. One sentence each."""
    found = _design_differences(summary["design"], published)
    for row in summary["baseline"]:
        printed = published["baseline_leak"].get(row["source"])
        if printed is None:
            continue
        if not row["assistant_low"] <= printed / 100 <= row["assistant_high"]:
            found.append(
                f"Baseline leak of {row['source']}: measured {_percent(row['assistant_rate'])} % "
                f"({_percent(row['assistant_low'])} to {_percent(row['assistant_high'])}), printed {printed:g} %."
            )
        if row["pattern"] != published["adapter"][row["source"]]:
            found.append(
                f"Marker adapter of {row['source']}: {row['pattern']} here, {published['adapter'][row['source']]} in "
                "print."
            )
    for row in summary["comparisons"]:
        if row.get("published") and row["measured"] != row["published"]:
            found.append(
                f"{row['source']}, {row['role']} rate at the end: arm {row['first']} {row['measured']} {row['second']} "
                f"here ({_points(row['low'])} to {_points(row['high'])} points), {row['first']} {row['published']} "
                f"{row['second']} in print."
            )
    last = {(r["arm"], r["source"]): r for r in summary["last"]}
    for first, second in combinations([s for a, s in last if a == "B"], 2):
        if first in published["at_100"] and second in published["at_100"]:
            here = relation(*[(last["B", s]["assistant_hits"], last["B", s]["assistant_n"]) for s in (first, second)])[0]
            printed = [published["at_100"][s]["B"]["assistant"] for s in (first, second)]
            there = ">" if printed[0] > printed[1] else "<"
            if here != there:
                found.append(f"Order of sources, arm B: {first} {here} {second} here, {there} in print.")
    for row in _trends(summary):
        printed = published["arm_b"].get(row["source"])
        if printed is None:
            continue
        there = {"cosine": "closer", "leak": "down"}
        here = {"cosine": row["direction"], "leak": row["leak"]}
        for what, words in (("cosine", "the assistant moves"), ("leak", "assistant leakage goes")):
            if here[what] != there[what]:
                found.append(
                    f"Arm B of {row['source']}, first to last checkpoint: {words} {here[what]} here, {there[what]} in "
                    "print."
                )
    within = tests[(tests["test"] == "within") & (tests["arm"] == "B") & (tests["kind"] == "centred")]
    for position, layer in enumerate(layers):
        for row in within[within["layer"] == layer].to_dict("records"):
            printed = published["arm_b"].get(row["source"])
            if printed is None or position >= len(printed["rho"]):
                continue
            there = printed["rho"][position]
            if row["rho"] != row["rho"] or row["rho"] * there <= 0:
                found.append(
                    f"Arm B of {row['source']}, cosine against leakage at layer {layer}: rho {_rho(row['rho'])} here, "
                    f"{there:+.2f} at layer {published['layers'][position]} in print."
                )
    return found


def caveats(summary: dict) -> list[str]:
    """What the design cannot tell, from its numbers."""
    design = summary["design"]
    sources, seeds = len(design["sources"]), len(design["seeds"])
    found = []
    if seeds == 1:
        found.append("One seed: intervals cover the sampling of replies only and hold for these training runs.")
    if sources < 6:
        least = 2 / math.factorial(sources) if sources > 2 else 1.0
        found.append(
            f"{sources} sources: no test that takes them as its units can reach a p below {least:.2g} (whole "
            f"trajectories permuted) or {2 / 2**sources:.2g} (signs flipped)."
        )
    if len(design["steps"]) < 5:
        floor = 2 / math.factorial(len(design["steps"])) if len(design["steps"]) > 2 else 1.0
        found.append(
            f"{len(design['steps'])} checkpoints an arm: a correlation along one arm cannot reach a p below "
            f"{floor:.2g}."
        )
    found.append(
        "The intervals of rates take the replies to one question as independent; with the same few questions they are "
        "too narrow."
    )
    return found


def answer(summary: dict) -> str:
    """One or two sentences on the experiment's question."""
    first = summary["claims"][0]
    words = {
        APPEARS: "In arm B the marker leaks more as the assistant comes closer to the source.",
        ABSENT: "Coming closer does not by itself raise the leak: ",
        UNDECIDED: "These runs do not decide whether coming closer raises the leak: ",
        UNTESTED: "Arm B was not run, so the question is open.",
    }[first["verdict"]]
    return words + (first["text"] if first["verdict"] in (ABSENT, UNDECIDED) else "")


def _design(points, rates, records, scorer, layers, method) -> dict:
    evaluated = rates[rates["scorer"] == scorer]
    trained = {group: next((r for r in records if r["group"] == group), None) for group in (*convergence.ARMS, "marker")}
    settings = {
        name: None if trained[group] is None else trained[group].get(key)
        for name, group, key in (
            ("marker_learning_rate", "marker", "learning_rate"), ("marker_epochs", "marker", "epochs"),
            ("marker_epochs_arm_b", "arm_b", "epochs"), ("convergence_learning_rate", "arm_a", "learning_rate"),
            ("convergence_epochs", "arm_a", "epochs"),
        )
    }  # fmt: skip
    return {
        "sources": list(dict.fromkeys(points["source"])),
        "seeds": sorted(int(s) for s in points["seed"].unique()),
        "steps": sorted({float(s) for s in points.loc[(points["step"] > 0) & (points["arm"] != "steered"), "step"]}),
        "arms": sorted(set(points["arm"])),
        "personas": int(evaluated["persona"].nunique()),
        "replies_per_persona": [int(evaluated["n"].min()), int(evaluated["n"].max())],
        "errors": int(evaluated["n_error"].sum()),
        "scorer": scorer,
        "layers": layers,
        "method": method,
        "training": settings,
    }


def _design_differences(design: dict, published: dict) -> list[str]:
    printed = published["design"]
    found = []
    if missing := [s for s in printed["sources"] if s not in design["sources"]]:
        found.append(f"Sources not run here: {', '.join(missing)}.")
    if extra := [s for s in design["sources"] if s not in printed["sources"]]:
        found.append(f"Sources that print does not have: {', '.join(extra)}.")
    if design["steps"] != [float(s) for s in printed["checkpoints"]]:
        steps = ", ".join(f"{s:g}" for s in design["steps"])
        found.append(f"Checkpoints here at {steps} %, in print at {', '.join(map(str, printed['checkpoints']))} %.")
    if len(design["seeds"]) != printed["seeds"]:
        found.append(f"{len(design['seeds'])} seeds here, {printed['seeds']} in print.")
    if design["personas"] != printed["personas"]:
        found.append(f"{design['personas']} personas here, {printed['personas']} in print; centred cosines depend on it.")
    if design["replies_per_persona"] != [printed["replies_per_persona"]] * 2:
        low, high = design["replies_per_persona"]
        found.append(
            f"{low if low == high else f'{low} to {high}'} replies a persona here, {printed['replies_per_persona']} in "
            "print (600 for the assistant of two sources)."
        )
    if design["layers"] != published["layers"]:
        here, there = (" and ".join(map(str, x)) for x in (design["layers"], published["layers"]))
        found.append(f"Layers {here} stand for the published layers {there}.")
    for name, value in design["training"].items():
        if value is not None and not math.isclose(value, printed[name]):
            found.append(f"{name.replace('_', ' ').capitalize()}: {value:g} here, {printed[name]:g} in print.")
    if "steered" in design["arms"]:
        found.append("The steered arm is new; print proposes it.")
    return found


def _direction(first, last) -> str:
    if last["centred_low"] > first["centred_high"]:
        return "closer"
    return "away" if last["centred_high"] < first["centred_low"] else "not clearly"


def _trends(summary: dict) -> list[dict]:
    """Arm B from its first checkpoint to its last: direction of the cosine and of the assistant's leakage per source."""
    cosines = {(r["source"], r["since"]): r for r in summary["cosine_changes"] if (r["stage"], r["arm"]) == ("evaluated", "B")}
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
        change = sum(r["change"] for r in found) / len(found)
        rows.append({"source": source, "direction": cosines[source, since]["direction"], "leak": leak,
                     "cosine": cosines[source, since], "change": change, "low": min(r["low"] for r in found),
                     "high": max(r["high"] for r in found)})  # fmt: skip
    return rows


def _trend_words(rows: list[dict]) -> str:
    return "; ".join(
        f"{r['source']}: cosine {r['cosine']['first_value']:+.2f} to {r['cosine']['last_value']:+.2f} "
        f"({'closer' if r['direction'] == 'closer' else r['direction']}), leak {_points(r['change'])} points "
        f"({_points(r['low'])} to {_points(r['high'])})"
        for r in rows
    )


def _closer_leaks_more(summary: dict) -> dict:
    name = "Coming closer raises the leak (arm B, the causal hypothesis)"
    rows = _trends(summary)
    if not rows:
        return _claim(name, UNTESTED, "Arm B has fewer than two checkpoints with vectors.")
    closer = [r for r in rows if r["direction"] == "closer"]
    if not closer:
        verdict = UNDECIDED
    elif all(r["leak"] == "up" for r in closer):
        verdict = APPEARS
    elif any(r["leak"] == "up" for r in closer):
        verdict = UNDECIDED
    else:
        verdict = ABSENT if any(r["leak"] == "down" for r in closer) else UNDECIDED
    return _claim(name, verdict, f"First to last checkpoint: {_trend_words(rows)}.")


def _closer_leaks_less(summary: dict) -> dict:
    name = "Within each source of arm B the leak falls as the cosine rises"
    rows = _trends(summary)
    tests = [
        t for t in summary["tests"] if t["test"] == "within" and t["arm"] == "B" and t["kind"] == "centred"
    ]
    if not rows:
        return _claim(name, UNTESTED, "Arm B has fewer than two checkpoints with vectors.")
    falls = [r for r in rows if r["direction"] == "closer" and r["leak"] == "down"]
    verdict = APPEARS if len(falls) == len(rows) else (UNDECIDED if falls or not any(r["leak"] == "up" for r in rows) else ABSENT)
    rhos = "; ".join(
        f"{t['source']} rho {_rho(t['rho'])}, exact p {_p(t['p'])} (least {_p(t['min_p'])}, Holm {_p(t['p_holm'])}, "
        f"{t['n']:.0f} checkpoints)" for t in tests
    )  # fmt: skip
    return _claim(name, verdict, f"{len(falls)} of {len(rows)} sources do. {rhos}.")


def _who_comes_closer(summary: dict) -> dict:
    name = "Convergence training (A, B) brings the assistant closer, generic training (C) does not"
    rows = [r for r in summary["cosine_changes"] if r["stage"] == "evaluated" and r["since"] == 0 and r["arm"] in "ABC"]
    if {r["arm"] for r in rows} != set("ABC"):
        return _claim(name, UNTESTED, "Not all three arms have vectors and a shared start.")
    moved = all(r["direction"] == "closer" for r in rows if r["arm"] in "AB")
    limits = summary["limits"]
    still = all(abs(r["last_value"] - r["first_value"]) < limits["flat"] or r["direction"] != "closer" for r in rows if r["arm"] == "C")
    verdict = APPEARS if moved and still else ABSENT if not any(r["direction"] == "closer" for r in rows if r["arm"] in "AB") else UNDECIDED
    text = "; ".join(
        f"{r['arm']} {r['source']} {r['first_value']:+.2f} to {r['last_value']:+.2f} ({r['direction']})" for r in rows
    )
    return _claim(name, verdict, f"Centred cosine from step 0 to the end: {text}.")


def _gone_in_arm_a(summary: dict, limits: Limits) -> dict:
    name = "Convergence after the marker (arm A) destroys the source's marker"
    rows = [r for r in summary["last"] if r["arm"] == "A"]
    if not rows:
        return _claim(name, UNTESTED, "Arm A was not run.")
    gone = [r for r in rows if r["source_high"] < limits.gone]
    alive = [r for r in rows if r["source_low"] > limits.gone]
    verdict = APPEARS if len(gone) == len(rows) else ABSENT if len(alive) == len(rows) else UNDECIDED
    return _claim(name, verdict, f"Source rate at the end: {_rates(rows, 'source')}.")


def _kept_when_narrow(summary: dict, limits: Limits) -> dict:
    name = "Generic training (arm C) keeps the marker of narrow adapters and loses that of others"
    rows = [r for r in summary["last"] if r["arm"] == "C"]
    if not rows:
        return _claim(name, UNTESTED, "Arm C was not run.")
    start = {r["source"]: r for r in summary["baseline"]}
    words, fits = [], []
    for row in rows:
        before = start[row["source"]]
        kept = row["source_low"] > limits.kept * before["source_rate"]
        lost = row["source_high"] < limits.kept * before["source_rate"]
        state = "kept" if kept else "lost" if lost else "between"
        fits.append(None if state == "between" else kept == (before["pattern"] == "narrow"))
        words.append(
            f"{row['source']} ({before['pattern']}) {_percent(before['source_rate'])} to "
            f"{_percent(row['source_rate'])} % ({state})"
        )
    verdict = APPEARS if all(fits) else ABSENT if any(f is False for f in fits) else UNDECIDED
    return _claim(name, verdict, "; ".join(words) + ".")


def _leak_is_global(summary: dict) -> dict:
    name = "In arm B the marker leaks to bystanders as much as to the assistant"
    rows = [r for r in summary["bystanders"] if r["arm"] == "B"]
    if not rows:
        return _claim(name, UNTESTED, "Arm B was not run.")
    apart = [r for r in rows if r["low"] > 0 or r["high"] < 0]
    verdict = APPEARS if not apart else ABSENT if len(apart) == len(rows) else UNDECIDED
    text = "; ".join(
        f"{r['source']}: assistant {_percent(r['assistant_rate'])} %, bystanders {_percent(r['bystander_mean'])} %, "
        f"difference {_points(r['difference'])} ({_points(r['low'])} to {_points(r['high'])}) points" for r in rows
    )  # fmt: skip
    note = " Not told apart is not equal: see the width." if verdict == APPEARS else ""
    return _claim(name, verdict, text + "." + note)


def _sources_rank_alike(summary: dict, limits: Limits) -> dict:
    name = "Across sources, cosine and leakage rank alike at the end (arm B)"
    row = next(
        (t for t in summary["tests"] if t["test"] == "between" and t["arm"] == "B" and t["kind"] == "centred"), None
    )
    pool = next((t for t in summary["tests"] if t["test"] == "pooled" and t["arm"] == "B" and t["kind"] == "centred"), None)
    icc = next(
        (t for t in summary["tests"] if t["test"] == "clustering" and t["arm"] == "B" and t["variable"] == "assistant_rate"),
        None,
    )
    if row is None:
        return _claim(name, UNTESTED, "Arm B was not run or has no vectors.")
    parts = []
    if row["rho"] == row["rho"]:
        parts.append(f"rho {_rho(row['rho'])} over {row['n']:.0f} sources, exact p {_p(row['p'])} (least {_p(row['min_p'])})")
        verdict = APPEARS if row["p"] < limits.level and row["rho"] > 0 else UNDECIDED
        verdict = ABSENT if row["rho"] <= 0 else verdict
    else:
        parts.append(f"{row['n']:.0f} sources rank nothing")
        verdict = UNDECIDED
    if pool:
        parts.append(
            f"all {pool['points']:.0f} checkpoints as if independent: rho {_rho(pool['rho'])}, p {_p(pool['naive_p'])}; "
            f"whole trajectories permuted: p {_p(pool['p'])} (least {_p(pool['min_p'])})"
        )
    if icc:
        parts.append(
            f"ICC(1) of assistant leakage {_rho(icc['icc'])}: {icc['points']:.0f} checkpoints are worth "
            f"{icc['effective_n']:.1f}"
        )
    return _claim(name, verdict, "; ".join(parts) + ".")


def _breadth_beats_cosine(summary: dict, limits: Limits) -> dict:
    name = "Breadth of the leak predicts the assistant's leakage better than the cosine does (arm B)"
    rows = {
        (t["predictor"], t["scope"]): t
        for t in summary["tests"]
        if t["test"] == "predictors" and t["arm"] == "B" and t["kind"] == "centred"
    }
    if not rows:
        return _claim(name, UNTESTED, "Arm B was not run, or a checkpoint is missing.")
    words = [
        f"{name} {_rho(rows[name, 'pooled']['rho'])} pooled (trajectories permuted, p {_p(rows[name, 'pooled']['p'])}, "
        f"least {_p(rows[name, 'pooled']['min_p'])}), {_rho(rows[name, 'partial']['rho'])} with the other held fixed"
        for name in ("breadth", "cosine")
    ]
    gap = rows["difference", "within"]
    text = f"rho with assistant leakage: {'; '.join(words)}. Within sources |rho| of breadth exceeds that of the cosine by {_rho(gap['rho'])} on average (sign flips, p {_p(gap['p'])}, least {_p(gap['min_p'])})."
    if gap["rho"] != gap["rho"]:
        verdict = UNDECIDED
    else:
        verdict = UNDECIDED if gap["p"] >= limits.level else APPEARS if gap["rho"] > 0 else ABSENT
    return _claim(name, verdict, text)


def _steering_raises_the_leak(summary: dict) -> dict:
    name = "Pushing activations towards the source raises the assistant's leakage (steered arm)"
    rows = [r for r in summary["steering"] if "relation" in r and r["coefficient"] > 0]
    if not rows:
        return _claim(name, UNTESTED, "No steered run with a positive coefficient and its unsteered model.")
    up, down = ([r for r in rows if r["relation"] == sign] for sign in "><")
    verdict = APPEARS if up and not down and {r["source"] for r in up} == {r["source"] for r in rows} else UNDECIDED
    verdict = ABSENT if not up and down else verdict
    text = "; ".join(
        f"{r['source']} x{r['coefficient']:g}: {_percent(r['assistant_rate'])} % (change {_points(r['change_low'])} to "
        f"{_points(r['change_high'])} points), bystanders {_percent(r['bystander_mean'])} %" for r in rows
    )  # fmt: skip
    return _claim(name, verdict, text + ".")


def _claim(claim: str, verdict: str, text: str) -> dict:
    return {"claim": claim, "verdict": verdict, "text": text}


def _rates(rows: list[dict], role: str) -> str:
    return "; ".join(
        f"{r['source']} {_percent(r[f'{role}_rate'])} % ({_percent(r[f'{role}_low'])} to {_percent(r[f'{role}_high'])})"
        for r in rows
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _rho(value: float) -> str:
    return "undefined" if value is None or value != value else f"{value:+.2f}"


def _p(value: float) -> str:
    return "–" if value is None or value != value else f"{value:.3f}" if value >= 0.001 else "< 0.001"
