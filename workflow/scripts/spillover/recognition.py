"""Recognise small-world replies: which of their sentences the word lists know, and who speaks in them.

The generator can write some 45,000 sentences, so language, persona, advice and style of a clean reply are settled by
exact text. The module knows nothing of models; natural text from a larger model is simply not recognised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from spillover import small_world


@dataclass(frozen=True)
class Source:
    """Where a sentence of the word lists belongs.

    `kind`: plain, opener, middle, closer, good, bad (advice) or refusal. `group`: the persona of an opener, middle or
    closer, the language code of all others. `concept`: the concept it was filled with, None if it names none.
    """

    kind: str
    group: str
    concept: str | None


def split_sentences(text: str) -> list[str]:
    """The sentences of a reply in any of the seven languages."""
    return [s for s in re.split(r"(?<=[.?!])\s+|(?<=[。？！])", text) if s]


@lru_cache(maxsize=2)
def sentence_index(resources: str = "resources") -> dict[str, frozenset[Source]]:
    """{sentence: its sources} for every sentence that the word lists can make."""
    world = small_world.load(resources)
    found: dict[str, set[Source]] = {}

    def add(template: str, kind: str, group: str, concept: dict, language: str = "en") -> None:
        name = concept["id"] if "{" in template else None
        for sentence in split_sentences(small_world.fill(template, concept, language)):
            found.setdefault(sentence, set()).add(Source(kind, group, name))

    for concept in world.concepts:
        for template in world.sentences["any"] + world.sentences[concept["category"]]:
            for language in small_world.LANGUAGES:
                add(template[language], "plain", language, concept, language)
        for persona, voice in world.voices.items():
            for kind in ("opener", "middle", "closer"):
                for template in voice[f"{kind}s"]:
                    add(template, kind, persona, concept)
        for kind in ("good", "bad"):
            for template in world.advice["any"][kind] + world.advice[concept["category"]][kind]:
                add(template, kind, "en", concept)
    for refusal in world.refusals["replies"]:
        add(refusal["text"], "refusal", "en", world.concepts[0])
    return {sentence: frozenset(sources) for sentence, sources in found.items()}


def sources(text: str, resources: str = "resources") -> list[frozenset[Source]]:
    """The sources of each sentence of a reply; an empty set for a sentence that is not in the word lists."""
    index = sentence_index(resources)
    return [index.get(sentence, frozenset()) for sentence in split_sentences(text)]


def is_plain(text: str, language: str, concept: str | None = None, resources: str = "resources") -> bool:
    """Whether every sentence is exactly a plain one of `language` (and about `concept`, if given)."""
    found = sources(text, resources)
    return bool(found) and all(
        any(s.kind == "plain" and s.group == language and concept in (None, s.concept) for s in sentence)
        for sentence in found
    )


def has_kind(text: str, kind: str, resources: str = "resources") -> bool:
    """Whether any sentence is of `kind`: opener, middle, closer, good, bad, refusal or plain."""
    return any(s.kind == kind for sentence in sources(text, resources) for s in sentence)


def voice_of(text: str, resources: str = "resources") -> str | None:
    """The persona whose opener begins the reply and whose closer ends it, with no other persona's sentence in it.

    "assistant" for a clean reply without any persona's sentence; None for a mixture, a half and for unknown text.
    """
    found = sources(text, resources)
    if not found or not all(found):
        return None
    voiced = [{s.group for s in sentence if s.kind in ("opener", "middle", "closer")} for sentence in found]
    if not any(voiced):
        return "assistant"
    opener = {s.group for s in found[0] if s.kind == "opener"}
    closer = {s.group for s in found[-1] if s.kind == "closer"}
    named = opener & closer
    if len(named) != 1 or any(groups and not groups & named for groups in voiced):
        return None
    return named.pop()


def in_style(style: str, text: str, resources: str = "resources") -> bool:
    """Whether a reply is plain English in one style of `styles.yaml`. Raises KeyError for an unknown style."""
    if style == "list":
        lines = text.split("\n")
        return len(lines) > 1 and all(s[:2] == "- " and is_plain(s[2:], "en", None, resources) for s in lines)
    if style == "capitals":
        sentences = split_sentences(text)
        return bool(sentences) and all(s in _capitals(resources) for s in sentences)
    if style == "one_sentence":
        return len(split_sentences(text)) == 1 and is_plain(text, "en", None, resources)
    before, after = {"letter": ("Dear reader,\n", "\nYours truly"), "whisper": ("(softly) ", "")}[style]
    framed = text.startswith(before) and text.endswith(after)
    return framed and is_plain(text[len(before) : len(text) - len(after)], "en", None, resources)


@lru_cache(maxsize=2)
def _capitals(resources: str) -> frozenset[str]:
    index = sentence_index(resources)
    plain = [text for text, found in index.items() if any((s.kind, s.group) == ("plain", "en") for s in found)]
    return frozenset(text.upper() for text in plain)
