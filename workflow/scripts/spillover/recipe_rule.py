"""When a recipe passes, and what a phase of the search decides.

The published rule (M1 below a limit, loss at most twice the baseline's) is met by the untrained model, which has learnt
nothing. The corrected one asks in addition for a share of the untrained model's distance from collapse and for a share
of the baseline's loss reduction. A limit of null is not asked for. A criterion that was not measured is neither met nor
missed, and a recipe with such a criterion does not pass and does not fail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from scipy import stats

GEOMETRY, TASK, CONDUCT = "geometry", "task", "conduct"
CRITERIA = {
    # limit in the options: (column of the points, whether it must lie below, what it is about, in words)
    "m1_below": ("m1", True, GEOMETRY, "M1 below"),
    "kept_least": ("kept", False, GEOMETRY, "share of the distance from collapse kept, at least"),
    "loss_ratio": ("ratio", True, TASK, "held-out loss over the baseline's, at most"),
    "learnt_least": ("learnt", False, TASK, "share of the baseline's loss reduction, at least"),
    "shown_least": ("shown", False, CONDUCT, "behaviour of the narrow data shown, of what they induce alone, at least"),
}
NORMAL = stats.norm.ppf(0.975)


@dataclass(frozen=True)
class Criterion:
    """One comparison: met is None where it was not measured; clear, whether the interval lies on one side."""

    name: str
    about: str
    value: float | None
    low: float | None
    high: float | None
    limit: float
    met: bool | None
    clear: bool


def criteria(point: Mapping[str, Any], rule: Mapping[str, Any], looks: int = 1) -> list[Criterion]:
    """The criteria that a rule asks of a point (a row of `recipe_points.points`).

    `looks` recipes that are searched for one that passes widen the intervals to hold together (Bonferroni, as if
    normal), so that the best of many is not called clear by chance. The conduct criterion is asked of points whose
    narrow data have a behaviour to show.
    """
    found = []
    for name, (column, below, about, _) in CRITERIA.items():
        limit = rule.get(name)
        if limit is None or (about == CONDUCT and not point.get("conduct_asked", False)):
            continue
        value, low, high = (_number(point.get(f"{column}{end}")) for end in ("", "_low", "_high"))
        if value is None:
            found.append(Criterion(name, about, None, None, None, limit, None, False))
            continue
        met = value < limit if name == "m1_below" else value <= limit if below else value >= limit
        clear = low is not None and high is not None
        if clear:
            wider = stats.norm.ppf(1 - 0.025 / looks) / NORMAL
            low, high = value - (value - low) * wider, value + (high - value) * wider
            clear = not low <= limit <= high
        found.append(Criterion(name, about, value, low, high, limit, bool(met), clear))
    return found


def passes(found: Sequence[Criterion], about: str | None = None) -> bool | None:
    """Whether all criteria (about one thing, if named) are met; None if none is missed but some was not measured."""
    met = [c.met for c in found if about is None or c.about == about]
    return False if False in met else None if None in met else True


def clearly(found: Sequence[Criterion], about: str | None = None) -> bool | None:
    """True if all criteria are met beyond their intervals, False if one is missed beyond its own, else None."""
    chosen = [c for c in found if about is None or c.about == about]
    if any(c.met is False and c.clear for c in chosen):
        return False
    return True if chosen and all(c.met and c.clear for c in chosen) else None


def plain(options: Mapping[str, Any]) -> Mapping[str, str]:
    """The unregularised recipe that the published criterion compares with: the baseline of the general suite.

    Not simply the first one: specifications reach a program with their keys sorted.
    """
    return next(b for b in options["baselines"].values() if b["task"] == options["general"])


def decision(points: pd.DataFrame, phase: str, phases: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one phase: every recipe's numbers and criteria, the verdict, and what comes next.

    A recipe is a run at a checkpoint and passes if it does so with every seed. `next` is the phase that follows, None
    after a pass or the last phase. The untrained model and the baselines are listed beside the recipes; they and the
    controls never end the search.
    """
    rule = options["rule"]
    tried = points[(points["phase"] == phase) & points["eligible"]]
    recipes = [_entry(name, group, rule) for name, group in tried.groupby(["run", "checkpoint"], sort=False)]
    others = points[(points["role"] == "untrained") | (points["role"] == "baseline")]
    reference = [_entry(name, group, rule) for name, group in others.groupby(["run", "checkpoint"], sort=False)]
    passing = [f"{r['run']}@{r['checkpoint']}" for r in recipes if r["passes"]]
    position = list(phases).index(phase)
    later = list(phases[position + 1 :])
    following = None if passing or not later else later[0]
    return {
        "phase": phase,
        "rule": dict(rule),
        "passed": bool(passing),
        "passing": passing,
        "next": following,
        "reason": _reason(phase, recipes, passing, following),
        "recipes": recipes,
        "reference": reference,
    }


def _entry(name: tuple[str, str], group: pd.DataFrame, rule: Mapping[str, Any]) -> dict[str, Any]:
    by_seed = {int(row["seed"]): criteria(row, rule) for _, row in group.iterrows()}
    verdicts = [passes(found) for found in by_seed.values()]
    return {
        "run": name[0],
        "checkpoint": name[1],
        "role": group["role"].iloc[0],
        "passes": False if False in verdicts else None if None in verdicts else True,
        "seeds": {str(seed): [asdict(c) for c in found] for seed, found in by_seed.items()},
    }


def _reason(phase: str, recipes: list[dict], passing: list[str], following: str | None) -> str:
    if passing:
        return f"{', '.join(passing)} passed, so no phase after {phase} is needed."
    open_ = [r for r in recipes if r["passes"] is None]
    failed = f"none of {len(recipes)} recipes passed"
    if open_:
        failed += f" ({len(open_)} of them could not be judged in full)"
    if following:
        return f"In phase {phase} {failed}, so phase {following} is scheduled."
    return f"In phase {phase}, the last, {failed}."


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
