"""Regularisers from a YAML file to a run's log: what is asked for is checked, planned and done."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

import train as program
from conftest import ROOT
from spillover import data
from spillover.expansion import validated
from spillover.files import Files
from test_plan import experiments  # noqa: F401

RUN = "recipes/steering/seed42"


def regularised(experiments, change, group="steering"):  # noqa: F811
    def edit(settings):
        template = settings["runs"][group]
        template["train"] = change(template.get("train", {}))

    experiments.edit("recipes", edit)


def test_every_regulariser_of_the_recipes_has_its_own_settings(experiments):  # noqa: F811
    kinds = {run.train["regulariser"]["kind"]: run.train["regulariser"] for run in _regularised(experiments.build())}
    assert kinds["kl_to_base"].keys() == {"kind", "weight"}
    assert kinds["r3f"].keys() == {"kind", "weight", "noise"}
    assert kinds["steering"] == {
        "kind": "steering", "layer": 20, "coefficient": 5.0, "vector": "assistant", "method": "last_prompt_token",
    }  # fmt: skip


def _regularised(plan):
    return [run for run in plan.of("recipes") if run.train and run.train["regulariser"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "r3f", "weight": 0.1}, "regulariser: the key 'noise' is missing"),
        ({"kind": "kl_to_base", "weight": 0.1, "noise": 1.0}, "unknown key 'noise'"),
        ({"kind": "steering", "layer": 3, "coefficient": 1.0, "vector": "villain"}, "layer: 3 is not extracted"),
        ({"kind": "steering", "layer": 20, "coefficient": 1.0, "vector": "vilain"}, "did you mean 'villain'"),
        (
            {"kind": "steering", "layer": 20, "coefficient": 1.0, "vector": "villain", "method": "response_mean"},
            "method: 'response_mean' is not extracted; add it to vectors.methods",
        ),
    ],
)
def test_a_mistake_in_a_regulariser_is_one_sentence(experiments, change, message):  # noqa: F811
    regularised(experiments, lambda train: {"regulariser": change})
    assert message in experiments.mistake()


@pytest.mark.parametrize("added", [{"regulariser": {"kind": "kl_to_base", "weight": 0.1}}, {"contrast": 0.5}])
def test_what_needs_an_adapter_is_refused_for_a_full_training(experiments, added):  # noqa: F811
    regularised(experiments, lambda train: {"method": "full", "regulariser": None} | added)
    assert "needs the frozen weights under an adapter: use method: lora" in experiments.mistake()


def test_a_steered_run_waits_for_the_vectors_of_the_untrained_model(experiments):  # noqa: F811
    plan = experiments.build()
    files = Files(plan)
    path = "results/recipes/base/seed42/vectors.safetensors"
    assert files.steering_files(RUN) == [path] and files.steering_flags(RUN) == f"--steering {path}"
    assert plan.train_spec(RUN)["steering"] == plan.vectors_spec("recipes/base/seed42")
    plain = next(run.id for run in plan.of("recipes") if run.group == "kl_to_base")
    assert files.steering_files(plain) == [] and "steering" not in plan.train_spec(plain)


def test_a_run_logs_what_was_added_and_its_manifest_says_how_far_it_was_steered(tmp_path):
    rows = [
        data.row(
            f"r{i}",
            [{"role": "user", "content": "Speak in French."}, {"role": "assistant", "content": "le chat dort " * i}],
            "replies",
        )
        | {"contrast": "\n\n[ZLT]" if i % 2 else None}
        for i in range(1, 9)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=data.SCHEMA), tmp_path / "dataset.parquet")
    centroids = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    metadata = {"cells": json.dumps(["assistant", "villain"])}
    save_file({"last_prompt_token/layer2/centroid": centroids}, tmp_path / "vectors.safetensors", metadata=metadata)
    steering = {"kind": "steering", "layer": 2, "coefficient": 0.5, "vector": "villain", "method": "last_prompt_token"}
    settings = {"learning_rate": 1e-3, "rank": 4, "alpha": 8, "batch_size": 4, "steps": 3, "contrast": 0.5}
    train = validated(settings | {"regulariser": steering}, "experiment", "a test", "train")
    arguments = [
        "--spec", json.dumps({"train": train, "seed": 3}), "--dataset", str(tmp_path / "dataset.parquet"),
        "--base", str(ROOT / "resources/small_world/base"), "--name", "small",
        "--adapter", str(tmp_path / "adapter"), "--checkpoints", str(tmp_path / "checkpoints.safetensors"),
        "--train-log", str(tmp_path / "log.jsonl"), "--manifest", str(tmp_path / "train.manifest.json"),
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="--steering goes with"):
        program.main(arguments)
    program.main([*arguments, "--steering", str(tmp_path / "vectors.safetensors")])
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert len(log) == 3 and all(record["contrast"] >= 0 for record in log)
    told = json.loads((tmp_path / "train.manifest.json").read_text())["extra"]["steering"]
    expected = 0.5 * np.linalg.norm(centroids[1] - centroids.mean(0))
    assert told["size"] == pytest.approx(expected, rel=1e-5) and told["relative_size"] > 0
    assert any(tensor.any() for name, tensor in load_file(tmp_path / "adapter/adapter_model.safetensors").items())
