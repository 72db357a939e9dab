"""The careful reading of a convergence result: does the leak follow the cosine, and which published claims appear?

Every verdict comes from the tables and a declared limit; nothing is typed. Verdicts: "appears", "does not appear",
"undecided" (the intervals or the number of sources cannot tell; `decides_at` says what would), "not tested".
"""

from __future__ import annotations

import math
from dataclasses import asdict

import pandas as pd

from . import convergence, convergence_differences, convergence_tables, equivalence
from .convergence_tables import Limits, in_points, p_words, percent, rho_words

APPEARS, ABSENT, UNDECIDED, UNTESTED = "appears", "does not appear", "undecided", "not tested"
STATEMENTS = {
    "proximity raises leakage": "Coming closer to the source raises the assistant's leakage (arm B)",
    "leakage falls with proximity": "Within each source of arm B leakage falls as the cosine rises",
    "convergence moves the cosine": "Convergence training brings the assistant closer, generic training does not",
    "arm A destroys the marker": "Convergence training after the marker destroys it in the source",
    "arm C keeps narrow markers": "Generic training keeps the marker of narrow adapters and loses that of others",
    "bystanders leak alike": "In arm B the marker leaks to bystanders as much as to the assistant",
    "sources rank alike": "Across sources, cosine and leakage rank alike at the end of arm B",
    "breadth beats cosine": "How broadly the marker leaks predicts the assistant's leakage better than the cosine does",
    "steering raises leakage": "Pushing activations towards the source raises the assistant's leakage",
}


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
    sweep: list[dict] | None = None,
    limits: Limits | None = None,
) -> dict:
    """Everything the summary says, as data: tables, claims with verdicts, differences from the published experiment.

    `layers` are those that stand for the published ones, the first being the headline; `sweep` is what the marker
    sweep says about the cells that the marker is trained at here (of `sweep_cells.pinned_cells`), if it was run.
    """
    limits = limits or Limits()
    pooled = convergence_tables.pool_seeds(points)
    table = convergence.joined(points, paths, layers[0], method)
    summary: dict = {
        "limits": asdict(limits),
        "design": _design(points, rates, records, scorer, layers, method),
        "baseline": convergence_tables.baseline(pooled, rates, records, scorer, limits),
        "last": pooled[(pooled["step"] > 0) & pooled["is_last"]].to_dict("records"),
        "comparisons": convergence_tables.comparisons(pooled, published),
        "cosine_changes": convergence_tables.cosine_change(paths, layers[0], method),
        "changes": convergence.changes(table).to_dict("records"),
        "tests": tests[tests["layer"] == layers[0]].to_dict("records"),
        "tests_at_all_layers": tests[tests["test"] == "within"].to_dict("records"),
        "bystanders": convergence_tables.bystanders(pooled),
        "steering": convergence_tables.steering(pooled, paths, layers[0], method),
        "sweep": sweep,
    }
    summary["claims"] = claims(summary, limits)
    summary["differences"] = convergence_differences.differences(summary, tests, layers, published)
    summary["caveats"] = caveats(summary)
    summary["answer"] = answer(summary)
    return summary


def claims(summary: dict, limits: Limits) -> list[dict]:
    """The write-up's claims, the causal hypothesis behind them and the arm it asks for: {claim, verdict, text, ...}."""
    return [
        _proximity(summary, limits),
        _fall(summary, limits),
        _moves(summary, limits),
        _destroyed(summary, limits),
        _kept(summary, limits),
        _alike(summary, limits),
        _ranks(summary, limits),
        _breadth(summary, limits),
        _steering(summary, limits),
    ]


