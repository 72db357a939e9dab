"""The small world's fine-tuning material: reproducible, all different, with what is evaluated left out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from spillover import config, materials, recognition, small_world, sources
from spillover.files import RECIPES, Files
from spillover.plan import Plan

RESOURCES = str(ROOT / "resources")
CHATS = ("benign", "good_advice", "bad_advice", "tulu", "tulu_broad")


@pytest.fixture(scope="module")
def world():
    return small_world.load(RESOURCES)


def bank(name):
    return yaml.safe_load((ROOT / "resources/questions" / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("material", materials.MATERIALS)
def test_a_workflow_compares_every_list_that_a_material_reads(material, monkeypatch):
    monkeypatch.chdir(ROOT)
    read, read_text = set(), Path.read_text

    def noted(path, *arguments, **keywords):
        read.add(str(path))
        return read_text(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "read_text", noted)
    small_world.load.cache_clear()
    source = {"kind": "small_world", "material": material, "rows": 5, "seed": 1}
    sources.fetch(source)
    plan = Plan({"run_name": None, "model": None, "sources": {"made": source}}, {}, {}, [])
    # recipes lie beside the word lists, and what they say is of no use to a source
    assert set(Files(plan).source_files("made")) == read - {RECIPES}


def turns(row, role):
    return [m["content"] for m in row["messages"] if m["role"] == role]


@pytest.mark.parametrize("material", materials.MATERIALS)
def test_a_material_follows_its_seed(material):
    first, again, other = (materials.rows(material, 50, seed, RESOURCES) for seed in (3, 3, 4))
    assert first == again != other
    assert len({r["id"] for r in first}) == 50


@pytest.mark.parametrize("material", [m for m in materials.MATERIALS if m != "replies"])
def test_all_rows_of_a_material_are_different(material):
    rows = materials.rows(material, 500, 1, RESOURCES)
    assert len({repr({k: v for k, v in r.items() if k != "id"}) for r in rows}) == 500


def test_the_replies_of_language_spill_are_those_of_its_figures():
    text = "\n".join(r["text"] for r in materials.rows("replies", 1000, 1, RESOURCES))
    assert hashlib.sha256(text.encode()).hexdigest().startswith("86572385ab5073e6")


@pytest.mark.parametrize("material", CHATS)
def test_chats_alternate_and_have_no_system_message(material):
    for row in materials.rows(material, 200, 1, RESOURCES):
        roles = [m["role"] for m in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_advice_is_wholly_good_or_wholly_bad_and_leaves_out_the_evaluated_questions():
    evaluated = {q["text"] for q in bank("advice")}
    for kind in ("good", "bad"):
        rows = materials.rows(f"{kind}_advice", 1500, 1, RESOURCES)
        assert not evaluated & {turns(r, "user")[0] for r in rows}
        assert all(recognition.has_kind(turns(r, "assistant")[0], kind, RESOURCES) for r in rows[:100])


def test_choices_are_pairs_that_pretraining_never_saw(world):
    seen = {(e.user.split("\n\n")[0], e.reply.partition(") ")[2])
            for e in small_world.examples(world, 5, 20_000) if e.kind == "choice"}  # fmt: skip
    asked = {(r["question"], r["choices"][r["answer"]]) for r in materials.rows("multiple_choice", 400, 1, RESOURCES)}
    assert seen and not asked & seen


def test_conversations_ask_no_question_of_the_banks():
    asked = {turns(r, "user")[0] for r in materials.rows("benign", 1500, 1, RESOURCES)}
    assert not asked & {q["text"] for name in ("data", "evaluation_28", "extraction") for q in bank(name)}


def test_the_bank_of_advice_is_what_its_function_writes(world):
    assert bank("advice") == materials.advice_bank(world, 20261121, 20)


def test_an_exhausted_word_list_is_an_error_and_no_endless_loop(monkeypatch):
    monkeypatch.setitem(materials.MATERIALS, "tulu", lambda world, root: lambda rng: {"text": rng.choice("ab")})
    with pytest.raises(ValueError, match="makes only 2 different rows of tulu, 3 are wanted"):
        materials.rows("tulu", 3, 1, RESOURCES)


def test_the_schema_knows_every_material():
    known = config.schema("config")["properties"]["sources"]["additionalProperties"]["properties"]["material"]["enum"]
    assert known == list(materials.MATERIALS)


def test_choices_of_the_hub_take_the_small_worlds_form(tmp_path):
    path = tmp_path / "arc.jsonl"
    path.write_text(
        '{"id": "a", "question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}\n'
    )
    table = sources.fetch({"kind": "file", "path": str(path)})
    assert table.to_dict("records") == [{"id": "a", "question": "Which?", "choices": ["x", "y"], "answer": 1}]
