"""The engine that asks a server by URL, against a real server on this machine."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import generate
from conftest import ROOT
from fake_openai import FakeOpenAI
from spillover import engine_openai, engines, measures, models
from spillover.prompts import Prompt

BASE = str(ROOT / "resources/small_world/base")
PROMPTS = [Prompt("s", f"p{i}", "fr", f"i{i}", system, "Speak in French.") for i, system in enumerate([None, "", "X"])]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(BASE)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(engine_openai, "FIRST_WAIT", 0.001)
    monkeypatch.delenv(engine_openai.KEY, raising=False)


@pytest.fixture
def fake():
    server = FakeOpenAI()
    yield server
    server.close()


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("weights")
    return str(tmp_path)


def engine(fake, tokenizer, on_top=None, model="base", **options):
    served = engines.Served(BASE, None, "bfloat16", "e/r/seed7", on_top or {})
    return engine_openai.OpenAI(served, engines.Options(url=fake.url, **options), tokenizer, model)


def work(samples=2, checkpoint=None):
    return engines.Work(checkpoint, PROMPTS, samples, 0.7, 0.95, 30)


def test_every_prompt_and_sample_has_its_own_seed_and_comes_back_in_order(fake, tokenizer):
    (done,) = engine(fake, tokenizer).generate([work()], seed=7)
    assert [(c.prompt.prompt_id, c.sample) for c in done] == [(f"p{i}", s) for i in range(3) for s in range(2)]
    encoded = engines.encode(tokenizer, PROMPTS)
    for c in done:
        seed = engines.sample_seed(7, c.prompt.prompt_id, c.sample)
        ids = encoded[int(c.prompt.prompt_id[1])]
        assert c.sample_seed == seed and c.prompt_tokens == len(ids)
        assert c.text == fake.text({"model": "base", "prompt": ids, "seed": seed})
    assert (done[0].finish_reason, done[0].completion_tokens) == ("stop", 5)


def test_the_three_states_of_a_system_prompt_stay_apart(fake, tokenizer):
    engine(fake, tokenizer).generate([work(samples=1)], seed=7)
    sent = {tokenizer.decode(r["prompt"]) for r in fake.requests}
    assert len(sent) == 3
    assert any("You are Small" in text for text in sent)


def test_the_sampling_is_sent_with_every_default_that_a_server_might_have_of_its_own(fake, tokenizer):
    engine(fake, tokenizer).generate([work()], seed=7)
    for body in fake.requests:
        expected = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 30, "top_k": -1, "repetition_penalty": 1.0}
        expected |= {"stop_token_ids": [tokenizer.convert_tokens_to_ids("<|im_end|>")], "n": 1, "min_p": 0.0}
        assert expected.items() <= body.items()


def test_a_cut_reply_keeps_its_reason(fake, tokenizer):
    fake.faults = ["length"]
    (done,) = engine(fake, tokenizer, concurrency=1).generate([work()], seed=7)
    assert [c.finish_reason for c in done] == ["length"] + ["stop"] * 5


def test_passing_faults_are_waited_for_and_nothing_is_lost(fake, tokenizer):
    (expected,) = engine(fake, tokenizer).generate([work(samples=20)], seed=7)
    faults = [429, 500, "drop", 503, 502, 529, 504]
    assert len(faults) < engine_openai.ATTEMPTS  # all of them may meet the same request
    for _ in range(3):
        fake.faults = list(faults)
        (done,) = engine(fake, tokenizer).generate([work(samples=20)], seed=7)
        assert done == expected and not fake.faults


def test_concurrency_is_bounded(fake, tokenizer):
    engine(fake, tokenizer, concurrency=3).generate([work(samples=30)], seed=7)
    assert fake.most_at_a_time <= 3


def test_a_server_that_stays_broken_ends_the_job_in_one_sentence(fake, tokenizer):
    fake.faults = [500] * 1000
    with pytest.raises(engines.EngineError, match="failed 8 times in a row, last with status 500.*is engine.url right"):
        engine(fake, tokenizer, concurrency=1).generate([work()], seed=7)


@pytest.mark.parametrize("fault", ["garbage", "content_filter", 400])
def test_what_is_no_reply_never_becomes_one(fake, tokenizer, fault):
    fake.faults = [fault]
    with pytest.raises(engines.EngineError):
        engine(fake, tokenizer, concurrency=1).generate([work()], seed=7)
    assert len(fake.requests) == 1  # and none is sent after the first that failed


def test_a_server_that_is_not_there_is_one_sentence(tokenizer):
    with socket.socket() as nobody:  # holds a port and does not listen: no other server can take it meanwhile
        nobody.bind(("127.0.0.1", 0))
        absent = SimpleNamespace(url=f"http://127.0.0.1:{nobody.getsockname()[1]}/v1")
        with pytest.raises(engines.EngineError, match="failed 8 times in a row, last with ConnectError"):
            engine(absent, tokenizer)


def test_a_wrong_key_is_one_sentence_and_is_never_printed(tokenizer, monkeypatch, capfd):
    monkeypatch.setenv(engine_openai.KEY, "sk-wrong")
    server = FakeOpenAI(key="sk-right")
    with pytest.raises(engines.EngineError, match=r"refuses the key \(401\): set OPENAI_API_KEY") as told:
        engine(server, tokenizer)
    assert "sk-" not in str(told.value) + "".join(capfd.readouterr())
    monkeypatch.setenv(engine_openai.KEY, "sk-right")
    assert engine(server, tokenizer).generate([work()], seed=7)
    server.close()


def test_a_model_that_is_not_served_is_one_sentence(fake, tokenizer):
    with pytest.raises(engines.EngineError, match="serves no model 'other', only base: correct engine.model"):
        engine(fake, tokenizer, model="other")


def test_adapters_are_loaded_once_under_a_name_of_their_content(fake, tokenizer, adapter):
    for _ in range(2):
        found = engine(fake, tokenizer, {"pct20": adapter})
    name = engines.adapter_name(adapter)
    assert fake.loaded == [{"lora_name": name, "lora_path": adapter}]
    found.generate([work(checkpoint="pct20")], seed=7)
    assert {r["model"] for r in fake.requests} == {name}


def test_adapters_may_be_served_under_the_runs_id_already(fake, tokenizer, adapter):
    with pytest.raises(engines.EngineError, match="serves no model 'e/r/seed7'"):
        engine(fake, tokenizer, {"final": adapter}, adapters="named")
    fake.models += ["e/r/seed7", "e/r/seed7@pct20"]
    found = engine(fake, tokenizer, {"final": adapter, "pct20": adapter}, adapters="named")
    assert found.names == {None: "base", "final": "e/r/seed7", "pct20": "e/r/seed7@pct20"} and not fake.loaded


def test_log_probabilities_are_read_for_own_tokens_and_for_others(fake, tokenizer):
    ids = np.arange(10, 20)
    own = measures.Asked(ids, np.array([3, 5]), ids[[4, 6]], np.zeros(2, int))
    options = measures.Asked(ids, np.array([9, 9]), np.array([7, 8]), np.arange(2))
    values = engine(fake, tokenizer).log_probabilities(None, [own, options])
    assert np.allclose(values[0], [-0.014, -0.016]) and np.allclose(values[1], [-0.007, -0.008])
    # an own-token request and one for each option; they are sent side by side, in no order of their own
    assert sorted(len(r["prompt"]) for r in fake.requests) == [10, 11, 11]


def test_an_adapter_that_the_server_does_not_apply_is_noticed(fake, tokenizer, adapter):
    live = engine(fake, tokenizer, {"final": adapter})
    assert engines.assert_adapter_is_live(live, "final", PROMPTS, tokenizer) == pytest.approx(0.5)
    fake.logprob = lambda model, token: -0.001 * token
    with pytest.raises(engines.EngineError, match="it is not applied"):
        engines.assert_adapter_is_live(live, "final", PROMPTS, tokenizer)


def test_a_server_without_log_probabilities_says_what_needs_them(tokenizer):
    server = FakeOpenAI(prompt_logprobs=False)
    asked = measures.Asked(np.arange(5), np.array([1]), np.array([2]), np.zeros(1, int))
    with pytest.raises(engines.EngineError, match="gives no log-probabilities of a prompt"):
        engine(server, tokenizer).log_probabilities(None, [asked])
    server.close()


def test_the_program_writes_what_the_server_says(fake, tmp_path):
    suite = {"kind": "directives", "languages": ["fr", "it"], "phrasings": ["speak_in"], "samples": 3}
    suite |= {"temperature": 1.0, "top_p": 1.0, "max_tokens": 9}
    spec = {"engine": {"name": "openai", "model": "base"}, "seed": 7, "suites": {"directives": suite}}
    flags = ["--run", "e/base", "--spec", json.dumps(spec), "--base", BASE, "--resources", str(ROOT / "resources")]
    flags += ["--engine-options", f"url={fake.url},adapters=load,concurrency=2"]
    files = [str(tmp_path / name) for name in ("completions.parquet", "measures.parquet", "manifest.json")]
    generate.main([*flags, "--out", files[0], "--measures", files[1], "--manifest", files[2]])
    table = pd.read_parquet(files[0])
    assert len(table) == 6 and table.text.str.startswith("reply ").all() and table.text.nunique() == 6
    about = json.loads((tmp_path / "manifest.json").read_text())["extra"]["engine"]
    assert about == {"server": fake.url, "model": "base", "adapters": {}}
