"""The geometry of persona vectors: known answers, and a common offset told apart from collapse."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.spatial import procrustes

from spillover import persona_geometry as g

PERSONAS, QUESTIONS, HIDDEN = 12, 40, 24


def activations(offset=3.0, spread=1.0, noise=0.3, seed=0):
    """(personas, questions, hidden): a common offset, a direction a persona, noise a question."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=HIDDEN)
    own = rng.normal(size=(PERSONAS, HIDDEN))
    own -= own.mean(axis=0)
    own *= spread / np.sqrt((own**2).sum(axis=1).mean())
    questions = rng.normal(size=(PERSONAS, QUESTIONS, HIDDEN)) * noise / np.sqrt(HIDDEN)
    return (offset * common / np.linalg.norm(common) + own)[:, None] + questions


def value(table, quantity):
    return table.set_index("quantity")["value"][quantity]


def test_m1_is_the_mean_of_the_pairs_and_not_of_the_diagonal():
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert g.m1(vectors) == pytest.approx((0 + np.sqrt(0.5) + np.sqrt(0.5)) / 3)


def test_m1_and_four_cosines_of_the_published_matrix(published):
    content = json.loads((published / "recipes/cosine_matrix_a_layer20.json").read_text())
    matrix, names = np.array(content["matrix"]), content["persona_names"]
    assert round(g.mean_off_diagonal(matrix), 4) == 0.9126
    to_assistant = dict(zip(names, matrix[names.index("helpful_assistant")], strict=True))
    expected = {"paramedic": 0.9457, "kindergarten_teacher": 0.9060, "french_person": 0.8696, "villain": 0.7828}
    assert {name: round(to_assistant[name], 4) for name in expected} == expected
    # the function that makes M1 from centroids, on vectors that have exactly these cosines
    left, singular, _ = np.linalg.svd(matrix)
    assert g.m1(left * np.sqrt(singular)) == pytest.approx(g.mean_off_diagonal(matrix), abs=1e-6)


def test_offset_and_spread_imply_m1():
    centroids = activations(noise=0).mean(axis=1)
    offset, spread = g.offset_and_spread(centroids)
    assert (offset, spread) == (pytest.approx(3.0), pytest.approx(1.0))
    assert g.m1_of(offset, spread, PERSONAS) == pytest.approx(g.m1(centroids), abs=0.01)


def test_a_grown_offset_and_a_collapse_raise_m1_alike_and_are_told_apart():
    base, moved, collapsed = activations(), activations(offset=6.0), activations(spread=0.5)
    tables = {name: g.describe(x, base, 1, resamples=40) for name, x in
              {"base": base, "moved": moved, "collapsed": collapsed}.items()}  # fmt: skip
    assert value(tables["moved"], "m1") == pytest.approx(value(tables["collapsed"], "m1"), abs=0.01)
    assert value(tables["moved"], "m1") > value(tables["base"], "m1") + 0.05
    assert value(tables["base"], "kept") == 1

    before = (value(tables["base"], "offset"), value(tables["base"], "spread"))
    parts = {}
    for name in ("moved", "collapsed"):
        after = (value(tables[name], "offset"), value(tables[name], "spread"))
        parts[name] = g.attribute(before, after, PERSONAS)
    assert parts["moved"].from_offset > 0.95 * parts["moved"].rise
    assert parts["collapsed"].from_spread > 0.95 * parts["collapsed"].rise
    assert value(tables["moved"], "spread") == pytest.approx(before[1], rel=0.01)
    assert value(tables["moved"], "procrustes") == pytest.approx(0, abs=1e-6)
    assert value(tables["moved"], "similarity") > 0.999


def test_the_parts_of_a_rise_add_up_to_it():
    parts = g.attribute((3.0, 1.0), (4.0, 0.7), 12)
    assert parts.from_offset + parts.from_spread == pytest.approx(parts.rise)
    assert parts.rise == pytest.approx(g.m1_of(4.0, 0.7, 12) - g.m1_of(3.0, 1.0, 12))


