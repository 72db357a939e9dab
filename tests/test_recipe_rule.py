"""When a recipe passes: the published rule on published figures, the corrected rule, and what a phase decides."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from recipe_builders import OPTIONS, PHASES, PUBLISHED_RULE, point, regularised, rehearsed, steps, table, untrained
from spillover import recipe_rule


def judged(row, rule=OPTIONS["rule"]):
    return recipe_rule.passes(recipe_rule.criteria(row, rule))


def test_the_published_rule_passes_the_untrained_model_and_fails_every_trained_one(published):
    """M1 at layer 20; the loss criterion is taken as met, since no loss was published. Benign is base + delta."""
    results = json.loads((published / "recipes/run_result.json").read_text())["results"]
    rows = {key: row for key, row in results.items() if key.startswith("M1_A_L20_") and not key.endswith("_vs_benign")}
    base = next(row["base_mean"] for row in rows.values() if "base_mean" in row)
    m1 = {"base": base} | {key[len("M1_A_L20_") :]: base + row["delta_mean_offdiag"] for key, row in rows.items()}
    assert len(m1) == 7 and round(m1["base"], 3) == 0.900 and round(m1["benign_sft_375"], 3) == 0.973
    verdicts = {name: judged({"m1": value, "ratio": 1.0}, PUBLISHED_RULE) for name, value in m1.items()}
    assert verdicts == {name: name == "base" for name in m1}


def test_the_untrained_model_meets_the_published_rule_and_not_the_corrected_one():
    assert judged(untrained(), PUBLISHED_RULE) is True
    found = recipe_rule.criteria(untrained(), OPTIONS["rule"])
    assert [c.name for c in found if not c.met] == ["learnt_least"]


def test_a_criterion_that_was_not_measured_is_neither_met_nor_missed():
    good = point("kl", "kl_to_base", "regularise", 0.92, 0.9)
    assert judged(good) is True
    assert judged(good | {"learnt": float("nan")}) is None
    assert judged(good | {"learnt": float("nan"), "m1": 0.99}) is False


def test_conduct_is_asked_only_of_narrow_data_that_have_a_behaviour():
    good = point("x", "instructions", "rehearse", 0.92, 0.9)
    assert judged(good | {"conduct_asked": True}) is None
    assert judged(good | {"conduct_asked": True, "shown": 0.3}) is False
    assert judged(good | {"conduct_asked": True, "shown": 0.6}) is True


def test_clear_needs_the_whole_interval_on_one_side_and_more_of_it_after_many_looks():
    row = point("x", "kl_to_base", "regularise", 0.944, 0.9, width=0.005)
    (m1, *_) = recipe_rule.criteria(row, {"m1_below": 0.95})
    assert m1.met and m1.clear
    (m1, *_) = recipe_rule.criteria(row, {"m1_below": 0.95}, looks=20)
    assert m1.met and not m1.clear
    assert recipe_rule.clearly([m1]) is None


def test_a_phase_without_a_pass_schedules_the_next():
    record = recipe_rule.decision(table(*steps()), "steps", PHASES, OPTIONS)
    assert (record["passed"], record["next"]) == (False, "regularise")
    assert [r["checkpoint"] for r in record["recipes"]] == [f"step{n}" for n in (10, 25, 50, 100, 200, 375)]
    assert {r["run"] for r in record["reference"]} == {"base", "steps"}
    assert "none of 6 recipes passed, so phase regularise is scheduled" in record["reason"]
    json.dumps(record, allow_nan=False)


def test_a_pass_ends_the_search():
    points = table(*steps(), *regularised((0.97, 0.96, 0.93)))
    record = recipe_rule.decision(points, "regularise", PHASES, OPTIONS)
    assert record["passing"] == ["kl0.1@final"] and record["next"] is None
    assert "no phase after regularise is needed" in record["reason"]


def test_the_last_phase_schedules_nothing():
    record = recipe_rule.decision(table(*steps(), *rehearsed((0.99, 0.99, 0.99, 0.99))), "rehearse", PHASES, OPTIONS)
    assert (record["passed"], record["next"]) == (False, None)


def test_controls_and_the_untrained_model_never_end_the_search():
    points = table(*steps(), *rehearsed((0.99, 0.99, 0.99, 0.99), control=0.91))
    record = recipe_rule.decision(points, "rehearse", PHASES, OPTIONS)
    assert not record["passed"]
    assert not [r for r in record["recipes"] if "alone" in r["run"] or r["run"] in ("base", "bad_advice_only")]


def test_a_recipe_must_pass_with_every_seed():
    rows = [point("kl", "kl_to_base", "regularise", m, 0.9, seed=s) for s, m in ((1, 0.92), (2, 0.99))]
    record = recipe_rule.decision(pd.DataFrame(rows), "regularise", PHASES, OPTIONS)
    assert not record["passed"] and set(record["recipes"][0]["seeds"]) == {"1", "2"}


def test_unjudged_recipes_are_counted_in_the_reason():
    rows = [point("a", "instructions", "rehearse", 0.92, 0.9, conduct_asked=True)]
    assert (
        "1 of them could not be judged in full"
        in recipe_rule.decision(pd.DataFrame(rows), "rehearse", PHASES, OPTIONS)["reason"]
    )


@pytest.mark.parametrize("limit", ["m1_below", "kept_least", "loss_ratio", "learnt_least"])
def test_a_limit_of_null_is_not_asked_for(limit):
    names = {c.name for c in recipe_rule.criteria(untrained(), OPTIONS["rule"] | {limit: None})}
    assert limit not in names and len(names) == 3
