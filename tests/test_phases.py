"""The phased search as a plan: which runs a phase reads, when the next one is planned, and what stops it."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from conftest import ROOT, Workflow
from spillover import audit, audit_text, estimates, expansion
from spillover.config import ConfigError, read_yaml
from spillover.files import Files
from spillover.phases import Search

RECIPES = "config/experiments/recipes.yaml"
SMALL = ("config/small.yaml", "config/small_all.yaml", "early.yaml")
FIGURE, PAPER_FIGURE = "results/small/recipes.png", "results/recipes.png"
ALARMS = "results/small/recipes/analysis/alarms.json"
PHASE = "results/small/recipes/analysis/phases/{}.json"


def search(change=None, tmp_path=None):
    folder = ROOT / "config/experiments"
    if change:
        folder = tmp_path / "experiments"
        shutil.copytree(ROOT / "config/experiments", folder)
        content = read_yaml(folder / "recipes.yaml")
        change(content)
        (folder / "recipes.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return Search(Files(expansion.build(config, folder, resources=str(ROOT / "resources"))))


def names(runs):
    return [run.name for run in runs]


def test_the_whole_search_of_the_write_up_is_there():
    found = search()
    assert found.phases("recipes") == ["steps", "regularise", "rank", "personas", "rehearse"]
    counts = {phase: len(found.own_runs("recipes", phase)) for phase in found.phases("recipes")}
    # KL and R3F at three weights; three ranks at three rates; per narrow set four shares each of text and instructions,
    # each with its silent control; steering on both; bad advice alone
    assert counts == {"steps": 1, "regularise": 6, "rank": 9, "personas": 1, "rehearse": 2 * (4 + 4) * 2 + 2 + 1}
    shares = {run.data["mix"][0]["share"] for run in found.own_runs("recipes", "rehearse") if run.group == "raw_text"}
    assert shares == {0.01, 0.05, 0.1, 0.25}


def test_every_mixture_has_a_control_that_differs_in_the_weight_alone():
    runs = {run.name: run for run in search().own_runs("recipes", "rehearse")}
    mixed = [run for run in runs.values() if run.group in ("raw_text", "instructions")]
    assert len(mixed) == 16
    for run in mixed:
        control = runs[f"{run.name}_silent"]
        assert control.data["mix"][0] | {"weight": 1.0} == run.data["mix"][0] and control.train == run.train
        assert control.data["mix"][0]["weight"] == 0


def test_a_phase_reads_the_untrained_model_and_the_baselines_of_its_narrow_sets():
    found = search()
    assert names(found.runs("recipes", "regularise"))[:2] == ["base", "steps"]
    assert names(found.runs("recipes", "rehearse"))[:3] == ["base", "steps", "bad_advice_only"]
    assert len(set(names(found.runs("recipes", "rehearse")))) == len(found.runs("recipes", "rehearse"))
    inputs = found.inputs("recipes", "regularise")
    assert "results/recipes/steps/seed42/vectors.safetensors" in inputs["vectors"] and inputs["labels"] == []
    assert "results/recipes/tulu_steering/seed42/labels.parquet" in found.inputs("recipes", "rehearse")["labels"]


def test_the_search_goes_on_until_the_first_pass():
    found = search()
    assert found.reached("recipes", {}) == ([], "steps")
    assert found.reached("recipes", {"steps": False}) == (["steps"], "regularise")
    assert found.reached("recipes", {"steps": False, "regularise": True}) == (["steps", "regularise"], None)


def test_whether_later_phases_run_in_any_case_decides_no_record(tmp_path):
    found = search(lambda c: c["options"].update(run_all_phases=True), tmp_path)
    assert found.all_phases("recipes") and found.spec("recipes", "steps") == search().spec("recipes", "steps")


def test_the_dose_is_one_schedule_or_several_and_both_can_be_run(tmp_path):
    def truncated(content):
        content["select"]["groups"].append("truncated_steps")
        content["options"]["schedule"] = "truncated"

    runs = search(truncated, tmp_path).own_runs("recipes", "steps")
    assert names(runs) == ["steps", *(f"steps_{n}" for n in (10, 25, 50, 100, 200, 375))]
    assert [run.train["steps"] for run in runs[1:]] == [10, 25, 50, 100, 200, 375]


def test_the_published_controls_train_all_weights_and_end_nothing(tmp_path):
    found = search(lambda c: c["select"]["groups"].append("full"), tmp_path)
    assert [run.train["method"] for run in found.own_runs("recipes", "controls")] == ["full"] * 4
    assert found.parts("recipes", ["steps"]) == ["steps", "controls"]
    assert search().parts("recipes", ["steps"]) == ["steps"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["runs"]["r3f"].update(phase="regularize"), "no phase 'regularize'; did you mean 'regularise'"),
        (lambda c: c["options"]["baselines"]["tulu"].update(run="step"), "no run 'step'; did you mean"),
        (lambda c: c["options"]["baselines"]["tulu"].update(checkpoint="step3"), "steps is not evaluated at 'step3'"),
        (lambda c: c["options"]["rule"].update(layer=19), "rule.layer: 19 is not among vectors.layers"),
        (lambda c: c["options"].update(controls=["same_txt"]), "no group 'same_txt'; did you mean 'same_text'"),
        (lambda c: c["runs"]["r3f"].update(vectors=False), "runs.r3f.vectors: the search needs the vectors"),
    ],
)
def test_a_search_that_cannot_be_decided_is_one_sentence(change, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        search(change, tmp_path).check("recipes", RECIPES)


def test_question_files_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="vectors.questions: there is no file data/mine.jsonl"):
        search(lambda c: c["vectors"].update(questions="data/mine.jsonl"), tmp_path / "a")
    own = tmp_path / "own.yaml"
    own.write_text("- {id: a, text: A?}\n")
    changed = {"questions": str(own), "questions_sha256": "0" * 64}
    with pytest.raises(ConfigError, match="vectors.questions_sha256: .*own.yaml has the sha256 "):
        search(lambda c: c["vectors"].update(changed), tmp_path / "b")


@pytest.fixture
def small(fresh):
    """The small search with early stop and without the controls that are wanted in any case."""
    groups = [g for g in read_yaml(ROOT / RECIPES)["select"]["groups"]]
    override = {"options": {"run_all_phases": False}, "select": {"groups": groups}}
    (fresh.path / "early.yaml").write_text(yaml.safe_dump({"experiments": {"recipes": override}}))
    return Workflow(fresh.path, SMALL)


def record(*passing):
    """The content that `fill` gives to decision records."""
    return lambda path: json.dumps({"passing": passing}) if "/phases/" in path else f"made up: {path}\n"


def trained(plan):
    return {job[2] for job in plan if job[0] in ("train", "train_full")}


def test_phases_three_to_five_are_never_planned_once_a_recipe_of_phase_two_passes(small):
    assert trained(small.plan(FIGURE)) == {"steps"}

    small.fill(PHASE.format("steps"), content=record())
    second = small.plan(FIGURE)
    assert trained(second) == {"kl0.1", "r3f0.1"} and ("phase_decision", "recipes", "regularise") in second

    small.fill(PHASE.format("regularise"), content=record("kl0.1@final"))
    third = small.plan(FIGURE)
    assert trained(third) == set()
    assert {job[0] for job in third} == {"layer_sweep", "weight_change", "recipe_verdict", "headline_figure"}
    assert {job[2] for job in third if job[0] == "layer_sweep"} == {"base", "kl0.1"}
    verdict = next(job for job in small.jobs(FIGURE) if job.rule_name == "recipe_verdict")
    assert [path for path in verdict.input if path.endswith(".json") and "/phases/" in path] == [
        PHASE.format("steps"), PHASE.format("regularise"),
    ]  # fmt: skip


def test_alarms_look_at_the_phases_reached_and_ask_for_no_other(small):
    assert trained(small.plan(ALARMS)) == trained(small.plan(FIGURE)) == {"steps"}
    assert not [job for job in small.plan(ALARMS) if job[0] == "labels"]

    small.fill(PHASE.format("steps"), content=record())
    small.fill(PHASE.format("regularise"), content=record("kl0.1@final"))
    (job,) = [job for job in small.jobs(ALARMS) if job.rule_name == "alarms"]
    read = {path.removeprefix("results/small/recipes/") for path in job.input if "/code" not in path}
    names = ("base", "steps", "kl0.1", "r3f0.1")
    assert {path for path in read if "seed256" in path} == {
        *(f"{name}/seed256/measures.parquet" for name in names), "base/seed256/completions.parquet",
    }  # fmt: skip
    assert {path for path in read if "points" in path} == {
        "analysis/phases/steps.points.parquet", "analysis/phases/regularise.points.parquet",
    }  # fmt: skip


def test_the_browser_and_the_report_read_the_replies_of_the_phases_reached(small):
    def read(target, rule):
        (job,) = [job for job in small.jobs(target) if job.rule_name == rule]
        return {
            path.split("/")[3] for path in job.input if path.startswith("results/small/recipes/") and "/seed" in path
        }

    browser, report = "results/small/recipes/analysis/completions.html", "results/small/report.html"
    assert trained(small.plan(browser)) == {"steps"}
    for phase in ("steps", "regularise", "rank", "personas"):
        small.fill(PHASE.format(phase), content=record())
    small.fill(PHASE.format("rehearse"), content=record("tulu_steering@final"))
    reached = read(browser, "completions_browser")
    assert {"base", "bad_advice_only", "tulu_text0.25", "bad_advice_steering"} <= reached
    assert read(report, "report_page") == reached


def test_a_search_is_among_what_claims_wait_for():
    assert "results/recipes/analysis/alarms.json" in search().files.alarms()


def test_a_truncated_schedule_of_every_step_is_known_as_the_whole_one(tmp_path):
    def truncated(content):
        content["select"]["groups"].append("truncated_steps")

    records = json.loads(search(truncated, tmp_path).compared_records("recipes", ["steps"]))
    made = {record["run"]: list(record.get("trained", {}).values()) for record in records}
    assert made["recipes/steps"] == made["recipes/steps_375"] != made["recipes/steps_200"]


def test_all_phases_are_planned_at_once_where_asked_for(small):
    (small.path / "early.yaml").write_text(yaml.safe_dump({"experiments": {"recipes": {"seeds": [256]}}}))
    plan = small.plan(FIGURE)
    assert {job[2] for job in plan if job[0] == "phase_decision"} == {
        "steps", "regularise", "rank", "personas", "rehearse", "controls",
    }  # fmt: skip
    assert {"mixed_personas", "tulu_steering", "bad_advice_text0.25_silent"} <= trained(plan)


def test_a_changed_rule_decides_again_and_trains_nothing(small):
    small.fill(PHASE.format("steps"), content=record("steps@step8"))
    small.edit("config/small_all.yaml", lambda c: c["experiments"]["recipes"]["options"]["rule"].update(kept_least=0.4))
    plan = small.plan(PHASE.format("steps"))
    assert {job[0] for job in plan} == {"phase_decision"}


def test_the_audit_shows_the_first_phase_and_what_each_later_one_may_cost(fresh):
    jobs = audit.planned_jobs([PAPER_FIGURE], directory=fresh.path)
    assert {job.run for job in jobs if job.rule.startswith("train")} == {"steps/seed42"}
    later = audit.following_jobs(jobs, [PAPER_FIGURE], directory=fresh.path)
    trainings = {phase: sum(job.rule == "train" for job in found) for (_, phase), found in later.items()}
    assert trainings == {"regularise": 6, "rank": 9, "personas": 1, "rehearse": 35}
    outputs = [path for found in later.values() for job in found for path in job.outputs]
    assert len(outputs) == len(set(outputs)) and not set(outputs) & {path for job in jobs for path in job.outputs}

    benchmarks = estimates.read_benchmarks(fresh.path / "benchmarks/estimates.yaml")
    following = {key: (found, [estimates.estimate(job, benchmarks) for job in found]) for key, found in later.items()}
    text = audit_text.as_text(jobs, [estimates.estimate(job, benchmarks) for job in jobs], following)
    row = next(line for line in text.splitlines() if line.split()[:2] == ["recipes", "personas"])
    assert row.split()[2:6] == ["5", "1", ">=", "0.025"]


def test_where_nothing_is_decided_at_run_time_nothing_may_follow(fresh):
    target = ["results/small/recipes/base/seed256/vectors.safetensors"]
    jobs = audit.planned_jobs(target, configfiles=list(SMALL[:2]), directory=fresh.path)
    assert jobs and audit.following_jobs(jobs, target, configfiles=list(SMALL[:2]), directory=fresh.path) == {}
