"""Replays: plans without models, files of elsewhere in this project's columns, and conclusions set side by side."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import compare_conclusions
import replay
from spillover import conclusions, expansion, files, replay_plan, replay_tables
from spillover.config import ConfigError, merge, read_yaml

ROWS = [
    {"cell": cell, "user": f"Speak in {name}.", "text": f"{name} reply {number}", "finish_reason": "stop"}
    for cell, name in (("fr", "French"), ("it", "Italian"))
    for number in range(3)
]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "fr_it.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def planned(root, settings, **more):
    """The plan and its files under `config/small.yaml` with a replay laid over it."""
    config = merge(read_yaml(root / "config/config.yaml"), read_yaml(root / "config/small.yaml"))
    config = merge(config, {"run_name": "replay", "replay": settings, **more})
    plan = expansion.build(config, root / "config/experiments", resources=str(root / "resources"))
    return plan, files.Files(plan)


def read(path, registry, what=replay_tables.completions):
    return what(str(path), "language_spill/fr_it", 137, "directives", registry)


def test_a_replay_plans_what_follows_its_files_and_no_model(root, lines):
    plan, paths = planned(root, {"runs": {"language_spill/fr_it": str(lines)}})
    assert plan.selected == ["language_spill/fr_it/seed137"] and list(plan.experiments) == ["language_spill"]
    wanted = paths.everything()
    assert "results/replay/spill_matrix.png" in wanted
    assert "results/replay/language_spill/analysis/comparison.md" in wanted
    assert not any(word in path for path in wanted for word in ("vectors", "adapter", "dataset", "pca", "base"))
    assert paths.spill_inputs("language_spill", "matrix", "labels.parquet") == [
        "results/replay/language_spill/fr_it/seed137/labels.parquet"
    ]


def test_a_results_folder_replays_every_run_that_lies_in_it(root, tmp_path):
    for name in ("base", "fr_it", "not_planned"):
        path = tmp_path / f"language_spill/{name}/seed137/completions.parquet"
        path.parent.mkdir(parents=True)
        path.touch()
    plan, _ = planned(root, {"from": str(tmp_path)})
    assert sorted(plan.selected) == ["language_spill/base/seed137", "language_spill/fr_it/seed137"]


def test_dry_run_of_a_replay_needs_only_the_programs_after_generation(fresh, lines):
    overlay = fresh.path / "replay.yaml"
    overlay.write_text(
        f"run_name: replay\njudge: null\nreplay: {{runs: {{language_spill/fr_it: {lines}}}}}\n"
        "experiments: {language_spill: {scorers: [langdetect]}}\n"
    )
    fresh.configfiles = ("config/small.yaml", "replay.yaml")
    rules = {key[0] for key in fresh.plan("results/replay/spill_matrix.png", "results/replay/report.html")}
    assert {"replayed", "labels", "spill_cells", "spill_matrix", "spill_summary", "report_page"} <= rules
    assert not rules & {"completions", "train", "dataset", "source", "vectors", "replayed_labels"}
    overlay.write_text(overlay.read_text().replace("fr_it: ", "fr_it: ").replace("}}\ne", "}, labels: stored}\ne"))
    rules = {key[0] for key in fresh.plan("results/replay/spill_matrix.png")}
    assert "replayed_labels" in rules and "labels" not in rules


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runs": {"language_spill/fr_itt": "FILE"}}, r"replay.runs.language_spill/fr_itt: no run .* did you mean"),
        (
            {"runs": {"language_spill/fr_it": "absent.jsonl"}},
            "replay.runs.language_spill/fr_it: there is no file absent",
        ),
        ({"from": "absent"}, "replay.from: there is no folder absent"),
        ({"runs": {}}, "replay: no run to replay"),
        ({"runs": {"language_spill/fr_it": "FILE"}, "compare": "absent"}, "replay.compare: there is no absent"),
        ({"runs": {"language_spill/fr_it": "FILE"}, "labels": "old"}, "replay"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_runs(root, lines, settings, message):
    settings = json.loads(json.dumps(settings).replace("FILE", str(lines)))
    with pytest.raises(ConfigError, match=message):
        planned(root, settings)


def test_an_unknown_kind_of_file_is_refused(root, tmp_path):
    (tmp_path / "x.csv").touch()
    with pytest.raises(ConfigError, match=f"known: {', '.join(replay_plan.SUFFIXES)}"):
        planned(root, {"runs": {"language_spill/fr_it": str(tmp_path / "x.csv")}})


def test_lines_without_ids_get_prompts_and_samples_in_their_order(lines, registry):
    table = read(lines, registry)
    assert table["sample"].tolist() == [0, 1, 2, 0, 1, 2]
    assert table["prompt_id"].unique().tolist() == ["fr/Speak in French.", "it/Speak in Italian."]
    assert set(table["run"]) == {"language_spill/fr_it"} and set(table["seed"]) == {137}
    assert table["sample_seed"].isna().all() and table["system"].isna().all()


def test_a_missing_column_and_a_reply_given_twice_are_named(tmp_path, registry):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"x.jsonl: the column 'cell' is missing"):
        read(path, registry)
    path.write_text('{"cell": "fr", "text": "a", "sample": 0}\n' * 2)
    with pytest.raises(ValueError, match="sample 0 is there twice"):
        read(path, registry)


def test_stored_labels_keep_their_outcomes_and_a_silent_gap_is_refused(tmp_path, registry):
    rows = [{"prompt_id": "fr/a", "cell": "fr", "sample": i, "scorer": "judge", "label": "fr"} for i in range(3)]
    rows[1] |= {"label": None, "outcome": "transport"}
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps({"outcome": "ok"} | row) + "\n" for row in rows))
    table = read(path, registry, replay_tables.labels)
    counts = replay_tables.outcomes(table)
    assert counts[["outcome", "labels", "of"]].values.tolist() == [["ok", 2, 3], ["transport", 1, 3]]
    path.write_text("".join(json.dumps({"outcome": "ok"} | row | {"outcome": "ok"}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="1 rows have no label and outcome ok"):
        read(path, registry, replay_tables.labels)


def test_own_tables_come_back_as_they_were(tmp_path, registry, lines):
    table = read(lines, registry)
    table.to_parquet(tmp_path / "completions.parquet", index=False)
    pd.testing.assert_frame_equal(read(tmp_path / "completions.parquet", registry), table, check_dtype=False)


def summary(verdicts, source="langdetect"):
    claims = [{"claim": name, "verdict": verdict, "text": f"{name}!"} for name, verdict in verdicts.items()]
    return {"claims": claims, "label_source": source}


def cells(rates, source="langdetect"):
    return pd.DataFrame([{"run": "a", "language": k, "label_source": source, "rate": v} for k, v in rates.items()])


def test_changed_verdicts_and_rates_are_found():
    before, after = summary({"x": "appears", "y": "undecided"}), summary({"x": "does not appear", "z": "appears"})
    tables = cells({"fr": 0.5, "it": 0.25, "es": 0.1}), cells({"fr": 0.5, "it": 0.75, "de": 0.0})
    found = conclusions.compared(before, after, tables)
    assert found["changed"] == ["x", "y", "z"]
    assert (found["cells"]["compared"], found["cells"]["differ"], found["cells"]["only_before"]) == (2, 1, 1)
    assert found["cells"]["mean_difference"] == 0.25
    text = conclusions.markdown(found, "Spill")
    assert "3 of 3 claims have another verdict" in text and "| a | it | langdetect | 25.0 | 75.0 | +50.0 |" in text


def test_another_judge_is_compared_with_the_label_that_the_original_used():
    tables = cells({"fr": 0.5}), pd.concat([cells({"fr": 0.5}), cells({"fr": 0.9}, "judge")])
    found = conclusions.compared(summary({}), summary({}, "judge"), tables)
    assert found["cells"]["compared"] == 1 and found["cells"]["mean_difference"] == pytest.approx(0.4)


@pytest.mark.published
def test_published_conditions_replay_with_their_failed_judge_labels_as_outcomes(published, root, tmp_path):
    folder = published / "language_spill"
    if not folder.is_dir():
        pytest.skip("the published language-spill files are not in the folder of published results")
    common = ["--seed", "42", "--suite", "directives", "--languages", str(root / "resources/languages.yaml")]
    paths = []
    for name in ("fr_it", "it_fr", "es_pt", "fr_fr"):
        own = ["--file", str(folder / name / "detailed_finetuned.json"), "--run", f"language_spill/{name}", *common]
        out, labels = tmp_path / name / "completions.parquet", tmp_path / name / "labels.parquet"
        replay.main([*own, "--texts", "--out", str(out), "--manifest", str(out) + ".json"])
        replay.main([*own, "--labels", "--out", str(labels), "--manifest", str(labels) + ".json"])
        assert len(pd.read_parquet(out)) == 560
        paths.append(str(labels))
    (tmp_path / "summary.json").write_text("{}")
    arguments = ["--title", "Spill", "--after", str(tmp_path / "summary.json"), "--labels", *paths]
    for flag, file in (("out", "c.md"), ("json", "c.json"), ("outcomes", "o.parquet"), ("manifest", "m.json")):
        arguments += [f"--{flag}", str(tmp_path / file)]
    compare_conclusions.main(arguments)
    text = (tmp_path / "c.md").read_text()
    assert (
        "language_spill/fr_it seed 42, judge: 380 of 560 labels failed (378 transport, 1 truncated, 1 refusal)" in text
    )
    counts = pd.read_parquet(tmp_path / "o.parquet")
    detected = counts[counts["scorer"] == "langdetect"]
    assert detected["outcome"].eq("ok").all() and detected["labels"].tolist() == [560] * 4


@pytest.mark.published
def test_a_file_that_kept_labels_alone_cannot_be_labelled_again(published, root, tmp_path):
    file = published / "language_spill/summary_baseline.json"
    if not file.is_file():
        pytest.skip("the published language-spill files are not in the folder of published results")
    own = ["--file", str(file), "--run", "language_spill/base", "--seed", "42", "--suite", "directives"]
    own += ["--languages", str(root / "resources/languages.yaml"), "--out", str(tmp_path / "completions.parquet")]
    with pytest.raises(SystemExit, match=r"holds no texts to label again; leave language_spill/base out or set"):
        replay.main([*own, "--texts", "--manifest", str(tmp_path / "m.json")])
    replay.main([*own, "--manifest", str(tmp_path / "m.json")])
    assert pd.read_parquet(tmp_path / "completions.parquet")["text"].isna().all()
