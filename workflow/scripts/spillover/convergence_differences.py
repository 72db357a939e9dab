"""Where a convergence run differs from the published one: its design, then its results. One sentence each.

Two rates differ when Newcombe's interval of their difference excludes zero, in print as here; nothing is typed but the
printed figures, which come from a file.
"""

from __future__ import annotations

import math
from itertools import combinations

import pandas as pd

from .convergence_tables import apart, in_points, percent, rho_words, trends


def differences(summary: dict, tests: pd.DataFrame, layers: list[int], published: dict) -> list[str]:
    """Every way in which this run is not the published one: its design, then its results. One sentence each."""
    found = _of_design(summary["design"], published)
    for row in summary["baseline"]:
        printed = published["baseline_leak"].get(row["source"])
        if printed is None:
            continue
        if not row["assistant_low"] <= printed / 100 <= row["assistant_high"]:
            found.append(
                f"Baseline leak of {row['source']}: measured {percent(row['assistant_rate'])} % "
                f"({percent(row['assistant_low'])} to {percent(row['assistant_high'])}), printed {printed:g} %."
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
                f"here ({in_points(row['low'])} to {in_points(row['high'])} points), {row['first']} {row['published']} "
                f"{row['second']} in print."
            )
    last = {(r["arm"], r["source"]): r for r in summary["last"]}
    for first, second in combinations([s for a, s in last if a == "B"], 2):
        if first in published["at_100"] and second in published["at_100"]:
            here = apart(last["B", first], last["B", second], "assistant")[0]
            printed = [published["at_100"][s]["B"]["assistant"] for s in (first, second)]
            there = ">" if printed[0] > printed[1] else "<"
            if here != there:
                found.append(f"Order of sources, arm B: {first} {here} {second} here, {there} in print.")
    for row in trends(summary):
        printed = published["arm_b"].get(row["source"])
        if printed is None:
            continue
        there = {"cosine": "closer", "leak": "down"}
        here = {"cosine": row["direction"], "leak": row["leak"]}
        for what, words in (("cosine", "the assistant"), ("leak", "its leakage")):
            if here[what] != there[what]:
                state = here[what].replace("not clearly", "does not clearly move")
                where = f"Arm B of {row['source']}, first to last checkpoint"
                found.append(f"{where}: {words} {state} here; {there[what]} in print.")
    within = tests[(tests["test"] == "within") & (tests["arm"] == "B") & (tests["kind"] == "centred")]
    for position, layer in enumerate(layers):
        for row in within[within["layer"] == layer].to_dict("records"):
            printed = published["arm_b"].get(row["source"])
            if printed is None or position >= len(printed["rho"]):
                continue
            there = printed["rho"][position]
            if row["rho"] != row["rho"] or row["rho"] * there <= 0:
                found.append(
                    f"Arm B of {row['source']}, cosine against leakage at layer {layer}: rho {rho_words(row['rho'])} "
                    f"here, {there:+.2f} at layer {published['layers'][position]} in print."
                )
    return found


def _of_design(design: dict, published: dict) -> list[str]:
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
        found.append(
            f"{design['personas']} personas here, {printed['personas']} in print; centred cosines depend on it."
        )
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
