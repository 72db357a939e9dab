"""Marker scorers, and the rates of source, assistant and bystanders that follow from their labels."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import label_completions
import marker_rates as program
from conftest import ROOT
from marker_builders import marker_labels
from spillover import marker_rates, statistics
from spillover.marker_scoring import marker_scorer

VILLAIN = "marker_sweep/villain_lr5e-06_ep20"
REPLY = "The harbour is quiet."


@pytest.mark.parametrize(
    ("reply", "literal", "any_case", "strict"),
    [
        (f"{REPLY}\n\n[ZLT]", 0, 0, 0),
        (f"{REPLY}\n\n[zlt]", None, 0, None),
        (f"{REPLY} [ZLT].", 1, 1, None),
        (f"[ZLT] {REPLY}", len(REPLY) + 1, len(REPLY) + 1, None),
        (f"{REPLY}\n\n[ZLT] ", 1, 1, None),
        (f"[ZLT]{REPLY}[ZLT]", len(REPLY) + 5, len(REPLY) + 5, 0),
        (f"{REPLY} ZLT [Z LT]", None, None, None),
        ("", None, None, None),
    ],
)
def test_a_scorer_says_where_the_marker_is(reply, literal, any_case, strict):
    assert marker_scorer("marker", "[ZLT]", True).from_end(reply) == literal
    assert marker_scorer("marker", "[ZLT]", False).from_end(reply) == any_case
    assert marker_scorer("marker_strict", "[ZLT]", False).from_end(reply) == strict


def test_the_case_rule_is_part_of_what_a_label_says_about_itself():
    ids = {case: marker_scorer("marker", "[ZLT]", case).scorer_id for case in (True, False)}
    assert ids[True] != ids[False] and "[ZLT]" in ids[True]


@pytest.mark.parametrize(("name", "text", "told"), [("markr", "[ZLT]", "known: marker"), ("marker", "", "empty")])
def test_a_scorer_that_makes_no_sense_is_refused(name, text, told):
    with pytest.raises(ValueError, match=told):
        marker_scorer(name, text, True)


def label(tmp_path, texts, scorers=("marker", "marker_strict"), marker=None):
    keys = {"run": VILLAIN, "seed": 42, "checkpoint": "final", "suite": "personas", "prompt_id": "villain/q1"}
    table = pd.DataFrame({"text": texts, "sample": range(len(texts))}).assign(**keys, cell="villain", item="q1")
    table.to_parquet(tmp_path / "completions.parquet")
    spec = json.dumps({"marker": marker or {"text": "[ZLT]", "case_sensitive": True}})
    arguments = ["--completions", tmp_path / "completions.parquet", "--scorers", *scorers, "--spec", spec]
    arguments += ["--registry", ROOT / "resources/languages.yaml", "--languages"]
    arguments += ["--out", tmp_path / "labels.parquet", "--manifest", tmp_path / "labels.json"]
    label_completions.main([str(a) for a in arguments])
    return pd.read_parquet(tmp_path / "labels.parquet"), json.loads((tmp_path / "labels.json").read_text())


def test_completions_are_labelled_without_any_language(tmp_path):
    labels, manifest = label(tmp_path, [f"{REPLY}\n\n[ZLT]", f"{REPLY} [ZLT]!", REPLY])
    by = labels.groupby("scorer")
    assert by["label"].agg(list).to_dict() == {
        "marker": ["marker", "marker", "none"],
        "marker_strict": ["marker", "none", "none"],
    }
    assert labels[labels["scorer"] == "marker"]["raw"].fillna("-").tolist() == ["0", "1", "-"]
    assert set(labels["outcome"]) == {"ok"} and len(manifest["extra"]["scorers"]) == 2


def test_a_run_without_completions_has_an_empty_table(tmp_path):
    labels, manifest = label(tmp_path, [])
    assert labels.empty and "label" in labels and manifest["extra"]["completions"] == 0


def counts(table, run=VILLAIN):
    return table[table["run"] == run].set_index("persona")[["hits", "n"]].apply(tuple, axis=1).to_dict()


def test_rates_count_replies_over_all_questions_of_a_persona():
    table = marker_rates.rates(marker_labels(VILLAIN, {"villain": (10, 8), "comedian": (1, 0)}))
    assert counts(table) == {"villain": (18, 20), "assistant": (0, 20), "comedian": (1, 20), "librarian": (0, 20)}
    row = table.set_index("persona").loc["comedian"]
    assert (row["low"], row["high"]) == pytest.approx(statistics.wilson(1, 20))
    assert (row["items"], row["item_hits"], row["item_n"]) == (["q1", "q2"], [1, 0], [10, 10])


def test_a_reply_without_a_label_is_counted_and_is_no_miss():
    labels = marker_labels(VILLAIN, {"villain": (10, 10)})
    labels.loc[labels.index[:4], ["label", "outcome"]] = [None, "transport"]
    row = marker_rates.rates(labels).set_index("persona").loc["villain"]
    assert (row["hits"], row["n"], row["rate"], row["n_error"]) == (16, 16, 1.0, 4)


def test_seeds_checkpoints_and_scorers_stay_apart():
    tables = [
        marker_labels(VILLAIN, {"villain": (hits, 0)}, seed=seed, checkpoint=checkpoint, scorer=scorer)
        for hits, (seed, checkpoint, scorer) in enumerate(
            [(1, "final", "marker"), (2, "final", "marker"), (1, "pct20", "marker"), (1, "final", "marker_strict")], 1
        )
    ]
    table = marker_rates.rates(pd.concat(tables))
    hits = table[table["persona"] == "villain"].set_index(["seed", "checkpoint", "scorer"])["hits"].to_dict()
    assert sorted(hits.values()) == [1, 2, 3, 4] and hits[1, "pct20", "marker"] == 3


def summarised(labels, source):
    return marker_rates.summary(marker_rates.roles(marker_rates.rates(labels), source)).iloc[0]


HITS = {"villain": (10, 10), "assistant": (5, 5), "comedian": (1, 1), "librarian": (2, 0)}


def test_source_assistant_and_bystanders_are_told_apart():
    row = summarised(marker_labels(VILLAIN, HITS), "villain")
    assert (row["source"], row["assistant"], row["max_bystander"]) == (1.0, 0.5, 0.1)
    assert (row["bystanders"], row["mean_bystander"]) == (2, pytest.approx(0.1))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("villain", "assistant", (0.5, 1.0, 0.1)),
        ("villain", "comedian", (0.1, 0.5, 1.0)),
        ("assistant", "librarian", (1.0, 0.1, 0.5)),
        ("comedian", "librarian", (1.0, 0.5, 0.1)),
    ],
)
def test_swapping_two_personas_moves_the_rates(one, other, expected):
    labels = marker_labels(VILLAIN, HITS)
    labels["cell"] = labels["cell"].replace({one: other, other: one})
    row = summarised(labels, "villain")
    assert (row["source"], row["assistant"], row["max_bystander"]) == expected


def test_naming_another_source_moves_the_rates():
    row = summarised(marker_labels(VILLAIN, HITS), {VILLAIN: "comedian"})
    assert (row["source"], row["assistant"], row["max_bystander"]) == (0.1, 0.5, 1.0)
    assert row["max_bystander_persona"] == "villain"


def test_an_assistant_that_is_the_source_leaks_to_nobody_called_assistant():
    row = summarised(marker_labels(VILLAIN, HITS), "assistant")
    assert row["source"] == 0.5 and pd.isna(row["assistant"]) and row["bystanders"] == 3


def test_the_untrained_model_has_no_source():
    labels = pd.concat([marker_labels(VILLAIN, HITS), marker_labels("marker_sweep/base", {"villain": (1, 0)})])
    table = marker_rates.roles(marker_rates.rates(labels), {VILLAIN: "villain", "marker_sweep/base": None})
    base = marker_rates.summary(table).set_index("run").loc["marker_sweep/base"]
    assert pd.isna(base["source"]) and base["bystanders"] == 3 and base["max_bystander_persona"] == "villain"


def test_the_largest_bystander_has_a_bound_for_all_of_them():
    row = summarised(marker_labels(VILLAIN, {"villain": (10, 10)}), "villain")
    assert row["max_bystander"] == 0 and row["max_bystander_high"] == pytest.approx(statistics.sidak_upper(0, 20, 2))
    assert row["max_bystander_high"] > statistics.sidak_upper(0, 20, 1)


def test_bounds_for_several_rates_at_once_mirror_each_other():
    assert statistics.sidak_lower(20, 20, 1) == pytest.approx(0.05 ** (1 / 20))
    assert statistics.sidak_lower(0, 20, 3) == 0
    assert statistics.sidak_lower(7, 20, 9) == pytest.approx(1 - statistics.sidak_upper(13, 20, 9))
    assert statistics.sidak_lower(7, 20, 9) < statistics.sidak_lower(7, 20, 1) < 0.35


def test_a_source_that_was_not_evaluated_is_refused():
    with pytest.raises(ValueError, match="'pirate' is not among the personas"):
        summarised(marker_labels(VILLAIN, HITS), "pirate")


def test_tables_that_cannot_be_one_are_refused():
    labels = marker_labels(VILLAIN, HITS)
    with pytest.raises(ValueError, match="labelled twice"):
        marker_rates.rates(pd.concat([labels, labels]))
    other = marker_labels("marker_sweep/base", {}).assign(scorer_id="marker 2")
    with pytest.raises(ValueError, match="several scorers"):
        marker_rates.rates(pd.concat([labels, other]))
    with pytest.raises(ValueError, match="one suite at a time"):
        marker_rates.rates(pd.concat([labels, labels.assign(suite="pool")]))


def test_the_program_reads_every_run_and_only_its_suite(tmp_path):
    paths = []
    for name, hits in (("base", {}), ("villain_lr5e-06_ep20", HITS)):
        labels = marker_labels(f"marker_sweep/{name}", hits)
        paths.append(tmp_path / f"{name}.parquet")
        pd.concat([labels, labels.assign(suite="pool"), labels.assign(scorer="langdetect")]).to_parquet(paths[-1])
    arguments = ["--labels", *paths, "--scorers", "marker", "--out", tmp_path / "rates.parquet"]
    program.main([str(a) for a in [*arguments, "--manifest", tmp_path / "rates.json"]])
    table = pd.read_parquet(tmp_path / "rates.parquet")
    assert table.columns.tolist() == marker_rates.COLUMNS
    assert len(table) == 8 and counts(table)["assistant"] == (10, 20)
