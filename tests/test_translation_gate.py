"""Training waits for translations that passed their check, and for nothing else: plans, and a real run of the gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import SMALL_FIGURE, Workflow, copy_of_the_repository
from spillover import provenance
from spillover.files import Files

SMALL = "config/small.yaml"
REPLIES = "results/small/data/replies"
SHARED = "results/small/language_spill/data/shared_replies.parquet"
CLOSING = {"spill_cells": 1, "spill_matrix": 1, "headline_figure": 1}
OF_ALL_RUNS = {"labels": 8}
OF_TRAINED_RUNS = {"train": 7, "completions": 7, "labels": 7}


def another_gate(config):
    config["translation_gates"] = {"language_share": 0.9}


def a_judge(config):
    config["judge"] = {"model": "claude-haiku-4-5-20251001"}


def another_learning_rate(config):
    config["experiments"]["language_spill"].setdefault("train", {})["learning_rate"] = 5.0e-3


@pytest.mark.parametrize(
    ("changes", "behind"),
    [
        ([another_gate], {}),
        ([a_judge], OF_ALL_RUNS | CLOSING),
        ([another_gate, another_learning_rate], OF_TRAINED_RUNS | CLOSING),
        ([a_judge, another_learning_rate], OF_TRAINED_RUNS | OF_ALL_RUNS | CLOSING),
    ],
)
def test_a_pending_check_hides_no_job_and_causes_none(workflow, changes, behind):
    for change in changes:
        workflow.edit(SMALL, change)
    planned = Counter(job[0] for job in workflow.plan(SMALL_FIGURE))
    assert planned == {"translation_check": 6} | behind


def test_everything_asked_for_includes_the_checks(fresh):
    fresh.fill()
    fresh.edit(SMALL, another_gate)
    assert Counter(job[0] for job in fresh.plan()) == {"translation_check": 6}


def snakemake(path: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "snakemake", *arguments, "--profile", "profiles/small", "--cores", "2"]
    return subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Workflow:
    """One translation with a gate that it cannot pass; the shared replies were asked for."""
    workflow = Workflow(copy_of_the_repository(tmp_path_factory.mktemp("gate")))

    def one_language(config):
        config["sources"]["replies"]["rows"] = 40
        config["translation_gates"] = {"length_ratio": {"Latin": {"median": [5, 6], "range": [5, 6]}}}
        suites = {"directives": {"samples": 1, "max_tokens": 24, "languages": ["en", "fr"]}}
        config["experiments"]["language_spill"] |= {"suites": suites}

    workflow.edit(SMALL, one_language)
    conditions = {"fr_fr": {"directive": "fr", "completion": "fr"}}
    workflow.edit("config/experiments/language_spill.yaml", lambda c: c.update(conditions=conditions))
    done = snakemake(workflow.path, SHARED)
    assert done.returncode == 1, done.stderr[-3000:]
    return workflow


@pytest.mark.end_to_end
def test_a_failed_check_stops_what_would_train_on_it(stopped):
    assert "is not good enough to train on" in (stopped.path / f"{REPLIES}/fr.check.log").read_text()
    assert (stopped.path / f"{REPLIES}/fr.parquet").exists() and not (stopped.path / SHARED).exists()


@pytest.mark.end_to_end
def test_a_translation_that_comes_out_the_same_is_no_reason_for_anything(stopped):
    path = stopped.path
    stopped.edit(SMALL, lambda config: config.pop("translation_gates"))
    assert snakemake(path, SHARED).returncode == 0
    made = (path / SHARED).stat().st_mtime_ns
    code = path / "workflow/scripts/spillover/translation.py"
    code.write_text(code.read_text() + "\n# a comment\n")
    assert {job[0] for job in stopped.plan(SHARED)} == {"translate", "shared_replies"}
    done = snakemake(path, SHARED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (path / SHARED).stat().st_mtime_ns == made and stopped.plan(SHARED) == {}


@pytest.mark.end_to_end
def test_a_translation_that_changed_is_checked_before_it_is_shared(stopped):
    path = stopped.path
    stopped.edit(SMALL, lambda config: config.pop("translation_gates", None))
    assert snakemake(path, SHARED).returncode == 0  # whichever of these tests ran before, or none in this process
    stopped.edit(SMALL, lambda config: config["sources"]["replies"].update(rows=30))
    done = snakemake(path, SHARED)
    assert done.returncode == 0, done.stderr[-3000:]
    order = [f"{REPLIES}/fr.parquet", f"{REPLIES}/fr.check.json", SHARED]
    stamps = [(path / file).stat().st_mtime_ns for file in order]
    assert stamps == sorted(stamps)


def test_a_check_holds_for_the_content_it_read_whatever_the_times_say(tmp_path):
    of = SimpleNamespace(
        root=str(tmp_path), translation_check=lambda code: f"{tmp_path}/data/replies/{code}.check.json"
    )
    folder = tmp_path / "data/replies"
    folder.mkdir(parents=True)
    translation, verdict = folder / "fr.parquet", folder / "fr.check.json"
    translation.write_text("bonjour")
    assert not Files.has_passed(of, "fr")
    verdict.write_text("{}")
    os.utime(verdict, ns=(1, 1))
    assert not Files.has_passed(of, "fr"), "older, and nothing says what it read"
    read = {"inputs": [{"path": "fr.parquet", "sha256": provenance.file_digest(translation)}]}
    (folder / "fr.check.manifest.json").write_text(json.dumps(read))
    assert Files.has_passed(of, "fr"), "made anew with the same content"
    translation.write_text("bonsoir")
    assert not Files.has_passed(of, "fr")
