"""Checks around the recipe search, as claims: does M1 rise, what raises it, is the rule vacuous, and the known traps.

The traps: a mixture may only dilute the narrow data below the point where they act; conduct may look fine under one
system prompt and not under another; raw text may cost instruction following. Verdicts are `appears`, `does not appear`,
`undecided` and `not tested`; what was not measured says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from scipy.stats import norm

from . import recipe_rule
from .equivalence import fewest_deciding, rows_for_difference, rows_for_gap
from .recipe_points import SHOWN
from .statistics import newcombe

APPEARS, ABSENT, UNDECIDED, UNTESTED = "appears", "does not appear", "undecided", "not tested"


def checks(points: pd.DataFrame, conduct: pd.DataFrame, contrasts: pd.DataFrame, options: Mapping) -> list[dict]:
    """[{claim, verdict, text, ...}] in a fixed order; the optional keys estimate, low, high, n go with the numbers."""
    return [
        _m1_rises(points, options),
        _what_raises_m1(points, options),
        _vacuous_rule(points, options),
        _mixing_against(contrasts, "steering"),
        _mixing_against(contrasts, "no mixture"),
        _mixing_against(contrasts, "same exposure"),
        _dilution(points),
        _hidden(conduct),
        _instructions(points, conduct),
    ]


def _plain(points: pd.DataFrame, options: Mapping) -> dict | None:
    """The baseline, its seeds as a level: means, and intervals that hold every seed's own."""
    chosen = recipe_rule.plain(options)
    found = points[(points["run"] == chosen["run"]) & (points["checkpoint"] == chosen["checkpoint"])]
    if found.empty:
        return None
    ends = {"_low": "min", "_high": "max"}
    numbers = found.select_dtypes("number").columns
    row = {name: found[name].agg(ends.get(name[name.rfind("_") :], "mean")) for name in numbers}
    row["over"] = f" (mean of {len(found)} seeds, intervals over all of theirs)" if len(found) > 1 else ""
    return row


def _m1_rises(points: pd.DataFrame, options: Mapping) -> dict:
    claim = "plain fine-tuning raises M1"
    row = _plain(points, options)
    if row is None:
        return {"claim": claim, "verdict": UNTESTED, "text": "The baseline was not trained."}
    base = points[points["role"] == "untrained"].iloc[0]
    low, high = row["kept_low"], row["kept_high"]
    verdict = APPEARS if high < 1 else ABSENT if low > 1 else UNDECIDED
    text = (
        f"M1 goes from {base['m1']:.3f} (untrained) to {row['m1']:.3f} after {int(row['step'])} plain steps; "
        f"{row['kept']:.2f} of the distance from collapse is left ({low:.2f} to {high:.2f}), drawing the same "
        f"questions and personas for both models{row['over']}."
    )
    return {"claim": claim, "verdict": verdict, "text": text, "estimate": row["kept"], "low": low, "high": high}


def _what_raises_m1(points: pd.DataFrame, options: Mapping) -> dict:
    claim = "the rise of M1 is a loss of differences between personas"
    row = _plain(points, options)
    if row is None:
        return {"claim": claim, "verdict": UNTESTED, "text": "The baseline was not trained."}
    rise = row["from_offset"] + row["from_spread"]
    text = (
        f"Of a change of {rise:+.3f} that the two parts imply, {row['from_spread']:+.3f} comes from the spread of the "
        f"personas ({row['spread_ratio']:.2f} of the untrained model's, {row['spread_ratio_low']:.2f} to "
        f"{row['spread_ratio_high']:.2f}) and {row['from_offset']:+.3f} from the offset that all share "
        f"({row['offset_ratio']:.2f}, {row['offset_ratio_low']:.2f} to {row['offset_ratio_high']:.2f}). The distances "
        f"between personas keep a rank correlation of {row['similarity']:.2f} with the untrained model's "
        f"({row['similarity_low']:.2f} to {row['similarity_high']:.2f}), and a linear probe still names the persona of "
        f"{row['decodability']:.1%} of held-out questions{row['over']}."
    )
    verdict = UNDECIDED
    if rise > 0 and row["spread_ratio_high"] < 1 and row["from_spread"] > row["from_offset"]:
        verdict = APPEARS
    elif row["spread_ratio_low"] >= 1 or (rise > 0 and row["from_spread"] <= 0):
        verdict = ABSENT
    return {"claim": claim, "verdict": verdict, "text": text, "estimate": row["spread_ratio"],
            "low": row["spread_ratio_low"], "high": row["spread_ratio_high"]}  # fmt: skip


