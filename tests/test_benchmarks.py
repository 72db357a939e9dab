"""Every benchmark starts and says how it is run, and none measures where it cannot."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*/run.py"))


def ask(path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, path, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_every_benchmark_starts_and_is_documented():
    readme = (ROOT / "benchmarks/README.md").read_text()
    asked = {path: ask(path, "--help") for path in BENCHMARKS}
    for path, process in asked.items():
        told, errors = process.communicate()
        assert process.returncode == 0, f"{path}: {errors[-2000:]}"
        assert "--out" in told
        assert f"{path.relative_to(ROOT)} " in readme


def test_the_benchmark_of_extraction_runs_on_a_toy_shape(tmp_path):
    process = ask(
        ROOT / "benchmarks/extraction/run.py", "--smoke", "--prompts", "personas", "--rounds", "1", "--out", tmp_path
    )
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    assert "nothing here is a measurement" in (tmp_path / "RESULTS.md").read_text()
