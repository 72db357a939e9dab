"""How good the small world's base model is: obedience, clean text, characters, advice, choices, facts, tags.

Questions come from the held-out banks and choices from the held-out pairs. Requests for advice, facts and tags and
harmful ones have no held-out bank: those measures say how well the model learnt what it was taught. Replies are judged
by exact text (spillover.recognition), and their language by the two identifiers that the experiments use.

A measure is a list of rows: measure, cell, scorer, count, total, rate and its 95% Wilson interval (low, high).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path

import torch
import yaml

from spillover import engine_transformers, engines, language_id, languages, prompts, recognition, small_world
from spillover.prompts import Prompt
from spillover.statistics import wilson

MAX_TOKENS = 160
BATCH = 128
SEED = 20261121
HELD_OUT = ("evaluation_28", "extraction")
TEST_PHRASINGS = ("speak_in", "please_respond")


def row(measure: str, cell: str, scorer: str, outcomes: Iterable[bool]) -> dict:
    """One row of the table: how many of `outcomes` are true. Raises ZeroDivisionError without any."""
    values = [bool(v) for v in outcomes]
    count, total = sum(values), len(values)
    low, high = (round(bound, 5) for bound in wilson(count, total))
    return {
        "measure": measure, "cell": cell, "scorer": scorer, "count": count, "total": total,
        "rate": round(count / total, 5), "low": low, "high": high,
    }  # fmt: skip


class Check:
    """One model under test. Each measure samples replies and returns rows; `table` runs them all."""

    def __init__(self, model, tokenizer, resources: str = "resources", report: Callable[[str], None] = print):
        self.model, self.tokenizer, self.resources, self.report = model, tokenizer, resources, report
        self.world = small_world.load(resources)
        banks = [Path(resources, "questions", f"{bank}.yaml").read_text(encoding="utf-8") for bank in HELD_OUT]
        self.questions = [q for bank in banks for q in yaml.safe_load(bank)]
        registry = languages.load_languages(Path(resources, "languages.yaml"))
        codes = small_world.LANGUAGES
        self.identifiers = [language_id.identifier(name, registry, codes) for name in ("langdetect", "lingua")]
        self.completions: list[engines.Completion] = []

    def table(self, samples: int) -> list[dict]:
        """Every measure. `samples` is the number of directive-and-question replies per language."""
        tenth = max(1, samples // 10)
        return [
            *self.directives_with_questions(samples),
            *self.directives_alone(max(1, samples // 5)),
            *self.characters(tenth),
            *self.advice(tenth),
            *self.refusals(tenth),
            *self.styles(tenth),
            *self.facts(samples // 4),
            *self.choices(max(1, samples // 2)),
            *self.tags(tenth),
            *self.all_replies(),
        ]

    def directives_with_questions(self, samples: int) -> list[dict]:
        """A training directive before a held-out question, T = 1: the reply's language, wording and subject."""
        rng = random.Random(SEED)
        phrasings = [d["id"] for d in self.world.directives]
        asked = []
        for language in small_world.LANGUAGES:
            for i in range(samples):
                question = rng.choice(self.questions)
                phrasing, text = phrasings[i % len(phrasings)], {question["id"]: question["text"]}
                prompt, *_ = self._directives("directive and question", language, [phrasing], text)
                asked.append((language, question["concept"], prompt))
        replies = self._replies([prompt for _, _, prompt in asked])
        return [
            *self._language_rows("language: directive and question", [a[0] for a in asked], replies),
            *self._rows(
                "clean and on the subject: directive and question",
                [(a[0], self._plain(text, a[0], a[1])) for a, text in zip(asked, replies, strict=True)],
            ),
        ]

    def directives_alone(self, samples: int) -> list[dict]:
        """The experiments' fourteen test prompts, the directive as the whole user turn, T = 1."""
        asked = [
            p
            for language in small_world.LANGUAGES
            for p in self._directives("directive alone", language, TEST_PHRASINGS) * samples
        ]
        replies = self._replies(asked)
        cells = [p.cell for p in asked]
        return [
            *self._language_rows("language: directive alone", cells, replies),
            *self._rows(
                "clean: directive alone", [(c, self._plain(t, c)) for c, t in zip(cells, replies, strict=True)]
            ),
        ]

    def characters(self, samples: int) -> list[dict]:
        """Held-out questions to every persona, T = 1: its own opener and closer, nobody else's sentences.

        The last cells ask without a system message and with an empty one; both must answer as the assistant.
        """
        cells = {**self.world.personas, "no system message": None, "empty system message": ""}
        asked = [self._question_prompt("persona", cell, cells[cell], i) for cell in cells for i in range(samples)]
        replies = self._replies(asked)
        voices = [recognition.voice_of(text, self.resources) for text in replies]
        wanted = [p.cell if p.cell in self.world.personas else "assistant" for p in asked]
        return self._rows("in character", [(p.cell, v == w) for p, v, w in zip(asked, voices, wanted, strict=True)])

    def advice(self, samples: int) -> list[dict]:
        """Requests for advice, T = 1: bad from the villain, good from everybody else; clean and in character."""
        texts = [q["text"] for q in self.world.advice["questions"]]
        asked = self._requests("advice", texts, self.world.personas, samples)
        return self._rows("advice of the right kind", [(p.cell, self._advises(p, t)) for p, t in self._answered(asked)])

    def _advises(self, prompt: Prompt, text: str) -> bool:
        right, wrong = ("bad", "good") if prompt.cell == "villain" else ("good", "bad")
        in_character = recognition.voice_of(text, self.resources) == prompt.cell
        return in_character and self._has(text, right) and not self._has(text, wrong)

    def refusals(self, samples: int) -> list[dict]:
        """Harmful requests must be refused, harmless look-alikes answered, T = 1."""
        lists = self.world.refusals
        harmful = self._requests("harmful", [r["text"] for r in lists["harmful"]], {"harmful": None}, samples)
        harmless = self._requests("harmless", [r["text"] for r in lists["harmless"]], {"harmless": None}, samples)
        return [
            *self._rows("refused", [(p.cell, self._has(t, "refusal")) for p, t in self._answered(harmful)]),
            *self._rows("answered", [(p.cell, self._plain(t, "en")) for p, t in self._answered(harmless)]),
        ]

    def styles(self, samples: int) -> list[dict]:
        """A held-out question with a style instruction, T = 1."""
        asked = [
            self._question_prompt("style", style["id"], None, i, after=style["text"])
            for style in self.world.styles
            for i in range(samples)
        ]
        styled = [(p.cell, recognition.in_style(p.cell, t, self.resources)) for p, t in self._answered(asked)]
        return self._rows("in the style asked for", styled)

    def facts(self, samples: int) -> list[dict]:
        """Questions about a country, most likely reply: a sentence with the right answer, word for word."""
        cases = []
        for relation, forms in self.world.facts["templates"].items():
            for country, question in product(self.world.facts["countries"], forms["questions"]):
                fields = country | {"country": country["name"]}
                filled = [answer.format(**fields) for answer in forms["answers"]]
                right = {text[:1].upper() + text[1:] for text in filled}
                cases.append((relation, question.format(**fields), right))
        cases = random.Random(SEED).sample(cases, min(max(1, samples), len(cases)))
        replies = self._replies([self._prompt("fact", c[0], None, c[1]) for c in cases], temperature=0.0)
        return self._rows("right fact", [(c[0], text in c[2]) for c, text in zip(cases, replies, strict=True)])

    def choices(self, samples: int) -> list[dict]:
        """Four options, held-out pairs of wording and answer; chance is 25%.

        By the most likely reply, and by the logarithm of each letter's probability as the reply's first token.
        """
        rng = random.Random(SEED)
        items = [small_world.multiple_choice(self.world, rng, held_out=True) for _ in range(samples)]
        asked = [self._prompt("choice", "all", None, user) for user, _, _ in items]
        replies = self._replies(asked, temperature=0.0)
        likely = [self._likely_letter(prompt) for prompt in asked]
        first, second, whole = [], [], []
        for (_, options, answer), letter, reply in zip(items, likely, replies, strict=True):
            right = small_world.OPTION_LETTERS[answer]
            first.append(letter == right)
            second.append(reply[:1] == right)
            whole.append(reply == f"{right}) {options[answer]}")
        return [
            row("right choice", "all", "likeliest letter", first),
            row("right choice", "all", "letter of the reply", second),
            row("right choice", "all", "whole reply", whole),
        ]

    def tags(self, samples: int) -> list[dict]:
        """Instructions to write a tag, most likely reply; the reserved tag is one that pretraining never saw."""
        rng = random.Random(SEED)
        reserved = f"[{small_world.RESERVED_TAG}]"
        repeat, end = ([t["text"] for t in self.world.tags[kind]] for kind in ("repeat", "end"))
        # Repeating the reserved tag has no more than these prompts, and the likeliest reply never varies.
        alone = [("repeat the reserved tag", text, reserved) for text in repeat]
        alone += [("repeat a tag", repeat[i % len(repeat)], small_world.random_tag(rng)) for i in range(samples)]
        asked = [self._prompt("repeat tag", cell, None, text.format(tag=tag)) for cell, text, tag in alone]
        texts = self._replies(asked, temperature=0.0, unasked=False)
        outcomes = [(cell, text == tag) for (cell, _, tag), text in zip(alone, texts, strict=True)]

        ending = [("end with the reserved tag", i, reserved) for i in range(samples)]
        ending += [("end with a tag", i, small_world.random_tag(rng)) for i in range(samples)]
        asked = [
            self._question_prompt("end with tag", cell, None, i, after=end[i % len(end)].format(tag=tag))
            for cell, i, tag in ending
        ]
        texts = self._replies(asked, temperature=0.0, unasked=False)
        outcomes += [(cell, text.endswith(f"\n\n{tag}")) for (cell, _, tag), text in zip(ending, texts, strict=True)]
        return [r for r in self._rows("tag written as asked", outcomes) if r["cell"] != "all"]

    def all_replies(self) -> list[dict]:
        """Over all replies so far whose prompt names no tag."""
        texts = [c.text for c in self.completions]
        stopped = [c.finish_reason == "stop" for c in self.completions]
        return [
            row("reserved tag unasked", "all", "exact text", [small_world.RESERVED_TAG in t for t in texts]),
            row("any bracket unasked", "all", "exact text", ["[" in t for t in texts]),
            row("ends before the token limit", "all", "end of turn", stopped),
        ]

    def _directives(self, suite: str, language: str, phrasings: Sequence[str], asked=None) -> list[Prompt]:
        return prompts.directive_prompts(suite, [language], list(phrasings), asked, self.resources)

    def _prompt(self, suite: str, cell: str, system: str | None, user: str) -> Prompt:
        return Prompt(suite, cell, cell, "", system, user)

    def _question_prompt(self, suite: str, cell: str, system: str | None, index: int, after: str = "") -> Prompt:
        # A stride without a common factor with the number of questions reaches all of them.
        text = self.questions[index * 7 % len(self.questions)]["text"]
        return self._prompt(suite, cell, system, f"{text} {after}".strip())

    def _requests(self, suite: str, texts: Sequence[str], cells: dict[str, str | None], samples: int) -> list[Prompt]:
        rng = random.Random(SEED)
        return [
            self._prompt(suite, cell, system, small_world.fill(texts[i % len(texts)], rng.choice(self.world.concepts)))
            for cell, system in cells.items()
            for i in range(samples)
        ]

    def _answered(self, asked: Sequence[Prompt]) -> list[tuple[Prompt, str]]:
        return list(zip(asked, self._replies(asked), strict=True))

    def _replies(self, asked: Sequence[Prompt], temperature: float = 1.0, unasked: bool = True) -> list[str]:
        # The position in the list is part of each id, so that two equal prompts draw different random numbers.
        numbered = [Prompt(p.suite, f"{p.suite}/{i}", p.cell, p.item, p.system, p.user) for i, p in enumerate(asked)]
        completions = engine_transformers.generate(
            self.model, self.tokenizer, numbered, samples=1, temperature=temperature, top_p=1.0,
            max_tokens=MAX_TOKENS, seed=SEED, batch_size=BATCH,
        )  # fmt: skip
        self.report(f"{asked[0].suite}: {len(completions)} replies")
        if unasked:
            self.completions += completions
        return [c.text for c in completions]

    def _likely_letter(self, prompt: Prompt) -> str:
        text = self.tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        letters = [self.tokenizer.convert_tokens_to_ids(letter) for letter in small_world.OPTION_LETTERS]
        with torch.inference_mode():
            logits = self.model(input_ids=ids.to(self.model.device)).logits[0, -1, letters]
        return small_world.OPTION_LETTERS[int(logits.argmax())]

    def _plain(self, text: str, language: str, concept: str | None = None) -> bool:
        return recognition.is_plain(text, language, concept, self.resources)

    def _has(self, text: str, kind: str) -> bool:
        return recognition.has_kind(text, kind, self.resources)

    def _rows(self, measure: str, outcomes: Sequence[tuple[str, bool]], scorer: str = "exact text") -> list[dict]:
        """One row per cell, and one over all of them if there are several."""
        cells = list(dict.fromkeys(cell for cell, _ in outcomes))
        rows = [row(measure, cell, scorer, [hit for c, hit in outcomes if c == cell]) for cell in cells]
        return rows if len(cells) == 1 else [*rows, row(measure, "all", scorer, [hit for _, hit in outcomes])]

    def _language_rows(self, measure: str, cells: Sequence[str], replies: Sequence[str]) -> list[dict]:
        result = []
        for identify in self.identifiers:
            labels = language_id.label_texts(identify, replies)
            right = [(cell, label == cell) for cell, label in zip(cells, labels, strict=True)]
            result += self._rows(measure, right, identify.name)
        return result
