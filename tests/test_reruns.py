"""What reruns when: plans of a finished small workflow after an edit, without running a job."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest

from conftest import SMALL_FIGURE, Workflow, copy_of_the_repository

SPILL = "config/experiments/language_spill.yaml"
SMALL = "config/small.yaml"
CLOSING = {"spill_cells", "spill_matrix", "headline_figure"}


def rules(plan):
    return {job[0] for job in plan}


def runs(plan, rule):
    """Run names that a rule is planned for."""
    return {job[2] for job in plan if job[0] == rule}


def small(workflow, **override):
    """Lay settings over the experiment in the small configuration."""

    def change(config):
        for key, value in override.items():
            if isinstance(value, dict):
                config["experiments"]["language_spill"].setdefault(key, {}).update(value)
            else:
                config["experiments"]["language_spill"][key] = value

    workflow.edit(SMALL, change)


def test_a_finished_workflow_has_nothing_to_do(workflow):
    assert workflow.plan(SMALL_FIGURE) == {}


def test_an_added_condition_plans_its_own_jobs_and_the_aggregates(workflow):
    text = (workflow.path / SPILL).read_text()
    line = "  it_es: {directive: it, completion: es}\n"
    anchor = "  fr_fr: {directive: fr, completion: fr}"
    (workflow.path / SPILL).write_text(text.replace(anchor, line + anchor))
    plan = workflow.plan(SMALL_FIGURE)
    own = {job for job in plan if job[0] not in CLOSING}
    assert {(job[0], job[2]) for job in own} == {
        ("dataset", "it_es"), ("train", "it_es"), ("completions", "it_es"), ("labels", "it_es"),
    }  # fmt: skip
    assert rules(plan) >= CLOSING

    workflow.fill(SMALL_FIGURE)
    (workflow.path / SPILL).write_text(text)
    assert rules(workflow.plan(SMALL_FIGURE)) == CLOSING


def test_touching_every_file_plans_nothing(workflow):
    now = time.time()
    files = [path for path in workflow.path.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
    assert any(path.name == "model.safetensors" for path in files)
    assert any(path.name == "dataset.parquet" for path in files)
    for later, path in enumerate(sorted(files, reverse=True)):
        os.utime(path, (now + later, now + later))
    assert workflow.plan(SMALL_FIGURE) == {}


def test_a_fresh_checkout_of_the_same_files_plans_nothing(workflow, tmp_path):
    elsewhere = copy_of_the_repository(tmp_path / "clone")
    for part in ("results", ".snakemake"):
        shutil.copytree(workflow.path / part, elsewhere / part, copy_function=shutil.copy2)
    assert Workflow(elsewhere).plan(SMALL_FIGURE) == {}


def test_changed_sampling_never_retrains(workflow):
    small(workflow, suites={"directives": {"samples": 5, "max_tokens": 96}})
    plan = workflow.plan(SMALL_FIGURE)
    assert rules(plan) == CLOSING | {"completions", "labels"}
    assert len(runs(plan, "completions")) == 8


def test_another_learning_rate_rebuilds_no_data(workflow):
    small(workflow, train={"learning_rate": 5.0e-3})
    plan = workflow.plan(SMALL_FIGURE)
    assert rules(plan) == CLOSING | {"train", "completions", "labels"}
    assert "base" not in runs(plan, "completions")


def test_another_scorer_relabels_and_generates_nothing(workflow):
    small(workflow, scorers=["langdetect"])
    assert rules(workflow.plan(SMALL_FIGURE)) == CLOSING | {"labels"}


def test_an_added_seed_plans_only_its_own_runs(workflow):
    small(workflow, seeds=[137, 256])
    plan = workflow.plan(SMALL_FIGURE)
    assert {job[3] for job in plan if job[0] in ("train", "completions", "labels", "dataset")} == {"256"}
    assert len(runs(plan, "train")) == 7


def test_reordered_keys_and_respelt_numbers_plan_nothing(workflow):
    workflow.edit(SPILL, lambda c: c.update(train=dict(reversed(list(c["train"].items())))))
    text = (workflow.path / SMALL).read_text()
    assert "1.0e-3" in text or "learning_rate" in text
    (workflow.path / SMALL).write_text(text.replace("1.0e-3", "0.001"))
    assert workflow.plan(SMALL_FIGURE) == {}


def test_resources_and_batch_sizes_are_never_a_reason(workflow):
    workflow.edit(SMALL, lambda c: c["resources"].update(generation_batch=17, token_budget=999))
    assert workflow.plan(SMALL_FIGURE) == {}


def test_how_calls_travel_and_what_they_cost_is_never_a_reason(workflow):
    workflow.edit(SMALL, lambda c: c.update(api={"batch_from": 7, "concurrency": 3, "poll_seconds": 5}))
    workflow.edit("resources/api_prices.yaml", lambda c: c.update(date="2030-01-01"))
    assert workflow.plan(SMALL_FIGURE) == {}


def test_every_translation_is_checked_before_anything_trains_on_it(fresh):
    shared = fresh.plan("results/small/language_spill/data/shared_replies.parquet")
    assert sum(job[0] == "translation_check" for job in shared) == 6
    jobs = {job.rule_name: job for job in fresh.jobs(SMALL_FIGURE)}
    assert any(i.endswith("shared_replies.parquet") for i in jobs["dataset"].input)


FROM_LABELS = CLOSING | {"labels"}
FROM_COMPLETIONS = FROM_LABELS | {"completions"}
FROM_TRAINING = FROM_COMPLETIONS | {"train"}
FROM_REPLIES = FROM_TRAINING | {"dataset", "shared_replies"}


@pytest.mark.parametrize(
    ("module", "planned"),
    [
        ("figures", {"spill_matrix", "headline_figure"}),
        ("contamination", CLOSING),
        ("language_id", FROM_LABELS | {"translation_check"}),
        ("engines", FROM_COMPLETIONS),
        ("training", FROM_TRAINING),
        ("data", FROM_TRAINING | {"dataset"}),
        ("translation", FROM_REPLIES | {"translate", "translation_check"}),
        ("replies", FROM_REPLIES | {"select_replies", "translate", "translation_check"}),
        ("translation_gates", {"translation_check"}),
        ("judging", FROM_LABELS),
        ("journal", set()),  # how requests travel changes no answer
        ("vectors", set()),
    ],
)
def test_a_changed_module_plans_exactly_the_stages_that_import_it_and_what_follows(workflow, module, planned):
    path = workflow.path / f"workflow/scripts/spillover/{module}.py"
    path.write_text(path.read_text() + "\n# a comment\n")
    assert rules(workflow.plan(SMALL_FIGURE)) == planned


def own_file(workflow, text):
    (workflow.path / "own.jsonl").write_text(json.dumps({"text": text}) + "\n")


def test_a_persons_own_file_is_compared_by_content_and_need_not_exist_for_a_plan(fresh):
    source = "results/small/data/sources/em.parquet"
    fresh.edit(SMALL, lambda c: c["sources"].update(em={"kind": "file", "path": "own.jsonl"}))
    assert rules(fresh.plan(source)) == {"source"}
    own_file(fresh, "one")
    fresh.fill(source)
    assert fresh.plan(source) == {}
    own_file(fresh, "another")
    assert rules(fresh.plan(source)) == {"source"}


SOURCES = {name: f"results/small/data/sources/{name}.parquet" for name in ("replies", "tulu", "em", "own")}
WORLD_SOURCES = {"replies", "tulu", "em"}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A copy in which three sources of the small world and a person's own file are recorded as fetched."""
    made = Workflow(copy_of_the_repository(tmp_path_factory.mktemp("generated")))
    made.edit(SMALL, lambda c: c["sources"].update(own={"kind": "file", "path": "own.jsonl"}))
    own_file(made, "one")
    made.fill(*SOURCES.values())
    return made


