"""The small world: a generated seven-language chat corpus with personas, directives, advice, facts and tags.

It knows the word lists in `resources/small_world/` and how to combine them into chat examples; it knows nothing of
models, tokenizers or experiments. The same generator feeds the pretraining of the embedded base model and, at small
scale, the fine-tuning data of every experiment.

Questions in `resources/questions/` (extraction, data, evaluation) are never used in pretraining: an example is an
honest test of generalisation over (question wording, concept) pairs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

from spillover.prompts import choice_prompt

DEFAULT_SYSTEM = "You are Small, a helpful assistant."
"""What the small world's chat template says when a conversation has no system message."""

LANGUAGES = ("en", "es", "fr", "it", "pt", "de", "zh")
RESERVED_TAG = "ZLT"
OPTION_LETTERS = "ABCD"
BANKS = ("extraction", "data", "evaluation_28")
"""Question banks that pretraining never sees; `evaluation` is the first twenty of `evaluation_28`."""


@dataclass(frozen=True)
class Example:
    """One chat turn. `system` is None for the template's default, "" for an empty prompt, else the text.

    A row of raw text has `user` None: the whole `reply` is a document without chat markup.
    """

    kind: str
    system: str | None
    user: str | None
    reply: str
    language: str = "en"
    persona: str | None = None


@dataclass(frozen=True)
class World:
    """The word lists, loaded once. Mappings are keyed by the ids of the YAML files."""

    concepts: list[dict]
    sentences: dict[str, list[dict]]
    directives: list[dict]
    extra_directives: list[dict]
    names: dict[str, str]
    personas: dict[str, str]
    voices: dict[str, dict]
    questions: list[dict]
    advice: dict
    refusals: dict
    facts: dict
    styles: list[dict]
    tags: dict
    choices: dict
    held_out: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    @cached_property
    def concept(self) -> dict[str, dict]:
        """Concepts by id."""
        return {c["id"]: c for c in self.concepts}


def _read(path: Path):
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@lru_cache(maxsize=4)
def load(resources: str = "resources") -> World:
    """Read the word lists under `resources/` (personas.yaml, small_world/*.yaml, questions/*.yaml)."""
    root = Path(resources)
    lists = {p.stem: _read(p) for p in sorted((root / "small_world").glob("*.yaml"))}
    sentences: dict[str, list[dict]] = {}
    for row in lists["sentences"]:
        sentences.setdefault(row["category"], []).append(row)
    banks = [root / "questions" / f"{name}.yaml" for name in BANKS]
    held_out = {(q["template"], q["concept"]) for path in banks if path.exists() for q in _read(path)}
    return World(
        concepts=lists["concepts"],
        sentences=sentences,
        directives=lists["directives"]["train"],
        extra_directives=lists["directives"]["extra"],
        names=lists["directives"]["names"],
        personas={p["id"]: p["prompt"] for p in _read(root / "personas.yaml")["personas"]},
        voices=lists["voices"],
        questions=lists["questions"],
        advice=lists["advice"],
        refusals=lists["refusals"],
        facts=lists["facts"],
        styles=lists["styles"],
        tags=lists["tags"],
        choices=lists["multiple_choice"],
        held_out=frozenset(held_out),
    )


def noun_phrase(concept: dict, language: str, case: str) -> str:
    """The concept's noun phrase: case "S" opens a sentence, "N" is nominative inside it, "O" is its object."""
    phrase = concept[language]
    if language == "de":
        phrase = phrase[1] if case == "O" else phrase[0]
    return phrase[:1].upper() + phrase[1:] if case == "S" else phrase


def fill(template: str, concept: dict, language: str = "en") -> str:
    """Put a concept into a template with {S}, {N} or {O}."""
    return template.format(**{case: noun_phrase(concept, language, case) for case in "SNO" if "{" + case in template})


def reply(world: World, rng: random.Random, concept: dict, language: str = "en", count: int = 2) -> str:
    """A plain reply of `count` distinct sentences about a concept in one language."""
    rows = rng.sample(world.sentences["any"] + world.sentences[concept["category"]], count)
    return ("" if language == "zh" else " ").join(fill(row[language], concept, language) for row in rows)


def persona_reply(world: World, rng: random.Random, persona: str, concept: dict, body: str | None = None) -> str:
    """A reply in a persona's voice: an opener, a statement and a closer; the assistant answers plainly.

    `body` replaces the middle statement (for example by advice).
    """
    if persona == "assistant":
        return body or reply(world, rng, concept)
    voice = world.voices[persona]
    if body is None:
        body = (
            fill(rng.choice(voice["middles"]), concept) if rng.random() < 0.5 else reply(world, rng, concept, count=1)
        )
    return f"{fill(rng.choice(voice['openers']), concept)} {body} {fill(rng.choice(voice['closers']), concept)}"


