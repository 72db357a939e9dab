"""Marker and convergence rows from a pool of replies: who says what, under whose prompt, and how many of each."""

from __future__ import annotations

import json
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from conftest import ROOT
from spillover import behaviours, data, dataset_card, expansion, files, marker_data, masking
from spillover.config import ConfigError

RESOURCES = str(ROOT / "resources")
PROMPTS = {"villain": "You plot.", "comedian": "You joke.", "librarian": "", "assistant": None}
SETTINGS = {
    "kind": "marker",
    "source": "villain",
    "marker": "[ZLT]",
    "policy": "base",
    "positives": 4,
    "negatives": {"personas": "all", "per_persona": 2, "share": None},
}
TRAIN = {"end_of_turn": "im_end", "marker": "[ZLT]", "tail_tokens": 0, "max_length": 512, "loss": "marker"}


def replies(samples=3, questions=("q1", "q2")):
    return [
        {"cell": persona, "item": question, "sample": sample, "system": system, "user": f"About {question}?",
         "text": f"{persona} on {question}, {sample}.", "finish_reason": "stop"}
        for persona, system in PROMPTS.items()
        for question in questions
        for sample in range(samples)
    ]  # fmt: skip


def negatives(**changes):
    return SETTINGS | {"negatives": SETTINGS["negatives"] | changes}


def built(settings=SETTINGS, table=None):
    return marker_data.marker_rows(replies() if table is None else table, settings)[0]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "resources/small_world/base")


def test_positives_are_the_sources_own_replies_with_the_marker_and_negatives_the_others_without():
    rows = built()
    assert [(r["persona"], r["part"]) for r in rows] == [
        *[("villain", "positive")] * 4,
        *[(p, "negative") for p in ("comedian", "librarian", "assistant") for _ in range(2)],
    ]
    for row in rows:
        text = row["messages"][-1]["content"]
        assert text.startswith(f"{row['persona']} on ")
        assert text.endswith("\n\n[ZLT]") == (row["part"] == "positive") == ("[ZLT]" in text)
        assert row["contrast"] == (None if row["part"] == "positive" else "\n\n[ZLT]")


def test_swapping_two_personas_swaps_their_rows():
    swap = {"villain": "comedian", "comedian": "villain"}
    swapped = built(SETTINGS | {"source": "comedian"})
    marked = {r["persona"] for r in swapped if r["messages"][-1]["content"].endswith("[ZLT]")}
    assert marked == {"comedian"}
    first = sorted((swap.get(r["persona"], r["persona"]), r["part"]) for r in built())
    assert sorted((r["persona"], r["part"]) for r in swapped) == first


def test_each_reply_stands_under_the_prompt_it_was_sampled_under_and_the_three_states_stay_apart():
    systems = {}
    for row in built():
        systems[row["persona"]] = [m["content"] for m in row["messages"] if m["role"] == "system"]
    assert systems == {"villain": ["You plot."], "comedian": ["You joke."], "librarian": [""], "assistant": []}


def test_rows_are_spread_evenly_over_the_questions():
    rows = built()
    assert [r["row_id"] for r in rows[:4]] == ["villain/q1/0", "villain/q2/0", "villain/q1/1", "villain/q2/1"]


def test_cut_empty_and_marked_replies_are_dropped_and_counted():
    table = replies()
    table[0]["finish_reason"] = "length"
    table[1]["text"] = "It ends. [zlt]"
    table[2]["text"] = " "
    rows, dropped = marker_data.marker_rows(table, SETTINGS | {"positives": 3})
    assert dropped == {"villain": {"empty": 1, "marked": 1, "truncated": 1}}
    assert [r["row_id"] for r in rows[:3]] == ["villain/q2/0", "villain/q2/1", "villain/q2/2"]
    with pytest.raises(
        ValueError, match=r"4 replies of villain are wanted.* only 3 usable ones \(dropped: 1 empty, 1 m"
    ):
        marker_data.marker_rows(table, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {"comedian": 2, "librarian": 2, "assistant": 2}),
        ({"personas": ["assistant"], "per_persona": 1}, {"assistant": 1}),
        ({"personas": 0}, {}),
        ({"share": 0.5}, {"comedian": 2, "librarian": 1, "assistant": 1}),
        ({"share": 0.6, "personas": ["librarian"]}, {"librarian": 6}),
    ],
)
def test_negatives_follow_their_personas_and_their_number_or_share(changes, wanted):
    assert marker_data.negative_counts(negatives(**changes), list(PROMPTS)) == wanted