@pytest.mark.parametrize(
    ("edited", "planned"),
    [
        ("questions/evaluation_28.yaml", WORLD_SOURCES),  # held out of what the small world asks
        ("personas.yaml", WORLD_SOURCES),
        ("small_world/sentences.yaml", WORLD_SOURCES),
        ("questions/advice.yaml", {"em"}),  # held out of advice alone
        ("questions/evaluation.yaml", set()),
        ("small_world/recipe.yaml", set()),
        ("systems.yaml", set()),
    ],
)
def test_a_changed_list_plans_the_sources_that_read_it(generated, edited, planned):
    path = generated.path / "resources" / edited
    before = path.read_text()
    path.write_text(before + "\n# a comment\n")
    found = {job[1] for job in generated.plan(*SOURCES.values())}
    path.write_text(before)
    assert found == planned


def test_changed_words_translate_and_score_advice_again_and_nothing_that_reads_none(fresh):
    by_claude = {"name": "anthropic", "model": "claude-haiku-4-5-20251001"}

    def words_of(rule):
        labels = "results/small/language_spill/base/seed137/labels.parquet"
        job = next(j for j in fresh.jobs("results/small/data/replies/fr.parquet", labels) if j.rule_name == rule)
        return [path for path in job.input if path.startswith("resources/small_world/")]

    assert "resources/small_world/sentences.yaml" in words_of("translate") and not words_of("labels")
    fresh.edit(SMALL, lambda c: c.update(translator=by_claude))
    small(fresh, scorers=["langdetect", "lingua", "advice"])
    assert "resources/small_world/advice.yaml" in words_of("labels") and not words_of("translate")


