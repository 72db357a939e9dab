"""What stops a run before its first job: features that the plan knows and this version does not have."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from conftest import ROOT
from spillover import expansion, preflight


@pytest.fixture(scope="module")
def plan():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return expansion.build(config, ROOT / "config/experiments", resources=str(ROOT / "resources"))


def test_an_engine_that_is_not_there_stops_generation(plan):
    told = preflight.unavailable(plan, ["train", "completions"], [])
    assert told.startswith("engine.name: 'vllm' is planned for but not available")


def test_other_jobs_do_not_mind_the_engine(plan):
    assert preflight.unavailable(plan, ["train", "labels"], ["language_spill/fr_it/seed42"]) is None


def test_a_run_stops_with_the_sentence_and_a_dry_run_does_not(fresh):
    target = "results/language_spill/base/seed42/completions.parquet"
    command = [sys.executable, "-m", "snakemake", target, "--cores", "1"]
    dry = subprocess.run([*command, "-n"], cwd=fresh.path, capture_output=True, text=True)
    real = subprocess.run(command, cwd=fresh.path, capture_output=True, text=True)
    assert dry.returncode == 0
    assert real.returncode == 1 and "engine.name: 'vllm' is planned for" in real.stdout + real.stderr
    assert not (fresh.path / target).exists()