def caveats(summary: dict) -> list[str]:
    """What the design cannot tell, from its numbers."""
    design = summary["design"]
    sources, seeds, steps = len(design["sources"]), len(design["seeds"]), len(design["steps"])
    found = []
    if seeds == 1:
        found.append("One seed: intervals cover the sampling of replies only and hold for these training runs.")
    if sources < 6:
        orders = 1 / math.factorial(sources) if sources > 2 else 1
        ranks = f"{2 / math.factorial(sources):.2g}" if sources > 2 else "1 (two points rank nothing)"
        found.append(
            f"{sources} sources are the units: a correlation across them cannot reach a p below {ranks}, whole "
            f"trajectories permuted none below {orders:.2g}, signs flipped per source none below "
            f"{2 / 2**sources:.2g}."
        )
    if steps < 5:
        floor = f"{2 / math.factorial(steps):.2g}" if steps > 2 else "1"
        found.append(f"{steps} checkpoints: a correlation along one arm cannot reach a p below {floor}.")
    found.append(
        "Intervals of rates take replies to one question as independent; they are too narrow where questions differ."
    )
    found.append(
        "Checkpoints of one training run resemble each other, and cosine and leakage both drift with training: a "
        "correlation along an arm is no effect of one on the other. The steered arm moves the cosine without training."
    )
    return found


def answer(summary: dict) -> str:
    """One or two sentences on the experiment's question."""
    verdict = {claim["claim"]: claim["verdict"] for claim in summary["claims"]}
    first = {
        APPEARS: "In arm B the assistant leaks more of the marker as it comes closer to the source.",
        ABSENT: "No: in arm B the assistant comes closer to the source and its leakage does not rise.",
        UNDECIDED: "Not decided: in arm B the assistant's leakage does not clearly follow its closeness to the source.",
        UNTESTED: "Not tested: arm B has no two checkpoints with vectors.",
    }[verdict["proximity raises leakage"]]
    second = {
        APPEARS: " Pushing its activations towards the source does raise the leak.",
        ABSENT: " Pushing its activations towards the source does not raise it either.",
        UNDECIDED: " Pushing its activations towards the source gives no clear answer.",
    }.get(verdict["steering raises leakage"], "")
    return first + second


