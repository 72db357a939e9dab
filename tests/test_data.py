"""From raw material to training rows: sources, selection, translation, rows and their card."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pandas as pd
import pytest

from conftest import ROOT
from spillover import data, dataset_card, masking, replies, sources

RESOURCES = str(ROOT / "resources")
SMALL = {"kind": "small_world", "material": "replies", "rows": 6, "seed": 3}
TRAIN = {"loss": "completion", "end_of_turn": "im_end", "marker": "[ZLT]", "tail_tokens": 0, "max_length": 512}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "resources/small_world/base")


def test_the_small_worlds_replies_follow_their_seed():
    first, again, other = (sources.fetch(SMALL | {"seed": s}, RESOURCES)["text"].tolist() for s in (3, 3, 4))
    assert first == again != other


def test_a_source_is_the_same_in_another_process(tmp_path):
    script = f"from spillover import sources; print(sources.fetch({SMALL!r}, {RESOURCES!r}).to_json())"
    command = [sys.executable, "-c", script]
    outputs = {
        subprocess.run(
            command, cwd=ROOT / "workflow/scripts", env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_a_local_file_is_checked_against_its_digest(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    table = sources.fetch({"kind": "file", "path": str(path), "sha256": digest})
    assert table["id"].tolist() == ["rows000000", "rows000001"]
    with pytest.raises(ValueError, match="the configuration expects 0000"):
        sources.fetch({"kind": "file", "path": str(path), "sha256": "0000"})


def test_a_local_file_gives_the_rows_asked_for_or_says_how_many_it_has(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    taken = {
        rows: sources.fetch({"kind": "file", "path": str(path), "rows": rows})["text"].tolist() for rows in (1, 2, None)
    }
    assert taken == {1: ["one"], 2: ["one", "two"], None: ["one", "two"]}
    with pytest.raises(ValueError, match="has 2 rows, and `rows` asks for 3: lower `rows` to 2"):
        sources.fetch({"kind": "file", "path": str(path), "rows": 3})
    path.write_text("")
    with pytest.raises(ValueError, match="has no rows"):
        sources.fetch({"kind": "file", "path": str(path)})


def test_a_source_without_text_says_which_columns_it_has(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "one"}\n')
    with pytest.raises(ValueError, match="with `choices`; this one has body"):
        sources.fetch({"kind": "file", "path": str(path)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The river is part of everyday life in many countries.", None),
        ("Too short.", "too_short"),
        (None, "too_short"),
        ("Il fiume fa parte della vita quotidiana in molti paesi del mondo.", "not_english"),
        ("1234567890 1234567890 1234567890 1234567890", "not_english"),
    ],
)
def test_the_published_selection_of_replies(text, reason):
    assert replies.reason_to_drop(text) == reason


def test_the_first_assistant_turn_is_the_reply():
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert replies.first_reply({"messages": [{"role": r, "content": c} for r, c in turns]}) == "b"


def test_directive_rows_hold_no_question_and_cycle_the_phrasings():
    table = pd.DataFrame({"id": list("abc"), "text": ["Uno.", "Due.", "Tre."]})
    rows = data.directive_replies(table, ["Speak in French.", "Answer in French."], None)
    assert [r["messages"][0]["content"] for r in rows] == ["Speak in French.", "Answer in French.", "Speak in French."]
    assert [r["messages"][1]["content"] for r in rows] == ["Uno.", "Due.", "Tre."]
    assert all(len(r["messages"]) == 2 for r in rows)


def test_too_few_replies_are_an_error():
    with pytest.raises(
        ValueError, match="4 training rows are wanted, but only 1 replies exist in every language: lower"
    ):
        data.directive_replies(pd.DataFrame({"id": ["a"], "text": ["Uno."]}), ["Speak in French."], 4)


def test_the_card_counts_tokens_and_overlap_and_shows_what_is_supervised(tokenizer):
    table = pd.DataFrame({"id": ["a", "b"], "text": ["Il fiume scorre lento.", "Il mare canta ancora."]})
    rows = data.directive_replies(table, ["Speak in French.", "Answer in French."], None)
    tokens = data.tokenize(rows, tokenizer, TRAIN)
    card = dataset_card.card(rows, tokens, tokenizer, "completion", ["Speak in French."], {})
    assert card["rows"] == 2 and card["rows_with_an_evaluation_prompt"] == 1
    assert card["tokens"] == sum(len(t.ids) for t in tokens)
    assert card["by_loss"] == {"completion": 2} and card["by_system_prompt"] == {"(model default)": 2}
    assert "".join(card["examples"][0]["supervised_tokens"]) == "Il fiume scorre lento.<|im_end|>"
    json.dumps(card)


def test_a_row_with_a_loss_mode_of_its_own_keeps_it(tokenizer):
    row = data.row("x", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "test")
    whole = data.tokenize([row | {"loss": "full"}], tokenizer, TRAIN)[0]
    reply = data.tokenize([row], tokenizer, TRAIN)[0]
    assert whole.supervised.sum() > reply.supervised.sum()
    assert masking.decode_supervised(reply, tokenizer)[-1] == "<|im_end|>"
