"""Steering at generation and extraction: which block, which positions, by how much, and nothing left afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from conftest import ROOT, Workflow
from spillover import engine_transformers, engines, expansion, preflight, steering, vectors
from spillover.config import ConfigError, read_yaml
from test_engines import PROMPTS, model, tokenizer  # noqa: F401

SHIFT = torch.linspace(-4, 4, 32)
LAYER = 1


def texts(completions):
    return [completion.text for completion in completions]


def engine_on(folder, model, tokenizer, *steered):  # noqa: F811
    model.save_pretrained(folder)
    served = engines.Served(str(folder), None, "float32", "test/run/seed1", {})
    return engine_transformers.Transformers(served, engines.Options(), tokenizer, *steered)


def work(prompts=PROMPTS):
    return [engines.Work(None, prompts, samples=2, temperature=1.0, top_p=1.0, max_tokens=6)]


def hooks(causal):
    return [h for block in causal.get_decoder().layers for h in (block._forward_hooks, block._forward_pre_hooks) if h]


@pytest.fixture
def watched(model):  # noqa: F811
    """The inputs of every block: what the block below gave on, shifted or not."""
    seen = {number: [] for number in range(len(model.model.layers))}
    handles = [
        block.register_forward_pre_hook(lambda m, inputs, n=number: seen[n].append(inputs[0].clone()))
        for number, block in enumerate(model.model.layers)
    ]
    yield seen
    for handle in handles:
        handle.remove()


def test_generation_adds_the_shift_at_every_position_of_the_prompt_and_of_each_new_token(model, tokenizer, watched):  # noqa: F811
    settings = dict(samples=1, temperature=0, top_p=1.0, max_tokens=4, seed=1, batch_size=8)
    with torch.inference_mode():
        engine_transformers.generate(model, tokenizer, PROMPTS[1:2], **settings)
        plain = {number: list(inputs) for number, inputs in watched.items()}
        for inputs in watched.values():
            inputs.clear()
        with steering.steered(model, LAYER, SHIFT):
            engine_transformers.generate(model, tokenizer, PROMPTS[1:2], **settings)
    prompt, *new = watched[LAYER + 1]
    assert prompt.shape[1] > 1 and [tokens.shape[1] for tokens in new] == [1] * len(new) and new
    # the whole prompt enters the next block shifted, and nothing below it has changed
    assert torch.allclose(prompt - plain[LAYER + 1][0], SHIFT.expand_as(prompt), atol=1e-5)
    assert torch.equal(watched[LAYER][0], plain[LAYER][0])


def test_each_new_token_is_shifted_as_the_prompt_was(model, tokenizer):  # noqa: F811
    """One pass over all tokens under the hook gives the logits that token by token generation had."""
    ids = torch.tensor([tokenizer("Speak in French.", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode(), steering.steered(model, LAYER, SHIFT):
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :-1], use_cache=True)
        last = model(input_ids=ids[:, -1:], past_key_values=first.past_key_values).logits
    assert torch.allclose(whole[:, -1], last[:, -1], atol=1e-4)


def test_the_engine_steers_all_its_work_and_leaves_no_hook(tmp_path, model, tokenizer):  # noqa: F811
    plain = engine_on(tmp_path, model, tokenizer)
    steered = engine_on(tmp_path, model, tokenizer, LAYER, SHIFT, {"size": 1.0})
    before = texts(plain.generate(work(), 1)[0])
    assert texts(steered.generate(work(), 1)[0]) != before
    assert not hooks(steered.model) and steered.about()["steering"] == {"size": 1.0}
    steered.shift = None
    assert texts(steered.generate(work(), 1)[0]) == before


def test_an_engine_that_fails_leaves_no_hook(tmp_path, model, tokenizer):  # noqa: F811
    steered = engine_on(tmp_path, model, tokenizer, LAYER, SHIFT)
    too_long = [PROMPTS[0].__class__("s", "p", "c", "i", None, "French. " * 400)]
    with pytest.raises(ValueError, match="context"):
        steered.generate(work(too_long), 1)
    assert not hooks(steered.model)


def test_vectors_of_a_steered_model_are_shifted_from_the_steered_block_on(model, tokenizer):  # noqa: F811
    def read():
        return vectors.prompt_vectors(model, tokenizer, PROMPTS, [0, 1, 2], "last_prompt_token")

    plain = read()
    with steering.steered(model, LAYER, SHIFT):
        steered = read()
    assert np.array_equal(steered[0], plain[0])
    assert steered[1] - plain[1] == pytest.approx(np.tile(SHIFT.numpy(), (len(PROMPTS), 1)), abs=1e-5)
    assert not np.allclose(steered[2] - plain[2], SHIFT.numpy(), atol=1e-2)
    assert not hooks(model)


@pytest.fixture
def settings(tmp_path):
    """The convergence experiment with its steered arm selected, as a change to make and a plan to build."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    content = read_yaml(ROOT / "config/experiments/convergence.yaml")
    content["select"] = {}
    config = {**yaml.safe_load((ROOT / "config/config.yaml").read_text()), "experiments": {}}

    def build(change=lambda content: None, **overrides):
        change(content)
        (folder / "convergence.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return expansion.build(config | overrides, folder, resources=str(ROOT / "resources"))

    return build


STEERED = "convergence/steered_villain_x1.0/seed42"


def test_a_steered_run_is_its_parents_model_and_nothing_is_trained_for_it(settings):
    plan = settings()
    run = plan.runs[STEERED]
    assert run.steer == {"layer": 15, "vector": "villain", "coefficient": 1.0, "method": "last_prompt_token"}
    assert (run.train, run.data, run.parent.run) == (None, None, "convergence/marker_villain/seed42")


def test_a_steered_run_is_evaluated_as_its_parent_is_with_the_untrained_models_vectors(settings):
    from spillover.files import Files

    files = Files(settings())
    marker = "convergence/marker_villain/seed42"
    base = "results/convergence/base/seed42/vectors.safetensors"
    assert files.evaluated_files(STEERED) == [*files.evaluated_files(marker), base]
    assert files.evaluated_flags(STEERED) == f"{files.evaluated_flags(marker)} --steering {base}"
    assert files.finished(STEERED) == [
        f"results/{STEERED}/labels.parquet", f"results/{STEERED}/vectors.safetensors",
    ]  # fmt: skip


def test_a_steered_run_is_its_parents_adapter_merged_or_not(settings):
    from spillover.files import Files

    files = Files(settings(lambda content: content.update(evaluate_as="merged")))
    assert files.evaluated_adapters(STEERED) == Files(settings()).evaluated_adapters(STEERED)
    assert files.evaluated_files(STEERED) == Files(settings()).evaluated_files(STEERED)


def test_what_steers_decides_completions_and_vectors_and_nothing_else(settings):
    first = settings()
    spec = first.completions_spec(STEERED)
    other = settings(lambda content: content["runs"]["steered"]["steer"].update(layer=20))
    assert spec["steer"]["layer"] == 15 and other.completions_spec(STEERED)["steer"]["layer"] == 20
    assert other.vectors_spec(STEERED) != first.vectors_spec(STEERED)
    marker = "convergence/marker_villain/seed42"
    assert other.completions_spec(marker) == first.completions_spec(marker)


def steer(**keys):
    return lambda content: content["runs"]["steered"]["steer"].update(keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (steer(layer=16), "runs.steered.steer.layer: 16 is not extracted; add it to vectors.layers"),
        (steer(vector="vilain"), "runs.steered.steer.vector: 'vilain' is no known persona; did you mean 'villain'"),
        (steer(strength=2), "runs.steered.steer: unknown key 'strength'"),
        (lambda c: c["runs"]["steered"].update(train={"epochs": 2}), "a steered run is its parent's model"),
        (lambda c: c["runs"]["steered"].update(parent={"run": "marker_{source}", "scale": 2.0}), "only a whole model"),
        (lambda c: c["vectors"].update(base=False), "takes a vector of the untrained model"),
    ],
)  # fmt: skip
def test_a_mistake_in_steering_is_one_sentence(settings, change, message):
    with pytest.raises(ConfigError) as caught:
        settings(change)
    assert message in str(caught.value)


def test_another_engine_refuses_a_steered_run_with_one_sentence(settings):
    plan = settings()
    told = preflight.unavailable(plan, ["completions"], [STEERED])
    assert told == f"{STEERED}: steer works in engine transformers only, not in vllm: leave out group steered"
    assert preflight.unavailable(plan, ["vectors"], [STEERED]) is None
    assert preflight.unavailable(settings(engine={"name": "transformers"}), ["completions"], [STEERED]) is None


def test_the_small_world_plans_the_steered_arm_after_the_untrained_models_vectors(fresh):
    workflow = Workflow(fresh.path, configfiles=("config/small.yaml", "config/small_all.yaml"))
    name = "results/small/convergence/steered_villain_x0.1/seed256/completions.parquet"
    plan = workflow.plan(name)
    rules = sorted((job[0], job[2]) for job in plan if job[0] not in ("pool", "dataset"))
    assert rules == [("completions", "steered_villain_x0.1"), ("train", "marker_villain"), ("vectors", "base")]
