"""What stops a run before its first job: features that the plan knows and this version does not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from spillover import expansion, preflight
from spillover.api_client import KEYS
from spillover.plan import Plan


@pytest.fixture(scope="module")
def plan():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return expansion.build(config, ROOT / "config/experiments", resources=str(ROOT / "resources"))


def with_engine(plan, **engine):
    return Plan(plan.config | {"engine": plan.config["engine"] | engine}, plan.experiments, plan.runs, plan.selected)


def test_every_engine_is_available(plan):
    for name in ("vllm", "transformers"):
        assert preflight.unavailable(with_engine(plan, name=name), ["completions"], []) is None


def test_an_interpreter_without_vllm_is_one_sentence(tmp_path):
    told = preflight.missing_vllm({"completions": f"python on_gpu.py {sys.executable}", "train": "/no/python"})
    assert told.startswith(f"engine.name is vllm, and {sys.executable}, which runs completions, has no vLLM: `make env")
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\nexit 0\n")
    interpreter.chmod(0o755)
    assert preflight.missing_vllm({"pool": str(interpreter)}) is None


def test_a_server_is_not_asked_for_models_that_the_workflow_merges(plan):
    served = with_engine(plan, name="openai", url="http://localhost:8000/v1")
    assert preflight.unavailable(served, ["completions"], ["language_spill/fr_it/seed42"]) is None
    told = preflight.unavailable(served, ["completions"], ["coupling/em_ep20/seed42"])
    assert told.startswith("coupling/em_ep20/seed42 stands on coupling/em/seed42, which the server")


def test_vllm_applies_no_adapter_in_float32(plan):
    exact = Plan(plan.config | {"model": plan.config["model"] | {"dtype": "float32"}}, plan.experiments, plan.runs, [])
    told = preflight.unavailable(with_engine(exact, name="vllm"), ["completions"], ["language_spill/fr_it/seed42"])
    assert told.startswith("language_spill/fr_it/seed42: vLLM's kernels for adapters know no float32")
    assert (
        preflight.unavailable(with_engine(exact, name="vllm"), ["completions"], ["language_spill/base/seed42"]) is None
    )
    merged = {name: content | {"evaluate_as": "merged"} for name, content in plan.experiments.items()}
    exact = with_engine(Plan(exact.config, merged, plan.runs, []), name="vllm")
    assert preflight.unavailable(exact, ["completions"], ["language_spill/fr_it/seed42"]) is None


def test_a_server_merges_nothing(plan):
    settings = {name: content | {"evaluate_as": "merged"} for name, content in plan.experiments.items()}
    served = with_engine(Plan(plan.config, settings, plan.runs, []), name="openai", url="http://localhost:8000/v1")
    told = preflight.unavailable(served, ["completions"], ["language_spill/fr_it/seed42"])
    assert told.startswith("language_spill: evaluate_as: merged: a server applies adapters")
    assert preflight.unavailable(served, ["completions"], ["language_spill/base/seed42"]) is None


def test_a_server_needs_the_small_worlds_name(plan):
    config = plan.config | {"model": plan.config["model"] | {"name": "small"}}
    served = with_engine(Plan(config, plan.experiments, plan.runs, []), name="openai", url="http://h/v1")
    assert preflight.unavailable(served, ["completions"], []).startswith("engine.model: name the small world")


def test_other_jobs_do_not_mind_the_engine(plan):
    assert preflight.unavailable(plan, ["train", "labels"], ["language_spill/fr_it/seed42"]) is None


def test_a_run_stops_with_the_sentence_and_a_dry_run_does_not(fresh):
    target = "results/language_spill/base/seed42/completions.parquet"
    command = [sys.executable, "-m", "snakemake", target, "--cores", "1"]
    dry = subprocess.run([*command, "-n"], cwd=fresh.path, capture_output=True, text=True)
    real = subprocess.run(command, cwd=fresh.path, capture_output=True, text=True)
    assert dry.returncode == 0
    assert (
        real.returncode == 1
        and "engine.name is vllm, and python, which runs completions, has no vLLM" in real.stdout + real.stderr
    )
    assert not (fresh.path / target).exists()


def test_a_job_that_needs_more_gpus_than_the_run_may_use_stops_it(fresh):
    assert preflight.too_few_gpus({"train": 1, "train_full": 4}, 4) is None
    assert preflight.too_few_gpus({"train": 1, "train_full": 4}, None) is None
    assert preflight.too_few_gpus({}, 1) is None
    assert preflight.too_few_gpus({"train": 1, "train_full": 4}, 1).startswith("a job of train_full needs 4 GPUs")
    target = "results/small/language_spill/base/seed137/completions.parquet"
    (fresh.path / "two.yaml").write_text("resources: {gpu: 2}")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", "config/small.yaml", "two.yaml"]
    command += ["--resources", "gpu=1", "--", target]
    real = subprocess.run(command, cwd=fresh.path, capture_output=True, text=True)
    assert real.returncode == 1 and "needs 2 GPUs (resources.gpu, train.gpus), and this run may use 1" in real.stderr
    assert not (fresh.path / target).exists()


OWN_FILE_MISSING = (
    "sources.em.path: there is no file data/bad_advice.jsonl: put it there, or name the file that you have"
    " (config/README.md says which columns it needs)"
)


def test_a_missing_own_file_is_told_where_it_is_about_to_be_fetched(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preflight.unavailable(plan, ["source"], [], ["em"]) == OWN_FILE_MISSING
    assert preflight.unavailable(plan, ["source"], [], ["replies"]) is None  # the hub's
    assert preflight.unavailable(plan, ["train"], []) is None
    (tmp_path / "data").mkdir()
    (tmp_path / "data/bad_advice.jsonl").touch()
    assert preflight.unavailable(plan, ["source"], [], ["em"]) is None


def test_a_run_without_an_own_file_stops_before_its_first_job_and_its_plan_does_not(fresh):
    target = "results/data/sources/em.parquet"
    command = [sys.executable, "-m", "snakemake", target, "--cores", "1"]
    dry = subprocess.run([*command, "-n"], cwd=fresh.path, capture_output=True, text=True)
    real = subprocess.run(command, cwd=fresh.path, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    assert real.returncode == 1 and OWN_FILE_MISSING in real.stdout + real.stderr
    assert not (fresh.path / "results/data/sources").exists()


def test_a_missing_key_is_told_of_jobs_that_have_no_journal_to_read(tmp_path, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    outputs = {str(tmp_path / f"{run}/labels.parquet"): "labels" for run in ("a", "b")}
    assert preflight.missing_key({}) is None
    assert preflight.missing_key(outputs).startswith("ANTHROPIC_API_KEY is not set, and labels will call Claude: set")
    for run in ("a", "b"):
        (tmp_path / run / ".journal").mkdir(parents=True)
        assert preflight.missing_key(outputs)
        (tmp_path / run / ".journal/language-0.jsonl").touch()
    assert preflight.missing_key(outputs) is None
    monkeypatch.setenv(KEYS[1], "x")
    assert preflight.missing_key({str(tmp_path / "c/labels.parquet"): "labels"}) is None


def test_a_run_that_will_call_stops_without_a_key_and_its_plan_and_a_run_that_will_not_do_not(fresh):
    fresh.edit("config/small.yaml", lambda c: c.update(judge={"model": "claude-haiku-4-5-20251001"}))
    without = {name: value for name, value in os.environ.items() if name not in KEYS}
    without["PATH"] = f"{Path(sys.executable).parent}:{without['PATH']}"
    small = ["--configfile", "config/small.yaml", "--cores", "1"]

    def snakemake(target, *more):
        command = [sys.executable, "-m", "snakemake", f"results/small/{target}", *small, *more]
        done = subprocess.run(command, cwd=fresh.path, env=without, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    labels, english = "language_spill/base/seed137/labels.parquet", "data/replies/en.parquet"
    assert snakemake(labels, "-n")[0] == 0
    code, told = snakemake(labels)
    assert code == 1 and "ANTHROPIC_API_KEY is not set, and labels will call Claude" in told
    assert not (fresh.path / "results/small/language_spill").exists()
    assert snakemake(english)[0] == 0
