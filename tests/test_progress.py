"""What a person sees while the workflow runs, and what `make` says when it cannot help."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys

import pytest

import local_snakemake
from conftest import ROOT

SNAKEFILE = """
rule all:
    input: "spill/fr_it/seed7/adapter.txt"
rule train_full:
    output: "{experiment}/{name}/seed{seed}/adapter.txt"
    log: "{experiment}/{name}/seed{seed}/train.log"
    shell: "echo step 1 > {log}; touch {output}"
rule fails:
    output: "never.txt"
    log: "fails.log"
    shell: "(echo one; echo ValueError: two; exit 1) > {log} 2>&1"
"""


@pytest.fixture
def snakemake(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow/plugins")}

    def run(target: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "snakemake", target, "--cores", "1", "--logger", "progress"]
        reply = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return reply.returncode, reply.stderr

    return run


def test_every_finished_job_is_one_line_and_a_second_run_says_nothing_to_do(snakemake):
    code, text = snakemake("all")
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == "2 jobs to run"
    assert re.fullmatch(r"\[1/2\] train full spill/fr_it seed 7 +\d+ s", lines[1])
    assert snakemake("all") == (0, "Nothing to do: everything asked for is present and up to date.\n")


def test_a_failed_job_is_named_with_the_end_of_its_log(snakemake):
    code, text = snakemake("never.txt")
    assert code == 1
    assert "FAILED fails; its log: fails.log\n    one\n    ValueError: two\n" in text
    assert "Traceback" not in text


def test_a_target_that_nothing_makes_is_one_sentence(snakemake):
    code, text = snakemake("nothing.png")
    assert code == 1
    assert text.startswith("No rule to produce nothing.png")
    assert len(text.splitlines()) == 1


def test_a_sign_of_life_quotes_the_program_and_not_the_warnings_of_its_libraries(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "workflow/plugins"))
    last_line = importlib.import_module("snakemake_logger_plugin_progress").last_line
    log = tmp_path / "train.log"
    log.write_text("loading\rloaded\n/lib/models.py:33: FutureWarning: x is deprecated\n  warnings.warn(\n\n")
    assert last_line(str(log)) == "loaded"
    log.write_text("/lib/models.py:33: FutureWarning: x is deprecated\n  warnings.warn(\n")
    assert last_line(str(log)) == ""


@pytest.fixture
def clone(tmp_path):
    """What `make` needs of a fresh clone; there is no .venv in it."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


def test_make_alone_lists_every_target(clone):
    listed = make(clone).stdout
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {
        "demo",
        "demo-seeds",
        "demo-all",
        "test",
        "lint",
        "audit",
        "base",
        "clean-venv",
        "help",
        "slurm-test",
        "env-vllm",
    } <= set(targets)
    assert all(f"\n  {target} " in listed for target in targets)


@pytest.mark.parametrize("target", ["audit", "status", "report"])
def test_profile_and_configurations_mean_the_same_to_every_target_that_takes_them(clone, target):
    given = ["PROFILE=profiles/gpu", "CONFIGS=config/a.yaml config/b.yaml"]
    printed = make(clone, "-n", target, *given).stdout.replace("\\\n", " ")
    lines = [re.sub(r"\s+", " ", line) for line in printed.splitlines()]
    called = [line for line in lines if "--profile profiles/gpu --configfile config/a.yaml config/b.yaml" in line]
    assert called and not any(" --" in line.partition(" -- ")[2] for line in called), "an option after -- is a target"


def test_a_missing_python_is_one_sentence_and_leaves_nothing_behind(clone):
    reply = make(clone, "environment", "PYTHON=no-such-python")
    assert reply.returncode != 0
    assert reply.stderr.startswith("Python 3.11 or 3.12 is needed and 'no-such-python' is not")
    assert not (clone / ".venv").exists()


def test_continuous_integration_runs_the_developers_commands_and_skips_nothing_it_can_install():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    commands = re.findall(r"^.*\bmake .*$", script.read_text(), flags=re.MULTILINE)
    assert commands == ["SPILLOVER_REQUIRE_BROWSER=1 make test", "SPILLOVER_REQUIRE_SLURM=1 make slurm-test"]


@pytest.mark.parametrize("succeeds", [True, False])
def test_local_runs_are_snakemake_without_a_limit_of_job_starts(monkeypatch, succeeds):
    taken = []

    def run(args, parser):
        taken.append((args.targets, args.cores, args.max_jobs_per_timespan))
        return succeeds

    monkeypatch.setattr(local_snakemake.cli, "args_to_api", run)
    with pytest.raises(SystemExit) as ended:
        local_snakemake.main(["all", "--cores", "2"])
    assert ended.value.code == int(not succeeds) and taken == [(["all"], 2, None)]
