"""The judge and the translator under faults of every kind, killed three times: nothing lost, doubled or mixed up."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys

import pandas as pd
import pytest

from conftest import ROOT
from fake_anthropic import KEY, WORDS, FakeAnthropic, Faults, text_of

CODES = {"English": "en", "Spanish": "es", "French": "fr", "Italian": "it", "German": "de"}
ONCE = ("truncated", "overloaded", "expired", "canceled")  # gone at the second try
FOR_GOOD = ("refusal", "schema", "invalid")
ROWS = 2000


def fault_of(text: str) -> str:
    """One text in five has a fault, by a hash of the text: the test can tell which without asking the server."""
    draw = random.Random(text)
    return draw.choice(ONCE + FOR_GOOD) if draw.random() < 0.2 else "ok"


def fate(params: dict, tries: int) -> str:
    fault = fault_of(text_of(params))
    return "ok" if fault in ONCE and tries > 1 else fault


def texts(count: int) -> list[tuple[str, str]]:
    """(language code, text) with known languages; every tenth text repeats an earlier one."""
    rng, rows = random.Random(5), []
    for i in range(count):
        if i % 10 == 9:
            rows.append(rows[rng.randrange(len(rows))])
        else:
            language = rng.choice(list(WORDS))
            rows.append((CODES[language], f"{WORDS[language]} {WORDS[language]} {i}"))
    return rows


def run_killed(server: FakeAnthropic, command: list[str], kills: int, seed: int) -> str:
    """Run a program to its end, killing it `kills` times at random requests; returns what all its processes printed.

    The first kill comes at the worst of moments: the service has taken a batch and its id is still under way.
    """
    rng, printed = random.Random(seed), ""
    for attempt in range(kills + 1):
        moments = ("batch",) if attempt == 0 else ("batch", "poll", "results")
        countdown = [rng.randint(1, 4 if attempt == 0 else 9)] if attempt < kills else [10**9]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **server.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

        def event(moment, process=process, countdown=countdown, moments=moments):
            countdown[0] -= moment in moments
            if countdown[0] == 0:
                countdown[0] = -1
                process.send_signal(signal.SIGKILL)

        server.on_event = event
        output, _ = process.communicate(timeout=300)
        printed += output.decode()
        expected = -signal.SIGKILL if attempt < kills else 0
        assert process.returncode == expected, printed
    return printed


def program(script: str, *flags: str) -> list[str]:
    # a batch that a busy machine takes longer to accept would be sent, and paid for, again
    travel = "--poll-seconds 0.05 --timeout-seconds 3 --batch-size 400 --attempts 6"
    return [sys.executable, f"workflow/scripts/{script}.py", *travel.split(), *flags]


def server() -> FakeAnthropic:
    kinds = ("429", "500", "503", "504", "529", "reset", "slow", "reset_after", "cut_body")
    return FakeAnthropic(Faults(http_share=0.2, http_kinds=kinds, item=fate), polls=2, seed=3)


def judge_command(folder, rows) -> list[str]:
    table = pd.DataFrame(rows, columns=["cell", "text"])
    fixed = {"run": "language_spill/fr_it", "seed": 1, "checkpoint": "final", "suite": "directives", "item": "speak_in"}
    table.assign(**fixed, prompt_id="p", user="Speak in French.", sample=range(len(table))).to_parquet(
        folder / "completions.parquet"
    )
    spec = {"judge": {"model": "claude-haiku-4-5-20251001", "max_error_rate": 0.2, "thinking": "disabled"}}
    flags = ["--completions", folder / "completions.parquet", "--scorers", "judge", "--languages", *CODES.values()]
    flags += ["--spec", json.dumps(spec), "--out", folder / "labels.parquet", "--manifest", folder / "labels.json"]
    return program("label_completions", *map(str, flags))


def translate_command(folder, rows) -> list[str]:
    table = pd.DataFrame({"id": [f"r{i}" for i in range(len(rows))], "language": "en", "text": [t for _, t in rows]})
    table.to_parquet(folder / "en.parquet")
    spec = {"translator": {"name": "anthropic", "model": "claude-sonnet-4-6", "thinking": "disabled"}}
    spec["translator"]["max_error_rate"] = 0.2
    flags = ["--replies", folder / "en.parquet", "--language", "it", "--spec", json.dumps(spec)]
    flags += ["--out", folder / "it.parquet", "--manifest", folder / "it.json"]
    return program("translate", *map(str, flags))


def check_labels(folder, rows, fake) -> None:
    labels = pd.read_parquet(folder / "labels.parquet")
    assert len(labels) == ROWS
    for (code, text), row in zip(rows, labels.to_dict("records"), strict=True):
        fault = fault_of(text)
        expected = {"refusal": "refusal", "schema": "schema", "invalid": "transport"}.get(fault, "ok")
        assert row["outcome"] == expected, (text, fault, row)
        assert row["label"] == code if expected == "ok" else pd.isna(row["label"])
    manifest = json.loads((folder / "labels.json").read_text())
    assert manifest["api_calls"] == sum(fake.billed.values())
    assert sum(manifest["extra"]["judge"]["outcomes"].values()) == ROWS


def check_translations(folder, rows, fake) -> None:
    table = pd.read_parquet(folder / "it.parquet").set_index("id")["text"]
    dropped = json.loads((folder / "it.json").read_text())["extra"]["dropped"]
    for i, (_, text) in enumerate(rows):
        fault = fault_of(text)
        if fault in FOR_GOOD:
            assert f"r{i}" in dropped[{"invalid": "transport"}.get(fault, fault)]
        else:
            assert table[f"r{i}"] == text.upper()  # what the server makes of a text that is to be translated
    assert len(table) + sum(map(len, dropped.values())) == ROWS


JOBS = {"judge": (judge_command, check_labels, 11), "translator": (translate_command, check_translations, 12)}


@pytest.mark.parametrize("job", JOBS)
def test_2000_requests_survive_faults_and_three_kills(job, tmp_path):
    make, check, seed = JOBS[job]
    rows = texts(ROWS)
    with server() as fake:
        printed = run_killed(fake, make(tmp_path, rows), kills=3, seed=seed)
        check(tmp_path, rows, fake)
        asked, paid = len(fake.bodies()), sum(fake.billed.values())
        run_killed(fake, make(tmp_path, rows), kills=0, seed=0)
        again = {text_of(params) for params in fake.bodies()[asked:]}
        assert again == {text for _, text in rows if fault_of(text) == "invalid"}  # a rejection is free, and may pass
        assert sum(fake.billed.values()) == paid
        check(tmp_path, rows, fake)
    assert set(fake.billed.values()) == {1}  # every distinct question was paid for once
    written = [p.read_text() for p in tmp_path.rglob("*") if p.suffix in (".json", ".jsonl")]
    assert KEY not in printed + "".join(written)
