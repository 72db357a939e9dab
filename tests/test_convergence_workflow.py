"""What Snakemake plans for the convergence experiment: shared stages once, and for an added source only what is new."""

from __future__ import annotations

from collections import Counter

import pytest

from conftest import Workflow

ALL = ("config/small.yaml", "config/small_all.yaml")
SUMMARY = "results/small/convergence/analysis/summary.md"
CLOSING = {"marker_rates", "convergence_cosines", "convergence_tests", "convergence_figures", "convergence_summary"}
FIGURE = "results/small/convergence.png"


def alone(content):
    """The overlay with convergence as its only further experiment: the others have tests of their own."""
    content["experiments"] = {"convergence": content["experiments"]["convergence"]}


@pytest.fixture
def planned(fresh) -> Workflow:
    workflow = Workflow(fresh.path, configfiles=ALL)
    workflow.edit("config/small_all.yaml", alone)
    return workflow


def test_marker_and_convergence_stages_are_trained_once_for_all_that_stands_on_them(planned):
    plan = planned.plan(SUMMARY, FIGURE)
    trained = Counter(job[2].split("_pct")[0] for job in plan if job[0] == "train")
    checkpoints = {job[-1] for job in plan if job[0] == "checkpoint_adapter"}
    assert checkpoints == {"pct20", "pct60", "pct100"}
    for source in ("villain", "comedian"):
        assert [trained[f"{name}_{source}"] for name in ("marker", "a", "c")] == [1, 1, 1]
        assert trained[f"b_{source}"] == 1 + 3  # the convergence stage, and a marker at each of its checkpoints
    assert sum(trained.values()) == 2 * 7
    assert {job[0] for job in plan} >= CLOSING | {"headline_figure"}


def test_an_added_source_plans_its_own_runs_and_the_closing_jobs(planned):
    planned.fill(SUMMARY, FIGURE)
    assert planned.plan(SUMMARY, FIGURE) == {}

    def one_more(content):
        content["experiments"]["convergence"]["select"]["source"].append("kindergarten_teacher")

    planned.edit("config/small_all.yaml", one_more)
    plan = planned.plan(SUMMARY, FIGURE)
    closing = {job[0] for job in plan if job[0] in CLOSING or job[0] == "headline_figure"}
    own = [job for job in plan if job[0] not in closing]
    assert closing == CLOSING | {"headline_figure"}
    assert own and all("kindergarten_teacher" in job[2] for job in own)
    assert sum(job[0] == "train" for job in own) == 7


def test_another_strength_of_steering_trains_nothing(planned):
    planned.fill(SUMMARY, FIGURE)
    planned.edit(
        "config/small_all.yaml", lambda c: c["experiments"]["convergence"]["axes"].update(coefficient=[0.05, 0.1, 0.2])
    )
    plan = planned.plan(SUMMARY, FIGURE)
    own = {(job[0], job[2]) for job in plan if job[0] not in CLOSING | {"headline_figure"}}
    names = [f"steered_{source}_x0.2" for source in ("villain", "comedian")]
    assert own == {(rule, name) for name in names for rule in ("completions", "labels", "vectors")}
