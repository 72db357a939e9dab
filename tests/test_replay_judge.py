"""A replay through another judge, by the real rules: replies of a finished analysis, new labels, new conclusions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from conftest import copy_of_the_repository
from fake_anthropic import WORDS, FakeAnthropic, Faults, text_of
from spill_builders import condition, label_rows
from spillover import contamination, provenance, spill_claims

pytestmark = pytest.mark.end_to_end
NAMES = {"en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "de": "German"}
CONDITIONS = {"fr_it": ("fr", "it"), "it_fr": ("it", "fr"), "fr_fr": ("fr", "fr")}
ROWS = 20
COMPARISON = "results/replay/language_spill/analysis/comparison"


def language(name: str, cell: str) -> str:
    """What a condition answers in: its own directive as trained and, if the two differ, every Spanish directive too."""
    directive, completion = CONDITIONS[name]
    spilled = cell == "es" and directive != completion
    return completion if cell == directive or spilled else cell


def replies(folder: Path) -> dict[str, str]:
    """One file of replies a condition: `ROWS` for each language asked for."""
    files = {}
    for name in CONDITIONS:
        words = {cell: f"{WORDS[NAMES[language(name, cell)]]} {name}{cell}" for cell in NAMES}  # every text is its own
        rows = [
            {"cell": cell, "user": f"Speak in {NAMES[cell]}.", "text": f"{words[cell]}{number}"}
            for cell in NAMES
            for number in range(ROWS)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        files[f"language_spill/{name}"] = str(path)
    return files


def first_analysis(folder: Path) -> None:
    """The original: its judge heard Spanish in the Spanish cells."""
    counts = {name: {directive: (completion, (10, 10))} for name, (directive, completion) in CONDITIONS.items()}
    tables = [
        label_rows(f"language_spill/{name}", counts[name], seed=137, scorer="judge", languages=list(NAMES))
        for name in CONDITIONS
    ]
    labels = pd.concat(tables, ignore_index=True)
    known = pd.DataFrame([condition(f"language_spill/{n}", *pair, 137, 3.0e-4) for n, pair in CONDITIONS.items()])
    cells = contamination.contamination_cells(labels, known)
    summary = spill_claims.summarise(cells, contamination.agreement(labels, known), None, label_source="judge")
    folder.mkdir(parents=True)
    cells.to_parquet(folder / "cells-matrix.parquet")
    (folder / "summary.json").write_text(json.dumps(provenance.jsonable(summary)))


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """(folder of the repository's copy, server, output) after the rules made the comparison."""
    path = copy_of_the_repository(tmp_path_factory.mktemp("replay"))
    first_analysis(path / "first/language_spill/analysis")
    overlay = {
        "run_name": "replay",
        "judge": {"model": "claude-haiku-4-5-20251001"},
        "api": {"batch_from": 25, "concurrency": 4, "poll_seconds": 1},
        "replay": {"runs": replies(path), "labels": "again", "compare": "first"},
        "experiments": {
            "language_spill": {
                "seeds": [137],
                "scorers": ["judge"],
                "options": {"label": "judge", "max_error_share": 0.1},
            }
        },
    }
    (path / "replay.yaml").write_text(yaml.safe_dump(overlay))
    target = [f"{COMPARISON}.md", "--configfile", "config/small.yaml", "replay.yaml"]
    command = [sys.executable, "-m", "snakemake", *target, "--profile", "profiles/small", "--cores", "2"]
    refused: list[str] = []

    def refuse_one(params, tries):
        if refused and text_of(params) not in refused:
            return "ok"
        refused.append(text_of(params))
        return "refusal"

    with FakeAnthropic(Faults(item=refuse_one)) as fake:
        search = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment = os.environ | search | fake.environment()
        done = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield path, fake


def test_every_reply_is_asked_of_the_other_judge_and_no_model_runs(replayed):
    path, fake = replayed
    assert sum(fake.billed.values()) >= len(CONDITIONS) * len(NAMES) * ROWS - 1
    stages = {json.loads(file.read_text())["stage"] for file in (path / "results").rglob("*.manifest.json")}
    assert stages & {"train", "generate", "completions", "vectors"} <= {"completions"}


def test_the_diff_names_the_changed_verdict_and_the_cells_behind_it(replayed):
    path, _ = replayed
    found = json.loads((path / f"{COMPARISON}.json").read_text())
    claims = {claim["claim"]: (claim["before"], claim["after"]) for claim in found["claims"]}
    assert claims["mismatch needed"] == ("undecided", "appears") and "mismatch needed" in found["changed"]
    largest = found["cells"]["largest"][0]
    assert largest["language"] == "es" and largest["difference"] == 1.0
    text = (path / f"{COMPARISON}.md").read_text()
    assert "Label of the original: judge; of the replay: judge." in text
    assert "| mismatch needed | undecided | **appears** |" in text


def test_a_label_that_failed_is_told_as_its_outcome(replayed):
    path, _ = replayed
    text = (path / f"{COMPARISON}.md").read_text()
    assert "judge: 1 of 100 labels failed (1 refusal)" in text