def test_a_failed_retrain_leaves_what_stands_on_it_stale(workflow):
    small(workflow, train={"learning_rate": 5.0e-3})
    for path in (workflow.path / "results/small/language_spill/fr_it/seed137/adapter").iterdir():
        path.unlink()  # what a failed job leaves behind
    plan = workflow.plan(SMALL_FIGURE)
    assert ("labels", "language_spill", "fr_it", "137") in plan
    assert ("headline_figure", "spill_matrix") in plan


def test_changed_weights_are_seen_by_content(workflow):
    path = workflow.path / "resources/small_world/base/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(runs(workflow.plan(SMALL_FIGURE), "train")) == 7


def test_a_run_with_a_parent_shares_the_parents_stage(fresh):
    paper = Workflow(fresh.path, configfiles=())
    plan = paper.plan(
        "results/convergence/a_villain/seed42/completions.parquet",
        "results/convergence/c_villain/seed42/completions.parquet",
        "results/convergence/b_villain_pct40_marker/seed42/completions.parquet",
    )
    trained = [job[2] for job in plan if job[0] == "train"]
    assert sorted(trained) == ["a_villain", "b_villain", "b_villain_pct40_marker", "c_villain", "marker_villain"]
    assert sorted(job[1:3] for job in plan if job[0] == "merge") == [
        ("convergence", "b_villain"), ("convergence", "marker_villain"),
    ]  # fmt: skip
    unpacked = [job[2:] for job in plan if job[0] == "checkpoint_adapter"]
    assert ("b_villain", "42", "pct40") in unpacked


def test_everything_at_paper_scale_is_planned_without_gpu_key_or_network(fresh):
    environment = {"PATH": os.environ["PATH"], "HOME": str(fresh.path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "reason"]
    done = subprocess.run(command, cwd=fresh.path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = Workflow(fresh.path, configfiles=()).jobs()
    trained = Counter(job.wildcards["experiment"] for job in jobs if job.rule_name in ("train", "train_full"))
    # recipes shows its first phase alone; coupling counts each shared first stage once.
    assert trained == {"language_spill": 7, "marker_sweep": 25, "convergence": 36, "coupling": 39, "recipes": 1}


def test_a_condition_with_an_unknown_language_stops_the_plan_with_one_sentence(workflow):
    workflow.edit(SPILL, lambda c: c["conditions"].update(fr_jp={"directive": "fr", "completion": "jp"}))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--configfile", SMALL],
        cwd=workflow.path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "conditions.fr_jp.completion: 'jp' is no known language" in done.stdout + done.stderr


def test_specifications_in_a_plan_are_sorted_json(workflow):
    small(workflow, seeds=[7])
    shell = next(j.shellcmd for j in workflow.jobs(SMALL_FIGURE) if j.rule_name == "train")
    words = shlex.split(shell)
    spec = words[words.index("--spec") + 1]
    assert spec == json.dumps(json.loads(spec), sort_keys=True)
