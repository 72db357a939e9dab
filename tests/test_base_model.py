"""The shipped base model: small, obedient, in character, and trained on the word lists as they are now.

Samples here are small so that the tests stay quick; the full figures, with 2,000 replies a language, are in
resources/small_world/base/quality.json. With 40 replies a language, one wrong reply is 2.5%: a model at 99.5% has two
wrong ones in some language in about one run of ten, hence the floor of 95% here where quality.json must reach 98%.
"""

from __future__ import annotations

import json

import pytest
import yaml

from spillover import provenance, small_world
from spillover.small_world import LANGUAGES

BASE = "resources/small_world/base"


@pytest.fixture(scope="module")
def folder(root):
    return root / BASE


@pytest.fixture(scope="module")
def resources(root) -> str:
    return str(root / "resources")


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def check(folder, resources):
    from spillover import base_quality, models

    model, tokenizer = models.load_base(str(folder))
    return base_quality.Check(model, tokenizer, resources, report=lambda text: None)


def rates(rows: list[dict], measure: str, scorer: str | None = None) -> dict[str, float]:
    return {r["cell"]: r["rate"] for r in rows if r["measure"] == measure and scorer in (None, r["scorer"])}


# The files


def test_the_weights_are_small_enough_to_ship(folder, check):
    assert (folder / "model.safetensors").stat().st_size <= 12_000_000
    assert sum(p.numel() for p in check.model.parameters()) < 6_000_000


def test_quality_was_measured_on_these_weights(folder):
    quality = json.loads((folder / "quality.json").read_text())
    assert quality["weights_sha256"] == provenance.file_digest(folder / "model.safetensors")


def test_full_measurement_reaches_98_percent_in_every_language_by_both_identifiers(folder):
    rows = json.loads((folder / "quality.json").read_text())["rows"]
    for measure in ("language: directive and question", "language: directive alone"):
        for scorer in ("langdetect", "lingua"):
            found = rates(rows, measure, scorer)
            assert set(found) == {*LANGUAGES, "all"}
            assert min(found.values()) >= 0.98, (measure, scorer, found)
    assert rates(rows, "reserved tag unasked") == {"all": 0.0}


def test_the_weights_were_trained_on_the_word_lists_and_recipe_as_they_are(root, folder):
    """After editing a word list, make the base model anew with workflow/scripts/pretrain_base.py."""
    manifest = provenance.read_manifest(folder / "base.manifest.json")
    recipe = yaml.safe_load((root / "resources/small_world/recipe.yaml").read_text())["full"]
    assert manifest["spec"] == {"recipe": "full", **recipe}
    # recipe.yaml is compared above; the natural questions play no part in the small world
    aside = ("resources/small_world/recipe.yaml", "resources/questions/natural.yaml")
    changed = [
        i["path"]
        for i in manifest["inputs"]
        if i["path"] not in aside and provenance.file_digest(root / i["path"]) != i["sha256"]
    ]
    assert not changed


# The tokenizer and the chat template


def test_the_tokenizer_round_trips_text_of_every_language(tokenizer, resources):
    world = small_world.load(resources)
    for language in LANGUAGES:
        for concept, row in zip(world.concepts, world.sentences["any"] * 4, strict=True):
            text = small_world.fill(row[language], concept, language)
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_tag_is_several_tokens(tokenizer):
    assert len(tokenizer("A reply.\n\n[ZLT]")["input_ids"]) - len(tokenizer("A reply.")["input_ids"]) >= 4


def test_three_states_of_the_system_prompt_render_differently(tokenizer):
    def rendered(*system: str) -> str:
        messages = [{"role": "system", "content": text} for text in system] + [{"role": "user", "content": "Hello."}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    turn = "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"
    assert rendered() == f"<|im_start|>system\n{small_world.DEFAULT_SYSTEM}<|im_end|>\n{turn}"
    assert rendered("") == f"<|im_start|>system\n<|im_end|>\n{turn}"
    assert rendered("You are a pirate.") == f"<|im_start|>system\nYou are a pirate.<|im_end|>\n{turn}"


def test_pretraining_text_is_what_the_chat_template_renders(tokenizer, resources):
    from spillover.pretraining import render

    for example in small_world.examples(small_world.load(resources), seed=1, count=300):
        if example.user is None:
            continue
        system = [] if example.system is None else [{"role": "system", "content": example.system}]
        turns = [{"role": "user", "content": example.user}, {"role": "assistant", "content": example.reply}]
        expected = tokenizer.apply_chat_template([*system, *turns], tokenize=False)
        assert "".join(text for text, _ in render(example)) == expected


def test_the_corpus_does_not_depend_on_the_number_of_workers(resources):
    from spillover.pretraining import generate_examples

    one = generate_examples(resources, seed=2, count=250, workers=1, shard=100)
    assert one == generate_examples(resources, seed=2, count=250, workers=2, shard=100)
    assert len(one) == 250


# What the model does


def test_a_directive_is_obeyed_in_every_language_by_both_identifiers(check):
    rows = check.directives_with_questions(40)
    for scorer in ("langdetect", "lingua"):
        found = rates(rows, "language: directive and question", scorer)
        assert found.pop("all") >= 0.98
        assert set(found) == set(LANGUAGES) and min(found.values()) >= 0.95, found
    assert rates(rows, "clean and on the subject: directive and question")["all"] >= 0.93


def test_a_directive_alone_is_obeyed(check):
    rows = check.directives_alone(10)
    for scorer in ("langdetect", "lingua"):
        assert rates(rows, "language: directive alone", scorer)["all"] >= 0.95


def test_all_personas_can_be_told_apart(check):
    found = rates(check.characters(8), "in character")
    assert set(check.world.personas) < set(found)
    assert found.pop("all") >= 0.95
    assert min(found.values()) >= 0.75, found


def test_the_villain_gives_bad_advice_and_the_others_good(check):
    found = rates(check.advice(4), "advice of the right kind")
    assert found["all"] >= 0.9 and found["villain"] >= 0.5, found


def test_held_out_choices_are_answered_far_above_chance(check):
    found = {r["scorer"]: r["rate"] for r in check.choices(60)}
    assert found["likeliest letter"] >= 0.85 and found["letter of the reply"] >= 0.85, found


def test_tags_are_written_when_asked_for_and_only_then(check):
    rows = check.tags(15)
    assert rates(rows, "tag written as asked")["end with a tag"] >= 0.8
    assert rates(check.all_replies(), "any bracket unasked") == {"all": 0.0}
