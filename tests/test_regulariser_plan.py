"""Regularisers from a YAML file to a run's log: what is asked for is checked, planned and done."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save_file
from safetensors.torch import load_file

import train as program
from conftest import ROOT
from spillover import data, expansion
from spillover.config import ConfigError, read_yaml
from spillover.expansion import validated
from spillover.files import Files

KL = {"kind": "kl_to_base", "weight": 0.1}
R3F = {"kind": "r3f", "weight": 0.1, "noise": 1e-3}
STEERING = {"kind": "steering", "layer": 15, "coefficient": 5.0, "vector": "fr"}


@pytest.fixture
def planned(tmp_path):
    """A function that plans language_spill with further training settings, at a single condition."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    shutil.copy(ROOT / "config/experiments/language_spill.yaml", folder)

    def build(train):
        path = folder / "language_spill.yaml"
        settings = read_yaml(path)
        settings["train"] |= train
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        config = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"experiments": {}}
        return expansion.build(config, folder, resources=str(ROOT / "resources"))

    return build


RUN, BASE = "language_spill/fr_it/seed42", "language_spill/base/seed42"


@pytest.mark.parametrize("regulariser", [KL, R3F, STEERING])
def test_a_regulariser_reaches_the_training_with_its_own_settings(planned, regulariser):
    plan = planned({"regulariser": regulariser})
    found = plan.train_spec(RUN)["train"]["regulariser"]
    assert found == regulariser | ({"method": "last_prompt_token"} if regulariser is STEERING else {})


@pytest.mark.parametrize(
    ("regulariser", "message"),
    [
        ({"kind": "r3f", "weight": 0.1}, "train.regulariser: the key 'noise' is missing"),
        (KL | {"noise": 1.0}, "unknown key 'noise'"),
        (KL | {"kind": "kl"}, "'kl' is not possible. Known: kl_to_base, r3f, steering"),
        (STEERING | {"layer": 3}, "layer: 3 is not extracted; add it to vectors.layers (now [10, 15, 20, 25])"),
        (STEERING | {"vector": "fra"}, "'fra' is no cell of vectors.languages; did you mean 'fr'"),
        (STEERING | {"method": "response_mean"}, "method: 'response_mean' is not extracted; add it to vectors.methods"),
    ],
)
def test_a_mistake_in_a_regulariser_is_one_sentence(planned, regulariser, message):
    with pytest.raises(ConfigError) as caught:
        planned({"regulariser": regulariser})
    assert message in str(caught.value)


@pytest.mark.parametrize("added", [{"regulariser": KL}, {"regulariser": R3F}, {"contrast": 0.5}])
def test_what_needs_an_adapter_is_refused_for_a_full_training(planned, added):
    with pytest.raises(ConfigError, match="needs the frozen weights under an adapter: use method: lora"):
        planned({"method": "full"} | added)


def test_a_steered_run_waits_for_the_vectors_of_the_untrained_model(planned):
    plan = planned({"regulariser": STEERING})
    files, path = Files(plan), f"results/{BASE}/vectors.safetensors"
    assert files.steering_files(RUN) == [path] and files.steering_flags(RUN) == f"--steering {path}"
    assert plan.train_spec(RUN)["steering"] == plan.vectors_spec(BASE)
    plain = planned({"regulariser": None})
    assert Files(plain).steering_files(RUN) == [] and "steering" not in plain.train_spec(RUN)


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
        "--spec", json.dumps({"train": train, "seed": 3, "parent": {}}), "--dataset", str(tmp_path / "dataset.parquet"),
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
