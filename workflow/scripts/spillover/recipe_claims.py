"""The hypotheses of the recipe search as data: criterion, evidence, outcome; and the contrasts behind them.

An outcome is `supported`, `not supported` or `not decidable at this N`. It is decided only where the intervals (over
questions, personas and held-out rows of the given training runs) lie on one side of every limit it needs. All limits
come from the experiment's options, all numbers from the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from . import recipe_rule
from .recipe_rule import CONDUCT, GEOMETRY
from .statistics import difference_interval, spearman_exact

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "not decidable at this N"
STATEMENTS = {
    "H1": "Saturation: personas collapse gradually, and an early checkpoint still has their geometry.",
    "H2": "Regularisation: a penalty on the distance from the untrained model keeps the geometry at comparable fit.",
    "H3": "Low rank: an adapter of low rank keeps the geometry where one of full rank collapses it.",
    "H4": "Data distribution: rows under many personas' system prompts keep the geometry.",
    "H5": "Rehearsal: mixing broad data into narrow data keeps the geometry.",
    "H_null": "No recipe that reaches the baseline's fit keeps the geometry.",
}
PHASE_OF = {"H1": "steps", "H2": "regularise", "H3": "rank", "H4": "personas", "H5": "rehearse"}


def hypotheses(points: pd.DataFrame, decisions: Sequence[Mapping], options: Mapping) -> list[dict[str, str]]:
    """[{claim, statement, criterion, evidence, verdict}] for H1 to H5 and H_null, in that order.

    `decides_at` names the phase that a hypothesis waits for. What more questions or personas would bring is not said:
    intervals come from drawing both, and do not shrink with either alone.
    """
    reached = {record["phase"] for record in decisions}
    rule = options["rule"]
    found = []
    for claim, statement in STATEMENTS.items():
        phase, decides = PHASE_OF.get(claim), {}
        if phase and phase not in reached:
            last = decisions[-1]
            why = f"Phase {phase} was not run: the search stopped after phase {last['phase']}."
            verdict, criterion, evidence = UNDECIDED, _asks(rule), why
            decides = {"decides_at": f"running phase {phase}"}
        elif claim == "H1":
            verdict, criterion, evidence = _saturation(points, options)
        elif claim == "H_null":
            verdict, criterion, evidence = _null(points, options)
        else:
            verdict, criterion, evidence = _any_recipe(claim, points, options)
        found.append(
            {"claim": claim, "statement": statement, "criterion": criterion, "evidence": evidence, "verdict": verdict}
            | decides
        )
    return found


def contrasts(points: pd.DataFrame, options: Mapping) -> pd.DataFrame:
    """Every mixture beside steering, beside no mixture, and beside the control matched for exposure to narrow data.

    Columns run, seed, narrow, mix, share, unit, against, other, quantity, value, other_value, difference, low, high.
    The interval of a difference is recovered from the two intervals (Newcombe's rule), which share their questions: it
    is wider than it need be.
    """
    rows = []
    final = points[points["checkpoint"].isin(["final", *(b["checkpoint"] for b in options["baselines"].values())])]
    for _, mixed in points[points["mix"].notna() & points["eligible"]].iterrows():
        same = final[(final["seed"] == mixed["seed"]) & (final["narrow"] == mixed["narrow"])]
        for against, other in _others(mixed, same, options).items():
            if other is None:
                continue
            for quantity in ("kept", "similarity", "learnt"):
                rows.append(
                    {key: mixed[key] for key in ("run", "seed", "narrow", "mix", "share", "unit")}
                    | {"against": against, "other": other["run"], "quantity": quantity}
                    | _difference(mixed, other, quantity)
                )
    return pd.DataFrame(rows)


def _others(mixed: pd.Series, same: pd.DataFrame, options: Mapping) -> dict[str, pd.Series | None]:
    baseline = options["baselines"].get(mixed["narrow"])
    none = same[same["run"] == baseline["run"]] if baseline else same[:0]
    if baseline and len(none) > 1:
        none = none[none["checkpoint"] == baseline["checkpoint"]]
    return {
        "steering": _only(same[same["regulariser"] == "steering"]),
        "no mixture": _only(none),
        "same exposure": matched(mixed, same),
    }


def matched(mixed: pd.Series, same: pd.DataFrame) -> pd.Series | None:
    """The control with the same narrow rows in the same steps whose broad rows carry no loss."""
    alike = (same["role"] == "control") & (same["mix"] == mixed["mix"]) & (same["unit"] == mixed["unit"])
    return _only(same[alike & (same["share"] == mixed["share"])])


def _only(frame: pd.DataFrame) -> pd.Series | None:
    return None if frame.empty else frame.iloc[0]


def _difference(mixed: pd.Series, other: pd.Series, quantity: str) -> dict[str, float]:
    first, second = ((row[quantity], (row[f"{quantity}_low"], row[f"{quantity}_high"])) for row in (mixed, other))
    low, high = difference_interval(*first, *second)
    return {"value": first[0], "other_value": second[0], "difference": first[0] - second[0], "low": low, "high": high}


def collapsed_clearly(points: pd.DataFrame, rule: Mapping) -> bool | None:
    """True if every point of a recipe misses the geometry criteria beyond the interval; False if all meet them."""
    return _all([recipe_rule.clearly(recipe_rule.criteria(row, rule), GEOMETRY) for _, row in points.iterrows()], True)


def _all(verdicts: Sequence[bool | None], inverted: bool = False) -> bool | None:
    if not verdicts or len(set(verdicts)) != 1 or verdicts[0] is None:
        return None
    return not verdicts[0] if inverted else verdicts[0]


def _baseline(points: pd.DataFrame, options: Mapping, narrow: str) -> pd.DataFrame:
    """The rows of the unregularised recipe of a narrow set."""
    chosen = options["baselines"][narrow]
    return points[(points["run"] == chosen["run"]) & (points["checkpoint"] == chosen["checkpoint"])]


def _asks(rule: Mapping, conduct: bool = False) -> str:
    asked = {name: row for name, row in recipe_rule.CRITERIA.items() if conduct or row[2] != CONDUCT}
    words = [f"{words} {rule[name]:g}" for name, (*_, words) in asked.items() if rule.get(name) is not None]
    return "; ".join(words)


def _saturation(points: pd.DataFrame, options: Mapping) -> tuple[str, str, str]:
    rule, early = options["rule"], options["early_step"]
    group = {"one": "steps", "truncated": "truncated_steps"}[options["schedule"]]
    taken = points[points["group"] == group].sort_values("step")
    geometry = ", ".join(
        f"{words} {rule[name]:g}" for name, (_, _, about, words) in recipe_rule.CRITERIA.items()
        if about == GEOMETRY and rule.get(name)
    )  # fmt: skip
    schedule = "checkpoints of one schedule" if options["schedule"] == "one" else "schedules of their own lengths"
    criterion = (
        f"M1 rises with the step ({schedule}), every point up to step {early} meets the geometry criteria ({geometry}) "
        "and the last one does not"
    )
    if taken.empty:
        return UNDECIDED, criterion, f"No run of group {group} was selected."
    verdicts, texts = [], []
    for seed, line in taken.groupby("seed"):
        test = spearman_exact(line["step"].tolist(), line["m1"].tolist())
        judged = {
            row["step"]: recipe_rule.clearly(recipe_rule.criteria(row, rule), GEOMETRY) for _, row in line.iterrows()
        }
        first = [judged[step] for step in judged if step <= early]
        last = judged[max(judged)]
        rising = None if test.p != test.p or test.p > options["level"] else test.statistic > 0
        parts = [rising, _all(first) if first else None, None if last is None else not last]
        verdicts.append(False if rising is False or False in first else None if None in parts else all(parts) or None)
        steps = ", ".join(f"{row['step']}: {row['m1']:.3f}" for _, row in line.iterrows())
        text = f"seed {seed}: M1 by step {steps}; rank correlation {test.statistic:.2f}, exact p {test.p:.3g}"
        text += f" (least possible {test.min_p:.3g})"
        if last:
            text += "; the last step has not collapsed, so there is no saturation to be early for"
        texts.append(text)
    return _outcome(verdicts), criterion, ". ".join(texts) + "."


def _any_recipe(claim: str, points: pd.DataFrame, options: Mapping) -> tuple[str, str, str]:
    """H2 to H5: some recipe of a phase passes, where its baseline has collapsed (and, for H5, its matched control)."""
    rule = options["rule"]
    tried = points[(points["phase"] == PHASE_OF[claim]) & points["eligible"]]
    if claim == "H3":
        tried = tried[tried["rank"] <= options["low_rank"]]
    if claim == "H5":
        tried = tried[tried["mix"].notna()]
    criterion = (
        f"a recipe of phase {PHASE_OF[claim]} passes ({_asks(rule, claim == 'H5')}) where its baseline has collapsed"
    )
    criterion += f", with rank {options['low_rank']} or less" if claim == "H3" else ""
    criterion += ", and the control with the same exposure to narrow data has not passed" if claim == "H5" else ""
    names = list(dict.fromkeys(tried["run"]))
    if not names:
        return UNDECIDED, criterion, "No such recipe was selected."
    verdicts, passing = {}, []
    for name, group in tried.groupby("run", sort=False):
        of_seeds = []
        for _, point in group.iterrows():
            found = recipe_rule.criteria(point, rule, looks=len(names))
            verdict = recipe_rule.clearly(found)
            if verdict and not _credited(claim, point, points, options):
                verdict = None
            of_seeds.append(verdict)
        verdicts[name] = _all(of_seeds)
        judged = [recipe_rule.passes(recipe_rule.criteria(point, rule)) for _, point in group.iterrows()]
        passing += [name] if _all(judged) else []
    outcome = SUPPORTED if True in verdicts.values() else NOT_SUPPORTED
    outcome = UNDECIDED if outcome == NOT_SUPPORTED and None in verdicts.values() else outcome
    best = tried.loc[tried["kept"].idxmax()]
    baseline = _baseline(points, options, best["narrow"])
    evidence = f"{len(passing)} of {len(names)} recipes pass by their point estimates"
    evidence += f" ({', '.join(passing)})" if passing else ""
    evidence += (
        f"; {sum(v is True for v in verdicts.values())} do so beyond their intervals and where the comparison holds, "
        f"{sum(v is False for v in verdicts.values())} clearly fail. Most geometry: {best['run']}, "
        f"{_share(best, 'kept')} of the distance from collapse kept and {_share(best, 'learnt')} of the loss reduction"
    )
    if len(baseline):
        row = baseline.iloc[0]
        evidence += f"; its baseline {row['run']} keeps {_share(row, 'kept')}"
    return outcome, criterion, evidence + "."


def _credited(claim: str, point: pd.Series, points: pd.DataFrame, options: Mapping) -> bool:
    """Whether a pass is the recipe's doing: its baseline has collapsed, and less exposure alone does not pass."""
    of_seed = points[points["seed"] == point["seed"]]
    if not collapsed_clearly(_baseline(of_seed, options, point["narrow"]), options["rule"]):
        return False
    if claim != "H5":
        return True
    control = matched(point, of_seed[of_seed["narrow"] == point["narrow"]])
    return (
        control is not None and recipe_rule.clearly(recipe_rule.criteria(control, options["rule"]), GEOMETRY) is False
    )


def _null(points: pd.DataFrame, options: Mapping) -> tuple[str, str, str]:
    null = options["null"]
    limits = [f"M1 at least {null['m1_least']:g}"] if null["m1_least"] is not None else []
    limits += [f"at most {null['kept_most']:.0%} of the distance from collapse kept"] if null["kept_most"] else []
    criterion = (
        f"every recipe with at least {null['learnt']:.0%} of the baseline's loss reduction has {' and '.join(limits)}"
    )
    fitted = points[points["eligible"] & (points["learnt"] >= null["learnt"])]
    if fitted.empty:
        return UNDECIDED, criterion, "No recipe reaches the baseline's fit."
    verdicts = [_beyond(row, null) for _, row in fitted.iterrows()]
    kept = fitted.loc[fitted["kept"].idxmax()]
    beyond, short = sum(v is True for v in verdicts), sum(v is False for v in verdicts)
    evidence = (
        f"{len(fitted)} of {int(points['eligible'].sum())} points reach that fit; {beyond} of them lie beyond the "
        f"limit with their intervals, {short} clearly do not. The one that keeps most is {kept['run']} at "
        f"{kept['checkpoint']}: M1 {kept['m1']:.3f}, {_share(kept, 'kept')} of the distance from collapse kept."
    )
    return (NOT_SUPPORTED if False in verdicts else UNDECIDED if None in verdicts else SUPPORTED), criterion, evidence


def _beyond(row: pd.Series, null: Mapping) -> bool | None:
    """Whether a point has collapsed by the limits of H_null: with its whole interval, None if that covers a limit."""
    sides = []
    if null["m1_least"] is not None:
        sides.append(_side(row["m1_low"], row["m1_high"], null["m1_least"]))
    if null["kept_most"] is not None:
        side = _side(row["kept_low"], row["kept_high"], null["kept_most"])
        sides.append(None if side is None else not side)
    return False if False in sides else None if None in sides else True


def _side(low: float, high: float, limit: float) -> bool | None:
    return True if low >= limit else False if high < limit else None


def _outcome(verdicts: Sequence[bool | None]) -> str:
    if False in verdicts:
        return NOT_SUPPORTED
    return UNDECIDED if None in verdicts or not verdicts else SUPPORTED


def _share(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{100 * row[name]:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
