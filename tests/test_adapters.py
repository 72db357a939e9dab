"""Adapters on disk: scale, merging and its fidelity, parts of an update."""

from __future__ import annotations

import copy

import pytest
import torch

from spillover import adapters, training
from test_training import SETTINGS, rows, run  # noqa: F401


@pytest.fixture
def trained(model, rows, tmp_path):  # noqa: F811
    """Folders of a base model and of an adapter trained on it, and the wrapped model."""
    base = tmp_path / "base"
    model.save_pretrained(base)
    wrapped, *_ = run(copy.deepcopy(model), rows, SETTINGS | {"epochs": 10})
    training.write_adapter(wrapped, tmp_path / "adapter")
    return base, tmp_path / "adapter", wrapped.eval()


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 20)[None]).logits


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_a_merged_model_equals_the_model_with_its_adapter(trained, tmp_path):
    base, adapter, wrapped = trained
    report = adapters.merge(base, adapter, tmp_path / "merged")
    assert torch.allclose(logits(load(tmp_path / "merged")), logits(wrapped), atol=1e-5)
    assert len(report["modules"]) == 14 and report["worst_cosine"] > 0.999


def test_disjoint_parts_add_up_to_the_whole(trained, tmp_path):
    base, adapter, wrapped = trained
    first = lambda module: adapters.layer_index(module) == 0  # noqa: E731
    adapters.merge(base, adapter, tmp_path / "first", keep=first)
    adapters.merge(tmp_path / "first", adapter, tmp_path / "both", keep=lambda module: not first(module))
    assert torch.allclose(logits(load(tmp_path / "both")), logits(wrapped), atol=1e-5)
    assert not torch.allclose(logits(load(tmp_path / "first")), logits(wrapped), atol=1e-3)


def test_scale_zero_and_an_empty_filter_leave_the_base_as_it_is(trained, tmp_path):
    base, adapter, _ = trained
    adapters.merge(base, adapter, tmp_path / "zero", scale=0.0)
    adapters.merge(base, adapter, tmp_path / "none", keep=lambda module: False)
    for name in ("zero", "none"):
        assert torch.equal(logits(load(tmp_path / name)), logits(load(base)))


def test_a_missing_adapter_config_is_an_error_that_says_why(trained):
    _, adapter, _ = trained
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_config.json is missing: without it the adapter's scale"):
        adapters.read_config(adapter)


def test_an_adapter_of_another_model_is_refused(trained, tmp_path):
    base, adapter, _ = trained
    import json

    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **(json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 1, "layer_types": None})
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "shallow")
    with pytest.raises(ValueError, match="has no weight for model.layers.1"):
        adapters.merge(tmp_path / "shallow", adapter, tmp_path / "out")


def test_small_updates_are_lost_in_bfloat16_and_the_report_says_so():
    torch.manual_seed(0)
    weight = (torch.randn(256, 256) * 0.02).bfloat16()
    for size, low, high in ((1e-3, 0.99, 1.0), (3e-5, 0.65, 0.8)):
        update = torch.randn(256, 256) * size
        found = adapters.fidelity(weight, (weight.float() + update).bfloat16(), update)
        assert low < found["cosine"] <= high


def test_layer_groups_are_thirds_and_their_complements():
    assert adapters.layer_group("early", 28) == set(range(9))
    assert adapters.layer_group("not_late", 6) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="unknown layer group 'top'"):
        adapters.layer_group("top", 6)


def test_filters_keep_modules_by_block_and_projection():
    assert adapters.wanted("model.layers.3.mlp.up_proj", {3}, {"up_proj"})
    assert not adapters.wanted("model.layers.3.mlp.up_proj", {2}, None)
    assert not adapters.wanted("model.layers.3.mlp.up_proj", None, {"q_proj"})