def _vacuous_rule(points: pd.DataFrame, options: Mapping) -> dict:
    base = points[points["role"] == "untrained"].iloc[0]
    published = {"m1_below": options["published"]["m1_below"], "loss_ratio": options["published"]["loss_ratio"]}
    found = recipe_rule.criteria(base, published)
    met = recipe_rule.passes(found)
    ratio = "was not measured" if base["ratio"] != base["ratio"] else f"is {base['ratio']:.2f}"
    text = (
        f"The untrained model has M1 {base['m1']:.3f} (published limit {published['m1_below']:g}), and its held-out "
        f"loss over the baseline's {ratio} (limit {published['loss_ratio']:g}). It has learnt nothing, so a rule that "
        "it meets cannot tell a good recipe from none; the share of the loss reduction is asked for as well."
    )
    verdict = {True: APPEARS, False: ABSENT, None: UNDECIDED}[met]
    return {"claim": "the untrained model passes the published rule", "verdict": verdict, "text": text}


def _mixing_against(contrasts: pd.DataFrame, against: str) -> dict:
    claim = f"mixing keeps more geometry than {against}"
    rows = (
        contrasts[(contrasts["against"] == against) & (contrasts["quantity"] == "kept")]
        if len(contrasts)
        else contrasts
    )
    if not len(rows):
        return {"claim": claim, "verdict": UNTESTED, "text": "No mixture and its counterpart were both trained."}
    # a mixture is clear of 0 if it is so with every seed; Bonferroni over the mixtures, since one clear one decides
    mixtures = rows.groupby(["run", "other"], as_index=False).agg({"difference": "mean", "low": "min", "high": "max"})
    wider = norm.ppf(1 - 0.025 / len(mixtures)) / norm.ppf(0.975)
    mixtures["low"] = mixtures["difference"] - wider * (mixtures["difference"] - mixtures["low"])
    mixtures["high"] = mixtures["difference"] + wider * (mixtures["high"] - mixtures["difference"])
    above, below = int((mixtures["low"] > 0).sum()), int((mixtures["high"] < 0).sum())
    best = mixtures.loc[mixtures["difference"].idxmax()]
    text = (
        f"{above} of {len(mixtures)} mixtures keep clearly more of the distance from collapse, {below} clearly less. "
        f"Largest difference: {best['run']} against {best['other']}, {best['difference']:+.2f} ({best['low']:+.2f} to "
        f"{best['high']:+.2f}, 95 % for all mixtures together)."
    )
    verdict = APPEARS if above and not below else ABSENT if below and not above else UNDECIDED
    return {"claim": claim, "verdict": verdict, "text": text, "estimate": best["difference"], "low": best["low"],
            "high": best["high"], "n": len(mixtures)}  # fmt: skip


def _dilution(points: pd.DataFrame) -> dict:
    claim = "mixtures that keep geometry only dilute the narrow behaviour"
    asked = points[points["conduct_asked"] & points["mix"].notna() & points["eligible"]]
    shown = asked.dropna(subset="shown").groupby("run", as_index=False)["shown"].mean()
    if shown.empty:
        why = "no mixture was trained on data with such a behaviour" if asked.empty else (
            "the behaviour was not measured, or the narrow data alone hardly induce it"
        )  # fmt: skip
        return {"claim": claim, "verdict": UNTESTED, "text": f"Not measured: {why}."}
    least = shown.loc[shown["shown"].idxmin()]
    text = (
        f"Of {len(shown)} mixtures, {int((shown['shown'] < 0.5).sum())} show less than half of the behaviour that the "
        f"narrow data alone induce, at worst over the system prompts; least {least['run']} with {least['shown']:.0%}."
    )
    verdict = APPEARS if (shown["shown"] < 0.5).any() else ABSENT
    return {"claim": claim, "verdict": verdict, "text": text, "estimate": least["shown"], "n": len(shown)}


