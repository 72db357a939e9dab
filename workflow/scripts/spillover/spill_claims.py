"""The careful reading of a language-spill result: which cells spill, and which published claims appear here.

Every verdict comes from rates, intervals and tests in the tables given; thresholds are the fields of `Thresholds`, and
a claim that the design cannot decide is said to be undecided. Verdicts: "appears", "does not appear", "undecided", "not
tested". Statements hold for one learning rate; with one seed they hold for those training runs only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import contamination, judge_error, statistics
from .equivalence import fewest_deciding, rows_for_agreement, rows_for_difference, rows_for_limit
from .plots import pair_label
from .spill_geometry import PREDICTOR_TITLES

APPEARS, ABSENT, UNDECIDED, UNTESTED = "appears", "does not appear", "undecided", "not tested"


@dataclass(frozen=True)
class Thresholds:
    """Declared limits, as shares: what counts as near zero, as equal, as much; and the test level."""

    control_margin: float = 0.05  # a control whose upper bound lies below this does not spill
    equivalence: float = 0.10  # two rates are equal if their difference lies within this, with 90 % confidence
    low: float = 0.20  # "contained": no bystander reaches this
    high: float = 0.50  # "near-universal": at least half the bystanders reach this
    level: float = 0.05


def spilling_cells(pooled: pd.DataFrame, limits: Thresholds) -> pd.DataFrame:
    """Bystander cells with `base_rate`, `base_high` and `spills`: the cell's low end lies above the untrained high end.

    Without an untrained model in the table the control margin stands in for its high end.
    """
    base = pooled[pooled["role"] == "base"][["completion", "language", "rate", "high"]]
    base = base.rename(columns={"rate": "base_rate", "high": "base_high"})
    cells = pooled[pooled["role"] == "bystander"].merge(base, on=["completion", "language"], how="left")
    cells["spills"] = cells["low"] > cells["base_high"].fillna(limits.control_margin)
    cells["control"] = cells["directive"] == cells["completion"]
    return cells


def symmetry(pooled: pd.DataFrame, limits: Thresholds) -> tuple[pd.DataFrame, dict]:
    """Does A→B spill as B→A does? Per pair and shared bystander: both rates, their difference and its intervals.

    low and high hold at 95 % for a pair's bystanders together (Bonferroni); `equal` asks whether the 90 % interval lies
    within the equivalence limit, for every bystander (an intersection-union test, so no correction is due). Intervals
    of one seed are Newcombe's.
    """
    bystanders = pooled[pooled["role"] == "bystander"]
    by_pair = {key: group.set_index("language") for key, group in bystanders.groupby(["directive", "completion"])}
    rows = []
    for (a, b), there in by_pair.items():
        if a >= b or (b, a) not in by_pair:
            continue
        back = by_pair[b, a]
        shared = [code for code in there.index if code in back.index]
        for code in shared:
            first, second = there.loc[code], back.loc[code]
            low, high = _difference(first, second, 1 - limits.level / len(shared))
            inner = _difference(first, second, 0.90)
            row = {
                "pair": f"{a.upper()}, {b.upper()}",
                "there": pair_label(a, b),
                "back": pair_label(b, a),
                "language": code,
            }
            row |= {
                "rate_there": first["rate"],
                "rate_back": second["rate"],
                "difference": first["rate"] - second["rate"],
            }
            equal = -limits.equivalence < inner[0] and inner[1] < limits.equivalence
            rates = first["rate"], second["rate"]
            row |= {
                "apart_at": rows_for_difference(*rates, limits.level / len(shared)),
                "equal_at": rows_for_agreement(*rates, limits.equivalence),
            }
            rows.append({**row, "low": low, "high": high, "differs": low > 0 or high < 0, "equal": equal})
    if not rows:
        return pd.DataFrame(), _claim("symmetry", UNTESTED, "No pair of conditions is trained in both directions.")
    table = pd.DataFrame(rows)
    differing = table[table["differs"]]
    pairs = table["pair"].nunique()
    worst = table.loc[table["difference"].abs().idxmax()]
    largest = (
        f"largest difference {_points(abs(worst['difference']))} ({worst['there']} {_percent(worst['rate_there'])}, "
        f"{worst['back']} {_percent(worst['rate_back'])}, in {worst['language'].upper()})"
    )
    if len(differing):
        named = ", ".join(sorted(differing["pair"].unique()))
        verdict, text = (
            ABSENT,
            f"{differing['pair'].nunique()} of {pairs} pairs differ in some bystander ({named}); {largest}.",
        )
    elif table["equal"].all():
        verdict = APPEARS
        text = f"All {pairs} pairs agree within {_points(limits.equivalence)} in every shared bystander; {largest}."
    else:
        verdict = UNDECIDED
        text = (
            f"No difference is established, but neither is agreement within {_points(limits.equivalence)}; {largest}."
        )
    open_ = [row["equal_at"] for row in rows if not row["equal"]]
    return table, _claim("symmetry", verdict, text, fewest_deciding(open_, [row["apart_at"] for row in rows]))


def distance_order(tests: pd.DataFrame | None, limits: Thresholds) -> dict:
    """Do closer languages take more spill? Each predictor by the larger of its two pooled p values, Holm-adjusted.

    A predictor with values missing can only be tested within conditions; it is reported but does not enter the verdict.
    """
    return _predictors("distance order", _pooled_tests(tests, cosines=False), limits)


def direction_cosine(tests: pd.DataFrame | None, limits: Thresholds) -> dict:
    """Do languages whose directions lie closer in the untrained model take more spill? Judged as `distance_order`."""
    return _predictors("direction cosine", _pooled_tests(tests, cosines=True), limits)


def mismatch_needed(pooled: pd.DataFrame, means: pd.DataFrame, control: pd.DataFrame, limits: Thresholds) -> dict:
    """Is spill absent when directive and completion language agree, and present when they differ?"""
    if control.empty:
        return _claim("mismatch needed", UNTESTED, "There is no same-language control.")
    bound = control.iloc[-1]
    cells = spilling_cells(pooled, limits)
    mismatched = means[means["directive"].ne(means["completion"]) & means["directive"].notna()]
    over = mismatched[mismatched["low"] > bound["exact_high"]]
    text = (
        f"Bystanders of the control ({bound['condition']}): {int(bound['k'])} of {int(bound['n'])}, 95 % upper bound "
        f"{_percent(bound['exact_high'], 2)}. Mean bystander rate above that bound: {len(over)} of {len(mismatched)} "
        "mismatched conditions."
    )
    if bound["exact_high"] >= limits.control_margin:
        spilled = cells[cells["control"] & cells["spills"]]
        verdict = ABSENT if len(spilled) else UNDECIDED
        text += f" The bound is not below the margin of {_percent(limits.control_margin)}."
    elif mismatched.empty or over.empty:
        verdict = UNDECIDED
        text += " No mismatched condition spills on average, so there is nothing for a mismatch to explain."
    else:
        verdict = APPEARS
    needed = [rows_for_limit(bound["rate"], limits.control_margin) if bound["rate"] < limits.control_margin else None]
    above = mismatched.loc[mismatched["rate"] > bound["rate"], "rate"]
    needed.append(fewest_deciding([], (rows_for_difference(rate, bound["rate"]) for rate in above)))
    return _claim("mismatch needed", verdict, text, fewest_deciding(needed), "bystander replies of a condition")


def regimes(pooled: pd.DataFrame, limits: Thresholds) -> tuple[dict[str, str], dict]:
    """Sort the mismatched conditions by their bystanders: contained, selective, near-universal.

    The write-up names three regimes without defining them; these definitions are this project's: contained, no
    bystander at `low` or above; near-universal, at least half of them at `high` or above; selective, all else. A
    condition whose own directive was not turned (under `high`) is called "not learnt" first.
    """
    found = {}
    for (condition, _), group in pooled.groupby(["condition", "completion"], sort=False):
        bystanders = group.loc[group["role"] == "bystander", "rate"]
        trained = group.loc[group["role"] == "trained", "rate"]
        if bystanders.empty or trained.empty:
            continue
        if trained.iloc[0] < limits.high:
            found[condition] = "not learnt"
        elif bystanders.max() < limits.low:
            found[condition] = "contained"
        elif (bystanders >= limits.high).mean() >= 0.5:
            found[condition] = "near-universal"
        else:
            found[condition] = "selective"
    kinds = [name for name in ("contained", "selective", "near-universal") if name in found.values()]
    if not found:
        return found, _claim("three regimes", UNTESTED, "There is no mismatched condition.")
    verdict = APPEARS if len(kinds) == 3 else ABSENT if len(found) >= 3 else UNDECIDED
    listing = "; ".join(f"{name}: {regime}" for name, regime in found.items())
    claim = _claim("three regimes", verdict, f"{len(kinds)} of three regimes occur. {listing}.")
    return found, claim | ({"decides_at": "three mismatched conditions"} if verdict == UNDECIDED else {})


def summarise(
    cells: pd.DataFrame,
    agreement: pd.DataFrame,
    tests: pd.DataFrame | None,
    *,
    label_source: str = "langdetect",
    learning_rate: float | None = None,
    limits: Thresholds | None = None,
    gold: pd.DataFrame | None = None,
) -> dict:
    """All statements about one learning rate as plain data (see `spill_report.markdown` for the text).

    `gold` (of judge_gold.py) corrects the judge's rates, whichever label the other statements rest on. Raises
    ValueError when conditions come at several learning rates and none is chosen.
    """
    limits = limits or Thresholds()
    judged = at_learning_rate(cells[cells["label_source"] == "judge"], learning_rate) if gold is not None else None
    cells = at_learning_rate(cells[cells["label_source"] == label_source], learning_rate)
    if tests is not None and len(tests):
        tests = at_learning_rate(tests, learning_rate)
    pooled, means = contamination.pool_seeds(cells), contamination.bystander_means(cells)
    control = contamination.bystander_control(cells)
    spilling = spilling_cells(pooled, limits)
    mismatched = spilling[~spilling["control"]]
    pairs, symmetric = symmetry(pooled, limits)
    by_regime, three = regimes(pooled, limits)
    trained = pooled[pooled["condition"] != contamination.BASE]
    phrasing = cells[cells["condition"] != contamination.BASE].assign(
        gap=lambda t: t["item_rate_max"] - t["item_rate_min"]
    )
    worst = phrasing.loc[phrasing["gap"].idxmax()]
    return {
        "label_source": label_source,
        "denominator": trained["denominator"].iloc[0],
        "conditions": list(dict.fromkeys(trained["condition"])),
        "seeds": sorted(int(s) for s in cells.loc[cells["condition"] != contamination.BASE, "seed"].unique()),
        "replies_per_cell": [int(trained["n"].min()), int(trained["n"].max())],
        "phrasings": int(trained["n_items"].max()),
        "truncated_share": float(trained["truncated_share"].mean()),
        "errors": int(cells["errors"].sum()),
        "thresholds": vars(limits),
        "means": means[means["directive"].notna()].to_dict("records"),
        "own_cells": trained[trained["role"].isin(["trained", "correct", "control"])].to_dict("records"),
        "spilling": mismatched[mismatched["spills"]].sort_values("rate", ascending=False).to_dict("records"),
        "untrained": bool((pooled["role"] == "base").any()),
        "bystander_cells": len(mismatched),
        "control": control.to_dict("records"),
        "symmetry": pairs.to_dict("records"),
        "regimes": by_regime,
        "claims": [
            symmetric,
            distance_order(tests, limits),
            direction_cosine(tests, limits),
            mismatch_needed(pooled, means, control, limits),
            three,
        ],
        "largest_phrasing_gap": worst[
            ["condition", "language", "item_rate_min", "item_rate_max", "n", "effective_n"]
        ].to_dict(),
        "tests": [] if tests is None else tests.to_dict("records"),
        "agreement": agreement.to_dict("records"),
        "gold": None if gold is None else {"texts": len(gold), "without_answer": int(gold["judged"].isna().sum())},
        "corrected": [] if gold is None else corrected(judged, gold),
    }


def corrected(judged: pd.DataFrame, gold: pd.DataFrame) -> list[dict]:
    """The judge's rates of every condition's cells beside what they are without its errors."""
    pooled = contamination.pool_seeds(judged[judged["condition"] != contamination.BASE])
    return judge_error.corrected_cells(pooled, gold)


def at_learning_rate(table: pd.DataFrame, learning_rate: float | None) -> pd.DataFrame:
    """The rows of one learning rate, and those of the untrained model, which has none."""
    rates = sorted(table["learning_rate"].dropna().unique())
    if learning_rate is None:
        per_condition = table.groupby("condition")["learning_rate"].nunique()
        if (per_condition > 1).any():
            raise ValueError(
                f"several learning rates ({', '.join(f'{r:g}' for r in rates)}); choose one with --learning-rate."
            )
        return table
    keep = np.isclose(table["learning_rate"], learning_rate) | table["learning_rate"].isna()
    if rates and not np.isclose(rates, learning_rate).any():
        raise ValueError(
            f"no condition has learning rate {learning_rate:g}; there are: {', '.join(f'{r:g}' for r in rates)}."
        )
    return table[keep]


def _pooled_tests(tests: pd.DataFrame | None, *, cosines: bool) -> pd.DataFrame:
    if tests is None or tests.empty:
        return pd.DataFrame()
    return tests[(tests["test"] != "condition") & (tests["predictor"].str.startswith("cosine") == cosines)]


def _predictors(name: str, tests: pd.DataFrame, limits: Thresholds) -> dict:
    if tests.empty:
        return _claim(name, UNTESTED, "No tests were made.")
    sentences, verdicts = [], []
    for predictor, group in tests.groupby("predictor", sort=False):
        title = PREDICTOR_TITLES.get(predictor, predictor)
        made = group[np.isfinite(group["p"])]
        if made.empty:
            sentences.append(f"{title}: no test, {int(group['dropped'].max())} cells without enough values")
            continue
        rho, p, holm, least = made["rho"].iloc[0], *(made[name].max() for name in ("p", "p_holm", "min_p"))
        expected = rho > 0 if predictor.startswith("cosine") else rho < 0
        if holm >= limits.level:
            verdict = UNDECIDED
        else:
            verdict = APPEARS if expected else ABSENT
        partial = "relabelled" not in set(made["test"])
        if not partial:
            verdicts.append(verdict)
        n, dropped = int(made["n"].max()), int(made["dropped"].min())
        note = "within conditions only, " if partial else ""
        sentences.append(
            f"{title}: {verdict} (mean rho {rho:+.2f}, p {p:.2g}, Holm {holm:.2g}, least possible {least:.2g}; "
            f"{note}{n} of {n + dropped} cells)"
        )
    if not verdicts:
        overall = UNTESTED
    elif len(set(verdicts)) == 1:
        overall = verdicts[0]
    else:
        overall = ", ".join(
            f"{v} by {verdicts.count(v)} of {len(verdicts)} predictors" for v in dict.fromkeys(verdicts)
        )
    return _claim(name, overall, "; ".join(sentences) + ".")


def _difference(first: pd.Series, second: pd.Series, confidence: float) -> tuple[float, float]:
    """Interval of a difference of two pooled cells: Wilson's at this confidence, widened as seeds widened the 95 %."""
    ends = []
    for cell in (first, second):
        low, high = statistics.wilson(int(cell["k"]), int(cell["n"]), confidence)
        base = statistics.wilson(int(cell["k"]), int(cell["n"]), 0.95)
        extra_low, extra_high = max(0.0, base[0] - cell["low"]), max(0.0, cell["high"] - base[1])
        ends.append((cell["rate"], (max(0.0, low - extra_low), min(1.0, high + extra_high))))
    return statistics.difference_interval(*ends[0], *ends[1])


def _claim(name: str, verdict: str, text: str, decides: int | None = None, unit: str = "replies a cell") -> dict:
    """`decides`: rows that would decide, told of an undecided claim alone."""
    claim = {"claim": name, "verdict": verdict, "text": text}
    return claim | ({"decides_at": f"about {decides:,} {unit}"} if verdict == UNDECIDED and decides else {})


def _percent(rate: float, digits: int = 0) -> str:
    return f"{100 * rate:.{digits}f} %" if digits else f"{statistics.half_even_percent(rate)} %"


def _points(share: float) -> str:
    return f"{100 * share:.0f} points"
