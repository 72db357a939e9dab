"""What changed between two analyses of one experiment: verdicts of claims, and rates of cells.

For a replay beside the original: other scorers, another judge or other settings of the analysis on the same replies. It
compares what both state and lists what only one of them has.
"""

from __future__ import annotations

import pandas as pd

AXES = ("run", "condition", "seed", "learning_rate", "checkpoint", "directive", "completion", "language", "persona")
SOURCES = ("label_source", "scorer")
LISTED = 10


def compared(before: dict, after: dict, cells: tuple[pd.DataFrame, pd.DataFrame] | None = None) -> dict:
    """Differences of two summaries (`claims`: claim, verdict, text) and, optionally, of their cell tables."""
    verdicts = [{claim["claim"]: claim for claim in summary.get("claims", [])} for summary in (before, after)]
    names = list(dict.fromkeys([*verdicts[0], *verdicts[1]]))
    claims = [_claim(name, *(found.get(name) for found in verdicts)) for name in names]
    sources = [summary.get("label_source") for summary in (before, after)]
    return {
        "label_source": sources,
        "answer": [summary.get("answer") for summary in (before, after)],
        "claims": claims,
        "changed": [claim["claim"] for claim in claims if claim["before"] != claim["after"]],
        "cells": cell_differences(*cells, sources) if cells else None,
    }


def cell_differences(before: pd.DataFrame, after: pd.DataFrame, sources: list[str | None]) -> dict:
    """Rates of the cells in both tables: how many, how many differ, the mean and the largest differences.

    Where the two analyses concluded from different label sources, cells are compared between those; else per source.
    """
    source = next((name for name in SOURCES if name in before and name in after), None)
    on = [name for name in AXES if name in before and name in after]
    if source and sources[0] != sources[1]:
        before, after = (t[t[source] == s] for t, s in zip((before, after), sources, strict=True))
    elif source:
        on.append(source)
    both = before.merge(after, on=on, how="outer", suffixes=("_before", "_after"), indicator="side")
    pairs = both[both["side"] == "both"]
    difference = pairs["rate_after"] - pairs["rate_before"]
    order = difference.abs().sort_values(ascending=False, kind="stable").index[:LISTED]
    largest = pairs.loc[order].assign(difference=difference)
    largest = largest[largest["difference"] != 0][[*on, "rate_before", "rate_after", "difference"]].astype(object)
    return {
        "compared": len(pairs),
        "only_before": int((both["side"] == "left_only").sum()),
        "only_after": int((both["side"] == "right_only").sum()),
        "differ": int((difference != 0).sum()),
        "mean_difference": float(difference.abs().mean()) if len(pairs) else None,
        "largest": largest.where(largest.notna(), None).to_dict("records"),
    }


def markdown(found: dict, title: str) -> str:
    """The comparison for people."""
    before, after = found["label_source"]
    lines = [f"# {title}: replay beside the original", ""]
    if before or after:
        lines += [f"Label of the original: {before or 'not named'}; of the replay: {after or 'not named'}.", ""]
    total = len(found["claims"])
    lines += [f"{len(found['changed'])} of {total} claims have another verdict.", ""]
    if total:
        lines += ["| claim | original | replay | evidence in the replay |", "|---|---|---|---|"]
        lines += [f"| {c['claim']} | {c['before']} | {_strong(c)} | {c['text']} |" for c in found["claims"]]
        lines.append("")
    return "\n".join([*lines, *_cells(found["cells"])]) + "\n"


def _cells(cells: dict | None) -> list[str]:
    if cells is None:
        return ["Rates of cells were not compared: the analyses have no table of them in common."]
    lines = [f"{cells['compared']} cells are in both; {cells['differ']} have another rate."]
    if cells["compared"]:
        lines[0] += f" The mean difference is {100 * cells['mean_difference']:.1f} points."
    for key, words in (("only_before", "the original"), ("only_after", "the replay")):
        if cells[key]:
            lines.append(f"{cells[key]} cells are in {words} alone.")
    if cells["largest"]:
        axes = [name for name in cells["largest"][0] if name not in ("rate_before", "rate_after", "difference")]
        lines += ["", f"| {' | '.join(axes)} | original | replay | points |", "|---" * (len(axes) + 3) + "|"]
        for row in cells["largest"]:
            named = " | ".join("" if row[name] is None else str(row[name]) for name in axes)
            rates = f"{100 * row['rate_before']:.1f} | {100 * row['rate_after']:.1f} | {100 * row['difference']:+.1f}"
            lines.append(f"| {named} | {rates} |")
    return lines


def _claim(name: str, before: dict | None, after: dict | None) -> dict:
    verdicts = {"before": before["verdict"] if before else "none", "after": after["verdict"] if after else "none"}
    return {"claim": name, **verdicts, "text": after["text"] if after else ""}


def _strong(claim: dict) -> str:
    return claim["after"] if claim["before"] == claim["after"] else f"**{claim['after']}**"
