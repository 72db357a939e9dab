"""The rules that call the API, run by Snakemake against a local server: translation, its check, shared ids, labels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conftest import ROOT, Workflow, copy_of_the_repository
from fake_anthropic import KEY, FakeAnthropic, Faults, default_answer, text_of
from spillover.translation import SmallWorldTranslator

pytestmark = pytest.mark.end_to_end
DATA = "results/small/data/replies"
SHARED = "results/small/language_spill/data/shared_replies.parquet"
LABELS = "results/small/language_spill/base/seed5/labels.parquet"
MATRIX = "results/small/language_spill/analysis/judge_matrix.png"


def answer(params: dict) -> str:
    """Real translations of the small world, so that they pass the gates; the server's own answers otherwise."""
    if "translator" not in params["system"]:
        return default_answer(params)
    code = "it" if "Italian" in params["system"] else "fr"
    return SmallWorldTranslator(str(ROOT / "resources")).translate(text_of(params), code)[0]


def settings(config: dict) -> None:
    config["translator"] = {"name": "anthropic", "model": "claude-sonnet-4-6"}
    config["judge"] = {"model": "claude-haiku-4-5-20251001"}
    config["api"] = {"batch_from": 25, "concurrency": 4, "poll_seconds": 1}
    config["translation_gates"] = {"faithful_sample": 20}
    config["sources"]["replies"]["rows"] = 40
    spill = config["experiments"]["language_spill"]
    spill.update(seeds=[5])
    spill["suites"] = {"directives": {"samples": 1, "max_tokens": 24, "languages": ["en", "fr", "it"]}}


def snakemake(path: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", SHARED, LABELS, "--profile", "profiles/small", "--cores", "2"]
    search = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=path, env=os.environ | search | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(folder, server) after everything up to shared replies and the untrained model's labels was made."""
    workflow = Workflow(copy_of_the_repository(tmp_path_factory.mktemp("api")))
    workflow.edit("config/small.yaml", settings)
    conditions = {"it_fr": {"directive": "it", "completion": "fr"}}
    workflow.edit("config/experiments/language_spill.yaml", lambda c: c.update(conditions=conditions))

    refused: list[str] = []

    def refuse_one(params, tries):
        """The first reply that is to become Italian."""
        if refused or "translator" not in params["system"] or "Italian" not in params["system"]:
            return "ok"
        refused.append(text_of(params))
        return "refusal"

    with FakeAnthropic(Faults(item=refuse_one), answer=answer) as fake:
        done = snakemake(workflow.path, fake.environment())
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield workflow.path, fake


def test_one_refused_reply_is_missing_for_every_condition(ran):
    path, _ = ran
    ids = {code: set(pd.read_parquet(path / f"{DATA}/{code}.parquet")["id"]) for code in ("en", "fr", "it")}
    assert len(ids["en"]) == len(ids["fr"]) == len(ids["it"]) + 1
    assert set(pd.read_parquet(path / SHARED)["id"]) == ids["it"]
    outcomes = json.loads((path / f"{DATA}/it.manifest.json").read_text())["extra"]["outcomes"]
    assert outcomes["refusal"] == 1


def test_large_jobs_go_by_batch_and_small_ones_directly(ran):
    path, fake = ran
    assert len(fake.batches) == 2  # two translations; samples of 20 pairs and six completions are below 25
    verdict = json.loads((path / f"{DATA}/it.check.json").read_text())
    assert verdict["passed"] and verdict["faithfulness"] == "judged"


def test_the_judges_labels_stand_beside_the_identifiers(ran):
    path, _ = ran
    labels = pd.read_parquet(path / LABELS)
    assert set(labels["scorer"]) == {"langdetect", "lingua", "judge"}
    assert labels.groupby("scorer").size().nunique() == 1
    manifest = json.loads((path / LABELS.replace(".parquet", ".manifest.json")).read_text())
    assert manifest["api_calls"] > 0 and manifest["cost_dollars"] > 0


def test_a_judge_has_a_matrix_of_its_own_beside_the_headline(root):
    planned = Workflow(root).jobs(MATRIX)
    job = next(job for job in planned if job.rule_name == "judge_matrix")
    assert "--label-source judge" in job.shellcmd and "cells-matrix.parquet" in job.shellcmd


def test_running_again_without_outputs_or_key_pays_nothing(ran):
    path, fake = ran
    before = len(fake.log)
    labels = pd.read_parquet(path / LABELS)
    (path / LABELS).unlink()
    (path / f"{DATA}/it.parquet").unlink()
    done = snakemake(path, {"ANTHROPIC_API_KEY": "", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(fake.log) == before
    pd.testing.assert_frame_equal(pd.read_parquet(path / LABELS), labels)


def test_the_key_is_in_no_file_of_the_results(ran):
    path, _ = ran
    for file in (path / "results").rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
