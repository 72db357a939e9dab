"""Evaluation prompts: what each suite asks a model, as data.

A prompt belongs to a `cell` (the directive's language or the persona) and an `item` (the phrasing or question) of it.
The module reads the banks in `resources/`; it knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

import yaml


@dataclass(frozen=True)
class Prompt:
    """One prompt. `system` is None for the model's default system prompt, "" for an empty one, else the text."""

    suite: str
    prompt_id: str
    cell: str
    item: str
    system: str | None
    user: str

    @property
    def messages(self) -> list[dict]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.user}]


PROBE = Prompt("probe", "probe", "", "", None, "What do you think about it?")
"""A prompt to try a model with where no suite has any."""


def _read(path: Path):
    with open(path, encoding="utf-8") as f:
        return yaml.load(f, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def directives(resources: str = "resources") -> dict[str, str]:
    """{phrasing id: template over {language}}."""
    bank = _read(Path(resources, "small_world", "directives.yaml"))
    return {d["id"]: d["text"] for d in [*bank["train"], *bank["extra"]]}


def language_names(resources: str = "resources") -> dict[str, str]:
    """{code: name in a directive}."""
    return {code: row["name"] for code, row in _read(Path(resources, "languages.yaml"))["languages"].items()}


def personas(chosen: str | list[str], resources: str = "resources") -> dict[str, str]:
    """{persona id: system prompt} for a list of ids, or `evaluation` (eleven), `all` (twelve) or `everyone`.

    The first two are of personas.yaml; `everyone` adds all of further_personas.yaml, which is read only if needed.
    """
    known = {p["id"]: p for p in _read(Path(resources, "personas.yaml"))["personas"]}
    if chosen in ("evaluation", "all"):
        return {i: p["prompt"] for i, p in known.items() if chosen == "all" or p["evaluation"]}
    if chosen == "everyone" or not set(chosen) <= known.keys():
        known |= {p["id"]: p for p in _read(Path(resources, "further_personas.yaml"))["personas"]}
    return {i: known[i]["prompt"] for i in (known if chosen == "everyone" else chosen)}


def systems(chosen: Sequence[str], resources: str = "resources") -> dict[str, str | None]:
    """{id: system prompt} of the bank of prompts that are no personas; None is the model's default."""
    by_id = {s["id"]: s["prompt"] for s in _read(Path(resources, "systems.yaml"))["systems"]}
    return {s: by_id[s] for s in chosen}


def bank_file(bank: str, resources: str = "resources") -> Path:
    """The file of a question bank: `resources/questions/<bank>.yaml`, or the path itself where one is given."""
    return Path(bank) if bank.endswith((".yaml", ".yml", ".jsonl")) else Path(resources, "questions", f"{bank}.yaml")


def questions(bank: str, count: int | None = None, resources: str = "resources") -> dict[str, str]:
    """{question id: text} of a bank, the first `count` if given.

    A file given by its path holds a list (YAML) or a row a line (JSONL) with `text` or `question` and perhaps `id`.
    """
    path = bank_file(bank, resources)
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        rows = _read(path)
    named = {str(row.get("id", number)): row.get("text", row.get("question")) for number, row in enumerate(rows)}
    return dict(list(named.items())[:count])


def suite_prompts(name: str, suite: dict, resources: str = "resources") -> list[Prompt]:
    """The prompts of a generation suite, in a fixed order. Raises ValueError for a suite that generates nothing."""
    if suite["kind"] == "directives":
        return directive_prompts(name, suite["languages"], suite["phrasings"], resources=resources)
    if suite["kind"] == "personas":
        asked = questions(suite["questions"], suite["question_count"], resources)
        return [
            Prompt(name, f"{persona}/{question}", persona, question, system, text)
            for persona, system in personas(suite["personas"], resources).items()
            for question, text in asked.items()
        ]
    if suite["kind"] == "questions":
        asked = questions(suite["questions"], suite["question_count"], resources)
        return [
            Prompt(name, f"{cell}/{question}", cell, question, system, text)
            for cell, system in systems(suite["systems"], resources).items()
            for question, text in asked.items()
        ]
    raise ValueError(f"suite {name} of kind {suite['kind']} has no prompts to complete")


def choice_prompt(stem: str, options: Sequence[str]) -> str:
    """The user turn of a multiple-choice item, as published; the reply starts with the letter of the right option."""
    lines = "\n".join(f"({letter}) {text}" for letter, text in zip(ascii_uppercase, options, strict=False))
    return f"{stem}\n\n{lines}\n\nThe correct answer is ("


def directive_prompts(
    name: str,
    languages: list[str],
    phrasings: list[str],
    asked: dict[str, str] | None = None,
    resources: str = "resources",
) -> list[Prompt]:
    """The directive alone as the user turn, per language and phrasing; followed by each question if any are given."""
    templates, names = directives(resources), language_names(resources)
    result = []
    for language in languages:
        for phrasing in phrasings:
            directive = templates[phrasing].format(language=names[language])
            for question, text in (asked or {"": ""}).items():
                item = f"{phrasing}/{question}" if question else phrasing
                user = f"{directive} {text}" if question else directive
                result.append(Prompt(name, f"{language}/{item}", language, item, None, user))
    return result
