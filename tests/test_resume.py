"""A training run that is killed goes on where it was and ends in the same adapter, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT
from spillover import data, resume
from spillover.expansion import validated

TRAIN = validated(
    {
        "learning_rate": 1e-3, "rank": 4, "alpha": 8, "batch_size": 4, "steps": 12, "dropout": 0.1,
        "checkpoints": ["step2", "step9"],
    },
    "experiment", "a test", "train",
)  # fmt: skip
SPEC = {"train": TRAIN, "seed": 3, "parent": {}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Sixteen chats of unequal lengths."""
    rows = [
        data.row(
            f"r{i}",
            [{"role": "user", "content": "Speak in French."}, {"role": "assistant", "content": "le chat dort " * i}],
            "replies",
        )
        for i in range(1, 17)
    ]
    path = tmp_path_factory.mktemp("data") / "dataset.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=data.SCHEMA), path)
    return path


def flags(dataset: Path, run: Path, spec: dict = SPEC) -> list[str]:
    return [
        "--spec", json.dumps(spec), "--dataset", str(dataset), "--base", str(ROOT / "resources/small_world/base"),
        "--name", "small", "--resume-every", "0", "--adapter", str(run / "adapter"),
        "--checkpoints", str(run / "checkpoints.safetensors"), "--train-log", str(run / "train_log.jsonl"),
        "--manifest", str(run / "train.manifest.json"),
    ]  # fmt: skip


def run_program(dataset: Path, run: Path, program: Path, *more: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(program), *flags(dataset, run), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train_whole(dataset: Path, run: Path) -> None:
    done = run_program(dataset, run, ROOT / "workflow/scripts/train.py")
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_killed_run_ends_in_the_same_adapter(dataset, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_whole(dataset, whole)
    died = run_program(dataset, killed, ROOT / "tests/killed_train.py", KILLED_AT="4")
    assert died.returncode == -signal.SIGKILL, died.stdout[-3000:]
    assert [path.name for path in killed.glob(".resume/*/step*")] == ["step4"]
    assert not (killed / "adapter").exists() and not (killed / "train_log.jsonl").exists()
    train_whole(dataset, killed)

    manifest = json.loads((killed / "train.manifest.json").read_text())
    assert manifest["extra"]["resumed_at"] == 4
    for name in ("adapter/adapter_model.safetensors", "checkpoints.safetensors"):
        expected, found = load_file(whole / name), load_file(killed / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    logs = [[json.loads(line) for line in (run / "train_log.jsonl").open()] for run in (whole, killed)]
    assert [(r["step"], r["loss"], r["tokens"]) for r in logs[0]] == [
        (r["step"], r["loss"], r["tokens"]) for r in logs[1]
    ]
    assert not (killed / ".resume").exists() and not (whole / ".resume").exists()


def test_a_budget_lowered_after_a_kill_holds_for_the_rest(dataset, tmp_path):
    """As after a kernel that ends a process for its memory, which no exception announces."""
    died = run_program(dataset, tmp_path, ROOT / "tests/killed_train.py", KILLED_AT="4")
    assert died.returncode == -signal.SIGKILL, died.stdout[-3000:]
    done = run_program(dataset, tmp_path, ROOT / "workflow/scripts/train.py", "--token-budget", "64")
    assert done.returncode == 0, done.stdout[-3000:]
    told = json.loads((tmp_path / "train.manifest.json").read_text())["extra"]
    assert (told["resumed_at"], told["token_budget"]) == (4, 64)


@pytest.fixture
def store(tmp_path):
    return resume.Store(tmp_path / ".resume/key", 0)


def state(step: int) -> resume.State:
    return resume.State(step, 100, [{"step": step}], {"value/a": torch.full((2,), float(step))})


def test_the_newest_complete_state_counts(store):
    assert store.load() is None
    store.write(state(1))
    store.write(state(2))
    (store.folder / "unfinished-step3").mkdir()
    loaded = store.load()
    assert loaded.step == 2 and loaded.records == [{"step": 2}]
    assert loaded.tensors["value/a"].tolist() == [2.0, 2.0]
    assert len(list(store.folder.glob("step*"))) == 1


def test_states_are_written_no_more_often_than_asked(tmp_path):
    assert resume.Store(tmp_path, 0).due() and not resume.Store(tmp_path, 1000).due()


def test_a_state_is_found_only_under_the_same_spec_data_parent_and_code(tmp_path):
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "model.safetensors").write_bytes(np.arange(10_000_000, dtype=np.int32).tobytes())
    files = [tmp_path / "rows", tmp_path / "code.py"]
    for path in files:
        path.write_text("first")

    def key(spec=SPEC, dtype="float32"):
        return resume.key(spec, files[0], str(parent), [files[1]], {"dtype": dtype})

    first = key()
    assert first == key()
    found = {first, key(SPEC | {"seed": 4}), key(dtype="bfloat16")}
    for path in files:
        path.write_text("second")
        found.add(key())
    (parent / "model.safetensors").write_bytes(np.arange(1, 10_000_001, dtype=np.int32).tobytes())
    assert len(found | {key()}) == 6
