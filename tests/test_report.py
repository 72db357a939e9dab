"""The report page: what it says of an experiment, and that it opens from disk with everything inside."""

from __future__ import annotations

import json
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import completions_browser
import report_page as program
from spill_builders import replies_to, three_conditions
from spillover import claims, report_facts, report_page

SETTINGS = {
    "title": "Language spill",
    "protocol": "corrected",
    "seeds": [7],
    "train": {"learning_rate": 3.0e-4, "epochs": 1, "batch_size": 16, "rank": 32, "alpha": 64, "rslora": True},
    "suites": {
        "directives": {
            "kind": "directives", "languages": ["en", "fr"], "samples": 20, "temperature": 1.0, "top_p": 1.0,
            "max_tokens": 96,
        }
    },
    "scorers": ["langdetect", "lingua", "judge"],
    "judging": "blind",
    "evaluate_as": "adapter",
    "vectors": None,
    "base_evaluate": ["directives"],
    "axes": {"rate": [1.0e-4, 1.0e-3], "none": []},
    "select": {},
    "runs": {"spill": {"over": [], "train": {}, "evaluate": ["directives"]}},
}  # fmt: skip
SPEC = {
    "model": {"name": "small", "revision": None, "dtype": "float32"},
    "judge": None,
    "replay": None,
    "engine": {"name": "x"},
}


@pytest.fixture(scope="module")
def tables():
    labels, _ = three_conditions()
    second = labels.assign(scorer="lingua", scorer_id="lingua 1")
    second.loc[second.index[:3], "label"] = "de"
    second.loc[second.index[-2:], ["label", "outcome"]] = [None, "truncated"]
    replies = replies_to(labels)
    replies.loc[[0, 1], "finish_reason"] = "length"
    return replies, pd.concat([labels, second], ignore_index=True)


@pytest.fixture(scope="module")
def results(root, tables, tmp_path_factory):
    """A results folder with one closed experiment and one that has only completions, and the report over both."""
    folder = tmp_path_factory.mktemp("results")
    sections = []
    for name in ("language_spill", "other"):
        analysis = folder / name / "analysis"
        analysis.mkdir(parents=True)
        paths = {kind: str(folder / name / f"{kind}.parquet") for kind in ("completions", "labels")}
        for kind, table in zip(paths, tables, strict=True):
            table.to_parquet(paths[kind])
        manifest = ["--manifest", str(analysis / "browser.json"), "--pages", str(root / "workflow/report")]
        tables_of = ["--completions", paths["completions"], "--labels", paths["labels"]]
        completions_browser.main([*tables_of, "--out", str(analysis / "completions.html"), *manifest])
        sections.append(
            {"name": name, "title": name.replace("_", " "), "question": f"What of {name}?", "folder": str(analysis)}
            | {"figures": [], "summary": False, "browser": f"{name}/analysis/completions.html"}
            | {kind: [path] for kind, path in paths.items()}
        )
    closed = folder / "language_spill/analysis"
    plt.figure(figsize=(3, 2)).savefig(closed / "spill_matrix.png")
    (closed / "summary.md").write_text("# Title\n\n## Cells\n\n| a | b |\n|---|---|\n| 1 | <b>2</b> |\n")
    (closed / "summary.json").write_text(json.dumps({"answer": "It spills into 3 cells.", "caveats": ["Mind this."]}))
    (folder / "language_spill/merge_report-final.json").write_text(
        json.dumps({"worst_cosine": 0.5, "low_fidelity": ["m"], "modules": ["m", "n"]})
    )
    for number, cost in enumerate((0.5, None)):
        made = {"stage": "labels", "seconds": 30, "cpu_seconds": 1, "gpu_seconds": 0, "tokens": 7, "api_calls": 2}
        kept = {"final": {"modules": 3, "worst_cosine": 0.25, "low_fidelity": ["a", "b"]}}
        made |= {"cost_dollars": cost, "extra": {"engine": {"merges": kept}} if number else {}}
        (folder / f"language_spill/{number}.manifest.json").write_text(json.dumps(made))
    sections[0] |= {"figures": ["spill_matrix.png"], "summary": True}
    table = claims.judged(
        claims.declared(root / "resources/claims.yaml"),
        {"language_spill": "language_spill"},
        {
            "language_spill": {
                "claims": [
                    {"claim": "symmetry", "verdict": "does not appear", "text": "25 points."},
                    {"claim": "distance order", "verdict": "undecided", "text": "Who knows.", "decides_at": 1234},
                ]
            }
        },
        {},
    )
    table.to_parquet(folder / "claims.parquet")
    spec = SPEC | {"experiments": {name: SETTINGS for name in ("language_spill", "other")}}
    arguments = ["--experiments", json.dumps(sections), "--claims", str(folder / "claims.parquet")]
    arguments += ["--root", str(folder), "--pages", str(root / "workflow/report"), "--spec", json.dumps(spec)]
    program.main([*arguments, "--out", str(folder / "report.html"), "--manifest", str(folder / "report.json")])
    return folder


