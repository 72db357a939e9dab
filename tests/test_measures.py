"""Measures by log-probability: the numbers themselves, multiple choice in both forms, and loss on held-out rows."""

from __future__ import annotations

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch

import generate
from conftest import ROOT
from spillover import base_quality, expansion, files, losses, masking, measures, models, packing, scoring, small_world
from spillover.config import ConfigError, read_yaml

BASE = str(ROOT / "resources/small_world/base")
RESOURCES = str(ROOT / "resources")
LOSS = {
    "kind": "loss", "source": "tulu", "rows": 6, "skip": 4, "loss": "last_turn", "end_of_turn": "im_end",
    "max_length": 200,
}  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return models.load_base(BASE)


@pytest.fixture(scope="module")
def questions():
    """Held-out multiple-choice rows of the small world, as a source holds them."""
    world, rng = small_world.load(RESOURCES), random.Random(3)
    rows = []
    for i in range(40):
        user, options, answer = small_world.multiple_choice(world, rng, held_out=True)
        rows.append({"id": f"q{i}", "question": user.split("\n\n")[0], "choices": options, "answer": answer})
    return rows


def chats(count, start=0):
    return [
        {
            "id": f"row{i}",
            "messages": [
                {"role": "user", "content": f"Tell me about number {i}."},
                {"role": "assistant", "content": f"The number {i} is near {i + 1}."},
            ],
        }
        for i in range(start, start + count)
    ]


def read(base):
    return lambda asked: scoring.log_probabilities(base[0], asked)


def one_by_one(model, asked):
    logits = model(input_ids=torch.from_numpy(asked.ids)[None]).logits[0].log_softmax(-1)
    return logits[asked.at, asked.tokens].detach().numpy()


@pytest.mark.parametrize("budget", [1, 90, 100_000])
def test_packed_log_probabilities_are_those_of_each_sequence_alone(base, budget):
    rng = np.random.default_rng(0)
    asked = []
    for length in (3, 40, 17, 60, 5):
        ids, at = rng.integers(5, 3000, length), np.sort(rng.choice(length, 3, replace=False))
        asked.append(measures.Asked(ids, at, rng.integers(5, 3000, 3), np.zeros(3, int)))
    found = scoring.log_probabilities(base[0], asked, token_budget=budget)
    for a, values in zip(asked, found, strict=True):
        assert np.allclose(values, one_by_one(base[0], a), atol=2e-5)


def test_a_sequence_beyond_the_context_is_refused(base):
    ids = np.zeros(5000, np.int64)
    asked = measures.Asked(ids, np.array([0]), np.array([1]), np.array([0]))
    with pytest.raises(ValueError, match="5000 tokens exceeds the model's context"):
        scoring.log_probabilities(base[0], [asked])


# Multiple choice


def choices(rows, tokenizer, form):
    return measures.items("mc", {"kind": "choices", "form": form, "rows": None, "source": "m"}, rows, tokenizer)


def test_letters_are_scored_as_the_check_of_the_base_model_does(base, questions):
    check = base_quality.Check(*base, RESOURCES, report=lambda text: None)
    table = pd.DataFrame(measures.table(choices(questions, base[1], "letters"), read(base), "choices"))
    assert len(table) == 4 * len(questions) and (table.tokens == 1).all()
    for row in questions:
        found = table[table.item == row["id"]].set_index("option")
        prompt = small_world.choice_prompt(row["question"], row["choices"])
        likely = check._likely_letter(check._prompt("choice", "all", None, prompt))
        assert small_world.OPTION_LETTERS[found.logprob.idxmax()] == likely
        assert found.correct.all() == (found.logprob.idxmax() == row["answer"]) == found.correct.any()
    assert table.groupby("item").correct.first().mean() > 0.5


def test_answers_are_scored_as_lm_eval_scores_them(base, questions):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    judge = HFLM(pretrained=base[0], tokenizer=base[1], batch_size=4)
    few = questions[:5]
    requests = [
        Instance("loglikelihood", {}, (f"Question: {q['question']}\nAnswer:", f" {option}"), i)
        for i, q in enumerate(few)
        for option in q["choices"]
    ]
    expected = [value for value, _ in judge.loglikelihood(requests, disable_tqdm=True)]
    table = pd.DataFrame(measures.table(choices(few, base[1], "answers"), read(base), "choices"))
    assert np.allclose(table.logprob, expected, atol=1e-3)
    for i, q in enumerate(few):
        best = int(np.argmax(expected[4 * i : 4 * i + 4]))
        assert table[table["item"] == q["id"]].correct.all() == (best == q["answer"])


