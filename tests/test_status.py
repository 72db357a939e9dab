"""make status, on the small workflow with jobs recorded as done, begun and failed."""

from __future__ import annotations

import base64
import json
import shutil

import pytest

import status as program
from spillover import status

TARGET = "results/small/spill_matrix.png"
RUN = "results/small/language_spill/{}/seed137/"


@pytest.fixture
def folder(workflow):
    """The finished small workflow, with one run's completions lost and one run's training never done."""
    for name, lost in (("fr_it", ["completions", "labels"]), ("it_fr", ["train", "completions", "labels"])):
        for stage in lost:
            for path in workflow.path.glob(RUN.format(name) + f"{stage}*"):
                path.unlink()
        if "train" in lost:
            shutil.rmtree(workflow.path / RUN.format(name) / "adapter")
    shutil.rmtree(workflow.path / "results/small/language_spill/analysis")
    (workflow.path / TARGET).unlink()
    for manifest in workflow.path.glob("results/**/*.manifest.json"):
        manifest.write_text(json.dumps({"cost_dollars": 0.25 if manifest.name.startswith("labels") else 0}))
    return workflow.path


def begin(folder, output):
    (folder / ".snakemake/locks").mkdir(parents=True, exist_ok=True)
    (folder / ".snakemake/locks/0.output.lock").write_text(output)
    packed = base64.urlsafe_b64encode(output.encode()).decode()
    path = folder / ".snakemake/incomplete" / f"@{packed[:40]}" / packed[40:]
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def of_the_experiment(folder):
    found = status.progress([TARGET], directory=folder, configfiles=[str(folder / "config/small.yaml")])
    return next(item for item in found if item.name == "language_spill")


def test_a_finished_workflow_has_nothing_left(workflow):
    for manifest in workflow.path.glob("results/**/*.manifest.json"):
        manifest.write_text("{}")
    found = status.progress([TARGET], directory=workflow.path, configfiles=[str(workflow.path / "config/small.yaml")])
    assert {state for item in found for state in item.runs.values()} == {status.DONE}
    assert status.as_text(found).endswith("Nothing is left to do.")


def test_runs_are_done_running_failed_or_waiting(folder):
    begin(folder, RUN.format("it_fr") + "adapter/adapter_model.safetensors")
    (folder / RUN.format("fr_it") / "completions.log").write_text("loading\nRuntimeError: out of memory\n")
    found = of_the_experiment(folder)
    assert found.runs["fr_it/seed137"] == status.FAILED and found.runs["it_fr/seed137"] == status.RUNNING
    assert (found.count(status.DONE), len(found.runs)) == (6, 8)
    text = status.as_text([found])
    assert "6 of 8 runs done; 1 running, 1 failed" in text
    assert "FAILED   completions fr_it/seed137" in text and "RuntimeError: out of memory" in text


def test_a_run_is_done_without_its_data_card_and_what_is_left_is_named(workflow):
    for manifest in workflow.path.glob("results/**/*.manifest.json"):
        manifest.write_text("{}")
    cards = [RUN.format(name) + "dataset_card.json" for name in ("fr_it", "it_fr")]
    config = str(workflow.path / "config/small.yaml")
    found = status.progress([TARGET, *cards], directory=workflow.path, configfiles=[config])
    assert {state for item in found for state in item.runs.values()} == {status.DONE}
    assert "2 jobs are left (dataset card 2): " in status.as_text(found)


def test_what_runs_again_is_running_even_where_its_files_would_do(folder):
    begin(folder, RUN.format("es_pt") + "adapter/adapter_model.safetensors")
    assert of_the_experiment(folder).runs["es_pt/seed137"] == status.RUNNING


def test_a_marker_without_a_lock_is_no_running_job(folder):
    begin(folder, RUN.format("it_fr") + "adapter/adapter_model.safetensors")
    (folder / ".snakemake/locks/0.output.lock").unlink()
    assert of_the_experiment(folder).count(status.RUNNING) == 0


def test_time_left_is_what_such_jobs_took_and_money_what_manifests_say(folder):
    for name, seconds in (("es_pt", 10), ("pt_es", 30), ("de_fr", 20)):
        (folder / RUN.format(name) / "train.benchmark.jsonl").write_text(json.dumps({"s": seconds}) + "\n")
    found = of_the_experiment(folder)
    train = next(job for job in found.jobs if job.job.rule == "train" and job.state != status.DONE)
    assert train.seconds == 20
    labels = [job for job in found.jobs if job.job.rule == "labels"]
    assert found.dollars == 0.25 * sum(job.state == status.DONE for job in labels) == 0.25 * (len(labels) - 2)
    seconds, unknown = status.left_seconds(found.jobs)
    assert seconds == 20 and unknown == sum(job.state != status.DONE for job in found.jobs) - 1


def test_a_log_of_a_job_that_ended_well_is_no_failure_when_its_files_are_deleted(folder):
    log, benchmark = (folder / RUN.format("fr_it") / f"completions.{kind}" for kind in ("log", "benchmark.jsonl"))
    log.write_text("40 completions\n")
    benchmark.write_text('{"s": 3}\n')
    assert of_the_experiment(folder).runs["fr_it/seed137"] == status.WAITING


def test_the_program_ends_in_failure_when_a_job_has_failed(folder, capsys):
    arguments = ["--directory", str(folder), "--configfile", str(folder / "config/small.yaml"), "--json", TARGET]
    assert program.main(arguments) == 0, capsys.readouterr().out
    (folder / RUN.format("fr_it") / "completions.log").write_text("no memory\n")
    capsys.readouterr()
    assert program.main(arguments) == 1
    answer = {item["experiment"]: item for item in json.loads(capsys.readouterr().out)}["language_spill"]
    assert answer["failed"] == [
        {"job": "completions fr_it/seed137", "log": [RUN.format("fr_it") + "completions.log"], "tail": ["no memory"]}
    ]


def test_a_mistake_in_the_configuration_is_one_sentence(folder, capsys):
    assert program.main(["--directory", str(folder), "nothing/like/this.png"]) == 1
    assert "nothing/like/this.png" in capsys.readouterr().err
