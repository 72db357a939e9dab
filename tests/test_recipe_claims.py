"""The hypotheses of the recipe search, decided on made-up points with known answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from recipe_builders import OPTIONS, PUBLISHED_RULE, decided, options, point, regularised, rehearsed, steps, table
from spillover import mixing_curves, recipe_checks, recipe_claims
from spillover.recipe_claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED


def verdicts(points, *phases, of=OPTIONS):
    found = recipe_claims.hypotheses(points, decided(points, *phases, of=of), of)
    return {row["claim"]: row for row in found}


def test_saturation_is_supported_where_early_steps_keep_and_the_last_does_not():
    found = verdicts(table(*steps()), "steps")
    assert found["H1"]["verdict"] == SUPPORTED
    assert "exact p 0.00278" in found["H1"]["evidence"] and "10: 0.901" in found["H1"]["evidence"]


def test_saturation_is_not_supported_where_the_first_step_has_collapsed():
    found = verdicts(table(*steps((0.97, 0.975, 0.98, 0.985, 0.986, 0.987))), "steps")
    assert found["H1"]["verdict"] == NOT_SUPPORTED


def test_saturation_cannot_be_decided_where_nothing_collapses_or_intervals_are_wide():
    calm = verdicts(table(*steps((0.901, 0.902, 0.903, 0.904, 0.905, 0.906))), "steps")["H1"]
    assert calm["verdict"] == UNDECIDED and "no saturation to be early for" in calm["evidence"]
    rows = steps()
    rows[1] |= {"m1_low": 0.8, "m1_high": 0.99, "kept_low": 0.1, "kept_high": 2.0}
    assert verdicts(table(*rows), "steps")["H1"]["verdict"] == UNDECIDED


def test_the_schedule_says_which_runs_are_the_dose():
    rows = [row | {"group": "truncated_steps"} for row in steps()]
    found = verdicts(table(*rows), "steps", of=options() | {"schedule": "truncated"})
    assert found["H1"]["verdict"] == SUPPORTED and "schedules of their own lengths" in found["H1"]["criterion"]


def test_phases_that_were_not_run_are_not_decided():
    found = verdicts(table(*steps()), "steps")
    assert found["H3"]["verdict"] == UNDECIDED and "stopped after phase steps" in found["H3"]["evidence"]


def test_regularisation_is_supported_by_one_clear_pass_and_refuted_by_clear_failures():
    assert (
        verdicts(table(*steps(), *regularised((0.97, 0.96, 0.92))), "steps", "regularise")["H2"]["verdict"] == SUPPORTED
    )
    assert verdicts(table(*steps(), *regularised()), "steps", "regularise")["H2"]["verdict"] == NOT_SUPPORTED
    near = verdicts(table(*steps(), *regularised((0.97, 0.96, 0.949))), "steps", "regularise")["H2"]
    assert near["verdict"] == UNDECIDED and "1 of 3 recipes pass" in near["evidence"]


def test_a_recipe_is_not_credited_where_the_baseline_keeps_its_geometry_too():
    calm = steps((0.901, 0.902, 0.903, 0.904, 0.905, 0.906))
    assert verdicts(table(*calm, *regularised((0.9, 0.9, 0.9))), "steps", "regularise")["H2"]["verdict"] == UNDECIDED


def test_low_rank_looks_at_low_ranks_only():
    rows = [point(f"rank{r}", "low_rank", "rank", m, 0.9, rank=r) for r, m in ((4, 0.98), (8, 0.975), (16, 0.92))]
    assert verdicts(table(*steps(), *rows), "steps", "rank")["H3"]["verdict"] == NOT_SUPPORTED


def test_rehearsal_is_credited_only_where_less_exposure_alone_collapses():
    assert verdicts(table(*steps(), *rehearsed()), "steps", "rehearse")["H5"]["verdict"] == SUPPORTED
    diluted = verdicts(table(*steps(), *rehearsed(control=0.92)), "steps", "rehearse")["H5"]
    assert diluted["verdict"] == UNDECIDED


def test_the_null_is_refuted_by_one_fitted_recipe_that_keeps_and_supported_when_all_collapse():
    rows = steps((0.901, 0.91, 0.93, 0.955, 0.968, 0.98))
    all_collapse = table(*rows, *[r | {"learnt": 0.97} for r in regularised((0.985, 0.984, 0.983))])
    assert verdicts(all_collapse, "steps", "regularise")["H_null"]["verdict"] == SUPPORTED
    one_keeps = table(*rows, *[r | {"learnt": 0.97} for r in regularised((0.985, 0.984, 0.92))])
    assert verdicts(one_keeps, "steps", "regularise")["H_null"]["verdict"] == NOT_SUPPORTED


def test_mixing_is_compared_with_steering_with_none_and_with_the_same_exposure():
    frame = recipe_claims.contrasts(table(*steps(), *rehearsed()), OPTIONS)
    assert set(frame["against"]) == {"steering", "no mixture", "same exposure"}
    row = frame[(frame["share"] == 0.5) & (frame["against"] == "same exposure") & (frame["quantity"] == "kept")].iloc[0]
    assert row["other"] == "bad_advice_alone0.5"
    assert row["difference"] == pytest.approx(0.65) and row["low"] == pytest.approx(0.65 - 0.05 * 2**0.5)


@pytest.mark.parametrize(("others", "expected"), [(0, "appears"), (7, "undecided")])
def test_one_clear_mixture_among_many_is_what_chance_gives(others, expected):
    rows = [{"run": "clear", "difference": 0.08, "low": 0.005, "high": 0.155}]
    rows += [{"run": f"other{n}", "difference": 0.0, "low": -0.1, "high": 0.1} for n in range(others)]
    conduct = pd.DataFrame(columns=["run", "seed", "checkpoint", "cell", "measure", "hits", "n", "rate"])
    mixtures = pd.DataFrame(rows).assign(other="plain", against="no mixture", quantity="kept")
    found = {
        c["claim"]: c
        for c in recipe_checks.checks(table(*steps()), conduct, mixtures, OPTIONS | {"published": PUBLISHED_RULE})
    }
    mixing = found["mixing keeps more geometry than no mixture"]
    assert mixing["verdict"] == expected
    wider = norm.ppf(1 - 0.025 / (1 + others)) / norm.ppf(0.975)
    assert mixing["low"] == pytest.approx(0.08 - 0.075 * wider)


def test_the_threshold_of_a_known_line():
    shares, values = [0, 0.1, 0.2, 0.4], [0.0, 0.2, 0.4, 0.8]
    found = mixing_curves.threshold(shares, values, [(v - 0.02, v + 0.02) for v in values], 0.5, 1)
    assert found.share == pytest.approx(0.25) and found.low < 0.25 < found.high and found.reached == 1


def test_a_threshold_that_is_never_reached_has_no_share():
    found = mixing_curves.threshold(
        [0, 0.1, 0.5], [0.1, 0.1, 0.2], [(v - 0.01, v + 0.01) for v in (0.1, 0.1, 0.2)], 0.5, 1
    )
    assert found.share is None and found.low is None and found.reached == 0


def test_a_curve_that_falls_somewhere_is_fitted_by_a_rising_one():
    values = [0.3, 0.1, 0.6]
    found = mixing_curves.threshold([0, 0.1, 0.5], values, [(v - 0.05, v + 0.05) for v in values], 0.5, 1)
    assert found.fitted == pytest.approx((0.2, 0.2, 0.6))
    assert np.all(np.diff(found.fitted) >= 0)


def test_two_points_are_no_curve():
    with pytest.raises(ValueError, match="at least three shares"):
        mixing_curves.threshold([0, 1], [0, 1], [(0, 0), (1, 1)], 0.5, 1)