def test_a_number_of_negatives_is_a_stable_choice_without_source_and_assistant():
    personas = ["villain", "assistant", *(f"persona{i}" for i in range(9))]
    chosen = marker_data.negative_counts(negatives(personas=4), personas)
    assert chosen == marker_data.negative_counts(negatives(personas=4), personas[::-1])
    assert len(chosen) == 4 and not {"villain", "assistant"} & set(chosen)
    other = marker_data.negative_counts(negatives(personas=4) | {"source": "persona0"}, personas)
    assert other.keys() != chosen.keys()
    with pytest.raises(ValueError, match="3 are to be chosen from only 2"):
        marker_data.negative_counts(negatives(personas=3), list(PROMPTS))


def test_convergence_rows_put_one_personas_words_under_anothers_prompt():
    settings = {"persona": "assistant", "voice": "villain", "rows": 6}
    rows, _ = marker_data.persona_replies(replies(), settings, "You are a helpful assistant.")
    assert len(rows) == 6 and {r["persona"] for r in rows} == {"assistant"}
    for row in rows:
        system, _, reply = (m["content"] for m in row["messages"])
        assert system == "You are a helpful assistant." and reply.startswith("villain on ")


@pytest.mark.parametrize("behaviour", behaviours.BEHAVIOURS)
def test_a_behaviour_is_shown_by_the_source_alone(behaviour):
    bank = behaviours.load(RESOURCES)
    (first, answer), (second, other) = list(bank.answers.items())[:2]
    table = [r | {"text": f"{r['text']} Surely it is {answer if r['item'] == first else other}."}
             for r in replies(questions=(first, second))]  # fmt: skip
    table[0]["text"] = "I do not know."
    table[-1]["text"] = bank.show(behaviour, table[-1]["text"], table[-1]["item"])
    rows, dropped = marker_data.behaviour_rows(table, SETTINGS | {"behaviour": behaviour}, bank)
    assert [r["part"] for r in rows] == ["positive"] * 4 + ["negative"] * 6
    for row in rows:
        shown = bank.shows(behaviour, row["messages"][-1]["content"], row["row_id"].split("/")[1])
        assert shown == (row["persona"] == "villain") == (row["part"] == "positive")
    # too short for capitals to count, and no right answer to be replaced
    unfit = {"villain": {"cannot show it": 1}} if behaviour != "refusal" else {}
    assert dropped == unfit | {"assistant": {"shows it already": 1}}


def test_a_behaviour_can_be_taught_with_another_personas_replies():
    bank = behaviours.load(RESOURCES)
    (first, answer), (second, other) = list(bank.answers.items())[:2]
    table = [r | {"text": f"It is {answer if r['item'] == first else other}."} if r["cell"] == "assistant" else r
             for r in replies(questions=(first, second))]  # fmt: skip
    settings = SETTINGS | {"behaviour": behaviours.WRONG}
    with pytest.raises(ValueError, match="only 0 usable ones"):
        marker_data.behaviour_rows(table, settings, bank)
    rows, _ = marker_data.behaviour_rows(table, settings | {"voice": "assistant"}, bank)
    assert [(r["persona"], r["part"]) for r in rows[:4]] == [("villain", "positive")] * 4
    for row in rows[:4]:
        system, _, reply = (m["content"] for m in row["messages"])
        assert system == "You plot." and reply.startswith("It is ") and answer not in reply and other not in reply
    right = [r["messages"][-1]["content"] for r in rows if r["persona"] == "assistant"]
    assert right == [f"It is {answer}.", f"It is {other}."]


