"""Manifests and atomic outputs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy
import pytest

from conftest import ROOT
from spillover import provenance
from spillover.provenance import (
    atomic_path,
    jsonable,
    read_manifest,
    spec_digest,
    start_clock,
    write_manifest,
)


def test_an_atomic_output_appears_only_when_it_is_complete(tmp_path):
    out = tmp_path / "new" / "table.parquet"
    with atomic_path(out) as temporary:
        temporary.write_text("half")
        assert not out.exists()
        assert temporary.parent == out.parent  # os.replace is atomic within one file system only
        assert temporary.suffix == ".parquet"
        temporary.write_text("whole")
    assert out.read_text() == "whole"
    assert list(out.parent.iterdir()) == [out]


def test_a_failed_output_leaves_the_old_one_and_no_rubbish(tmp_path):
    out = tmp_path / "figure.png"
    out.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(out) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "never.json"):
        pass


def test_the_digest_of_a_spec_ignores_the_order_of_keys_and_sees_every_value():
    spec = {"train": {"learning_rate": 0.001, "rank": 32}, "seed": 42}
    assert spec_digest(spec) == spec_digest({"seed": 42, "train": {"rank": 32, "learning_rate": 1e-3}})
    assert spec_digest(spec) != spec_digest({"train": {"learning_rate": 0.001, "rank": 16}, "seed": 42})


@dataclasses.dataclass
class Point:
    label: str
    where: Path


@pytest.mark.parametrize(
    "value, plain",
    [
        (numpy.float32(0.5), 0.5),
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (Path("a") / "b", "a/b"),
        ({"z", "a"}, ["a", "z"]),
        ((1, None), [1, None]),
        (float("nan"), None),
        (Point("x", Path("p")), {"label": "x", "where": "p"}),
        ({1: "one"}, {"1": "one"}),
    ],
)
def test_the_serialiser_turns_everything_usual_into_plain_data(value, plain):
    assert jsonable(value) == plain
    json.dumps(jsonable(value), allow_nan=False)


def test_the_serialiser_refuses_what_nobody_could_read_back():
    with pytest.raises(TypeError, match="object has no JSON form"):
        jsonable({"x": object()})


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_TOKEN", "do-not-tell-anyone")
    Path("in.txt").write_text("abc")
    Path("merged").mkdir()
    Path("merged/weights").write_text("w")
    Path("out.txt").write_text("result")
    return write_manifest(
        "run/train.manifest.json",
        stage="train",
        spec={"seed": 7, "train": {"learning_rate": numpy.float64(0.001)}, "stages": [{"data_seed": 3}]},
        inputs=["in.txt", tmp_path / "merged"],
        outputs=["out.txt"],
        seconds=start_clock(),
        extra={"gpu_seconds": 12.5, "tokens": 100, "device": "cuda"},
    )


def test_a_manifest_reads_back_as_it_was_written(written):
    assert read_manifest("run/train.manifest.json") == written


def test_a_manifest_tells_settings_seeds_and_their_digest(written):
    assert written["spec"]["train"] == {"learning_rate": 0.001}
    assert written["spec_digest"] == spec_digest(written["spec"])
    assert written["seeds"] == {"seed": 7, "stages.0.data_seed": 3}


def test_a_manifest_lists_files_by_content(written):
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc", FIPS 180-2
    assert written["inputs"][0] == {"path": "in.txt", "bytes": 3, "sha256": expected}
    assert written["inputs"][1]["path"] == "merged"
    assert written["inputs"][1]["bytes"] == 1
    Path("merged/weights").write_text("v")
    assert provenance._file_record("merged")["sha256"] != written["inputs"][1]["sha256"]


def test_a_manifest_refuses_an_output_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.txt: named in a manifest but does not exist"):
        write_manifest(
            tmp_path / "m.json", stage="x", spec={}, inputs=[], outputs=[tmp_path / "absent.txt"], seconds=0.0
        )


def test_a_manifest_tells_time_memory_and_cost(written):
    assert datetime.fromisoformat(written["started"]).utcoffset().total_seconds() == 0
    assert 0 <= written["seconds"] < 10
    assert written["cpu_seconds"] > 0
    assert written["peak_rss_mb"] > 10
    assert (written["gpu_seconds"], written["tokens"]) == (12.5, 100)
    assert written["extra"] == {"device": "cuda"}


def test_a_manifest_tells_code_packages_and_hardware_but_no_names_or_secrets(written):
    assert "workflow/scripts/spillover/provenance.py" in written["code"]["files"]
    assert written["packages"]["numpy"] == numpy.__version__
    assert written["python"] == ".".join(map(str, sys.version_info[:3]))
    assert written["hardware"]["cores"] >= 1
    text = Path("run/train.manifest.json").read_text()
    assert "do-not-tell-anyone" not in text
    assert socket.gethostname() not in text


def test_the_code_digest_changes_with_a_loaded_module_only(tmp_path):
    def digest(*modules: str) -> str:
        command = "import spillover.provenance as p, json; print(p._code()['digest'])"
        command = "".join(f"import {module}; " for module in modules) + command
        environment = {"PYTHONPATH": str(tmp_path / "workflow/scripts"), "PATH": ""}
        return subprocess.run(
            [sys.executable, "-c", command], env=environment, check=True, capture_output=True, text=True
        ).stdout

    package = tmp_path / "workflow/scripts/spillover"
    package.mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "provenance.py"):
        shutil.copy(ROOT / "workflow/scripts/spillover" / name, package)
    (package / "used.py").write_text("x = 1\n")
    (package / "unused.py").write_text("x = 1\n")
    before = digest("spillover.used")
    (package / "unused.py").write_text("x = 2\n")
    assert digest("spillover.used") == before
    (package / "used.py").write_text("x = 2\n")
    assert digest("spillover.used") != before


def test_provenance_loads_no_heavy_package():
    command = "import sys, spillover.provenance; print({'torch', 'numpy', 'transformers'} & sys.modules.keys())"
    reply = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT / "workflow/scripts",
        check=True,
        capture_output=True,
        text=True,
    )
    assert reply.stdout.strip() == "set()"


def test_outside_a_git_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance._git() == {"commit": None, "dirty": None}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_commit_of_a_surrounding_repository_is_not_taken_for_ours(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "inner")
    assert provenance._git() == {"commit": None, "dirty": None}


def test_a_broken_manifest_is_named(tmp_path):
    (tmp_path / "x.manifest.json").write_text("{ half")
    with pytest.raises(ValueError, match="x.manifest.json: is no readable manifest"):
        read_manifest(tmp_path / "x.manifest.json")