def test_effective_rank_counts_equal_directions():
    axes = np.eye(4, 10)
    centroids = np.concatenate([axes, -axes])
    assert g.effective_rank(centroids) == pytest.approx(4)
    assert g.participation_ratio(centroids) == pytest.approx(4)
    assert g.effective_rank(np.outer([1.0, -1.0, 2.0, -2.0], np.ones(10))) == pytest.approx(1)


def test_shape_measures_see_no_rotation_scaling_or_shift():
    rng = np.random.default_rng(3)
    first = rng.normal(size=(8, 6))
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    second = 5 * first @ turn + rng.normal(size=6)
    assert g.procrustes_distance(first, second) == pytest.approx(0, abs=1e-6)
    assert g.representational_similarity(first, second) == pytest.approx(1)
    assert g.debiased_cka(first, second) == pytest.approx(1)


def test_procrustes_agrees_with_scipy():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, 9, 7))
    assert g.procrustes_distance(first, second) == pytest.approx(procrustes(first, second)[2])


def test_debiased_cka_of_unrelated_sets_is_about_zero_where_the_plain_one_is_near_one():
    rng = np.random.default_rng(5)
    pairs = rng.normal(size=(200, 2, 12, 400))
    assert abs(np.mean([g.debiased_cka(a, b) for a, b in pairs])) < 0.03


def test_the_probe_names_personas_it_can_tell_and_guesses_where_there_is_nothing_to_tell():
    assert g.probe(activations(noise=0.2)).mean() > 0.99
    nothing = g.probe(activations(spread=1e-6, noise=1.0)).mean()
    assert nothing == pytest.approx(1 / PERSONAS, abs=0.06)


def test_intervals_cover_the_value_and_say_what_they_resample():
    table = g.describe(activations(seed=2), activations(), 7, resamples=80).set_index("quantity")
    assert list(table.index) == list(g.QUANTITIES)
    # distances and shapes are a little worse in every resample of questions; the rest must cover its value
    covered = table.loc[["m1", "kept", "offset", "spread", "decodability"]]
    assert (covered["low"] <= covered["value"]).all() and (covered["value"] <= covered["high"]).all()
    assert table.loc["m1", "over"] == "questions and personas" and table.loc["cka", "over"] == "questions"
    wide, narrow = table.loc["m1", "high"] - table.loc["m1", "low"], table.loc["cka", "high"] - table.loc["cka", "low"]
    assert wide > 0 and narrow > 0


def test_a_persona_drawn_twice_is_no_pair_with_itself():
    centroids = activations(noise=0).mean(axis=1)
    counts = np.array([2, 2] + [0] * (PERSONAS - 2))
    expected = g.cosines(centroids)[0, 1]
    assert g._with_counts(centroids, counts)[0] == pytest.approx(expected)


def test_equal_seeds_give_equal_intervals():
    first, second = (g.describe(activations(seed=2), activations(), 7, resamples=20) for _ in range(2))
    assert first.equals(second)


def test_files_with_and_without_checkpoints_are_read_alike(tmp_path):
    base, moved = activations(), activations(offset=6.0)
    meta = {"cells": json.dumps([f"p{i}" for i in range(PERSONAS)])}
    save_file({"last_prompt_token/layer3/prompts": base, "last_prompt_token/layer3/spread": base[0]},
              tmp_path / "base.safetensors", metadata=meta)  # fmt: skip
    save_file({f"step{n}/last_prompt_token/layer3/prompts": moved for n in (5, 10)}, tmp_path / "run.safetensors",
              metadata=meta)  # fmt: skip
    _, of_base = g.read_prompts(tmp_path / "base.safetensors")
    personas, of_run = g.read_prompts(tmp_path / "run.safetensors")
    assert len(personas) == PERSONAS and list(of_base) == [("final", "last_prompt_token", 3)]
    table = g.compare(of_run, of_base, 1, resamples=5)
    assert set(table["checkpoint"]) == {"step5", "step10"} and set(table["layer"]) == {3}
    with pytest.raises(ValueError, match="no vectors of last_prompt_token, layer 3"):
        g.compare(of_run, {}, 1, resamples=5)
