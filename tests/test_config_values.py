"""Values that no run can work with, and what a person reads about them."""

from __future__ import annotations

import pytest

from conftest import ROOT
from spillover import expansion
from spillover.config import ConfigError, closest, merge, read_yaml, validated
from spillover.files import Files


def refused(value, name: str = "config", part: str | None = None, prefix: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        validated(value, name, "x.yaml", part, prefix)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("x.yaml: ")


def config(over: dict) -> dict:
    return {"model": {"name": "small"}, "engine": {"name": "transformers"}} | over


def train(over: dict) -> dict:
    return {"learning_rate": 1e-4} | over


VECTORS = {"cells": "personas", "methods": ["response_mean"]}


@pytest.mark.parametrize(
    "over",
    [
        {"dropout": 1},
        {"learning_rate": 1.5},
        {"learning_rate": 0},
        {"adam_beta1": 1.0},
        {"adam_beta2": -0.1},
        {"adam_epsilon": 0},
        {"layers": []},
        {"checkpoints": ["pct20", "pct20"]},
        {"checkpoints": ["pct0"]},
        {"checkpoints": ["pct101"]},
        {"checkpoints": ["pct020"]},
        {"checkpoints": ["step0"]},
    ],
    ids=str,
)
def test_training_settings_with_which_nothing_can_be_trained_are_refused(over):
    assert refused(train(over), part="train", name="experiment", prefix="train").startswith(f"train.{next(iter(over))}")


def test_training_settings_at_their_limits_are_taken():
    limits = {"dropout": 0.99, "learning_rate": 1, "adam_beta1": 0, "layers": [0], "checkpoints": ["pct100", "step1"]}
    assert validated(limits, "experiment", "x.yaml", "train").items() >= limits.items()


@pytest.mark.parametrize("layers", [[], [1.5], [-1], [2, 2], [2, 2.0]], ids=str)
def test_vectors_are_taken_after_whole_distinct_layers(layers):
    message = refused(VECTORS | {"layers": layers}, name="experiment", part="vectors", prefix="vectors")
    assert message.startswith("vectors.layers")


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(f"experiments: {{marker_sweep: {{axes: {{learning_rate: [1.0e-4, {text}]}}}}}}\n")
    told = f"experiments.marker_sweep.axes.learning_rate.1: {text} is not possible: write a finite number"
    assert refused(config(read_yaml(path))) == told


def test_a_whole_number_written_with_a_point_becomes_the_integer_that_paths_need():
    settings = merge(read_yaml(ROOT / "config/config.yaml"), read_yaml(ROOT / "config/small.yaml"))
    settings = merge(settings, {"experiments": {"language_spill": {"seeds": [1.0], "vectors": {"layers": [2.0]}}}})
    plan = expansion.build(settings, ROOT / "config/experiments", resources=str(ROOT / "resources"))
    assert "language_spill/fr_it/seed1" in plan.runs
    assert repr(plan.experiments["language_spill"]["vectors"]["layers"]) == "[2]"


def test_only_where_the_schema_has_integers_do_whole_floats_change():
    given = train({"steps": 1.0e3, "layers": [3.0], "epochs": 2.0, "gpus": 1.0})
    found = validated(given, "experiment", "x.yaml", "train")
    assert [repr(found[key]) for key in given] == ["0.0001", "1000", "[3]", "2.0", "1"]
    assert repr(given["steps"]) == "1000.0"


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"judge": "claude-x"}, "judge: 'claude-x' is not possible: write a mapping with the key model, or null"),
        (
            {"judge": "null"},
            "judge: 'null' is not possible: write a mapping with the key model, or null without quotes",
        ),
        (
            {"replay": 3},
            "replay: 3 is not possible: write a mapping with keys among from, runs, labels, compare, or null",
        ),
        ({"judge": {"modle": "x"}}, "judge: unknown key 'modle'; did you mean 'model'? Known: "),
        ({"model": None}, "model: must be a mapping; it is empty"),
        ({"resources": {"gpu": "two"}}, "resources.gpu: must be a whole number; it is 'two'"),
        ({"api": {3: 4}}, "api: unknown key 3. Known: batch_from"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_answered_with_what_to_write(over, told):
    assert refused(config(over)).startswith(told)


def test_a_parent_that_is_no_name_is_answered_with_both_forms():
    for value, shown in ((3, "3"), (None, "null")):
        message = refused({"name": "x", "parent": value}, name="experiment", part="group")
        assert message == f"parent: {shown} is not possible: write a text or a mapping with the key run"


def test_a_name_need_not_be_text_to_be_compared_with_the_known_ones():
    assert closest(3, ["personas", 3]) == "; did you mean '3'? Known: personas, 3"
    assert closest(None, ["personas"]) == ". Known: personas"


def test_a_suite_of_an_unknown_kind_that_is_no_text_is_one_sentence():
    settings = read_yaml(ROOT / "config/config.yaml")
    settings["experiments"] = {"language_spill": {"suites": {"x": {"kind": 3}}}}
    with pytest.raises(ConfigError, match=r"suites.x.kind: 3 is no known suite. Known: directives"):
        expansion.build(settings, ROOT / "config/experiments", resources=str(ROOT / "resources"))


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "empty"), ("# nothing but this\n", "empty"), ("- a\n", "a list"), ("hello\n", "'hello'")],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path, text, found):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: the file must be a mapping of keys to values; it is {found}"


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"title: \xff\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: this is no text in UTF-8"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fr_it", "no run language_spill/fr_it/seed7 in this configuration; its seeds: 42"),
        ("fr_jp", "no run language_spill/fr_jp/seed7 in this configuration; did you mean 'fr_it'? Known: base, fr_it"),
    ],
)
def test_a_run_that_is_not_planned_is_answered_with_the_seeds_or_names_that_are(name, told):
    settings = read_yaml(ROOT / "config/config.yaml")
    files = Files(expansion.build(settings, ROOT / "config/experiments", resources=str(ROOT / "resources")))
    assert files.planned("language_spill", "fr_it", "42") == "language_spill/fr_it/seed42"
    with pytest.raises(ConfigError) as caught:
        files.planned("language_spill", name, "7")
    assert str(caught.value).startswith(told)


def test_a_target_of_a_run_that_is_not_planned_is_answered_by_the_workflow(fresh):
    with pytest.raises(Exception, match="no run language_spill/fr_it/seed42 in this configuration; its seeds: 137"):
        fresh.jobs("results/small/language_spill/fr_it/seed42/labels.parquet")