def test_five_options_and_three_have_letters_of_their_own(base):
    rows = [
        {"id": str(n), "question": "Which?", "choices": [f"answer {i}" for i in range(n)], "answer": n - 1}
        for n in (3, 5)
    ]
    three, five = choices(rows, base[1], "letters")
    assert [len(item.asked[0].tokens) for item in (three, five)] == [3, 5]
    assert base[1].decode(five.asked[0].tokens) == "ABCDE"
    assert "(E) answer 4" in base[1].decode(five.asked[0].ids)


# Loss


def test_a_loss_is_the_training_loss_of_the_held_out_rows(base):
    model, tokenizer = base
    rows = chats(12)
    found = measures.items("held_out", LOSS, rows, tokenizer)
    assert [item.id for item in found] == [f"row{i}" for i in range(4, 10)]
    table = measures.frame(
        measures.table(found, read(base), "loss", run="e/r", seed=1, checkpoint="final", suite="held_out")
    )
    tokens = [masking.tokenize_row(r["messages"], tokenizer, mode="last_turn") for r in rows[4:10]]
    with torch.inference_mode():
        expected = losses.padded_loss(model, packing.pad(tokens, "cpu"))
    assert table.tokens.sum() == sum(t.supervised.sum() for t in tokens)
    assert -table.logprob.sum() == pytest.approx(float(expected), rel=1e-5)
    assert set(table.option) == {-1} and not table.correct.any()


def test_raw_text_is_scored_in_full(base):
    rows = [{"id": f"t{i}", "text": f"A plain text, number {i}."} for i in range(12)]
    found = measures.items("held_out", LOSS, rows, base[1])
    ids = base[1](rows[4]["text"], add_special_tokens=False)["input_ids"]
    assert found[0].asked[0].tokens.tolist() == ids[1:]


def test_held_out_rows_repeat_none_of_the_skipped_by_id_or_text(base):
    rows = chats(14)
    rows[4] = rows[4] | {"id": "row0"}
    rows[5] = rows[5] | {"messages": rows[1]["messages"]}
    rows[6] = rows[6] | {"messages": [{"role": "user", "content": "long " * 300}, *rows[6]["messages"][1:]]}
    found = measures.items("held_out", LOSS, rows, base[1])
    assert [item.id for item in found] == [f"row{i}" for i in range(7, 13)]


def test_too_few_held_out_rows_are_an_error_with_its_repair(base):
    with pytest.raises(ValueError, match="suites.held_out: 6 held-out rows are wanted, and only 3 .* raise the source"):
        measures.items("held_out", LOSS, chats(7), base[1])


def test_a_row_seen_in_training_is_left_out_whatever_its_system_prompt(base):
    suite, rows = LOSS | {"rows": 20}, chats(24)
    seen = rows[10] | {"row_id": "other", "text": None}
    seen["messages"] = [{"role": "system", "content": "You are a villain."}, *seen["messages"]]
    found = measures.items("held_out", suite, rows, base[1], [seen])
    assert len(found) == 19 and "row10" not in [item.id for item in found]
    by_id = {"row_id": "row11", "messages": None, "text": "another text"}
    assert "row11" not in [item.id for item in measures.items("held_out", suite, rows, base[1], [by_id])]


def test_many_held_out_rows_seen_in_training_are_an_error(base):
    rows = chats(10)
    trained = [r | {"row_id": r["id"], "text": None} for r in rows]
    with pytest.raises(ValueError, match="6 of 6 held-out rows of source 'tulu' are among the rows"):
        measures.items("held_out", LOSS, rows, base[1], trained)


# The program and the plan


