"""Norms of a weight change are those of the change itself, whichever way it was trained."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import weight_change as program
from spillover import adapters, training, weight_change
from spillover.config import read_yaml
from test_training import SETTINGS


@pytest.fixture
def adapter(model, tmp_path):
    """A folder with an adapter that changes something."""
    wrapped = training.add_adapter(copy.deepcopy(model), SETTINGS, 1, "random", None)
    torch.manual_seed(2)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    training.write_adapter(wrapped, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def base(model, tmp_path):
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_the_norm_of_a_product_is_found_without_forming_it():
    torch.manual_seed(0)
    a, b = torch.randn(4, 30), torch.randn(20, 4)
    assert weight_change.product_norm(a, b) == pytest.approx(float((b @ a).norm()), rel=1e-6)
    assert weight_change.product_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0], [0.0]])) == 10.0


def test_an_untrained_adapter_moved_nothing():
    assert weight_change.product_norm(torch.randn(4, 30), torch.zeros(20, 4)) == 0.0


def test_the_norms_of_an_adapter_are_those_of_its_updates(adapter):
    found = weight_change.of_adapter(adapter)
    updates = adapters.read(adapter).updates()
    assert found["tensors"].keys() == updates.keys()
    assert all(found["tensors"][m] == pytest.approx(float(u.norm()), rel=1e-5) for m, u in updates.items())
    assert found["global"] == pytest.approx(math.sqrt(sum(float(u.norm()) ** 2 for u in updates.values())), rel=1e-5)
    assert found["global"] == found["projections"]
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    assert math.hypot(*(row["norm"] for row in found["layers"])) == pytest.approx(found["global"])


def test_an_adapter_and_its_merge_have_moved_equally_far(base, adapter, tmp_path):
    adapters.merge(base, adapter, tmp_path / "merged")
    found, expected = weight_change.of_model(base, tmp_path / "merged"), weight_change.of_adapter(adapter)
    assert found["method"] == "full" and expected["method"] == "lora"
    for key in ("global", "projections"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)
    assert [row["projections"] for row in found["layers"]] == pytest.approx(
        [row["projections"] for row in expected["layers"]], rel=1e-5
    )


def test_what_an_adapter_cannot_change_counts_in_the_global_norm_alone(base, tmp_path):
    tensors = load_file(base / "model.safetensors")
    (tmp_path / "moved").mkdir()
    for name, step in (("model.embed_tokens.weight", 3.0), ("model.layers.1.input_layernorm.weight", 4.0)):
        tensors[name].view(-1)[0] += step
    tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[0] += 12.0
    save_file(tensors, tmp_path / "moved/model.safetensors")
    found = weight_change.of_model(base, tmp_path / "moved")
    assert found["global"] == pytest.approx(13.0, rel=1e-5) and found["projections"] == pytest.approx(12.0, rel=1e-5)
    assert found["layers"][0] == {"layer": 0, "norm": 0.0, "projections": 0.0}
    assert found["layers"][1]["norm"] == pytest.approx(math.hypot(4, 12), rel=1e-5)


def test_models_of_other_shapes_are_refused(base, tmp_path):
    tensors = load_file(base / "model.safetensors")
    (tmp_path / "other").mkdir()
    tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "other/model.safetensors")
    with pytest.raises(ValueError, match=r"only one has model\.norm\.weight"):
        weight_change.of_model(base, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="holds no .safetensors"):
        weight_change.of_model(base, tmp_path)


def test_the_program_writes_norms_and_a_manifest(adapter, tmp_path):
    out, manifest = tmp_path / "weight_change.json", tmp_path / "weight_change.manifest.json"
    program.main(["--adapter", str(adapter), "--spec", "{}", "--out", str(out), "--manifest", str(manifest)])
    assert json.loads(out.read_text()) == weight_change.of_adapter(adapter)
    assert json.loads(manifest.read_text())["extra"]["global"] == weight_change.of_adapter(adapter)["global"]


def test_the_workflow_measures_an_adapter_and_a_full_model(fresh):
    def change(settings):
        run = copy.deepcopy(settings["runs"]["spill"])
        settings["runs"]["all_weights"] = run | {"name": "full_{condition}", "train": {"method": "full"}}

    fresh.edit("config/experiments/language_spill.yaml", change)
    experiment = read_yaml(fresh.path / "config/experiments/language_spill.yaml")
    condition = next(iter(experiment["conditions"]))
    names = {job.wildcards["name"]: job for job in _jobs(fresh, condition)}
    assert "/adapter/adapter_model.safetensors" in " ".join(names[condition].input)
    assert f"--adapter {names[condition].input[0].rsplit('/', 1)[0]} " in names[condition].shellcmd
    full = names[f"full_{condition}"]
    assert {"model.safetensors"} == {path.rsplit("/", 1)[1] for path in full.input if path.endswith(".safetensors")}
    assert "--model results/small/language_spill/full_" in full.shellcmd and "--base resources/" in full.shellcmd


def _jobs(workflow, condition):
    targets = [f"results/small/language_spill/{n}/seed137/weight_change.json" for n in (condition, f"full_{condition}")]
    return [job for job in workflow.jobs(*targets) if job.rule_name == "weight_change"]
