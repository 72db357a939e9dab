"""Activations are read packed and only as deep as asked; they are what the plainest way of reading them gives."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import extract_vectors
from conftest import ROOT
from spillover import adapters, models, packing, training, vectors
from spillover.masking import Tokens
from test_training import SETTINGS

TOLERANCE = 1e-5
"""Float32: what a different order of additions may change in an activation of size one."""


@pytest.fixture
def rows():
    """Twelve rows of different lengths; the last token, or the last few, of each are read."""
    rng = np.random.default_rng(0)
    return [
        Tokens(rng.integers(3, 64, n), np.arange(n) >= n - read)
        for n, read in zip(rng.integers(6, 30, 12), rng.integers(1, 6, 12), strict=True)
    ]


def one_by_one(model, rows, layer: int) -> np.ndarray:
    """The mean over the marked tokens of each row, a row at a time through `output_hidden_states`."""
    found = []
    for row in rows:
        states = model(input_ids=torch.tensor(row.ids)[None], output_hidden_states=True).hidden_states
        found.append(states[layer + 1][0, torch.tensor(row.supervised)].float().mean(0).detach().numpy())
    return np.stack(found)


def padded(model, rows, layer: int) -> np.ndarray:
    """The same in one right-padded batch."""
    batch = packing.pad(rows, "cpu")
    inputs = {"input_ids": batch["ids"], "attention_mask": batch["attention"]}
    hidden = model(**inputs, output_hidden_states=True).hidden_states[layer + 1]
    return torch.stack([h[m].mean(0) for h, m in zip(hidden, batch["supervised"], strict=True)]).detach().numpy()


@pytest.mark.parametrize("token_budget", [10_000, 60, 5])
@pytest.mark.parametrize("reference", [one_by_one, padded])
def test_packed_reading_gives_what_the_plain_ways_give(model, rows, token_budget, reference):
    found = vectors.mean_activations(model.eval(), rows, [0], token_budget)
    assert found[0].dtype == np.float32
    assert np.abs(found[0] - reference(model, rows, 0)).max() < TOLERANCE


def test_vectors_of_a_merged_adapter_are_those_of_the_merged_folder(tmp_path):
    base = str(ROOT / "resources/small_world/base")
    wrapped = training.add_adapter(models.load_model(base), SETTINGS, 1, "small", None)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    training.write_adapter(wrapped, tmp_path / "adapter")
    adapters.merge(base, tmp_path / "adapter", tmp_path / "merged")
    asked = {"cells": "languages", "languages": ["fr", "it"], "phrasings": ["speak_in"], "layers": [1]}

    def read(name, evaluate_as, *model):
        spec = {"vectors": asked | {"methods": ["last_prompt_token"]}, "evaluate_as": evaluate_as}
        flags = ["--spec", json.dumps(spec), "--resources", str(ROOT / "resources"), "--base", *map(str, model)]
        extract_vectors.main([*flags, "--out", str(tmp_path / name), "--manifest", str(tmp_path / f"{name}.json")])
        return load_file(tmp_path / name)["last_prompt_token/layer1/prompts"]

    beside = read("beside", "adapter", base, "--adapters", f"final={tmp_path / 'adapter'}")
    merged = read("merged.vectors", "merged", base, "--adapters", f"final={tmp_path / 'adapter'}")
    folder = read("folder", "adapter", tmp_path / "merged")
    assert np.array_equal(merged, folder)
    assert 0 < np.abs(merged - beside).max() < np.abs(read("base", "adapter", base) - beside).max() / 5


def test_an_adapter_is_read_with_its_update(model, rows):
    wrapped = training.add_adapter(copy.deepcopy(model), SETTINGS, 1, "random", None)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    found = vectors.mean_activations(wrapped.eval(), rows, [0])[0]
    assert np.abs(found - one_by_one(wrapped, rows, 0)).max() < TOLERANCE
    assert np.abs(found - one_by_one(model, rows, 0)).max() > 0.01


def test_blocks_beyond_the_deepest_wanted_are_not_run(model, rows):
    ran = []
    for number, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    model.model.norm.register_forward_hook(lambda *_: ran.append("norm"))
    vectors.mean_activations(model, rows, [0])
    assert ran == [0]


def test_several_layers_come_from_one_pass_in_any_order(model, rows):
    found = vectors.mean_activations(model.eval(), rows, [1, 0])
    assert list(found) == [1, 0]
    assert np.abs(found[0] - one_by_one(model, rows, 0)).max() < TOLERANCE


def test_no_hook_and_no_attention_of_ours_is_left_behind(model, rows):
    before = model.config._attn_implementation
    vectors.mean_activations(model, rows, [0])
    assert not any(block._forward_hooks for block in model.model.layers)
    assert model.config._attn_implementation == before
    assert len(model(input_ids=torch.tensor(rows[0].ids)[None], output_hidden_states=True).hidden_states) == 3


def test_a_mean_of_bfloat16_activations_is_taken_in_float32(model):
    """In bfloat16 a running sum of 300 numbers near one would stop growing at 256."""
    rng = np.random.default_rng(0)
    row = Tokens(rng.integers(3, 64, 300), np.ones(300, bool))
    model = model.to(torch.bfloat16).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor(row.ids)[None], output_hidden_states=True).hidden_states[1][0]
    found = vectors.mean_activations(model, [row], [0])[0][0]
    assert np.abs(found - states.float().mean(0).numpy()).max() < 1e-3 * np.abs(states.float().numpy()).max()
