"""Principal components, direction cosines, the join of spill with distances, and its tests."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

from spill_builders import CODES, experiment, run_of, three_conditions
from spillover import contamination, statistics
from spillover import spill_geometry as g
from spillover.languages import distance_matrices


@pytest.fixture(scope="module")
def pooled():
    return contamination.pool_seeds(contamination.contamination_cells(*three_conditions()))


@pytest.fixture(scope="module")
def cosines():
    vectors = np.random.default_rng(0).normal(size=(7, 12)) + 2
    return g.cosine_table(CODES, {("last_prompt_token", layer): vectors + layer for layer in (2, 4, 6)}, CODES)


@pytest.fixture(scope="module")
def predictors(cosines, registry):
    return g.predictor_matrices(g.choose_layer(cosines), distance_matrices(registry, CODES))


def test_components_of_the_published_matrix_are_the_published_ones(root):
    published = yaml.safe_load((root / "resources/published/language_spill.yaml").read_text())
    rows = {name: [row[code] for code in CODES] for name, row in published["percent"].items()}
    explained = 100 * g.pca(pd.DataFrame.from_dict(rows, orient="index", columns=CODES)).explained
    stated = published["pca_percent"]
    assert round(explained[0]) == stated["first"] and round(explained[1]) == stated["second"]
    assert round(explained[0] + explained[1]) == stated["first_two"]


def test_scores_and_loadings_rebuild_the_centred_matrix():
    matrix = pd.DataFrame(np.random.default_rng(0).random((5, 7)), columns=CODES)
    found = g.pca(matrix)
    np.testing.assert_allclose(found.scores.to_numpy() @ found.loadings.to_numpy().T, matrix - matrix.mean(axis=0))
    assert found.explained.sum() == pytest.approx(1)


def test_component_signs_do_not_depend_on_the_order_of_conditions():
    matrix = pd.DataFrame(np.random.default_rng(0).random((5, 7)), index=list("abcde"), columns=CODES)
    forwards, backwards = g.pca(matrix), g.pca(matrix[::-1])
    np.testing.assert_allclose(forwards.scores.iloc[:, :3], backwards.scores.loc[list("abcde")].iloc[:, :3])


def test_a_matrix_without_variation_explains_nothing():
    assert (g.pca(pd.DataFrame(np.ones((2, 7)), columns=CODES)).explained == 0).all()


def test_the_component_table_holds_scores_loadings_and_shares():
    table = g.pca_table(g.pca(pd.DataFrame(np.random.default_rng(0).random((3, 7)), columns=CODES)))
    assert table.groupby("kind").size().to_dict() == {"explained": 3, "loading": 21, "score": 9}


def test_centring_removes_an_offset_that_hides_the_differences():
    directions = np.eye(3)
    shifted = directions + 100
    assert g.cosine_matrix(shifted, centred=False).min() > 0.999
    np.testing.assert_allclose(
        g.cosine_matrix(shifted, centred=True), g.cosine_matrix(directions, centred=True), atol=1e-9
    )
    assert g.cosine_matrix(directions, centred=True)[0, 1] == pytest.approx(-0.5)


def test_a_vector_of_length_zero_has_no_cosine():
    assert np.isnan(g.cosine_matrix(np.array([[0.0, 0.0], [1.0, 0.0]]), centred=False)[0]).all()


def test_centroids_are_read_by_method_and_layer(tmp_path):
    tensors = {f"last_prompt_token/layer{n}/centroid": np.full((2, 3), n, "float32") for n in (10, 2)}
    tensors["last_prompt_token/layer2/spread"] = np.ones(2, "float32")
    tensors["last_prompt_token/layer2/prompts"] = np.ones((2, 4, 3), "float32")
    save_file(tensors, tmp_path / "v.safetensors", metadata={"cells": json.dumps(["en", "fr"])})
    cells, centroids = g.read_centroids(tmp_path / "v.safetensors")
    assert cells == ["en", "fr"]
    assert list(centroids) == [("last_prompt_token", 2), ("last_prompt_token", 10)]
    assert (centroids["last_prompt_token", 10] == 10).all()


def test_languages_without_vectors_are_named():
    with pytest.raises(ValueError, match="no vectors for ja; the file has: en, fr"):
        g.cosine_table(["en", "fr"], {("m", 0): np.ones((2, 3))}, ["en", "ja"])


def test_the_middle_layer_is_chosen_unless_another_is_asked_for(cosines):
    assert set(g.choose_layer(cosines)["layer"]) == {4}
    assert set(g.choose_layer(cosines, layer=6)["layer"]) == {6}


def test_a_layer_or_method_that_is_not_stored_is_refused(cosines):
    with pytest.raises(ValueError, match="layer 5 is not among the layers stored for last_prompt_token: 2, 4, 6"):
        g.choose_layer(cosines, layer=5)
    with pytest.raises(ValueError, match="'response_mean' is no known vector method"):
        g.choose_layer(cosines, method="response_mean")


def test_the_join_has_one_row_per_condition_and_bystander(pooled, predictors):
    joined = g.join_spill(pooled, predictors)
    assert joined.groupby("condition").size().to_dict() == {"fr_it": 5, "it_fr": 5, "fr_fr": 6}
    assert joined.loc[joined["control"], "condition"].unique().tolist() == ["fr_fr"]


def test_a_predictor_relates_the_bystander_to_the_completion_language(pooled, predictors):
    row = g.join_spill(pooled, predictors).set_index(["condition", "language"]).loc[("fr_it", "es")]
    assert row["rate"] == 0.7
    assert (row["family"], row["lang2vec_fam"], row["lexical"]) == (3, 0.33, pytest.approx(0.18))
    assert row["cosine_centred"] == predictors["cosine_centred"].at["es", "it"]


def test_a_missing_distance_stays_missing(pooled, predictors):
    joined = g.join_spill(pooled, predictors).set_index(["condition", "language"])
    assert np.isnan(joined.at[("fr_it", "pt"), "lexical"])


@pytest.fixture(scope="module")
def tests(pooled, predictors):
    return g.join_tests(g.join_spill(pooled, predictors), predictors)


def find(tests, test, predictor, condition="all mismatched"):
    rows = tests[(tests["test"] == test) & (tests["predictor"] == predictor) & (tests["condition"] == condition)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_control_enters_no_test(tests):
    assert set(tests["condition"]) == {"fr_it", "it_fr", "all mismatched"}


def test_a_conditions_test_is_the_exact_spearman_of_its_bystanders(tests, pooled, predictors):
    joined = g.join_spill(pooled, predictors)
    rows = joined[joined["condition"] == "fr_it"]
    expected = statistics.spearman_exact(rows["family"], rows["rate"])
    found = find(tests, "condition", "family", "fr_it")
    assert (found["rho"], found["p"], found["min_p"]) == (expected.statistic, expected.p, expected.min_p)


def test_dropped_cells_are_counted(tests):
    found = find(tests, "stratified", "lexical")
    assert found["n"] + found["dropped"] == 10 and found["dropped"] >= 5
    assert find(tests, "stratified", "family")["dropped"] == 0


def test_no_relabelling_is_possible_with_values_missing(tests):
    assert math.isnan(find(tests, "relabelled", "lexical")["p"])


def test_every_p_lies_above_its_smallest_attainable_value(tests):
    made = tests.dropna(subset=["p"])
    assert (made["p"] >= made["min_p"] - 1e-12).all() and (made["p"] <= 1).all()


def test_holm_adjusts_over_the_predictors_of_one_kind_of_test(tests):
    group = tests[(tests["test"] == "relabelled")]
    assert group["p_holm"].tolist() == pytest.approx(statistics.holm(group["p"]), nan_ok=True)


def test_spill_ordered_by_the_family_tree_is_found(registry):
    runs = []
    for directive, completion in [("fr", "it"), ("it", "es"), ("de", "pt"), ("en", "fr")]:
        near = distance_matrices(registry, CODES)["family"][completion]
        spill = {code: (10 - 2 * int(near[code]),) * 2 for code in CODES if code not in (directive, completion)}
        runs.append(run_of(directive, completion, spill))
    labels, conditions = experiment(*runs)
    table = contamination.pool_seeds(contamination.contamination_cells(labels, conditions))
    matrices = {"family": distance_matrices(registry, CODES)["family"]}
    found = g.join_tests(g.join_spill(table, matrices), matrices)
    assert find(found, "stratified", "family")["rho"] == pytest.approx(-1)
    assert find(found, "stratified", "family")["p"] < 0.001
    assert find(found, "relabelled", "family")["p"] < 0.01


def test_the_spill_matrix_holds_trained_conditions_in_percent(pooled):
    matrix = g.spill_matrix(pooled)
    assert sorted(matrix.index) == ["fr_fr", "fr_it", "it_fr"] and matrix.at["fr_it", "es"] == 70