def test_the_report_opens_with_the_answers_and_shows_its_figure_offline(results, opened):
    page = opened(results / "report.html")
    first = page.locator("main section").first
    assert "What of language_spill?" in first.inner_text() and "It spills into 3 cells." in first.inner_text()
    assert page.locator("#language_spill img").evaluate("image => image.naturalWidth") > 100
    assert "No closing analysis yet" in first.inner_text()


def test_claims_stand_beside_what_was_published(results, opened):
    page = opened(results / "report.html")
    row = page.locator("#language_spill .claims tbody tr").first
    assert row.locator(".verdict").inner_text() == "does not appear"
    assert "25 points." in row.inner_text() and "Published: confirmed in the write-up" in row.inner_text()


def test_an_undecided_claim_says_what_would_decide_it(results, opened):
    page = opened(results / "report.html")
    row = page.locator("#language_spill .claims tbody tr").nth(1)
    assert "Who knows. About 1,234 replies a cell would decide it." in row.inner_text()


def test_caveats_costs_and_the_exact_specification_are_there(results, opened):
    page = opened(results / "report.html")
    text = page.locator("#language_spill").evaluate("part => part.textContent")
    for part in (
        "One seed", "Mind this.", "replies were cut at the length limit", "(2 truncated)",
            "2 times an adapter was merged", "kept a cosine of 0.2500", "3 of 5 modules lie below",
        "langdetect and lingua disagree on 3 of", "at least 0.50", "learning_rate: 0.0003",
    ):  # fmt: skip
        assert part in text