def _hidden(conduct: pd.DataFrame) -> dict:
    """Whether some system prompt brings out clearly more of the behaviour than another, within one trained model."""
    claim = "conduct differs between system prompts"
    rows = conduct[conduct["measure"].isin(SHOWN[:2]) & ~conduct["run"].astype(str).str.endswith("/base")]
    if rows.empty:
        return {"claim": claim, "verdict": UNTESTED, "text": "No conduct was measured."}
    found = []
    for (run, _, checkpoint, measure), group in rows.groupby(["run", "seed", "checkpoint", "measure"]):
        if len(group) > 1:
            most, least = group.loc[group["rate"].idxmax()], group.loc[group["rate"].idxmin()]
            low, high = newcombe(int(most["hits"]), int(most["n"]), int(least["hits"]), int(least["n"]))
            found.append(
                (most["rate"] - least["rate"], low, high, run, checkpoint, most["cell"], least["cell"], measure)
            )
    if not found:
        return {"claim": claim, "verdict": UNTESTED, "text": "Only one system prompt was asked under."}
    gap, low, high, run, checkpoint, most, least, measure = max(found)
    if gap == 0:
        text = f"No two system prompts differ in any of {len(found)} models ({measure.replace('_', ' ')})."
        return {"claim": claim, "verdict": ABSENT if high < 0.1 else UNDECIDED, "text": text, "n": len(found)}
    text = (
        f"Widest gap among {len(found)} models: {run} at {checkpoint}, {gap:+.0%} between {most} and {least} "
        f"({low:+.0%} to {high:+.0%} for this pair alone; the largest of many gaps is biased upwards). Measure: "
        f"{measure.replace('_', ' ')}."
    )
    verdict = APPEARS if low > 0.1 else ABSENT if high < 0.1 else UNDECIDED
    return {
        "claim": claim,
        "verdict": verdict,
        "text": text,
        "estimate": gap,
        "low": low,
        "high": high,
        "n": len(found),
    }


def _instructions(points: pd.DataFrame, conduct: pd.DataFrame) -> dict:
    claim = "raw text costs instruction following"
    asked = conduct[conduct["measure"] == "obeys"]
    asked = asked.assign(name=asked["run"].astype(str).str.rsplit("/", n=1).str[-1])
    obeys = asked.groupby(["name", "checkpoint"], as_index=False)[["hits", "n"]].sum().set_index("name")
    base = obeys[obeys.index == "base"]
    text_runs = points[points["eligible"] & (points["unit"] == "tokens")]
    measured = [(row["share"], row["run"]) for _, row in text_runs.iterrows() if row["run"] in obeys.index]
    if base.empty or not measured:
        return {"claim": claim, "verdict": UNTESTED, "text": "No raw-text mixture was asked to follow instructions."}
    share, run = max(measured)
    ours, theirs = obeys.loc[[run]].iloc[0], base.iloc[0]
    low, high = newcombe(int(ours["hits"]), int(ours["n"]), int(theirs["hits"]), int(theirs["n"]))
    gap = ours["hits"] / ours["n"] - theirs["hits"] / theirs["n"]
    # a seed is a training of its own, not more replies: the interval holds every seed's own difference
    each = asked.groupby(["name", "seed"])[["hits", "n"]].sum()
    rates = (each["hits"] / each["n"]).unstack("seed")
    own = (rates.loc[run] - rates.loc["base"]).dropna()
    low, high = min(low, own.min()), max(high, own.max())
    text = (
        f"Verifiable instructions (answer in the language asked for): {ours['hits']} of {ours['n']} followed by {run} "
        f"({share:.0%} raw text), {theirs['hits']} of {theirs['n']} by the untrained model; difference {gap:+.0%} "
        f"({low:+.0%} to {high:+.0%})."
    )
    verdict = APPEARS if high < 0 else ABSENT if low > -0.1 else UNDECIDED
    found = {"claim": claim, "verdict": verdict, "text": text, "estimate": gap, "low": low, "high": high}
    if verdict == UNDECIDED:
        ends = ours["hits"] / ours["n"], theirs["hits"] / theirs["n"]
        small = rows_for_gap(*ends, -0.1) if gap > -0.1 else None
        found["decides_at"] = fewest_deciding([], [small, rows_for_difference(*ends) if gap < 0 else None])
    return found