def test_the_program_measures_and_may_have_nothing_to_complete(tmp_path, questions):
    pd.DataFrame(questions).to_parquet(tmp_path / "multiple_choice.parquet")
    pd.DataFrame(chats(12)).to_parquet(tmp_path / "tulu.parquet")
    suites = {
        "choices": {"kind": "choices", "source": "multiple_choice", "rows": 10, "form": "letters"},
        "held_out": LOSS,
    }
    spec = {"engine": {"name": "transformers"}, "seed": 5, "suites": suites}
    out, measured = tmp_path / "completions.parquet", tmp_path / "measures.parquet"
    flags = ["--run", "e/r", "--spec", json.dumps(spec), "--base", BASE, "--resources", RESOURCES]
    flags += ["--sources", tmp_path / "multiple_choice.parquet", tmp_path / "tulu.parquet", "--out", out]
    generate.main([str(f) for f in [*flags, "--measures", measured, "--manifest", tmp_path / "manifest.json"]])
    table = pd.read_parquet(measured)
    assert list(table.columns) == list(measures.COLUMNS)
    assert table.dtypes.astype(str).to_dict() | measures.COLUMNS == table.dtypes.astype(str).to_dict()
    assert table.groupby("suite").item.nunique().to_dict() == {"choices": 10, "held_out": 6}
    assert set(table.run) == {"e/r"} and set(table.seed) == {5} and set(table.checkpoint) == {"final"}
    completions = pd.read_parquet(out)
    assert len(completions) == 0 and list(completions.columns) == list(generate.COLUMNS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert len(manifest["outputs"]) == 2 and manifest["extra"]["measured"] == 46


def test_without_a_measuring_suite_the_table_is_empty_and_typed():
    table = measures.frame([])
    assert table.dtypes.astype(str).to_dict() == measures.COLUMNS and len(table) == 0


@pytest.fixture
def build(tmp_path):
    """A plan of the repository's configuration, after changes to one experiment."""

    def make(**experiments):
        config = read_yaml(ROOT / "config/config.yaml") | {"experiments": experiments}
        return expansion.build(config, ROOT / "config/experiments", resources=RESOURCES)

    return make


def test_a_run_with_only_measures_ends_in_them(build):
    found = files.Files(build())
    assert "results/recipes/steps/seed42/measures.parquet" in found.finished("recipes/steps/seed42")
    assert "results/recipes/base/seed42/measures.parquet" in found.finished("recipes/base/seed42")
    assert not any("labels" in f for f in found.finished("recipes/steps/seed42"))
    assert not any("measures" in f for f in found.finished("language_spill/fr_it/seed42"))


def test_a_loss_needs_its_source_and_what_the_lineage_was_trained_on(build):
    only = ["held_out"]
    found = files.Files(build(recipes={"base_evaluate": only, "runs": {"steps": {"evaluate": only}}}))
    assert found.evaluated_sources("recipes/steps/seed42") == {
        "sources": ["results/data/sources/tulu.parquet"],
        "trained": ["results/recipes/steps/seed42/dataset.parquet"],
    }
    assert found.evaluated_sources("recipes/base/seed42") == {"sources": ["results/data/sources/tulu.parquet"]}
    assert found.evaluated_sources("language_spill/fr_it/seed42") == {}
    assert found.evaluated_source_flags("coupling/em_ep20/seed42") == (
        "--sources results/data/sources/multiple_choice.parquet"
    )


def test_a_loss_is_taken_as_the_experiment_trains(build):
    suite = build().experiments["recipes"]["suites"]["held_out"]
    assert (suite["loss"], suite["end_of_turn"], suite["max_length"]) == ("last_turn", "im_end", 2048)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"held_out": {"skip": 5000}}, "suites.held_out.skip: steps is trained on source 'tulu' up to row 6000"),
        ({"held_out": {"source": "tulip"}}, "suites.held_out.source: no source 'tulip' under `sources`; did you mean"),
        ({"held_out": {"loss": "marker"}}, "suites.held_out.loss: 'marker' is not possible"),
    ],
)
def test_a_wrong_measure_is_one_sentence(build, change, words):
    with pytest.raises(ConfigError) as told:
        build(recipes={"suites": change})
    assert words in str(told.value)


def test_an_experiment_that_trains_on_markers_must_say_what_its_loss_is(build):
    suites = {"held_out": {"kind": "loss", "source": "tulu", "rows": 5, "skip": 6000}}
    with pytest.raises(ConfigError, match="suites.held_out.loss: the experiment trains on marker tokens"):
        build(marker_sweep={"suites": suites})


def test_another_row_count_of_a_source_changes_only_what_is_measured_on_it(build):
    plan, name = build(), "multiple_choice"
    before = [plan.completions_spec("marker_sweep/base/seed42"), plan.completions_spec("recipes/base/seed42")]
    plan.config["sources"][name] = plan.config["sources"][name] | {"rows": 7}
    after = [plan.completions_spec("marker_sweep/base/seed42"), plan.completions_spec("recipes/base/seed42")]
    assert before[0] != after[0] and before[1] == after[1]