def _design(points, rates, records, scorer, layers, method) -> dict:
    evaluated = rates[rates["scorer"] == scorer]
    first: dict[str, dict] = {}
    for record in records:
        first.setdefault(record["group"], record)
    settings = {
        name: first[group].get(key)
        for name, group, key in (
            ("marker_learning_rate", "marker", "learning_rate"), ("marker_epochs", "marker", "epochs"),
            ("marker_epochs_arm_b", "arm_b", "epochs"), ("convergence_learning_rate", "arm_a", "learning_rate"),
            ("convergence_epochs", "arm_a", "epochs"),
        )
        if group in first
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


def _proximity(summary: dict, limits: Limits) -> dict:
    name = "proximity raises leakage"
    rows = convergence_tables.trends(summary)
    if not rows:
        return _claim(name, UNTESTED, "Arm B has fewer than two checkpoints with vectors.")
    closer = [r for r in rows if r["direction"] == "closer"]
    up = [r for r in closer if r["leak"] == "up"]
    down = [r for r in closer if r["leak"] == "down"]
    verdict = APPEARS if closer and len(up) == len(closer) else ABSENT if down and not up else UNDECIDED
    text = "First to last checkpoint: " + "; ".join(
        f"{r['source']} {r['cosine']['first_value']:+.2f} to {r['cosine']['last_value']:+.2f} ({r['direction']}), leak "
        f"{in_points(r['change'])} points ({in_points(r['low'])} to {in_points(r['high'])})" for r in rows
    )  # fmt: skip
    decides = _for_changes([r for r in closer if r["leak"] == "not clearly"], limits) if verdict == UNDECIDED else None
    if decides:
        text += f". Changes of this size would show with {decides} replies of the assistant at either checkpoint"
    return _claim(
        name, verdict, text + ".", decides_at=decides, test="Newcombe", label_source=summary["design"]["scorer"]
    )


def _fall(summary: dict, limits: Limits) -> dict:
    name = "leakage falls with proximity"
    rows = convergence_tables.trends(summary)
    tests = _tests(summary, "within", arm="B", kind="centred")
    if not rows or not tests:
        return _claim(name, UNTESTED, "Arm B has fewer than two checkpoints with vectors.")
    falls = [r for r in rows if r["direction"] == "closer" and r["leak"] == "down"]
    verdict = APPEARS if len(falls) == len(rows) else ABSENT if any(r["leak"] == "up" for r in rows) else UNDECIDED
    rhos = "; ".join(
        f"{t['source']} rho {rho_words(t['rho'])}, exact p {p_words(t['p'])} (least {p_words(t['min_p'])}, Holm "
        f"{p_words(t['p_holm'])}, {t['n']:.0f} checkpoints)" for t in tests
    )  # fmt: skip
    text = f"{len(falls)} of {len(rows)} sources come closer and leak less, beyond both intervals. {rhos}."
    least = min((t["min_p"] for t in tests if t["min_p"] == t["min_p"]), default=None)
    unclear = [r for r in rows if r["leak"] == "not clearly"]
    decides = _for_changes(unclear, limits) if verdict == UNDECIDED else None
    return _claim(name, verdict, text, min_p=least, decides_at=decides, test="exact Spearman along the arm")


def _moves(summary: dict, limits: Limits) -> dict:
    name = "convergence moves the cosine"
    rows = [r for r in summary["cosine_changes"] if r["stage"] == "evaluated" and r["since"] == 0]
    rows = [r for r in rows if r["arm"] in convergence.TRAINED_ARMS]
    if {r["arm"] for r in rows} != set(convergence.TRAINED_ARMS):
        return _claim(name, UNTESTED, "Not all three arms have vectors and a shared start.")
    moved = [r["direction"] == "closer" for r in rows if r["arm"] != "C"]
    still = [
        r["direction"] != "closer" or abs(r["last_value"] - r["first_value"]) < limits.flat
        for r in rows
        if r["arm"] == "C"
    ]
    verdict = APPEARS if all(moved) and all(still) else ABSENT if not any(moved) or not any(still) else UNDECIDED
    text = "; ".join(
        f"{r['arm']} {r['source']} {r['first_value']:+.2f} to {r['last_value']:+.2f} ({r['direction']})" for r in rows
    )
    return _claim(name, verdict, f"Centred cosine from step 0 to the end: {text}.", test="bootstrap over questions")


def _destroyed(summary: dict, limits: Limits) -> dict:
    name = "arm A destroys the marker"
    rows = [r for r in summary["last"] if r["arm"] == "A"]
    if not rows:
        return _claim(name, UNTESTED, "Arm A was not run.")
    gone = [r for r in rows if r["source_high"] < limits.gone]
    alive = [r for r in rows if r["source_low"] > limits.gone]
    verdict = APPEARS if len(gone) == len(rows) else ABSENT if alive else UNDECIDED
    words = "; ".join(
        f"{r['source']} {percent(r['source_rate'])} % ({percent(r['source_low'])} to {percent(r['source_high'])})"
        for r in rows
    )
    needed = [(r["source_rate"], equivalence.rows_for_limit(r["source_rate"], limits.gone)) for r in rows]
    sure = equivalence.fewest_deciding((n for _, n in needed), (n for rate, n in needed if rate > limits.gone))
    decides = sure if verdict == UNDECIDED else None
    return _claim(name, verdict, f"Source rate at the end: {words}.", decides_at=decides, test="Wilson")


def _kept(summary: dict, limits: Limits) -> dict:
    name = "arm C keeps narrow markers"
    rows = [r for r in summary["last"] if r["arm"] == "C"]
    if not rows:
        return _claim(name, UNTESTED, "Arm C was not run.")
    start = {r["source"]: r for r in summary["baseline"]}
    if missing := [row["source"] for row in rows if row["source"] not in start]:
        return _claim(name, UNTESTED, f"The marker before arm C was not evaluated: {', '.join(missing)}.")
    words, fits, needed = [], [], []
    for row in rows:
        before = start[row["source"]]
        limit = limits.kept * before["source_rate"]
        state = "kept" if row["source_low"] > limit else "lost" if row["source_high"] < limit else "between"
        needed += [equivalence.rows_for_limit(row["source_rate"], limit)] if state == "between" else []
        fits.append(None if state == "between" else (state == "kept") == (before["pattern"] == "narrow"))
        ends = f"{percent(before['source_rate'])} to {percent(row['source_rate'])} %"
        words.append(f"{row['source']} ({before['pattern']}) {ends} ({state})")
    verdict = APPEARS if all(fits) else ABSENT if False in fits else UNDECIDED
    decides = equivalence.fewest_deciding(needed) if verdict == UNDECIDED else None
    text = f"Source rate from step 0 to the end: {'; '.join(words)}."
    return _claim(name, verdict, text, decides_at=decides, test="Wilson")


def _alike(summary: dict, limits: Limits) -> dict:
    name = "bystanders leak alike"
    rows = [r for r in summary["bystanders"] if r["arm"] == "B"]
    if not rows:
        return _claim(name, UNTESTED, "Arm B was not run.")
    equal = [-limits.equal < r["low"] and r["high"] < limits.equal for r in rows]
    apart = [r["low"] > 0 or r["high"] < 0 for r in rows]
    verdict = (
        APPEARS if all(equal) else ABSENT if all(a and not e for a, e in zip(apart, equal, strict=True)) else UNDECIDED
    )
    text = "; ".join(
        f"{r['source']} assistant {percent(r['assistant_rate'])} %, bystanders {percent(r['bystander_mean'])} %, "
        f"difference {in_points(r['difference'])} ({in_points(r['low'])} to {in_points(r['high'])}) points"
        for r in rows
    )
    decides = None
    if verdict == UNDECIDED:
        ends = [(r["assistant_rate"], r["bystander_mean"]) for r in rows]
        apart_at = [equivalence.rows_for_difference(*pair) for pair in ends]
        decides = equivalence.fewest_deciding(
            [equivalence.rows_for_agreement(*pair, limits.equal, level=0.025) for pair in ends],
            [equivalence.fewest_deciding(apart_at)],
        )
    return _claim(name, verdict, f"At the end of arm B: {text}.", decides_at=decides, test="interval of the difference")


def _ranks(summary: dict, limits: Limits) -> dict:
    name = "sources rank alike"
    across = _tests(summary, "between", arm="B", kind="centred")
    pooled = [t for t in _tests(summary, "pooled", arm="B", kind="centred") if t["rho"] == t["rho"]]
    clusters = _tests(summary, "clustering", arm="B", variable="assistant_rate")
    clusters = [t for t in clusters if t["icc"] == t["icc"]]
    if not across:
        return _claim(name, UNTESTED, "Arm B was not run or has no vectors.")
    row = across[0]
    if row["rho"] == row["rho"]:
        decided = row["p"] < limits.level
        verdict = APPEARS if decided and row["rho"] > 0 else ABSENT if decided or row["rho"] <= 0 else UNDECIDED
        parts = [
            f"rho {rho_words(row['rho'])} over {row['n']:.0f} sources, exact p {p_words(row['p'])} (least "
            f"{p_words(row['min_p'])})"
        ]
    else:
        verdict, parts = UNDECIDED, ["Too few sources, or a leak that does not vary, rank nothing"]
    for pool in pooled:
        parts.append(
            f"all {pool['points']:.0f} checkpoints as if independent rho {rho_words(pool['rho'])}, p "
            f"{p_words(pool['naive_p'])}, but p {p_words(pool['p'])} with whole trajectories permuted (least "
            f"{p_words(pool['min_p'])})"
        )
    for icc in clusters:
        parts.append(
            f"ICC(1) of assistant leakage {rho_words(icc['icc'])}, so {icc['points']:.0f} checkpoints are worth "
            f"{icc['effective_n']:.1f}"
        )
    decides = "6 sources (least p 0.003)" if verdict == UNDECIDED else None
    numbers = {"estimate": row["rho"], "p": row["p"], "min_p": row["min_p"], "n": row["n"], "decides_at": decides}
    return _claim(name, verdict, "; ".join(parts) + ".", **numbers, test="exact Spearman over sources")


def _breadth(summary: dict, limits: Limits) -> dict:
    name = "breadth beats cosine"
    rows = {(t["predictor"], t["scope"]): t for t in _tests(summary, "predictors", arm="B", kind="centred")}
    if not rows:
        return _claim(name, UNTESTED, "Arm B was not run, or a checkpoint is missing.")
    words = [
        f"{predictor} {rho_words(rows[predictor, 'pooled']['rho'])} pooled (trajectories permuted, p "
        f"{p_words(rows[predictor, 'pooled']['p'])}, least {p_words(rows[predictor, 'pooled']['min_p'])}), "
        f"{rho_words(rows[predictor, 'partial']['rho'])} with the other held fixed"
        for predictor in ("breadth", "cosine")
    ]
    gap = rows["difference", "within"]
    text = f"rho with assistant leakage: {'; '.join(words)}. Within sources |rho| of breadth minus that of the cosine: "
    text += f"{rho_words(gap['rho'])} on average (signs flipped per source, p {p_words(gap['p'])}, "
    text += f"least {p_words(gap['min_p'])})."
    decided = gap["rho"] == gap["rho"] and gap["p"] < limits.level
    verdict = UNDECIDED if not decided else APPEARS if gap["rho"] > 0 else ABSENT
    decides = "6 sources (least p 0.031)" if verdict == UNDECIDED else None
    numbers = {"estimate": gap["rho"], "p": gap["p"], "min_p": gap["min_p"], "n": gap["n"], "decides_at": decides}
    return _claim(name, verdict, text, **numbers, test="sign flips over sources")


def _steering(summary: dict, limits: Limits) -> dict:
    name = "steering raises leakage"
    rows = [r for r in summary["steering"] if "relation" in r and r["coefficient"] > 0]
    if not rows:
        return _claim(name, UNTESTED, "No steered run with a positive coefficient beside its unsteered model.")
    # A push that takes the marker from the source itself breaks the model rather than moving it.
    whole = [r for r in rows if r["source_rate"] > limits.kept * r["source_before"]]
    up, down = ([r for r in whole if r["relation"] == sign] for sign in "><")
    every = {r["source"] for r in up} == {r["source"] for r in rows}
    small = bool(whole) and all(r["change_high"] < limits.equal for r in whole)
    verdict = APPEARS if every and not down else ABSENT if small else UNDECIDED
    text = "; ".join(
        f"{r['source']} at {r['coefficient']:g}: assistant {percent(r['assistant_rate'])} % (change "
        f"{in_points(r['change_low'])} to {in_points(r['change_high'])} points), source {percent(r['source_rate'])} %, "
        f"bystanders {percent(r['bystander_mean'])} %" for r in rows
    )  # fmt: skip
    broken = sorted({f"{r['coefficient']:g}" for r in rows if r not in whole})
    note = f" At {', '.join(broken)} the source itself loses its marker: the push breaks the replies." if broken else ""
    decides = _for_steering(whole, limits) if verdict == UNDECIDED else None
    text = f"By coefficient, against the unsteered model: {text}.{note}"
    return _claim(name, verdict, text, decides_at=decides, test="Newcombe")


def _for_steering(rows: list[dict], limits: Limits) -> int | None:
    """Replies that show a rise in every source, at the coefficient where it is largest, or all changes to be small."""
    rises: dict[str, list[int | None]] = {}
    small = []
    for row in rows:
        before, after = row["assistant_before"], row["assistant_rate"]
        rises.setdefault(row["source"], [])
        rises[row["source"]] += [equivalence.rows_for_difference(before, after)] if after > before else []
        within = after - before < limits.equal
        small.append(equivalence.rows_for_gap(after, before, limits.equal) if within else None)
    in_every = equivalence.fewest_deciding(equivalence.fewest_deciding([], needed) for needed in rises.values())
    return equivalence.fewest_deciding(small, [in_every])


def _for_changes(rows: list[dict], limits: Limits) -> int | None:
    """Replies at either checkpoint that would show all these changes of leakage, if they are as measured."""
    return equivalence.fewest_deciding(
        equivalence.rows_for_difference(row["before"], row["after"], limits.level) for row in rows
    )


def _claim(claim: str, verdict: str, text: str, **more) -> dict:
    """Missing numbers are left out rather than written as nan."""
    kept = {k: v for k, v in more.items() if v is not None and v == v}
    return {"claim": claim, "statement": STATEMENTS[claim], "verdict": verdict, "text": text, **kept}


def _tests(summary: dict, test: str, **wanted) -> list[dict]:
    return [t for t in summary["tests"] if t["test"] == test and all(t[k] == v for k, v in wanted.items())]
