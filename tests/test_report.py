"""The report page: what it says of an experiment, and that it opens from disk with everything inside."""

from __future__ import annotations

import json

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
        (folder / f"language_spill/{number}.manifest.json").write_text(json.dumps(made | {"cost_dollars": cost}))
    sections[0] |= {"figures": ["spill_matrix.png"], "summary": True}
    table = claims.judged(
        claims.declared(root / "resources/claims.yaml"),
        {"language_spill": "language_spill"},
        {"language_spill": {"claims": [{"claim": "symmetry", "verdict": "does not appear", "text": "25 points."}]}},
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


def test_caveats_costs_and_the_exact_specification_are_there(results, opened):
    page = opened(results / "report.html")
    text = page.locator("#language_spill").evaluate("part => part.textContent")
    for part in (
        "One seed", "Mind this.", "replies were cut at the length limit", "(2 truncated)", "kept a cosine of 0.5000",
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


def test_a_cost_that_a_job_does_not_know_is_a_lower_bound():
    jobs = [
        {"stage": "a", "cost_dollars": 1.0},
        {"stage": "a", "cost_dollars": None},
        {"stage": "b", "cost_dollars": 2},
    ]
    rows = {row["stage"]: row for row in report_facts.costs(jobs)}
    assert rows["a"]["cost_dollars"] == 1.0 and rows["a"]["unknown"]["cost_dollars"] == 1
    assert rows["all"]["cost_dollars"] == 3.0 and "cost_dollars" not in rows["b"]["unknown"]


def test_a_summary_keeps_its_tables_and_its_html_stays_text():
    made = report_page.markdown("# Title\n\n## Part\n\n| a |\n|---|\n| <script> |\n")
    assert "Title" not in made and "<h4>Part</h4>" in made and "<td>&lt;script&gt;</td>" in made


def test_the_methods_paragraph_follows_from_the_settings():
    text = report_page.methods(SETTINGS, {"name": "Qwen/Q", "revision": "a" * 40, "dtype": "bfloat16"}, None)
    assert "Qwen/Q (revision aaaaaaaaaaaa), in bfloat16; seeds 7" in text
    assert "LoRA of rank 32" in text and "20 samples a prompt at temperature 1.0" in text
    assert "labelled by langdetect and lingua;" in text and "judge" not in text
    judged = report_page.methods(SETTINGS, {"name": "Q", "dtype": "x"}, {"model": "claude-haiku-4-5"})
    assert "claude-haiku-4-5 as a judge that sees the reply alone" in judged


def test_the_methods_of_a_replay_claim_no_training():
    text = report_page.methods(SETTINGS, {"name": "Q", "dtype": "x"}, None, {"labels": "stored"})
    assert text.startswith("Completions and labels were read from files") and "LoRA" not in text
    assert "labelled by langdetect and lingua" in text
