"""The profiles fit the rules, and what they need is asked for before the first job."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, SMALL_FIGURE
from spillover import preflight
from test_environments import rules
from test_slurm import require_slurm

PROFILES = sorted((ROOT / "profiles").glob("*/profile.yaml"))
PAPER = "results/spill_matrix.png"


def profile(name: str) -> dict:
    return yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text())


def rules_with_a_gpu() -> set[str]:
    return {name for name, text in rules().items() if re.search(r"^        gpu=", text, flags=re.MULTILINE)}


def snakemake(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"} | variables
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.parent.name)
def test_a_profile_names_only_rules_that_exist(path):
    # set-resources for a rule that is not there is ignored without a word
    content = yaml.safe_load(path.read_text())
    for key in ("set-resources", "set-threads"):
        assert set(content.get(key, {})) <= set(rules()), key


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.parent.name)
def test_every_profile_compares_large_files_by_content_and_mends_what_was_interrupted(path):
    content = yaml.safe_load(path.read_text())
    assert content["max-checksum-file-size"] == "20GB" and content["rerun-incomplete"] is True


@pytest.mark.parametrize("name", ["gpu", "slurm"])
def test_every_rule_with_a_gpu_and_no_other_is_placed_on_one(name):
    assert set(profile(name)["set-resources"]) == rules_with_a_gpu()


def test_on_a_cluster_rules_with_a_gpu_go_to_the_gpu_partition():
    own = profile("slurm")
    assert own["default-resources"]["slurm_partition"] == "cpu"
    assert {r["slurm_partition"] for r in own["set-resources"].values()} == {"gpu"}


def test_no_job_arrays_and_a_status_command_that_needs_no_database():
    assert profile("slurm")["slurm-status-command"] == "squeue"
    assert "slurm-array-jobs" not in profile("slurm")


def test_rules_on_a_gpu_tell_the_launcher_how_many_they_ask_for():
    for name in rules_with_a_gpu():
        assert '"GPUS={resources.gpu} {resources.python} ' in rules()[name], name


def test_generation_runs_in_the_environment_of_its_own_wherever_a_gpu_profile_is_used():
    for name in ("gpu", "slurm"):
        for rule, resources in profile(name)["set-resources"].items():
            wanted = preflight.VLLM_INTERPRETER if "generate.py" in rules()[rule] else "python"
            assert preflight.programs(resources.get("python", "python"))[-1] == wanted, rule


@pytest.mark.parametrize("name", ["default", "gpu", "slurm"])
def test_paper_scale_plans_without_gpu_slurm_key_or_the_vllm_environment(fresh, name):
    done = snakemake(fresh.path, PAPER, "--profile", f"profiles/{name}", "--cores", "1", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^completions +8$", done.stdout, flags=re.MULTILINE)


def test_a_missing_interpreter_stops_the_run_with_one_sentence_before_the_first_job(fresh):
    done = snakemake(
        fresh.path, SMALL_FIGURE, "--profile", "profiles/gpu", "--configfile", "config/small.yaml", "--cores", "1"
    )
    assert done.returncode == 1
    sentence = re.search(r"^\.venv-vllm/bin/python, with which .*$", done.stderr, flags=re.MULTILINE)[0]
    assert "runs completions, does not exist: `make env-vllm` builds .venv-vllm/bin/python, or name another" in sentence
    assert "Traceback" not in done.stderr and "rule source" not in done.stderr + done.stdout
    assert not (fresh.path / "results/small/data").exists()


def test_a_run_without_generation_does_not_ask_for_vllm(fresh):
    target = "results/small/language_spill/fr_it/seed137/dataset.parquet"
    small = ["--configfile", "config/small.yaml", "--cores", "1"]
    done = snakemake(fresh.path, target, "--profile", "profiles/gpu", *small)
    assert done.returncode == 0, done.stderr
    assert (fresh.path / target).exists()


def test_a_launcher_and_the_interpreter_behind_it_are_both_looked_for(tmp_path):
    present = shlex.quote(sys.executable)
    assert preflight.missing_interpreters({"train": f"{present} workflow/scripts/on_gpu.py {present}"}) is None
    behind = preflight.missing_interpreters({"train": f"{present} workflow/scripts/on_gpu.py {tmp_path}/python"})
    assert behind.startswith(f"{tmp_path}/python, with which the profile runs train,")
    assert preflight.missing_interpreters({"train": "no-such-python"}).startswith("no-such-python,")
    (tmp_path / "python").write_text("")
    assert preflight.missing_interpreters({"vectors": str(tmp_path / "python")})  # there, but no program


def test_an_absent_slurm_is_a_reason_to_skip_and_in_continuous_integration_a_failure(monkeypatch):
    monkeypatch.setattr("test_slurm.missing_programs", lambda: ["slurmctld"])
    monkeypatch.delenv("SPILLOVER_REQUIRE_SLURM", raising=False)
    with pytest.raises(pytest.skip.Exception, match="slurmctld; Debian: apt-get install"):
        require_slurm()
    monkeypatch.setenv("SPILLOVER_REQUIRE_SLURM", "1")
    with pytest.raises(pytest.fail.Exception, match="Slurm is not installed here"):
        require_slurm()


SNAKEFILE = """
rule all:
    input: expand("done/{job}", job=range(6))
rule train:
    output: "done/{job}"
    resources: python="python", gpu=lambda wildcards: 2 if wildcards.job == "0" else 1
    shell: "GPUS={resources.gpu} {resources.python} job.py {output}"
"""
# Holds one file per GPU while it runs: another job on the same GPU cannot create it. The first jobs hold theirs until
# two have tried and every GPU has been tried, so that they meet on a machine of any speed.
JOB = """
import glob, os, sys, time
devices = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
try:
    for device in devices:
        os.close(os.open("gpu" + device, os.O_CREAT | os.O_EXCL))
finally:
    for device in devices:
        open(f"tried-{device}-{os.getpid()}", "w").close()
until = time.monotonic() + 300
while time.monotonic() < until:
    tried = [name.split("-")[1:] for name in glob.glob("tried-*")]
    if len({job for _, job in tried}) >= 2 and len({device for device, _ in tried}) == 3:
        break
    time.sleep(0.02)
else:
    sys.exit("no other job came")
time.sleep(0.2)  # the later ones may meet too
for device in devices:
    os.remove("gpu" + device)
open(sys.argv[1], "w").write(" ".join(devices))
"""


def test_through_the_gpu_profile_jobs_at_the_same_time_never_share_a_gpu(tmp_path):
    for folder in ("profiles/gpu", "workflow/scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "job.py").write_text(JOB)
    variables = {"CUDA_VISIBLE_DEVICES": "0,1,2", "SPILLOVER_GPU_LOCKS": str(tmp_path / "locks")}
    asked = ["--profile", "profiles/gpu", "--cores", "8", "--resources", "gpu=3", "--retries", "0"]
    done = snakemake(tmp_path, *asked, **variables)
    assert done.returncode == 0, done.stderr
    used = [(tmp_path / f"done/{job}").read_text().split() for job in range(6)]
    assert [len(gpus) for gpus in used] == [2, 1, 1, 1, 1, 1]
    assert {gpu for gpus in used for gpu in gpus} == {"0", "1", "2"}


def test_jobs_with_a_wrong_gpu_share_are_noticed(tmp_path):
    """The check above can fail: without the launcher every job sees all GPUs and the second one stops."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "job.py").write_text(JOB)
    done = snakemake(tmp_path, "--cores", "8", CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 1 and "FileExistsError" in done.stderr