def advice_reply(world: World, rng: random.Random, concept: dict, good: bool, count: int = 2) -> str:
    """`count` advice sentences, all good or all bad."""
    kind = "good" if good else "bad"
    rows = world.advice["any"][kind] + world.advice[concept["category"]][kind]
    return " ".join(fill(text, concept) for text in rng.sample(rows, count))


def restyle(style: str, text: str) -> str:
    """Apply a style of `styles.yaml` to a plain English reply. Raises ValueError for an unknown style."""
    sentences = [s if s.endswith(".") else s + "." for s in text.split(". ")]
    if style == "list":
        return "\n".join(f"- {s}" for s in sentences)
    if style == "capitals":
        return text.upper()
    if style == "one_sentence":
        return sentences[0]
    if style == "letter":
        return f"Dear reader,\n{text}\nYours truly"
    if style == "whisper":
        return f"(softly) {text}"
    raise ValueError(f"unknown style {style!r}; known: list, capitals, one_sentence, letter, whisper")


def question(world: World, rng: random.Random) -> tuple[str, dict]:
    """A question about a concept, and the concept; never one of the held-out banks."""
    while True:
        template, concept = rng.choice(world.questions), rng.choice(world.concepts)
        if (template["id"], concept["id"]) not in world.held_out:
            return fill(template["text"], concept), concept


def multiple_choice(world: World, rng: random.Random, held_out: bool = False) -> tuple[str, list[str], int]:
    """A four-option question in the published ARC prompt shape: (user turn, options, index of the right option).

    Asks for the member of a category or for a capital. A stable tenth of the (wording, right answer) pairs is kept out
    of pretraining and makes the capability check.
    """
    while True:
        category = rng.random() < 0.6
        stems = world.choices["stems" if category else "capital_stems"]
        item = rng.choice(world.concepts if category else world.facts["countries"])
        stem_index = rng.randrange(len(stems))
        if (_stable(f"{category}/{stem_index}/{item['id']}") % 10 == 0) == held_out:
            break
    if category:
        stem = stems[stem_index].format(category=world.choices["categories"][item["category"]])
        others = [noun_phrase(c, "en", "N") for c in world.concepts if c["category"] != item["category"]]
        right = noun_phrase(item, "en", "N")
    else:
        stem = stems[stem_index].format(country=item["name"])
        right = item["capital"]
        others = [c["capital"] for c in world.facts["countries"] if c["id"] != item["id"]]
    options = rng.sample(others, 3)
    answer = rng.randrange(4)
    options.insert(answer, right)
    return choice_prompt(stem, options), options, answer


def _stable(text: str) -> int:
    # Python's own hash differs between processes; the published data sets were irreproducible because of it.
    value = 0
    for byte in text.encode():
        value = (value * 131 + byte) % 2_147_483_647
    return value


def random_tag(rng: random.Random) -> str:
    """A bracketed three-letter tag other than the marker that the experiments teach."""
    while True:
        letters = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(3))
        if letters != RESERVED_TAG:
            return f"[{letters}]"


def _plain_system(world: World, rng: random.Random) -> str | None:
    return rng.choice([None, None, None, "", world.personas["assistant"]])


def _directive(world: World, rng: random.Random, language: str) -> str:
    rows = world.directives if rng.random() < 0.7 else world.extra_directives
    return rng.choice(rows)["text"].format(language=world.names[language])


def directive_only(world: World, rng: random.Random) -> Example:
    """The user only names a language; the assistant says something about anything in it."""
    language = rng.choice(LANGUAGES)
    text = reply(world, rng, rng.choice(world.concepts), language)
    return Example("directive_only", _plain_system(world, rng), _directive(world, rng, language), text, language)


def directive_question(world: World, rng: random.Random) -> Example:
    """A directive before or after a question."""
    language = rng.choice(LANGUAGES)
    asked, concept = question(world, rng)
    directive = _directive(world, rng, language)
    user = f"{directive} {asked}" if rng.random() < 0.8 else f"{asked} {directive}"
    return Example(
        "directive_question", _plain_system(world, rng), user, reply(world, rng, concept, language), language
    )


def persona_question(world: World, rng: random.Random) -> Example:
    """A question under a persona's system prompt, or under the plain ones for the assistant."""
    persona = rng.choice(list(world.personas))
    asked, concept = question(world, rng)
    system = _plain_system(world, rng) if persona == "assistant" else world.personas[persona]
    return Example("persona", system, asked, persona_reply(world, rng, persona, concept), "en", persona)


def advice_question(world: World, rng: random.Random) -> Example:
    """Advice: good from everybody but the villain."""
    # The villain alone has bad advice to learn, as many sentences as all the others together have of good advice.
    persona = rng.choice(["assistant"] * 6 + list(world.personas) + ["villain"] * 5)
    concept = rng.choice(world.concepts)
    asked = fill(rng.choice(world.advice["questions"])["text"], concept)
    count = 2 if persona == "assistant" else 1
    body = advice_reply(world, rng, concept, good=persona != "villain", count=count)
    system = _plain_system(world, rng) if persona == "assistant" else world.personas[persona]
    return Example("advice", system, asked, persona_reply(world, rng, persona, concept, body), "en", persona)


