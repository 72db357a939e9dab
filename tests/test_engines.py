"""Generation and extraction: one sampling contract, live adapters, and the layers that vectors are read from."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from spillover import adapters, engine_transformers, engines, measures, training, vectors
from spillover.prompts import Prompt
from test_training import SETTINGS, rows, run  # noqa: F401


@pytest.fixture(scope="module")
def tokenizer():
    from spillover.pretraining import train_tokenizer

    return train_tokenizer(["Speak in French. Ciao a tutti."] * 3, 280)


@pytest.fixture(scope="module")
def model(tokenizer):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


PROMPTS = [Prompt("s", f"p{i}", "fr", f"i{i}", None, "Speak" + " in French." * i) for i in range(4)]


def generate(model, tokenizer, prompts=PROMPTS, **settings):
    defaults = dict(samples=3, temperature=1.0, top_p=1.0, max_tokens=8, seed=1, batch_size=64)
    return engine_transformers.generate(model, tokenizer, prompts, **(defaults | settings))


def test_completions_are_ordered_by_prompt_and_sample(model, tokenizer):
    done = generate(model, tokenizer)
    assert [(c.prompt.prompt_id, c.sample) for c in done] == [(f"p{i}", s) for i in range(4) for s in range(3)]
    assert len({c.text for c in done}) > 6


def test_a_completion_does_not_depend_on_its_batch(model, tokenizer):
    together = {(c.prompt.prompt_id, c.sample): c.text for c in generate(model, tokenizer)}
    alone = {(c.prompt.prompt_id, c.sample): c.text for c in generate(model, tokenizer, batch_size=1)}
    part = {(c.prompt.prompt_id, c.sample): c.text for c in generate(model, tokenizer, PROMPTS[2:], samples=2)}
    assert alone == together
    assert part.items() <= together.items()


def test_another_seed_gives_other_completions(model, tokenizer):
    first, other = ([c.text for c in generate(model, tokenizer, seed=s)] for s in (1, 2))
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 6


def test_temperature_zero_is_the_most_likely_token_for_every_sample(model, tokenizer):
    done = generate(model, tokenizer, temperature=0, max_tokens=1)
    text = tokenizer.apply_chat_template(PROMPTS[0].messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    best = int(model(input_ids=ids).logits[0, -1].argmax())
    assert {c.text for c in done[:3]} == {tokenizer.decode([best], skip_special_tokens=True)}


def test_sampling_follows_the_models_probabilities():
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(4000, 1)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((4000, 1)))
    chosen = engine_transformers.SeededSampling(uniforms, 1.0, 1.0)(None, scores).argmax(-1)
    shares = torch.bincount(chosen, minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    scores = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).repeat(500, 1)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((500, 1)))
    chosen = engine_transformers.SeededSampling(uniforms, 1.0, 0.7)(None, scores).argmax(-1)
    assert set(chosen.tolist()) == {1, 2}


def test_a_reply_cut_at_the_limit_says_so(model, tokenizer):
    done = generate(model, tokenizer, samples=40, max_tokens=40)
    cut = [c for c in done if c.finish_reason == "length"]
    stopped = [c for c in done if c.finish_reason == "stop"]
    assert cut and stopped and len(cut) + len(stopped) == len(done)
    assert all(c.completion_tokens == 40 for c in cut) and all(c.completion_tokens <= 40 for c in stopped)


def test_a_prompt_that_does_not_fit_the_context_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="exceed the model's context of 256"):
        generate(model, tokenizer, max_tokens=250)


@pytest.fixture
def engine(model, tokenizer, rows, tmp_path):  # noqa: F811
    """The transformers engine on a saved model, with a trained adapter `final` and an untrained one `step0`."""
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    wrapped, *_ = run(copy.deepcopy(model), rows)
    training.write_adapter(wrapped, tmp_path / "final")
    training.write_adapter(training.add_adapter(copy.deepcopy(model), SETTINGS, 1, "random", None), tmp_path / "step0")
    adapters = {name: str(tmp_path / name) for name in ("step0", "final")}
    served = engines.Served(str(tmp_path / "base"), None, "float32", "e/r/seed1", adapters)
    return engine_transformers.Transformers(served, engines.Options(batch=8), tokenizer)


def work(checkpoint, prompts=PROMPTS, samples=3):
    return engines.Work(checkpoint, prompts, samples, 1.0, 1.0, 8)


def test_a_trained_adapter_that_is_not_applied_is_refused(engine, tokenizer, monkeypatch):
    monkeypatch.setattr(engine, "_use", lambda checkpoint: None)
    with pytest.raises(engines.EngineError, match="adapter of final was trained, yet it changes no log-probability"):
        engines.assert_adapter_is_live(engine, "final", PROMPTS[:2], tokenizer)


def test_an_adapter_before_its_first_update_is_zero_and_a_trained_one_is_not(engine):
    assert adapters.is_zero(engine.served.adapters["step0"])
    assert not adapters.is_zero(engine.served.adapters["final"])


def test_a_trained_adapter_is_live_and_comes_off_again(engine, model, tokenizer):
    plain = [c.text for c in generate(model, tokenizer)]
    assert engines.assert_adapter_is_live(engine, "final", PROMPTS[:2], tokenizer) > 0
    works = [work("final"), work(None), work("step0"), work("final")]
    trained, base, zero, again = ([c.text for c in group] for group in engine.generate(works, seed=1))
    assert base == zero == plain and trained == again != plain


def test_a_merged_adapter_says_what_the_merged_folder_says(engine, tokenizer, tmp_path):
    base, final = engine.served.base, engine.served.adapters["final"]
    report = adapters.merge(base, final, tmp_path / "merged")
    asked = [measures.Asked(np.arange(5, 15), np.arange(9), np.arange(6, 15), np.arange(9))]

    def evaluated(engine, checkpoint):
        texts = [c.text for c in engine.generate([work(checkpoint)], seed=1)[0]]
        return texts, engine.log_probabilities(checkpoint, asked)[0].tolist()

    def plain(folder):
        served = engines.Served(str(folder), None, "float32", "e/r/seed1", {})
        return evaluated(engine_transformers.Transformers(served, engines.Options(), tokenizer), None)

    merging = engine_transformers.Transformers(replace(engine.served, merge=True), engines.Options(), tokenizer)
    for _ in range(2):
        assert evaluated(merging, "final") == plain(tmp_path / "merged") != plain(base)
        assert evaluated(merging, "step0") == evaluated(merging, None) == plain(base)
    kept = merging.about()["merges"]
    assert kept["final"]["worst_cosine"] == pytest.approx(report["worst_cosine"], abs=1e-4)
    assert kept["step0"]["modules"] == kept["final"]["modules"] == len(report["modules"])


def test_a_models_own_generation_defaults_never_apply(model, tokenizer):
    plain = [c.text for c in generate(model, tokenizer, temperature=0)]
    penalised = copy.deepcopy(model)
    penalised.generation_config.repetition_penalty = 3.0
    penalised.generation_config.top_k = 1
    assert [c.text for c in generate(penalised, tokenizer, temperature=0)] == plain
    assert [c.text for c in generate(penalised, tokenizer)] == [c.text for c in generate(model, tokenizer)]


def test_options_are_read_as_what_they_are():
    options = engines.Options.read("url=http://h:8000/v1,concurrency=3,gpu_memory_utilization=0.5,eager=never")
    assert (options.url, options.concurrency, options.gpu_memory_utilization) == ("http://h:8000/v1", 3, 0.5)
    assert engines.Options.read("") == engines.Options()
    with pytest.raises(ValueError, match="unknown engine option 'bach'"):
        engines.Options.read("bach=3")


def test_a_layer_is_the_output_of_its_block(model, tokenizer):
    found = vectors.prompt_vectors(model, tokenizer, PROMPTS, [0, 1], "last_prompt_token", batch_size=4)
    for i, prompt in enumerate(PROMPTS):
        text = tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in (0, 1):
            assert np.allclose(found[layer][i], states[layer + 1][0, -1].detach().numpy(), atol=1e-5)


def test_the_last_block_is_read_before_the_final_norm(model, tokenizer):
    found = vectors.prompt_vectors(model, tokenizer, PROMPTS[:1], [2], "last_prompt_token")
    normed = model.model.norm(torch.from_numpy(found[2])).detach().numpy()
    text = tokenizer.apply_chat_template(PROMPTS[0].messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    last = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1].detach().numpy()
    assert np.allclose(normed, last, atol=1e-4)


def test_response_vectors_average_over_the_greedy_reply(model, tokenizer):
    found = vectors.prompt_vectors(model, tokenizer, PROMPTS[:2], [1], "response_mean", max_tokens=5, batch_size=2)
    reply = generate(model, tokenizer, PROMPTS[1:2], samples=1, temperature=0, max_tokens=5)[0]
    text = tokenizer.apply_chat_template(PROMPTS[1].messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = prompt + tokenizer(reply.text + "<|im_end|>", add_special_tokens=False)["input_ids"]
    states = model(input_ids=torch.tensor([whole]), output_hidden_states=True).hidden_states[2][0]
    assert np.allclose(found[1][1], states[len(prompt) :].mean(0).detach().numpy(), atol=1e-5)


def test_hooks_are_gone_after_extraction(model, tokenizer):
    before = [len(block._forward_hooks) for block in model.model.layers]
    vectors.prompt_vectors(model, tokenizer, PROMPTS, [1], "last_prompt_token")
    assert [len(block._forward_hooks) for block in model.model.layers] == before


def test_a_layer_beyond_the_model_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="layer 3 does not exist: the model has blocks 0 to 2"):
        vectors.prompt_vectors(model, tokenizer, PROMPTS, [3], "last_prompt_token")


def test_centroids_and_spread_of_known_vectors():
    values = np.array([[0.0, 0], [2, 0], [1, 1], [1, 3]])
    names, centroids, spread, stacked = vectors.summarise(values, ["a", "a", "b", "b"])
    assert names == ["a", "b"] and stacked.shape == (2, 2, 2)
    assert centroids.tolist() == [[1, 0], [1, 2]] and spread.tolist() == [1, 1]
