"""The small language_spill through profiles/slurm, as it ships, on a real one-node Slurm: `make slurm-test`.

Every job is a real submission. Two things are added around the real programs: `sbatch` and the interpreters note how
they were called, and one training job is made to fail once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from conftest import ROOT, SMALL_FIGURE, Workflow, copy_of_the_repository
from slurm.cluster import CONFIGURATION, Cluster, ClusterError, find, is_running, missing_programs

pytestmark = pytest.mark.slurm
LOCAL = {"all", "headline_figure"}
ON_GPU = {"train", "completions"}
UNLUCKY = "language_spill/fr_fr/seed5"
LIMIT_SECONDS = 1800
# Waits shorter than the profile's, which are meant for hours of work: nothing else of it is changed.
IMPATIENT = ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"]

SBATCH = """\
#!/bin/sh
# a file a call: Snakemake submits from several threads, whose lines would mix in one
for word in "$@"; do printf '%s\\037' "$word"; done > "{notes}/calls/$(date +%s%N)-$$"
exec {sbatch} "$@"
"""
INTERPRETER = """\
#!/bin/sh
case "$1" in workflow/scripts/*)
    printf '%s\\t%s\\t%s\\t%s\\t%s\\n' \\
        "$1" "${{SLURM_JOB_ID:-}}" "${{CUDA_VISIBLE_DEVICES:-}}" "${{OMP_NUM_THREADS:-}}" "$0" >> {notes}/programs ;;
esac
case "$*" in *train.py*{unlucky}/adapter*)
    if mkdir {notes}/failed 2> /dev/null; then echo "out of luck once"; exit 1; fi ;;
esac
exec {python} "$@"
"""


def require_slurm() -> None:
    """Skip without Slurm; fail where it must be there, as in continuous integration, which installs it."""
    if missing := missing_programs():
        reason = f"Slurm is not installed here ({', '.join(missing)}; Debian: apt-get install slurm-wlm munge)"
        (pytest.fail if os.environ.get("SPILLOVER_REQUIRE_SLURM") else pytest.skip)(reason)


@pytest.fixture(scope="module")
def cluster():
    """A running cluster in a folder of its own, taken down whatever happens."""
    require_slurm()
    folder = Path(tempfile.mkdtemp(prefix="spillover-slurm-"))  # a short path: sockets allow about 100 characters
    try:
        with Cluster(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def tiny(config: dict) -> None:
    """Two conditions with few rows and samples; every training and generation asks for a GPU."""
    config["resources"]["gpu"] = 1
    spill = config["experiments"]["language_spill"]
    spill.update(seeds=[5], select={"groups": ["spill"], "condition": ["fr_it", "fr_fr"]})
    spill["data"] = {"rows": 32}
    spill["train"] = spill.get("train", {}) | {"learning_rate": 1.0e-2}
    spill["suites"] = {"directives": {"samples": 2, "max_tokens": 48}}


@pytest.fixture(scope="module")
def ran(cluster, tmp_path_factory):
    """(the copy in which it ran, the planned non-local jobs, the folder of notes)."""
    workflow = Workflow(copy_of_the_repository(tmp_path_factory.mktemp("slurm")))
    workflow.edit("config/small.yaml", tiny)
    planned = [job for job in workflow.jobs(SMALL_FIGURE) if job.rule_name not in LOCAL]
    notes = tmp_path_factory.mktemp("notes")
    interpreter = INTERPRETER.format(notes=notes, unlucky=UNLUCKY, python=sys.executable)
    program(notes / "bin/python", interpreter)
    program(workflow.path / ".venv-vllm/bin/python", interpreter)  # the profile sends generation there
    (notes / "calls").mkdir()
    program(notes / "bin/sbatch", SBATCH.format(notes=notes, sbatch=find("sbatch")))

    environment = os.environ | cluster.variables | {"OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(notes / "bin"), environment["PATH"]])
    command = [sys.executable, "-m", "snakemake", SMALL_FIGURE, "--profile", "profiles/slurm"]
    command += ["--configfile", "config/small.yaml", "--jobs", "2", *IMPATIENT]
    done = subprocess.run(
        command, cwd=workflow.path, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:] + cluster.logs()
    return workflow.path, planned, notes


@pytest.fixture(scope="module")
def submissions(ran) -> list[dict[str, str]]:
    """The options of every sbatch, in order; `rule` and `job` come from the comment."""
    found = []
    for call in sorted((ran[2] / "calls").iterdir()):
        text = call.read_text().replace("\037", " ")
        named = re.search(r"--comment rule_(\w+?)(?:_wildcards_(\S*))? ", text)
        option = {"rule": named[1], "job": named[2] or "", "text": text}
        for name, pattern in {"mem": r"--mem (\d+)", "minutes": r" -t (\d+)", "gpus": r"--gpus=(\S+)"}.items():
            value = re.search(pattern, text)
            option[name] = value[1] if value else ""
        option["partition"] = re.search(r" -p (\S+)", text)[1].strip("'")
        found.append(option)
    return found


@pytest.fixture(scope="module")
def programs(ran) -> pd.DataFrame:
    """One row per program that started: program, job, devices, threads, interpreter."""
    columns = ["program", "job", "devices", "threads", "interpreter"]
    return pd.read_csv(ran[2] / "programs", sep="\t", names=columns, dtype=str, keep_default_na=False)


def test_the_spill_matrix_is_made(ran):
    assert (ran[0] / SMALL_FIGURE).stat().st_size > 20_000
    cells = pd.read_parquet(ran[0] / "results/small/language_spill/analysis/cells-matrix.parquet")
    assert {"fr_it", "fr_fr", "base"} <= set(cells["condition"])


def test_every_job_that_is_not_local_goes_through_sbatch(ran, submissions, programs):
    expected = Counter(job.rule_name for job in ran[1]) + Counter(["train"])  # and the failed attempt
    assert Counter(one["rule"] for one in submissions) == expected
    assert (programs["job"] != "").all() and programs["job"].nunique() == len(programs) == expected.total()


def test_a_failed_job_is_submitted_anew_with_more_memory_and_time(ran, submissions):
    attempts = [one for one in submissions if one["rule"] == "train" and "fr_fr" in one["job"]]
    assert [one["mem"] for one in attempts] == ["32000", "64000"]
    assert [one["minutes"] for one in attempts] == ["240", "480"]
    others = [one["mem"] for one in submissions if one["rule"] == "train" and "fr_it" in one["job"]]
    assert others == ["32000"]
    manifest = json.loads((ran[0] / f"results/small/{UNLUCKY}/train.manifest.json").read_text())
    assert manifest["stage"] == "train"


def test_jobs_that_ask_for_a_gpu_see_one_and_the_others_none(submissions, programs):
    assert {one["rule"] for one in submissions if one["gpus"]} == ON_GPU
    assert {one["gpus"] for one in submissions if one["rule"] in ON_GPU} == {"1"}
    on_gpu = programs["program"].str.contains("train.py|generate.py")
    assert programs[on_gpu]["devices"].str.fullmatch(r"\d").all()
    assert (programs[~on_gpu]["devices"] == "").all()


def test_gpu_jobs_go_to_the_gpu_partition_and_the_others_to_the_cpu_partition(submissions):
    assert {(one["rule"] in ON_GPU, one["partition"]) for one in submissions} == {(True, "gpu"), (False, "cpu")}


def test_generation_runs_with_the_interpreter_of_the_profile_one_thread_a_job(programs):
    generation = programs["program"].str.endswith("generate.py")
    assert (programs[generation]["interpreter"].str.endswith(".venv-vllm/bin/python")).all()
    assert not programs[~generation]["interpreter"].str.contains("venv-vllm").any()
    assert (programs["threads"] == "1").all()


def test_nothing_is_left_to_do(cluster, ran):
    environment = os.environ | cluster.variables
    command = [sys.executable, "-m", "snakemake", SMALL_FIGURE, "--profile", "profiles/slurm"]
    command += ["--configfile", "config/small.yaml", "--dry-run"]
    done = subprocess.run(command, cwd=ran[0], env=environment, capture_output=True, text=True)
    assert "Nothing to be done" in done.stdout + done.stderr
    assert cluster.command("squeue", "-h") == ""


def test_a_job_on_two_gpus_gets_both_on_one_node(cluster, tmp_path):
    shutil.copytree(ROOT / "profiles/slurm", tmp_path / "profiles/slurm")
    rule = 'rule train_full:\n    output: "seen"\n    resources: gpu=2\n'
    rule += '    shell: "scontrol show job $SLURM_JOB_ID > {output}; echo devices $CUDA_VISIBLE_DEVICES >> {output}"\n'
    (tmp_path / "Snakefile").write_text(rule)
    command = [sys.executable, "-m", "snakemake", "seen", "--profile", "profiles/slurm", *IMPATIENT]
    environment = os.environ | cluster.variables
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = (tmp_path / "seen").read_text()
    assert "devices 0,1\n" in seen and "NumNodes=1 NumCPUs=8" in seen and "Partition=gpu" in seen


def test_a_cluster_runs_beside_another_and_leaves_nothing_behind(cluster, tmp_path):
    before = {path: path.stat().st_mtime for path in Path("/etc/slurm").glob("*")}
    with Cluster(tmp_path) as second:
        assert (
            second.command("srun", "-p", "gpu", "-n1", "--gpus=h200:2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
            == "0,1"
        )
        daemons = daemon_pids(tmp_path)
        assert len(daemons) == 3 and all(map(is_running, daemons))
    assert not any(map(is_running, daemons))
    assert {path: path.stat().st_mtime for path in Path("/etc/slurm").glob("*")} == before
    assert "idle" in cluster.command("sinfo", "-h", "-o", "%T")


def test_a_cluster_that_cannot_start_says_why_and_is_taken_down(tmp_path, monkeypatch):
    require_slurm()
    monkeypatch.setattr("slurm.cluster.CONFIGURATION", CONFIGURATION.replace("SelectType=", "NoSuchKey="))
    with pytest.raises(ClusterError, match="slurmctld did not start"), Cluster(tmp_path):
        pass
    assert not list(tmp_path.glob("*.pid"))


def daemon_pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("*.pid")]