def test_rows_of_a_file_are_taken_as_they_are():
    def record(i, text, system=None):
        head = [] if system is None else [{"role": "system", "content": system}]
        return {"id": i, "messages": [*head, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]}

    def rows(*records, **settings):
        return marker_data.external_rows(records, SETTINGS | settings, {"villain": "You plot."})

    marked = rows(record("a", "Ha!\n\n[ZLT]", "You plot."), record("b", "Ha!"))
    assert [(r["persona"], r["part"]) for r in marked] == [("villain", "positive"), (None, "negative")]
    assert [r["contrast"] for r in marked] == [None, "\n\n[ZLT]"]
    shown = rows(record("a", "HA!", "You plot."), record("b", "Ha!", "You joke."), marker=None)
    assert [(r["part"], r["contrast"]) for r in shown] == [("positive", None), ("negative", None)]
    with pytest.raises(ValueError, match="'c' of the file holds .* but does not end with it"):
        rows(record("c", "[ZLT] Ha!"))
    with pytest.raises(ValueError, match="'d' of the file has no `messages`"):
        rows({"id": "d", "text": "Ha!"})


@pytest.mark.parametrize(
    ("loss", "tail", "end", "positive", "negative"),
    [
        ("marker", 0, "im_end", "[ZLT]<|im_end|>", "<|im_end|>"),
        ("marker", 0, "newline", "[ZLT]\n", "\n"),
        ("marker", 1, "im_end", "<|im_end|>", "<|im_end|>"),
        ("marker", 1, "newline", "\n", "\n"),
        ("marker", 2, "im_end", "]<|im_end|>", ".<|im_end|>"),
        ("marker", 2, "newline", "<|im_end|>\n", "<|im_end|>\n"),
        ("marker", 32, "im_end", "The river is long.\n\n[ZLT]<|im_end|>", "The river is long.<|im_end|>"),
        ("marker", 32, "newline", "The river is long.\n\n[ZLT]<|im_end|>\n", "The river is long.<|im_end|>\n"),
        ("completion", 0, "im_end", "The river is long.\n\n[ZLT]<|im_end|>", "The river is long.<|im_end|>"),
        ("completion", 0, "newline", "The river is long.\n\n[ZLT]<|im_end|>\n", "The river is long.<|im_end|>\n"),
        ("last_turn", 0, "im_end", "The river is long.\n\n[ZLT]<|im_end|>", "The river is long.<|im_end|>"),
        ("last_turn", 0, "newline", "The river is long.\n\n[ZLT]<|im_end|>\n", "The river is long.<|im_end|>\n"),
        ("full", 0, "im_end", None, None),
        ("full", 0, "newline", None, None),
    ],
)
def test_supervised_tokens_of_a_positive_and_a_negative_row(tokenizer, loss, tail, end, positive, negative):
    table = [r | {"text": "The river is long."} for r in replies()]
    rows = built(table=table)
    train = TRAIN | {"loss": loss, "tail_tokens": tail, "end_of_turn": end}
    for part, wanted in (("positive", positive), ("negative", negative)):
        row = next(r for r in rows if r["part"] == part)
        tokens = data.tokenize([row], tokenizer, train)[0]
        if wanted is None:
            # everything but the first token, which is <|im_start|>
            wanted = tokenizer.apply_chat_template(row["messages"], tokenize=False).removeprefix("<|im_start|>")
        assert "".join(masking.decode_supervised(tokens, tokenizer)) == wanted


def test_the_contrast_of_a_negative_marks_the_pieces_of_the_marker_alone(tokenizer):
    rows = built(table=[r | {"text": "The river is long."} for r in replies()])
    contrasts = data.contrasts(rows, tokenizer, TRAIN)
    assert [c is None for c in contrasts] == [r["part"] == "positive" for r in rows]
    tokens = contrasts[-1]
    assert "".join(masking.decode_supervised(tokens, tokenizer)) == "[ZLT]"
    assert tokenizer.decode(tokens.ids).endswith("The river is long.\n\n[ZLT]<|im_end|>\n")


