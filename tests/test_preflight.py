"""What stops a run before its first job: features that the plan knows and this version does not have."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from conftest import ROOT
from spillover import expansion, preflight
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
