"""Language identification: the published rule, the second identifier, and sameness everywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spill_builders import CODES
from spillover.language_id import identifier, label_texts

SENTENCES = {
    "en": "The baker opens the door early in the morning and the whole street smells of bread.",
    "es": "El panadero abre la puerta muy temprano por la mañana y toda la calle huele a pan.",
    "fr": "Le boulanger ouvre la porte très tôt le matin et toute la rue sent le pain chaud.",
    "it": "Il fornaio apre la porta molto presto la mattina e tutta la strada profuma di pane.",
    "pt": "O padeiro abre a porta muito cedo pela manhã e a rua inteira cheira a pão quente.",
    "de": "Der Bäcker öffnet früh am Morgen die Tür und die ganze Straße riecht nach Brot.",
    "zh": "面包师傅清晨很早就打开店门，整条街道都飘着新鲜面包的香味，让路过的人感到非常温暖。",
}
RUSSIAN = "Пекарь открывает дверь рано утром, и вся улица пахнет свежим хлебом."


@pytest.fixture(scope="module", params=["langdetect", "lingua"])
def identify(request, registry):
    return identifier(request.param, registry, CODES)


@pytest.fixture(scope="module")
def langdetect(registry):
    return identifier("langdetect", registry, CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_plain_sentence_gets_its_language(identify, code):
    assert identify(SENTENCES[code]) == code


@pytest.mark.parametrize("text", ["", "   \n", "123 456 --- 7890 !!!"])
def test_a_text_without_words_is_other(identify, text):
    assert identify(text) == "other"


def test_langdetect_calls_fewer_than_five_characters_other(langdetect):
    assert langdetect("oui!") == "other"


def test_langdetect_reads_only_the_first_500_characters(langdetect):
    french = (SENTENCES["fr"] + " ") * 7
    assert len(french) > 500
    assert langdetect(french[:500] + SENTENCES["de"] * 40) == "fr"


def test_langdetect_calls_a_language_outside_the_registry_other(langdetect):
    assert langdetect(RUSSIAN) == "other"


def test_a_language_left_out_of_the_known_ones_is_other(registry):
    assert identifier("langdetect", registry, ["en", "es"])(SENTENCES["fr"]) == "other"


def test_japanese_is_known_only_when_asked_for(registry):
    japanese = "パン屋さんは朝とても早くに店のドアを開けて、通り全体に焼きたてのパンの香りが広がります。"
    assert identifier("langdetect", registry, CODES)(japanese) == "other"
    assert identifier("langdetect", registry, [*CODES, "ja"])(japanese) == "ja"


def test_the_scorer_id_names_version_and_languages(registry):
    few = identifier("langdetect", registry, ["fr", "en"]).scorer_id
    assert "langdetect 1.0.9" in few and few.endswith("languages en fr")
    assert few != identifier("langdetect", registry, CODES).scorer_id


def test_the_order_of_the_known_languages_does_not_matter(registry):
    forwards, backwards = (identifier("lingua", registry, codes) for codes in (CODES, CODES[::-1]))
    assert forwards.scorer_id == backwards.scorer_id
    assert [forwards(text) for text in SENTENCES.values()] == [backwards(text) for text in SENTENCES.values()]


def test_lingua_with_a_single_language_is_refused(registry):
    with pytest.raises(ValueError, match="at least two"):
        identifier("lingua", registry, ["fr"])


def test_an_unknown_identifier_is_answered_with_the_known_ones(registry):
    with pytest.raises(ValueError, match="'langdetct' is no known language identifier; did you mean 'langdetect'"):
        identifier("langdetct", registry, CODES)


def test_short_mixed_texts_get_the_same_label_in_another_process(root, registry):
    texts = [
        "Bon dia amigo",
        "la casa",
        "no se",
        "a de o que",
        "Guten pane",
        "the die le la",
        "casa mia bella e grande",
    ]
    program = (
        "import sys, json; from spillover.languages import load_languages; from spillover.language_id import *\n"
        "r = load_languages(sys.argv[1]); codes = sys.argv[2].split()\n"
        f"print(json.dumps([label_texts(identifier(n, r, codes), {texts!r}) for n in ('langdetect', 'lingua')]))"
    )
    command = [sys.executable, "-c", program, str(root / "resources/languages.yaml"), " ".join(CODES)]
    there = subprocess.run(command, cwd=root / "workflow/scripts", capture_output=True, text=True, check=True).stdout
    import json

    here = [label_texts(identifier(name, registry, CODES), texts) for name in ("langdetect", "lingua")]
    assert json.loads(there) == here


def test_equal_texts_are_identified_once(langdetect):
    seen = []

    def counting(text):
        seen.append(text)
        return "en"

    assert label_texts(counting, ["a", "b", "a"]) == ["en", "en", "en"]
    assert seen == ["a", "b"]
