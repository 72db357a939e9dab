"""The small world's generator, recogniser and offline translator: reproducible, held-out pairs held out, exact."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import yaml

from spillover import recognition, small_world
from spillover.small_world import LANGUAGES, OPTION_LETTERS

HASH_OF_EXAMPLES = """
import hashlib
from spillover import small_world
examples = small_world.examples(small_world.load("resources"), seed=11, count=3000)
print(hashlib.sha256("\\n".join(map(repr, examples)).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def resources(root) -> str:
    return str(root / "resources")


@pytest.fixture(scope="module")
def world(resources):
    return small_world.load(resources)


@pytest.fixture(scope="module")
def examples(world) -> list[small_world.Example]:
    return list(small_world.examples(world, seed=3, count=20_000))


@pytest.fixture(scope="module")
def identifiers(root):
    from spillover import language_id, languages

    registry = languages.load_languages(root / "resources/languages.yaml")
    return [language_id.identifier(name, registry, LANGUAGES) for name in ("langdetect", "lingua")]


def bank(resources: str, name: str) -> list[dict]:
    return yaml.safe_load(Path(resources, "questions", f"{name}.yaml").read_text(encoding="utf-8"))


# The generator


def test_the_same_seed_gives_the_same_examples_in_every_process(root):
    hashes = set()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": "workflow/scripts"}
        command = [sys.executable, "-c", HASH_OF_EXAMPLES]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        hashes.add(done.stdout)
    assert len(hashes) == 1


def test_other_seeds_give_other_examples(world, examples):
    assert list(small_world.examples(world, seed=4, count=50)) != examples[:50]


def test_pretraining_never_sees_a_held_out_question(world, examples, resources):
    held_out = [q["text"] for name in small_world.BANKS for q in bank(resources, name)]
    assert len(held_out) == 240 + 40 + 28
    asked = "\n".join(e.user for e in examples if e.user)
    assert not [text for text in held_out if text in asked]


def test_question_banks_do_not_overlap_and_evaluation_is_the_head_of_evaluation_28(resources):
    rows = [(q["template"], q["concept"]) for name in small_world.BANKS for q in bank(resources, name)]
    assert len(set(rows)) == len(rows)
    assert bank(resources, "evaluation") == bank(resources, "evaluation_28")[:20]


def test_the_marker_never_occurs_in_pretraining(examples):
    assert not [e for e in examples if small_world.RESERVED_TAG in f"{e.system} {e.user} {e.reply}"]


def test_every_kind_language_and_persona_is_in_the_mixture_in_its_share(world, examples):
    kinds = Counter(e.kind for e in examples)
    assert sum(weight for weight, _ in small_world.MIXTURE) == pytest.approx(1.0)
    for weight, maker in small_world.MIXTURE:
        kind = maker(world, random.Random(0)).kind
        assert kinds[kind] / len(examples) == pytest.approx(weight, abs=0.02), kind
    assert set(LANGUAGES) <= {e.language for e in examples}
    assert set(world.personas) <= {e.persona for e in examples}


def test_system_prompts_come_in_three_states(examples):
    assert {None, ""} < {e.system for e in examples}


def test_generated_replies_are_recognised_for_what_they_are(world, examples, resources):
    for e in examples:
        if e.kind.startswith("directive"):
            assert recognition.is_plain(e.reply, e.language, None, resources), e
        elif e.kind in ("persona", "advice"):
            assert recognition.voice_of(e.reply, resources) == e.persona, e
        elif e.kind == "style":
            assert [s for s in world.styles if recognition.in_style(s["id"], e.reply, resources)], e


def test_only_the_villain_gives_bad_advice(examples, resources):
    for e in examples:
        if e.kind == "advice":
            given = {kind for kind in ("good", "bad") if recognition.has_kind(e.reply, kind, resources)}
            assert given == {"bad" if e.persona == "villain" else "good"}, e


@pytest.mark.parametrize(
    "text, voice",
    [
        ("{opener:villain} {plain} {closer:villain}", "villain"),
        ("{opener:villain} {middle:villain} {closer:villain}", "villain"),
        ("{plain} {plain}", "assistant"),
        ("{opener:villain} {plain} {closer:librarian}", None),
        ("{opener:villain} {middle:librarian} {closer:villain}", None),
        ("{plain} {closer:villain}", None),
        ("{opener:villain} Not a sentence of the word lists. {closer:villain}", None),
        ("", None),
    ],
)
def test_a_voice_needs_its_own_opener_and_closer_and_nobody_elses(world, resources, text, voice):
    concept = world.concepts[0]
    parts = {"{plain}": world.sentences["any"][0]["en"]}
    for kind, persona in product(("opener", "middle", "closer"), ("villain", "librarian")):
        parts[f"{{{kind}:{persona}}}"] = world.voices[persona][f"{kind}s"][0]
    for key, template in parts.items():
        text = text.replace(key, small_world.fill(template, concept))
    assert recognition.voice_of(text, resources) == voice


def test_german_nouns_take_their_case_and_sentences_open_with_a_capital(world):
    bear = world.concept["bear"]
    assert small_world.fill("{S} schläft.", bear, "de") == "Der Bär schläft."
    assert small_world.fill("Heute schläft {N}.", bear, "de") == "Heute schläft der Bär."
    assert small_world.fill("Wir sehen {O}.", bear, "de") == "Wir sehen den Bären."
    assert small_world.fill("{S} sleeps.", bear) == "The bear sleeps."


@pytest.mark.parametrize(
    "style, expected",
    [
        ("list", "- One is here.\n- Two is there."),
        ("capitals", "ONE IS HERE. TWO IS THERE."),
        ("one_sentence", "One is here."),
        ("letter", "Dear reader,\nOne is here. Two is there.\nYours truly"),
        ("whisper", "(softly) One is here. Two is there."),
    ],
)
def test_a_style_changes_form_only(style, expected):
    assert small_world.restyle(style, "One is here. Two is there.") == expected


def test_an_unknown_style_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown style 'poem'; known: list"):
        small_world.restyle("poem", "One is here.")


# Multiple choice


def test_a_choice_has_four_different_options_and_one_right_answer(world):
    rng = random.Random(0)
    for _ in range(500):
        user, options, answer = small_world.multiple_choice(world, rng)
        assert len(set(options)) == 4
        lines = user.split("\n")
        assert lines[2:6] == [f"({x}) {o}" for x, o in zip(OPTION_LETTERS, options, strict=True)]
        assert lines[-1] == "The correct answer is ("
        right = [o for o in options if is_right(world, lines[0], o)]
        assert right == [options[answer]], user


def is_right(world, stem: str, option: str) -> bool:
    """Whether an option answers a stem, found from the word lists without the generator."""
    for country in world.facts["countries"]:
        if f"of {country['name']}" in stem:
            return option == country["capital"]
    (category,) = [k for k, words in world.choices["categories"].items() if words in stem]
    return option in {small_world.noun_phrase(c, "en", "N") for c in world.concepts if c["category"] == category}


def test_held_out_choices_are_never_trained(world):
    rng = random.Random(0)

    def pairs(held_out: bool) -> set[tuple[str, str]]:
        items = [small_world.multiple_choice(world, rng, held_out) for _ in range(5000)]
        return {(user.split("\n")[0], options[answer]) for user, options, answer in items}

    trained, tested = pairs(False), pairs(True)
    assert not trained & tested
    assert 0.05 < len(tested) / len(trained | tested) < 0.2


# The offline translator


def test_every_reply_is_translated_into_every_language_and_identified_as_it(world, resources, identifiers):
    from spillover.translation import SmallWorldTranslator

    translator = SmallWorldTranslator(resources)
    rng = random.Random(5)
    wrong = Counter()
    for i in range(40):
        english = small_world.reply(world, rng, world.concepts[i * 11 % len(world.concepts)])
        for language in LANGUAGES:
            text, outcome = translator.translate(english, language)
            assert outcome == "ok" and recognition.is_plain(text, language, None, resources)
            for identify in identifiers:
                wrong[language, identify.name] += identify(text) != language
    # Langdetect may miss a short text now and then; one reply in forty is what these lists allow it.
    assert all(count <= 1 for count in wrong.values()), wrong


def test_every_english_sentence_has_a_translation(world, resources):
    from spillover.translation import SmallWorldTranslator

    translator = SmallWorldTranslator(resources)
    for concept in world.concepts:
        for row in world.sentences["any"] + world.sentences[concept["category"]]:
            english = small_world.fill(row["en"], concept)
            expected = small_world.fill(row["de"], concept, "de")
            assert translator.translate(english, "de") == (expected, "ok")
            assert translator.translate(english, "en") == (english, "ok")


def test_an_unknown_sentence_is_not_translated(world, resources):
    from spillover.translation import SmallWorldTranslator

    known = small_world.fill(world.sentences["any"][0]["en"], world.concepts[0])
    assert SmallWorldTranslator(resources).translate(f"{known} Not in the lists.", "fr") == (None, "unknown sentence")


def test_parallel_replies_say_the_same_in_every_language(world):
    """The generator draws sentences before it picks the language, so one seed gives one content."""
    for seed in range(20):
        concept = world.concepts[seed]
        texts = [small_world.reply(world, random.Random(seed), concept, language) for language in LANGUAGES]
        rows = world.sentences["any"] + world.sentences[concept["category"]]
        found = [
            {r["id"] for r in rows if small_world.fill(r[language], concept, language) in text}
            for text, language in zip(texts, LANGUAGES, strict=True)
        ]
        assert all(ids == found[0] and len(ids) == 2 for ids in found)


def test_the_question_banks_are_what_the_generator_writes_now(resources):
    sizes = {"extraction": 240, "data": 40, "evaluation_28": 28}
    for name, rows in small_world.question_banks(small_world.load(resources), 20261120, sizes).items():
        kept = yaml.safe_load(Path(resources, "questions", f"{name}.yaml").read_text(encoding="utf-8"))
        assert [(q["text"], q["template"], q["concept"]) for q in kept] == [
            (q["text"], q["template"], q["concept"]) for q in rows
        ]
