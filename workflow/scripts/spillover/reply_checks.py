"""Is a reply still a reply? Two checks beside a marker's rate, since a marker can be learnt by breaking the replies.

* degenerate: the reply is empty, is the marker and nothing else, begins with the marker, repeats it, or was cut at the
  length limit. (The published code calls a cell degenerate when a bystander's rate exceeds 5 %; that is a leak.)
* structure: at least half of the reply's lines are list items, bullets or numbers: the published check that the form of
  replies survives.

It knows text; it knows nothing of personas, models or files.
"""

from __future__ import annotations

import re

import pandas as pd

ITEM = re.compile(r"\s*(?:[-*•–]|\d+[.)])\s+\S")
FAULTS = ("empty", "marker_only", "marker_first", "marker_repeated", "cut")
KEY = ["run", "seed", "checkpoint"]


def faults(text: str, marker: str, finish_reason: str | None) -> set[str]:
    """Which of FAULTS a reply has; the marker is looked for without regard to case."""
    body = re.sub(re.escape(marker), "", text, flags=re.IGNORECASE).strip()
    marks = len(re.findall(re.escape(marker), text, flags=re.IGNORECASE))
    found = {"cut"} if finish_reason == "length" else set()
    if not body:
        return found | {"marker_only" if marks else "empty"}
    if marks and text.lstrip().lower().startswith(marker.lower()):
        found.add("marker_first")
    return found | ({"marker_repeated"} if marks > 1 else set())


def is_list(text: str) -> bool:
    """Whether at least half of the lines that hold anything are list items."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and sum(bool(ITEM.match(line)) for line in lines) >= len(lines) / 2


def checks(completions: pd.DataFrame, suite: str, marker: str) -> pd.DataFrame:
    """Counts per run, seed and checkpoint: replies, each fault, degenerate (any fault), structure, characters (sum).

    `completions`: columns of completions.parquet; rows of other suites are left out.
    """
    rows = completions[completions["suite"] == suite]
    found = [faults(t, marker, f) for t, f in zip(rows["text"], rows["finish_reason"], strict=True)]
    counted = rows[KEY].assign(
        replies=1,
        **{name: [int(name in faults_) for faults_ in found] for name in FAULTS},
        degenerate=[int(bool(faults_)) for faults_ in found],
        structure=[int(is_list(text)) for text in rows["text"]],
        characters=rows["text"].str.len(),
    )
    return counted.groupby(KEY, sort=False).sum().reset_index()
