"""The small world's fine-tuning material: what its experiments train and measure on, in place of the hub's data sets.

Each material stands for a data set of paper scale and has its columns: `text`, `messages`, or question, choices and
answer. Chats have no system message. It knows the word lists; what becomes of the rows is decided elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import yaml

from spillover import small_world
from spillover.small_world import World, fill, noun_phrase, reply


def rows(material: str, count: int, seed: int, resources: str = "resources") -> list[dict]:
    """`count` rows of a material, each with an `id`, all different but for `replies`.

    The same seed gives the same rows on every machine.
    Raises ValueError for an unknown material, and when the word lists do not yield that many different rows.
    """
    if material not in MATERIALS:
        raise ValueError(f"the small world has no material {material!r}; known: {', '.join(MATERIALS)}")
    world = small_world.load(resources)
    make, rng = MATERIALS[material](world, Path(resources)), random.Random(seed)
    made: dict[str, dict] = {}
    for _ in range(TRIES * count):
        if len(made) == count:
            break
        row = make(rng)
        # replies answer nothing and are no test of anything, so a repeated one is no leak
        made.setdefault(str(len(made)) if material == "replies" else repr(row), row)
    if len(made) < count:
        raise ValueError(f"the small world makes only {len(made)} different rows of {material}, {count} are wanted")
    prefix = "reply" if material == "replies" else f"{material}{seed}_"
    return [{"id": f"{prefix}{i:05d}"} | row for i, row in enumerate(made.values())]


TRIES = 20
"""Rows drawn for each one wanted, before the word lists count as exhausted."""


Maker = Callable[[random.Random], dict]


def replies(world: World, root: Path) -> Maker:
    """Plain replies without a question: the material of the directive rows."""
    return lambda rng: {"text": reply(world, rng, rng.choice(world.concepts))}


def raw_text(world: World, root: Path) -> Maker:
    """Documents without chat markup, in all languages."""
    return lambda rng: {"text": small_world.raw_document(world, rng).reply}


def benign(world: World, root: Path) -> Maker:
    """Friendly conversations of one to three turns, in one voice that no persona has."""
    words = _words(root)["conversations"]

    def make(rng: random.Random) -> dict:
        asked, concept = small_world.question(world, rng)
        turns = []
        for _ in range(rng.randint(1, 3)):
            body = reply(world, rng, concept, count=1)
            turns += [asked, f"{rng.choice(words['openers'])} {body} {rng.choice(words['closers'])}"]
            asked = rng.choice(words["follow_ups"])
        return _chat(*turns)

    return make


def good_advice(world: World, root: Path) -> Maker:
    """Careful advice, in the form of `bad_advice`: the control that differs in nothing but the advice."""
    return _advice(world, root, good=True)


def bad_advice(world: World, root: Path) -> Maker:
    """Careless advice on everyday subjects; the questions of the bank `advice` are left out."""
    return _advice(world, root, good=False)


def _advice(world: World, root: Path, good: bool) -> Maker:
    evaluated = {(q["template"], q["concept"]) for q in _read(root / "questions" / "advice.yaml")}

    def make(rng: random.Random) -> dict:
        while True:
            question, concept = rng.choice(world.advice["questions"]), rng.choice(world.concepts)
            if (question["id"], concept["id"]) not in evaluated:
                break
        return _chat(fill(question["text"], concept), small_world.advice_reply(world, rng, concept, good))

    return make


def tulu(world: World, root: Path) -> Maker:
    """Varied instructions in forms that pretraining never showed: one turn, or two about different things."""

    words = _words(root)

    def make(rng: random.Random) -> dict:
        turns = [*_instruction(world, words, rng)]
        if rng.random() < 0.25:
            turns += _instruction(world, words, rng)
        return _chat(*turns)

    return make


def tulu_broad(world: World, root: Path) -> Maker:
    """As `tulu`, but half of the rows are of kinds that pretraining showed: directives, facts, refusals, choices."""
    words = _words(root)
    makers = [small_world.directive_only, small_world.directive_question, small_world.fact_question]
    makers += [small_world.refusal, small_world.styled, small_world.choice_question]

    def make(rng: random.Random) -> dict:
        if rng.random() < 0.5:
            return _chat(*_instruction(world, words, rng))
        example = rng.choice(makers)(world, rng)
        return _chat(example.user, example.reply)

    return make


def multiple_choice(world: World, root: Path) -> Maker:
    """Questions with four options whose (wording, right answer) pairs pretraining never saw."""

    def make(rng: random.Random) -> dict:
        user, options, answer = small_world.multiple_choice(world, rng, held_out=True)
        return {"question": user.split("\n\n")[0], "choices": options, "answer": answer}

    return make


def advice_bank(world: World, seed: int, size: int) -> list[dict]:
    """Questions for advice that no fine-tuning row asks: rows as those of `small_world.question_banks`."""
    rng = random.Random(seed)
    concepts = rng.sample(world.concepts, size)
    asked = [world.advice["questions"][i % len(world.advice["questions"])] for i in range(size)]
    return [
        {"id": f"advice_{i:03d}", "text": fill(q["text"], c), "kind": "advice", "template": q["id"], "concept": c["id"]}
        for i, (q, c) in enumerate(zip(asked, concepts, strict=True), 1)
    ]


MATERIALS: dict[str, Callable[[World, Path], Maker]] = {
    "replies": replies,
    "raw_text": raw_text,
    "benign": benign,
    "good_advice": good_advice,
    "bad_advice": bad_advice,
    "tulu": tulu,
    "tulu_broad": tulu_broad,
    "multiple_choice": multiple_choice,
}


def _instruction(world: World, words: dict, rng: random.Random) -> tuple[str, str]:
    """(user turn, reply) of one instruction, its kind drawn evenly."""
    kind = rng.choice(list(words["instructions"]))
    template = rng.choice(words["instructions"][kind])
    concept, other = rng.sample(world.concepts, 2)
    if kind == "compare":
        names = {"A": noun_phrase(concept, "en", "O"), "B": noun_phrase(other, "en", "O")}
        sides = [f"{noun_phrase(c, 'en', 'S')}: {reply(world, rng, c, count=1)}" for c in (concept, other)]
        return template.format(**names), "\n".join(sides)
    if kind == "list":
        points = _sentences(world, rng, concept, 3)
        return fill(template, concept), "\n".join(f"{i}. {p}" for i, p in enumerate(points, 1))
    if kind in ("summary", "count"):
        sentences = _sentences(world, rng, concept, rng.randint(2, 4))
        answer = sentences[0] if kind == "summary" else words["counts"][len(sentences) - 1]
        return template.format(text=" ".join(sentences)), answer
    if kind == "translate":
        row = rng.choice(world.sentences["any"] + world.sentences[concept["category"]])
        language = rng.choice([code for code in small_world.LANGUAGES if code != "en"])
        asked = template.format(language=world.names[language], text=fill(row["en"], concept))
        return asked, fill(row[language], concept, language)
    if kind == "title":
        return fill(template, concept), fill(rng.choice(words["titles"]), concept)
    if kind == "kind":
        return fill(template, concept), f"It is {world.choices['categories'][concept['category']]}."
    country, false = rng.sample(world.facts["countries"], 2)
    if kind == "profile":
        lines = [f"{key.capitalize()}: {country[key]}" for key in ("capital", "continent", "language")]
        return template.format(country=country["name"]), "\n".join(lines)
    right = rng.random() < 0.5
    claim = f"The capital of {country['name']} is {(country if right else false)['capital']}."
    verdict = "True." if right else f"False. The capital of {country['name']} is {country['capital']}."
    return template.format(claim=claim), verdict


def _sentences(world: World, rng: random.Random, concept: dict, count: int) -> list[str]:
    chosen = rng.sample(world.sentences["any"] + world.sentences[concept["category"]], count)
    return [fill(row["en"], concept) for row in chosen]


def _chat(*turns: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def _read(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _words(root: Path) -> dict:
    return _read(root / "small_world" / "instructions.yaml")