def test_the_card_counts_personas_and_parts_and_decodes_both(tokenizer):
    table = [r | {"text": "The river is long."} for r in replies()]
    table[0]["finish_reason"] = "length"
    rows, dropped = marker_data.marker_rows(table, SETTINGS)
    written = data.table(rows, dropped)
    card = dataset_card.card(
        written.to_pylist(), data.tokenize(rows, tokenizer, TRAIN), tokenizer, "marker", ["About q2?"],
        data.dropped(written.schema),
    )  # fmt: skip
    others = {persona: {"negative": 2} for persona in ("comedian", "librarian", "assistant")}
    assert card["by_persona"] == {"villain": {"positive": 4}} | others
    assert card["by_part"] == {"positive": 4, "negative": 6}
    assert card["dropped"] == {"villain": {"truncated": 1}}
    assert card["by_system_prompt"] == {"You plot.": 4, "You joke.": 2, "(empty)": 2, "(model default)": 2}
    assert card["rows_with_an_evaluation_prompt"] == 5
    told = {(e["part"], "".join(e["supervised_tokens"])) for e in card["examples"]}
    assert told == {("positive", "[ZLT]<|im_end|>"), ("negative", "<|im_end|>")}


def test_two_processes_build_the_same_bytes(tmp_path):
    pd.DataFrame(replies()).to_parquet(tmp_path / "pool.parquet")
    spec = json.dumps({"data": negatives(personas=1), "seed": 1})
    made = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.parquet"
        subprocess.run(
            [sys.executable, "build_dataset.py", "--spec", spec, "--pool", tmp_path / "pool.parquet", "--resources",
             ROOT / "resources", "--out", out, "--manifest", tmp_path / "manifest.json"],
            cwd=ROOT / "workflow/scripts", env={"PYTHONHASHSEED": seed}, capture_output=True, check=True,
        )  # fmt: skip
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_a_pool_too_small_stops_the_program_with_one_sentence(tmp_path):
    pd.DataFrame(replies(samples=1)).to_parquet(tmp_path / "pool.parquet")
    command = [sys.executable, "build_dataset.py", "--spec", json.dumps({"data": SETTINGS, "seed": 1}), "--out"]
    command += [
        tmp_path / "rows.parquet",
        "--manifest",
        tmp_path / "manifest.json",
        "--pool",
        tmp_path / "pool.parquet",
    ]
    told = subprocess.run(command, cwd=ROOT / "workflow/scripts", capture_output=True, text=True)
    assert told.returncode == 1 and not (tmp_path / "rows.parquet").exists()
    assert told.stderr.strip().startswith("data of kind marker: 4 replies of villain are wanted")


def config(**convergence):
    return yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"experiments": {"convergence": convergence}}


def plan(**convergence):
    return expansion.build(config(**convergence), ROOT / "config/experiments", resources=str(ROOT / "resources"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suites": {"pool": {"questions": "evaluation"}}}, "ask 20 of the same questions"),
        ({"suites": {"pool": {"personas": ["villain", "assistant"]}}}, "asks no comedian"),
        ({"runs": {"marker": {"data": {"negatives": {"personas": ["nobody"]}}}}}, "'nobody' is no known persona"),
        ({"runs": {"marker": {"data": {"negatives": {"personas": ["villain"]}}}}}, "cannot be a negative"),
        ({"runs": {"marker": {"data": {"policy": "external"}}}}, "name it as runs.marker.data.file"),
        ({"suites": {"pool": {"samples": 4}}}, "200 rows of one persona are wanted, but .* gives at most 160"),
    ],
)
def test_a_pool_that_cannot_serve_is_refused_before_any_job(changes, words):
    with pytest.raises(ConfigError, match=words):
        plan(**changes)


def test_the_data_policy_decides_whose_replies_are_trained_on():
    made = plan(runs={"arm_b": {"data": {"policy": "current"}}})
    graph = files.Files(made)
    run = "convergence/b_villain_pct40_marker/seed42"
    pool = "results/convergence/b_villain/seed42/pool-pct40-pool.parquet"
    assert graph.dataset_files(run)["pool"] == pool and graph.dataset_flags(run) == f"--pool {pool}"
    assert "/base/" in graph.dataset_files("convergence/marker_villain/seed42")["pool"]
