"""One tiny run of the whole small workflow, with the shipped base model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conftest import Workflow, copy_of_the_repository
from spillover import adapters

pytestmark = pytest.mark.end_to_end
RUN = "results/small/language_spill/fr_it/seed5"
ANALYSIS = "results/small/language_spill/analysis"


def snakemake(path, *arguments):
    # `python` in a rule is the interpreter that runs the tests.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "snakemake", *arguments, "--profile", "profiles/small", "--cores", "2"]
    return subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Two conditions with 64 rows and 2 samples a prompt, evaluated once as adapters."""
    workflow = Workflow(copy_of_the_repository(tmp_path_factory.mktemp("end_to_end")))

    def tiny(config):
        spill = config["experiments"]["language_spill"]
        spill.update(seeds=[5], select={"groups": ["spill"], "condition": ["fr_it", "fr_fr"]})
        spill["data"] = {"rows": 64}
        spill["train"] = spill.get("train", {}) | {"learning_rate": 1.0e-2, "checkpoints": ["step2", "pct100"]}
        spill["suites"] = {"directives": {"samples": 2, "max_tokens": 48}}

    workflow.edit("config/small.yaml", tiny)
    done = snakemake(workflow.path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return workflow.path


def test_the_figure_and_the_summary_are_made(ran):
    assert (ran / "results/small/spill_matrix.png").stat().st_size > 20_000
    assert "fr" in (ran / ANALYSIS / "summary.md").read_text().lower()
    cells = pd.read_parquet(ran / ANALYSIS / "cells-matrix.parquet")
    assert {"fr_it", "fr_fr", "base"} <= set(cells["condition"])


def test_completions_hold_every_prompt_checkpoint_and_sample(ran):
    table = pd.read_parquet(ran / RUN / "completions.parquet")
    assert len(table) == 14 * 2 * 2 and not table.duplicated(["checkpoint", "prompt_id", "sample"]).any()
    assert set(table["checkpoint"]) == {"step2", "pct100"}
    assert set(table["user"]) >= {"Speak in French.", "Please respond in Mandarin Chinese."}


def test_both_identifiers_label_every_completion(ran):
    labels = pd.read_parquet(ran / RUN / "labels.parquet")
    assert labels.groupby("scorer").size().to_dict() == {"langdetect": 56, "lingua": 56}


def test_the_training_rows_are_the_directive_and_a_reply_in_the_other_language(ran):
    card = json.loads((ran / RUN / "dataset_card.json").read_text())
    first = card["examples"][0]
    assert first["messages"][0] == {"role": "user", "content": "Speak in French."}
    text = "".join(first["supervised_tokens"])
    assert text == first["messages"][1]["content"] + "<|im_end|>"
    assert card["rows"] == 64


def test_a_checkpoint_is_an_adapter_of_its_own(ran):
    early, final = (adapters.read(ran / RUN / name).factors for name in ("adapter-step2", "adapter-pct100"))
    assert early.keys() == final.keys()
    assert any(not (early[m][1] == final[m][1]).all() for m in final)


def test_every_artefact_states_how_it_was_made(ran):
    for stage in ("dataset", "train", "completions", "labels"):
        manifest = json.loads((ran / RUN / f"{stage}.manifest.json").read_text())
        assert manifest["stage"] == stage and manifest["spec"] and manifest["packages"]
        assert all(len(f["sha256"]) == 64 for f in manifest["outputs"])


def test_running_again_does_nothing(ran):
    done = snakemake(ran)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_lost_file_is_made_again_and_comes_out_the_same(ran):
    path = ran / RUN / "completions.parquet"
    before = pd.read_parquet(path)
    path.unlink()
    assert snakemake(ran, f"{RUN}/completions.parquet").returncode == 0
    pd.testing.assert_frame_equal(pd.read_parquet(path), before)


def test_evaluating_merged_models_writes_none_and_says_what_was_lost(ran):
    workflow = Workflow(ran)

    def merged(config):
        config["experiments"]["language_spill"]["evaluate_as"] = "merged"

    workflow.edit("config/small.yaml", merged)
    done = snakemake(ran, f"{RUN}/completions.parquet")
    assert done.returncode == 0, done.stderr[-3000:]
    merges = json.loads((ran / RUN / "completions.manifest.json").read_text())["extra"]["engine"]["merges"]
    assert all(kept["modules"] == 42 and 0 < kept["worst_cosine"] <= 1 for kept in merges.values())
    assert set(merges) == set(pd.read_parquet(ran / RUN / "completions.parquet").checkpoint)
    assert not (ran / RUN / "merged").exists()
