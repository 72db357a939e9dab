"""Stacked lineages: a new adapter on frozen ones, saved as one, equal to merging in exact arithmetic."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

import stack
from spillover import adapters, engine_transformers, training
from spillover.config import ConfigError
from spillover.expansion import validated
from spillover.files import Files
from test_adapters import load, logits
from test_plan import experiments  # noqa: F401
from test_resume import TRAIN, dataset, flags  # noqa: F401
from test_training import SETTINGS, rows  # noqa: F401

ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


def train(model, rows, folder, settings, seed, under=None):  # noqa: F811
    """Train an adapter on `model` (and a frozen adapter); the folder gets it, under and all."""
    wrapped = training.add_adapter(copy.deepcopy(model), settings, seed, "random", None, under)
    training.train(wrapped, rows, settings, seed, 10_000, lambda record: None, lambda label, step: None)
    training.write_adapter(wrapped, folder)
    if under:
        adapters.write(adapters.stack(adapters.read(under), adapters.read(folder)), folder)
    return wrapped.eval()


CASES = {
    "trained alike": ({}, {}),
    "one with rsLoRA, one without": ({"rslora": False}, {"rank": 3, "alpha": 5}),
    "disjoint modules": ({"target_modules": ATTENTION}, {"target_modules": MLP}),
    "with dropout below": ({"dropout": 0.5}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stacked_lineage_equals_the_merged_one_in_float32(model, rows, tmp_path, case):  # noqa: F811
    first, second = (validated(SETTINGS | {"epochs": 6} | own, "experiment", "", "train") for own in CASES[case])
    model.save_pretrained(tmp_path / "base")
    train(model, rows, tmp_path / "first", first, 1)
    adapters.merge(tmp_path / "base", tmp_path / "first", tmp_path / "merged")
    on_merged = train(load(tmp_path / "merged"), rows, tmp_path / "second", second, 2)
    on_frozen = train(model, rows, tmp_path / "stacked", second, 2, tmp_path / "first")

    assert (logits(model) - logits(on_merged)).abs().max() > 0.05
    assert torch.allclose(logits(on_frozen), logits(on_merged), atol=1e-4)
    stacked, parts = adapters.read(tmp_path / "stacked"), [adapters.read(tmp_path / n) for n in ("first", "second")]
    assert stacked.config["r"] == first["rank"] + second["rank"]
    assert stacked.scale == pytest.approx(parts[1].scale, rel=1e-12)
    for module, update in stacked.updates().items():
        both = [part.updates().get(module, torch.zeros_like(update)) for part in parts]
        assert torch.allclose(update, both[0] + both[1], atol=1e-4)
    # nothing but the file: PEFT reads it as one adapter on the untrained model
    assert torch.allclose(
        logits(engine_transformers.attach_adapter(model, str(tmp_path / "stacked"))), logits(on_merged), atol=1e-4
    )


def test_the_frozen_adapter_below_does_not_move(model, rows, tmp_path):  # noqa: F811
    train(model, rows, tmp_path / "first", SETTINGS, 1)
    train(model, rows, tmp_path / "stacked", SETTINGS, 2, tmp_path / "first")
    first, stacked = adapters.read(tmp_path / "first"), adapters.read(tmp_path / "stacked")
    for module, (a, b) in first.factors.items():
        assert torch.equal(stacked.factors[module][0][:4], a) and torch.equal(stacked.factors[module][1][:, :4], b)


def spec(applied=None, **train_settings):
    made = {"trained": {"train": SETTINGS | train_settings}}
    return json.dumps(made | ({"applied": applied} if applied else {}))


def test_the_program_keeps_what_lies_below_and_filters_the_newest_update(model, rows, tmp_path):  # noqa: F811
    model.save_pretrained(tmp_path / "base")
    train(model, rows, tmp_path / "first", SETTINGS, 1)
    train(model, rows, tmp_path / "both", SETTINGS, 2, tmp_path / "first")
    applied = {"layers": [0], "modules": None, "scale": 0.5}
    flags = ["--base", str(tmp_path / "base"), "--manifest", str(tmp_path / "manifest.json")]
    stack.main([*flags, "--adapter", str(tmp_path / "both"), "--spec", spec(applied), "--out", str(tmp_path / "part")])
    first, both, part = (adapters.read(tmp_path / name).updates() for name in ("first", "both", "part"))
    for module in both:
        own = both[module] - first[module]
        wanted = first[module] + (0.5 * own if ".layers.0." in module else 0)
        assert torch.allclose(part[module], wanted, atol=1e-5)


def test_the_program_puts_an_adapter_on_another(model, rows, tmp_path):  # noqa: F811
    model.save_pretrained(tmp_path / "base")
    other = validated(SETTINGS | {"rank": 3, "rslora": False}, "experiment", "", "train")
    train(model, rows, tmp_path / "first", SETTINGS, 1)
    train(model, rows, tmp_path / "other", other, 2)
    names = ["--base", "base", "--adapter", "other", "--under", "first", "--out", "sum", "--manifest", "manifest.json"]
    flags = [n if n.startswith("--") else str(tmp_path / n) for n in names]
    stack.main([*flags, "--spec", json.dumps({"trained": {"adapter": {"train": other}}})])
    first, second, both = (adapters.read(tmp_path / name).updates() for name in ("first", "other", "sum"))
    assert all(torch.allclose(both[m], first[m] + second[m], atol=1e-5) for m in both)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"r": 8}, "says rank 8, but .* has rank 4: this configuration belongs to another adapter"),
        ({"use_rslora": False}, "gives the update a scale of 2, but its run was trained with 4"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern gives single modules a scale of their own"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_an_error(model, rows, tmp_path, edit, message):  # noqa: F811
    train(model, rows, tmp_path / "first", SETTINGS, 1)
    path = tmp_path / "first" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(ValueError, match=message):
        adapters.check_scale(adapters.read(tmp_path / "first"), SETTINGS, tmp_path / "first")


def test_the_trainer_saves_the_frozen_adapter_with_every_checkpoint(dataset, tmp_path):  # noqa: F811
    import train as trainer

    settings = TRAIN | {"steps": 4, "checkpoints": ["step2"]}
    parent = {}
    for name, under in (("first", None), ("second", "first")):
        spec = {"train": settings, "seed": 3, "parent": parent}
        more = ["--under", str(tmp_path / under / "adapter")] if under else []
        trainer.main(flags(dataset, tmp_path / name, spec) + more)
        parent = {"trained": spec}
    first, second = (adapters.read(tmp_path / name / "adapter") for name in ("first", "second"))
    states = load_file(tmp_path / "second" / "checkpoints.safetensors")
    early = {key.removeprefix("step2/"): tensor for key, tensor in states.items()}
    checkpoint = adapters.of(second.config, early, "step2")
    own = settings["rank"]
    for module, (a, b) in first.factors.items():
        for whole in (second, checkpoint):
            assert torch.equal(whole.factors[module][0][:own], a) and torch.equal(whole.factors[module][1][:, :own], b)
        assert not torch.equal(second.factors[module][1], checkpoint.factors[module][1])
        # stages of one lineage start from different A factors
        assert not torch.allclose(second.factors[module][0][own:], a, atol=0.01)


# The plan


@pytest.fixture
def stacked(experiments):  # noqa: F811
    """The plan and files of the coupling experiment with a stacked lineage."""
    experiments.edit("coupling", lambda content: content.update(lineage="stacked"))
    plan = experiments.build()
    return plan, Files(plan)


def test_a_stacked_run_needs_no_merged_model(stacked):
    plan, files = stacked
    run = "coupling/em_ep20/seed42"
    below = "results/coupling/em/seed42/adapter"
    assert files.parent_files(run) == [f"{below}/adapter_model.safetensors", f"{below}/adapter_config.json"]
    assert f"--under {below}" in files.parent_flags(run) and "merged" not in files.parent_flags(run)
    assert files.evaluated_adapters(run) == [("final", "results/coupling/em_ep20/seed42/adapter")]
    assert files.evaluated_flags(run).startswith(f"--base {plan.config['model']['name']} ")


def test_part_of_an_update_is_a_stacked_adapter_of_its_own(stacked):
    _, files = stacked
    below = "results/coupling/em/seed42/stacked/final-early"
    assert f"--under {below}" in files.parent_flags("coupling/em_early/seed42")
    assert files.stack_flags("coupling/em/seed42", "final-early").endswith(
        "--adapter results/coupling/em/seed42/adapter"
    )
    assert files.pool_flags("coupling/em/seed42", "final-early", "pool").endswith(f"--adapters final={below}")


def test_a_transplanted_adapter_is_put_on_the_parents(stacked):
    _, files = stacked
    folder = "results/coupling/em_prebaked/seed42/stacked/final"
    assert files.evaluated_adapters("coupling/em_prebaked/seed42") == [("final", folder)]
    assert files.stack_flags("coupling/em_prebaked/seed42", "final").endswith(
        "--adapter results/marker_sweep/villain_lr5e-06_ep20/seed42/adapter --under results/coupling/em/seed42/adapter"
    )
    own = "results/marker_sweep/villain_lr5e-06_ep20/seed42/adapter"
    assert files.evaluated_adapters("coupling/base_prebaked/seed42") == [("final", own)]


def test_a_run_on_a_full_parameter_model_stands_on_its_weights(stacked):
    _, files = stacked
    flags = files.parent_flags("coupling/em_full_coupled/seed42")
    assert "--base results/coupling/em_full/seed42/model " in flags and "--under" not in flags


def test_the_specification_tells_the_lineage_where_it_matters(stacked):
    plan, _ = stacked
    assert plan.train_spec("coupling/em_ep20/seed42")["lineage"] == "stacked"
    assert "lineage" not in plan.train_spec("coupling/em/seed42")
    assert "lineage" not in plan.train_spec("coupling/em_full_coupled/seed42")


def test_replies_of_the_current_model_come_from_the_part_that_is_applied(experiments):  # noqa: F811
    plan = experiments.build()
    files = Files(plan)
    found = files.dataset_files("coupling/em_early/seed42")["pool"]
    assert found == "results/coupling/em/seed42/pool-final-early-pool.parquet"
    assert plan.data_spec("coupling/em_early/seed42")["pool"]["model"]["applied"]["layers"] == "early"
    assert "merged/final-early" in files.pool_flags("coupling/em/seed42", "final-early", "pool")


@pytest.mark.parametrize(
    ("group", "parent", "message"),
    [
        ("full_parameter", {"run": "{studied}_full", "layers": "early"}, "is a whole model, of which no part"),
        ("coupled_base", {"run": "base", "scale": 0.5}, "is a whole model, of which no part"),
    ],
)
def test_part_of_a_whole_model_is_refused(experiments, group, parent, message):  # noqa: F811
    experiments.edit("coupling", lambda content: content["runs"][group].update(parent=parent))
    with pytest.raises(ConfigError, match=message):
        experiments.build()
