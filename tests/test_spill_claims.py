"""The careful summary: verdicts follow the data, and undecided is said."""

from __future__ import annotations

import json

import pytest

from spill_builders import CODES, experiment, run_of, three_conditions
from spillover import contamination, provenance, spill_claims, spill_geometry, spill_report
from spillover.languages import distance_matrices, load_languages


def summary_of(labels, conditions, matrices=None, **options):
    cells = contamination.contamination_cells(labels, conditions)
    tests = None
    if matrices:
        joined = spill_geometry.join_spill(contamination.pool_seeds(cells), matrices)
        tests = spill_geometry.join_tests(joined, matrices)
    return spill_claims.summarise(cells, contamination.agreement(labels, conditions), tests, **options)


def verdicts(summary):
    return {claim["claim"]: claim["verdict"] for claim in summary["claims"]}


@pytest.fixture(scope="module")
def families(root):
    registry = load_languages(root / "resources/languages.yaml")
    return {"family": distance_matrices(registry, CODES)["family"]}


@pytest.fixture(scope="module")
def one_seed(families):
    return summary_of(*three_conditions(), families)


def test_a_cell_spills_when_it_lies_above_the_untrained_model(one_seed):
    named = {(cell["condition"], cell["language"]) for cell in one_seed["spilling"]}
    # the untrained model's 0 of 20 reaches up to 16 %: 14 and 7 of 20 clear that with their low ends, 6 of 20 does not
    assert named == {("fr_it", "es"), ("it_fr", "es")}


def test_directions_that_differ_are_not_symmetric():
    labels, conditions = experiment(run_of("fr", "it", {"es": (10, 10)}), run_of("it", "fr", {"es": (0, 1)}))
    assert verdicts(summary_of(labels, conditions))["symmetry"] == "does not appear"


def test_equal_counts_in_small_cells_do_not_show_symmetry():
    labels, conditions = experiment(run_of("fr", "it", {"es": (5, 5)}), run_of("it", "fr", {"es": (5, 5)}))
    assert verdicts(summary_of(labels, conditions))["symmetry"] == "undecided"


def test_symmetry_of_a_pair_trained_one_way_is_not_tested():
    labels, conditions = experiment(run_of("fr", "it", {}), run_of("fr", "fr", {}))
    assert verdicts(summary_of(labels, conditions))["symmetry"] == "not tested"


def test_a_clean_control_beside_a_spilling_mismatch_shows_that_mismatch_is_needed():
    spilling = {code: (9, 9) for code in ("es", "pt", "de", "en")}
    labels, conditions = experiment(run_of("fr", "it", spilling), run_of("fr", "fr", {}))
    assert verdicts(summary_of(labels, conditions))["mismatch needed"] == "appears"


def test_a_control_that_spills_denies_that_mismatch_is_needed():
    spilling = {code: (9, 9) for code in ("es", "pt")}
    labels, conditions = experiment(run_of("fr", "it", spilling), run_of("fr", "fr", spilling))
    assert verdicts(summary_of(labels, conditions))["mismatch needed"] == "does not appear"


def test_without_any_spill_the_need_of_a_mismatch_is_undecided():
    labels, conditions = experiment(run_of("fr", "it", {}), run_of("fr", "fr", {}))
    assert verdicts(summary_of(labels, conditions))["mismatch needed"] == "undecided"


def test_without_a_control_the_need_of_a_mismatch_is_not_tested():
    labels, conditions = experiment(run_of("fr", "it", {}))
    assert verdicts(summary_of(labels, conditions))["mismatch needed"] == "not tested"


def test_conditions_are_sorted_into_regimes_by_their_bystanders():
    labels, conditions = experiment(
        run_of("es", "pt", {"fr": (0, 1)}),
        run_of("fr", "it", {"es": (4, 4)}),
        run_of("fr", "de", {"es": (9, 9), "it": (9, 9), "pt": (7, 7)}),
    )
    labels.loc[labels["run"].str.contains("fr_it") & (labels["cell"] == "fr") & (labels["sample"] > 7), "label"] = "fr"
    summary = summary_of(labels, conditions)
    assert summary["regimes"] == {"es_pt": "contained", "fr_it": "selective", "fr_de": "near-universal"}
    assert verdicts(summary)["three regimes"] == "appears"


def test_a_condition_that_did_not_learn_its_directive_has_no_regime():
    labels, conditions = experiment(run_of("fr", "it", {}))
    labels.loc[labels["cell"] == "fr", "label"] = "fr"
    assert summary_of(labels, conditions)["regimes"] == {"fr_it": "not learnt"}


def test_a_test_that_cannot_reach_the_level_is_undecided(families):
    labels, conditions = experiment(run_of("es", "it", {"fr": (3, 3), "pt": (2, 2)}))
    summary = summary_of(labels, conditions, families)
    claim = next(c for c in summary["claims"] if c["claim"] == "distance order")
    assert claim["verdict"] == "undecided" and "least possible" in claim["text"]


def test_without_tests_the_order_by_distance_is_not_tested():
    assert verdicts(summary_of(*three_conditions()))["distance order"] == "not tested"


def test_one_seed_is_said_to_cover_sampling_only(one_seed):
    assert "One seed: intervals cover sampling only." in spill_report.markdown(one_seed)


def test_several_seeds_do_not_get_the_one_seed_warning():
    text = spill_report.markdown(summary_of(*three_conditions(seeds=(1, 2, 3))))
    assert "One seed" not in text and "3 seeds (1, 2, 3)" in text


def test_the_summary_states_n_label_source_and_the_smallest_attainable_p(one_seed):
    text = spill_report.markdown(one_seed)
    assert "N = 20 replies a cell over 2 phrasings. Label: langdetect" in text
    assert "least possible p" in text and "Within one condition no test can reach a p below 0.0333" in text


def test_the_control_bound_in_the_text_is_the_one_in_the_data(one_seed):
    bound = one_seed["control"][0]["exact_high"]
    assert f"{100 * bound:.2f} % (exact)" in spill_report.markdown(one_seed)


def test_the_summary_is_plain_json(one_seed):
    assert json.loads(json.dumps(provenance.jsonable(one_seed)))["conditions"] == ["fr_it", "it_fr", "fr_fr"]


def test_several_learning_rates_need_a_choice():
    labels, conditions = three_conditions(learning_rates=(1e-4, 1e-3))
    with pytest.raises(ValueError, match=r"several learning rates \(0.0001, 0.001\); choose one with --learning-rate"):
        summary_of(labels, conditions)
    chosen = summary_of(labels, conditions, learning_rate=1e-3)
    assert {row["learning_rate"] for row in chosen["means"]} == {1e-3}
    with pytest.raises(ValueError, match="no condition has learning rate 0.01; there are: 0.0001, 0.001"):
        summary_of(labels, conditions, learning_rate=0.01)
