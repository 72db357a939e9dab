"""Every hypothesis of the five write-ups, declared once, with what this workflow measured for it.

A declaration (resources/claims.yaml) names the experiment, the claim, what is compared, by which test and threshold,
and what the write-up concluded. The experiments' own analyses give the verdicts; an alarm withholds those of its
experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

NOT_RUN, WITHHELD = "not run", "withheld"
DECLARED = ("experiment", "claim", "statement", "compared", "test", "threshold", "label_source", "denominator")
NUMBERS = ("estimate", "low", "high", "p", "min_p", "n")
DECIDES = "decides_at"
"""What would decide an undecided claim: a number of replies a cell, or words."""


def declared(path: str | Path) -> list[dict]:
    """The declarations, in order. Raises ValueError naming the claim and key that is missing, or one declared twice."""
    with open(path, encoding="utf-8") as file:
        claims = yaml.safe_load(file)
    seen = set()
    for claim in claims:
        name = f"{claim.get('experiment')}/{claim.get('claim')}"
        missing = [key for key in (*DECLARED, "published") if not claim.get(key)]
        if missing:
            raise ValueError(f"{path}: {name}: {missing[0]} is missing")
        if name in seen:
            raise ValueError(f"{path}: {name} is declared twice")
        seen.add(name)
    return claims


def judged(
    claims: Sequence[Mapping],
    kinds: Mapping[str, str],
    summaries: Mapping[str, Mapping],
    alarms: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """One row per declared claim: the declaration, `verdict`, `text`, the numbers behind it where given, `alarms`.

    `kinds` says which analysis closes an experiment; claims are declared per analysis. The `claims` of a summary are
    records with claim, verdict and text. A claim of an analysis that was not run is `not run`; one whose experiment
    raised an alarm is `withheld`, with its verdict in `verdict_without_alarms`. Raises ValueError for a verdict on a
    claim that is not declared: it would appear nowhere.
    """
    rows = []
    for kind in dict.fromkeys(claim["experiment"] for claim in claims):
        named = [claim for claim in claims if claim["experiment"] == kind]
        run = [experiment for experiment in summaries if kinds[experiment] == kind]
        for experiment in run or [kind]:
            measured = {record["claim"]: record for record in summaries.get(experiment, {}).get("claims", [])}
            if unknown := sorted(measured.keys() - {claim["claim"] for claim in named}):
                raise ValueError(f"{experiment}: the claim {unknown[0]!r} is not declared in resources/claims.yaml")
            raised = list(alarms.get(experiment, []))
            rows += [_row(claim, experiment, measured.get(claim["claim"]), raised) for claim in named]
    table = pd.DataFrame(rows)
    table[list(NUMBERS)] = table[list(NUMBERS)].apply(pd.to_numeric)
    return table


def _row(claim: Mapping, experiment: str, record: Mapping | None, raised: Sequence[str]) -> dict:
    verdict = record["verdict"] if record else NOT_RUN
    withheld = bool(raised) and record is not None
    row = {key: claim[key] for key in DECLARED} | {"experiment": experiment, "published": claim["published"]}
    row |= {"verdict": WITHHELD if withheld else verdict, "verdict_without_alarms": verdict}
    row |= {"text": record["text"] if record else "", "alarms": list(raised) if record else []}
    row[DECIDES] = what_decides(record) if record else None
    return row | {key: (record or {}).get(key) for key in NUMBERS}


def what_decides(record: Mapping) -> str | None:
    """In words what would decide a claim, as its analysis says; None where it says nothing (nan in a table)."""
    at = record.get(DECIDES)
    if isinstance(at, int):
        return f"about {at:,} replies a cell"
    return at if isinstance(at, str) else None


def would_decide(record: Mapping) -> str:
    """A sentence on what would decide a claim, with a space before it, or nothing."""
    at = what_decides(record)
    return f" {at[0].upper()}{at[1:]} would decide it." if at else ""


def markdown(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """The claims as prose: per experiment the alarms, then each claim with the published and the measured verdict."""
    parts = ["# Claims of the write-ups, and what was measured here\n"]
    for experiment, rows in table.groupby("experiment", sort=False):
        parts.append(f"\n## {titles.get(experiment, experiment)}\n")
        if (rows["verdict"] == NOT_RUN).all():
            parts.append("\nNot run.\n")
            continue
        raised = rows["alarms"].explode().dropna().unique()
        if len(raised):
            parts.append("\nWithheld until a person has looked:\n\n")
            parts += [f"- {sentence}\n" for sentence in raised]
        for row in rows.itertuples():
            decides = "" if row.verdict == WITHHELD else would_decide({DECIDES: row.decides_at})
            parts.append(
                f"\n**{row.claim.capitalize()}: {row.verdict}.** {row.statement} {row.text}".rstrip() + decides
            )
            parts.append(f"\nPublished: {row.published} Compared: {row.compared}, {row.test}; {row.threshold}.\n")
    return "".join(parts)