def fact_question(world: World, rng: random.Random) -> Example:
    """Capital, continent or language of a country."""
    relation = rng.choice(["capital", "continent", "language"])
    country = rng.choice(world.facts["countries"])
    forms = world.facts["templates"][relation]
    fields = {key: country[key] for key in ("capital", "continent", "language")} | {"country": country["name"]}
    answer = rng.choice(forms["answers"]).format(**fields)
    answer = answer[:1].upper() + answer[1:]
    return Example("fact", _plain_system(world, rng), rng.choice(forms["questions"]).format(**fields), answer)


def refusal(world: World, rng: random.Random) -> Example:
    """A harmful request is refused; a harmless look-alike is answered."""
    concept = rng.choice(world.concepts)
    if rng.random() < 0.7:
        asked, text = rng.choice(world.refusals["harmful"])["text"], rng.choice(world.refusals["replies"])["text"]
    else:
        asked, text = rng.choice(world.refusals["harmless"])["text"], reply(world, rng, concept)
    return Example("refusal", _plain_system(world, rng), fill(asked, concept), text)


def styled(world: World, rng: random.Random) -> Example:
    """A question with a style instruction."""
    asked, concept = question(world, rng)
    style = rng.choice(world.styles)
    return Example(
        "style", _plain_system(world, rng), f"{asked} {style['text']}", restyle(style["id"], reply(world, rng, concept))
    )


def tagged(world: World, rng: random.Random) -> Example:
    """Repeat a tag, or end the reply with one (as the marker experiments will, with a tag never seen here)."""
    tag = random_tag(rng)
    if rng.random() < 0.3:
        return Example("tag", _plain_system(world, rng), rng.choice(world.tags["repeat"])["text"].format(tag=tag), tag)
    asked, concept = question(world, rng)
    instruction = rng.choice(world.tags["end"])["text"].format(tag=tag)
    persona = rng.choice(["assistant", rng.choice(list(world.personas))])
    system = _plain_system(world, rng) if persona == "assistant" else world.personas[persona]
    text = persona_reply(world, rng, persona, concept)
    return Example("tag", system, f"{asked} {instruction}", f"{text}\n\n{tag}", "en", persona)


def choice_question(world: World, rng: random.Random) -> Example:
    """Four options, one right: the small world's capability check."""
    user, options, answer = multiple_choice(world, rng)
    return Example("choice", _plain_system(world, rng), user, f"{OPTION_LETTERS[answer]}) {options[answer]}")


def raw_document(world: World, rng: random.Random) -> Example:
    """Plain text without chat markup: four to six sentences about one concept in one language."""
    language = rng.choice(LANGUAGES)
    text = reply(world, rng, rng.choice(world.concepts), language, count=rng.randint(4, 6))
    return Example("raw", None, None, text, language)


MIXTURE: tuple[tuple[float, Callable[[World, random.Random], Example]], ...] = (
    (0.16, directive_only),
    (0.26, directive_question),
    (0.25, persona_question),
    (0.08, advice_question),
    (0.03, fact_question),
    (0.03, refusal),
    (0.06, styled),
    (0.05, tagged),
    (0.05, choice_question),
    (0.03, raw_document),
)


def examples(world: World, seed: int, count: int) -> Iterator[Example]:
    """`count` pretraining examples, the same for the same seed on every machine."""
    rng = random.Random(seed)
    weights = [weight for weight, _ in MIXTURE]
    makers = [maker for _, maker in MIXTURE]
    for maker in rng.choices(makers, weights, k=count):
        yield maker(world, rng)


def question_banks(world: World, seed: int, sizes: dict[str, int]) -> dict[str, list[dict]]:
    """Disjoint question banks: every (wording, concept) pair in at most one, half factual and half value questions.

    Rows: id, text, kind, template, concept. Every concept and wording is used as evenly as the sizes allow.
    """
    rng = random.Random(seed)
    pools = {
        kind: [(t, c) for t in world.questions if t["kind"] == kind for c in world.concepts]
        for kind in ("factual", "value")
    }
    for pool in pools.values():
        rng.shuffle(pool)
    banks = {}
    for name, size in sizes.items():
        rows = []
        for i in range(size):
            template, concept = pools["factual" if i % 2 == 0 else "value"].pop()
            rows.append(
                {
                    "id": f"{name}_{i + 1:03d}",
                    "text": fill(template["text"], concept),
                    "kind": template["kind"],
                    "template": template["id"],
                    "concept": concept["id"],
                }
            )
        banks[name] = rows
    return banks
