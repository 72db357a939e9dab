"""A seed is a training of its own, in every analysis: more seeds are no more rows, and seeds that disagree widen."""

from __future__ import annotations

import pandas as pd
import pytest

import coupling_builders
import recipe_builders
from spill_builders import three_conditions
from spillover import (
    alarms,
    contamination,
    convergence_tables,
    coupling_claims,
    recipe_checks,
    recipe_claims,
    spill_claims,
    spill_report,
)

NO_OVERLAPS = pd.DataFrame(
    columns=["first", "second", "seed", "space", "overlap", "expected", "above_chance", "modules", "ratio"]
)


NO_CONDUCT = pd.DataFrame(columns=["run", "seed", "checkpoint", "cell", "measure", "hits", "n", "rate"])
OPTIONS = recipe_builders.OPTIONS | {"published": recipe_builders.PUBLISHED_RULE}


def verdict(claims: list[dict], name: str) -> dict:
    return next(claim for claim in claims if claim["claim"] == name)


def spill(seeds):
    labels, conditions = three_conditions(seeds=seeds)
    cells = contamination.contamination_cells(labels, conditions)
    return spill_claims.summarise(cells, contamination.agreement(labels, conditions), None)


def test_language_spill_counts_cells_of_conditions_not_of_seeds():
    one, two = spill((1,)), spill((1, 2))
    assert one["bystander_cells"] == two["bystander_cells"] and two["seeds"] == [1, 2]
    assert len(one["spilling"]) <= len(two["spilling"]) and len(one["means"]) == len(two["means"])
    assert "2 seeds (1, 2)" in spill_report.markdown(two)


def shifts(low_by_seed: dict[int, float]) -> pd.DataFrame:
    quantities = ("projection", "shift", "own_shift", "probe_base", "probe_own")
    rows = [
        {"run": "coupling/em", "seed": seed, "layer": 5, "quantity": name, "value": low + 0.05, "low": low,
         "high": low + 0.1}
        for seed, low in low_by_seed.items() for name in quantities
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_coupling_has_a_row_a_condition_and_seeds_that_disagree_leave_a_claim_undecided():
    runs = [*coupling_builders.records(1), *coupling_builders.records(2)]
    one, two = coupling_builders.compared(), coupling_builders.compared(runs)
    assert len(one) == len(two) and two["seeds"].max() == 2 and two["n"].max() == 2 * one["n"].max()
    name = "the source persona's vector loses its direction"
    for lows, expected in (
        ({1: 0.1, 2: 0.2}, "appears"),
        ({1: 0.1, 2: 0.8}, "undecided"),
        ({1: 0.7, 2: 0.8}, "does not appear"),
    ):
        made = coupling_claims.summarise(two, NO_OVERLAPS, shifts(lows), coupling_builders.OPTIONS, None)
        assert verdict(made["claims"], name)["verdict"] == expected
        assert not any("1 seed" in note for note in made["caveats"])


def point(seed: int, rate: float, arm: str = "A", n: int = 100) -> dict:
    row = {"arm": arm, "source": "villain", "step": 100.0, "seed": seed, "max_bystander": "comedian"}
    for role in ("source", "assistant"):
        row |= {f"{role}_hits": round(rate * n), f"{role}_n": n, f"{role}_rate": rate}
    bystanders = ("bystander_mean", "bystander_mean_low", "bystander_mean_high", "bystander_max", "bystander_max_high")
    return row | dict.fromkeys(bystanders, rate)


def test_convergence_widens_an_interval_to_hold_every_seed():
    row = convergence_tables.pool_seeds(pd.DataFrame([point(1, 0.0), point(2, 0.4)])).iloc[0]
    assert row["source_rate"] == 0.2 and row["source_low"] == 0.0 and row["source_high"] == 0.4
    assert row["bystander_mean_low"] == 0.0 and row["bystander_mean_high"] == 0.4
    alone = convergence_tables.pool_seeds(pd.DataFrame([point(1, 0.2)])).iloc[0]
    assert 0.1 < alone["source_low"] < 0.2 < alone["source_high"] < 0.3


def test_convergence_tells_arms_apart_only_beyond_their_seeds():
    rows = [point(1, 0.1), point(2, 0.5), point(1, 0.3, "C"), point(2, 0.7, "C")]
    pooled = convergence_tables.pool_seeds(pd.DataFrame(rows)).set_index("arm")
    assert convergence_tables.relation((60, 200), (100, 200))[0] == "<", "as rows alone they would differ"
    assert convergence_tables.apart(pooled.loc["A"], pooled.loc["C"], "source")[0] == "≈"


def of_seeds(made, first: dict, second: dict) -> pd.DataFrame:
    rows = [row | {"seed": seed} for seed, fields in ((1, first), (2, second)) for row in made(**fields)]
    return pd.DataFrame([recipe_builders.untrained() | {"seed": 1}, *rows])


def test_recipes_count_mixtures_not_their_seeds():
    points = of_seeds(recipe_builders.rehearsed, {}, {})
    contrasts = recipe_claims.contrasts(points, OPTIONS)
    made = recipe_checks.checks(points, NO_CONDUCT, contrasts, OPTIONS)
    mixing = verdict(made, "mixing keeps more geometry than no mixture")
    assert mixing["n"] == 4 and "of 4 mixtures" in mixing["text"]
    assert verdict(made, "mixtures that keep geometry only dilute the narrow behaviour")["n"] == 4


@pytest.mark.parametrize(("last", "expected"), [(0.973, "appears"), (0.85, "undecided")])
def test_recipes_conclude_on_the_baseline_only_what_every_seed_shows(last, expected):
    m1s = (0.901, 0.91, 0.93, 0.955, 0.968)
    points = of_seeds(recipe_builders.steps, {"m1s": (*m1s, 0.973)}, {"m1s": (*m1s, last)})
    made = recipe_checks.checks(points, NO_CONDUCT, pd.DataFrame(), OPTIONS)
    rises = verdict(made, "plain fine-tuning raises M1")
    assert rises["verdict"] == expected and "mean of 2 seeds" in rises["text"]


def test_the_untrained_model_at_two_seeds_is_no_copy_and_a_trained_one_is():
    assert alarms.duplicates({"x/base seed 1 final": "a", "x/base seed 2 final": "a"}) == []
    assert len(alarms.duplicates({"x/fr_it seed 1 final": "a", "x/fr_it seed 2 final": "a"})) == 1
    assert len(alarms.duplicates({"x/base seed 1 final": "a", "x/fr_it seed 2 final": "a"})) == 1