def test_the_report_leads_to_the_completions(results, opened):
    page = opened(results / "report.html")
    page.get_by_role("link", name="Read the completions").first.click()
    page.wait_for_selector("body[data-ready]")
    assert page.url.endswith("language_spill/analysis/completions.html")


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_a_screen(results, opened, width):
    page = opened(results / "report.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_caveats_count_cut_replies_failed_labels_disagreement_and_missing_cells(tables):
    replies, labels = tables
    lacking = replies[(replies["run"] != "language_spill/fr_it") | (replies["cell"] != "zh")]
    assert report_facts.label_caveats(lacking, labels) == [
        f"2 of {len(lacking)} (0.4 %) replies were cut at the length limit.",
        f"lingua: 2 of {len(replies)} (0.4 %) labels failed (2 truncated).",
        f"langdetect and lingua disagree on 3 of {len(replies) - 2} (0.5 %) replies that both label.",
        "1 of 4 models lack cells that others have: language_spill/fr_it seed 1 final.",
    ]


KINDS = {
    "language_spill": ("fr_it", "final", ["en", "fr", "it"]),
    "marker_sweep": ("villain_lr0.001_ep3", "final", ["villain", "assistant", "comedian"]),
    "convergence": ("a_villain", "pct60", ["villain", "assistant", "comedian"]),
    "coupling": ("em_ep20", "final", ["villain", "assistant"]),
    "recipes": ("steps", "step40", ["default", "coding_partner"]),
}


def made(experiment: str, scorer: str = "marker", seeds=(1, 2)) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Completions and labels of the untrained model and one run of an experiment, four replies a cell."""
    run, checkpoint, cells = KINDS[experiment]
    models = [(f"{experiment}/base", "final"), (f"{experiment}/{run}", checkpoint)]
    rows = pd.DataFrame(
        [
            {"run": name, "seed": seed, "checkpoint": at, "suite": "asked", "prompt_id": f"{cell}/a", "cell": cell}
            | {"sample": sample, "finish_reason": "stop", "scorer": scorer, "label": "none", "outcome": "ok"}
            for name, at in models for seed in seeds for cell in cells for sample in range(4)
        ]
    )  # fmt: skip
    return rows.drop(columns=["scorer", "label", "outcome"]), rows.drop(columns="finish_reason")


@pytest.mark.parametrize("experiment", KINDS)
def test_cells_and_seeds_that_a_model_lacks_are_told_of_every_experiment(experiment):
    run, checkpoint, cells = KINDS[experiment]
    completions, labels = made(experiment)
    assert report_facts.label_caveats(completions, labels) == [
        f"0 of {len(completions)} (0.0 %) replies were cut at the length limit."
    ]
    own = completions["run"] == f"{experiment}/{run}"
    lacking = completions[~(own & (completions["seed"] == 2) & (completions["cell"] == cells[-1]))]
    told = report_facts.label_caveats(lacking, labels)
    assert f"1 of 4 models lack cells that others have: {experiment}/{run} seed 2 {checkpoint}." in told
    failed = completions[~(own & (completions["seed"] == 2))]
    told = report_facts.label_caveats(failed, labels)
    assert f"1 of 2 models lack a seed that others have: {experiment}/{run} {checkpoint} seed 2." in told


@pytest.mark.parametrize("outcome", ["truncated", "refusal", "schema", "transport"])
def test_every_way_a_judge_can_fail_is_counted_and_a_cell_without_any_label_is_named(outcome):
    completions, labels = made("coupling", scorer="judge")
    failed = labels.index[(labels["run"] == "coupling/em_ep20") & (labels["seed"] == 1) & (labels["cell"] == "villain")]
    labels.loc[failed, ["label", "outcome"]] = [None, outcome]
    told = report_facts.label_caveats(completions, labels)
    assert f"judge: 4 of 32 (12.5 %) labels failed (4 {outcome})." in told
    assert "judge: 1 of 8 cells have no label that did not fail: coupling/em_ep20 seed 1 final, villain." in told


def test_a_cost_that_a_job_does_not_know_is_a_lower_bound():
    jobs = [
        {"stage": "a", "cost_dollars": 1.0},
        {"stage": "a", "cost_dollars": None},
        {"stage": "b", "cost_dollars": 2},
    ]
    rows = {row["stage"]: row for row in report_facts.costs(jobs)}
    assert rows["a"]["cost_dollars"] == 1.0 and rows["a"]["unknown"]["cost_dollars"] == 1
    assert rows["all"]["cost_dollars"] == 3.0 and "cost_dollars" not in rows["b"]["unknown"]


def test_no_line_of_a_claim_ends_between_a_number_and_its_percent_sign(results, opened):
    told = opened(results / "report.html").locator("table.claims").first.inner_text()
    assert "\N{NO-BREAK SPACE}%" in told and not re.search(r"\d %", told)


def test_a_summary_keeps_its_tables_and_its_html_stays_text():
    made = report_page.markdown("# Title\n\n## Part\n\n| a |\n|---|\n| <script> |\n")
    assert "Title" not in made and "<h4>Part</h4>" in made and "<td>&lt;script&gt;</td>" in made


def test_the_methods_paragraph_follows_from_the_settings():
    text = report_page.methods(SETTINGS, {"name": "Qwen/Q", "revision": "a" * 40, "dtype": "bfloat16"}, None)
    assert "Qwen/Q (revision aaaaaaaaaaaa), in bfloat16; seed 7" in text
    assert "LoRA of rank 32" in text and "20 samples a prompt at temperature 1.0" in text
    assert "labelled by langdetect and lingua;" in text and "judge" not in text
    judged = report_page.methods(SETTINGS, {"name": "Q", "dtype": "x"}, {"model": "claude-haiku-4-5"})
    assert "claude-haiku-4-5 as a judge that sees the reply alone" in judged


def test_the_methods_name_what_runs_vary_and_no_suite_that_nobody_is_measured_on():
    group = {"over": ["rate"], "train": {"learning_rate": "{rate}", "epochs": 3}, "evaluate": ["directives"]}
    unused = {"over": ["none"], "train": {}, "evaluate": ["pool"]}
    suites = SETTINGS["suites"] | {"pool": {"personas": "all", "samples": 3, "temperature": 0.7, "max_tokens": 9}}
    made = SETTINGS | {"runs": {"cell": group, "tail": unused}, "suites": suites}
    text = report_page.methods(made, {"name": "Q", "dtype": "x"}, None)
    assert "learning rate 0.0001 or 0.001, 3 epochs" in text and "pool" not in text
    assert "directives: 2 languages, 20 samples" in text


def test_an_experiment_with_an_alarm_shows_no_answer(results, root):
    about = {
        "name": "language_spill",
        "title": "Spill",
        "question": "?",
        "folder": str(results / "language_spill/analysis"),
    }
    about |= {"figures": [], "summary": True, "settings": SETTINGS, "replay": None, "judge": None}
    about["model"] = SPEC["model"]
    claim = {"verdict": claims.WITHHELD, "text": "25 points.", "alarms": ["a copy"], "decides_at": "9 replies"}
    made = report_page.section(about, root / "workflow/report", [claim], [], [])
    assert made["answer"] is None and made["alarms"] == ["a copy"] and made["claims"][0]["decides"] == ""
    sound = report_page.section(about, root / "workflow/report", [claim | {"alarms": []}], [], [])
    assert sound["answer"] == "It spills into 3 cells."


def test_the_methods_of_a_replay_claim_no_training():
    text = report_page.methods(SETTINGS, {"name": "Q", "dtype": "x"}, None, {"labels": "stored"})
    assert text.startswith("Completions and labels were read from files") and "LoRA" not in text
    assert "labelled by langdetect and lingua" in text
