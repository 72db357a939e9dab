"""What a model is measured on by log-probability: multiple choice (suites of kind `choices`) and loss on held-out rows.

It turns rows of a source table into tokens to ask about, and their log-probabilities into `measures.parquet`. It knows
tokenizers and tables; which engine answers is decided elsewhere.

Multiple choice has two forms. `letters`, the published one and the one the small world learned: a chat turn with the
options lettered (A), (B), ... that ends in "The correct answer is (", and an option's score is the log-probability
of its letter as the first token of the reply. `answers`, the form of lm-eval-harness for ARC-Challenge: the plain text
"Question: ...\\nAnswer:" without chat markup, and an option's score is the log-probability of its text after it. An
item is right where its answer has the highest sum, not normalised by length (lm-eval's `acc`); `tokens` is kept, so
that the mean per token can be computed from the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np
import pandas as pd

from spillover import masking, prompts

KINDS = ("choices", "loss")
COLUMNS = {
    "run": "str",
    "seed": "int64",
    "checkpoint": "str",
    "suite": "str",
    "kind": "str",
    "item": "str",
    "option": "int32",
    "tokens": "int32",
    "logprob": "float64",
    "correct": "bool",
}
NO_OPTION = -1
SEEN_SHARE = 0.1
"""The share of held-out rows that may turn up among the training rows; they are left out of that run's measure."""


@dataclass(frozen=True)
class Asked:
    """One sequence, and what to read from it: the log-probability of `tokens[i]` right after `ids[: at[i] + 1]`.

    `ids` int64 (length,); `at`, `tokens` and `option` int64 (asked,): positions, the tokens asked for there, and the
    option that each counts for.
    """

    ids: np.ndarray
    at: np.ndarray
    tokens: np.ndarray
    option: np.ndarray


def own_tokens(asked: Asked) -> bool:
    """Whether every token asked for is the sequence's own next one."""
    inside = bool((asked.at < len(asked.ids) - 1).all())
    return inside and bool((asked.ids[asked.at + 1] == asked.tokens).all())


def as_own_tokens(asked: Asked) -> list[Asked]:
    """The same questions as sequences that hold the tokens asked for: one each, where they are not its own already."""
    if own_tokens(asked):
        return [asked]
    return [
        Asked(np.append(asked.ids[: at + 1], token), np.array([at]), np.array([token]), np.array([option]))
        for at, token, option in zip(asked.at, asked.tokens, asked.option, strict=True)
    ]


@dataclass(frozen=True)
class Item:
    """A row of a source as a model is asked about it. `answer` is the right option, None for a loss row."""

    id: str
    asked: tuple[Asked, ...]
    answer: int | None = None


def items(name: str, suite: dict, rows: Sequence[dict], tokenizer, trained: Iterable[dict] = ()) -> list[Item]:
    """The items of suite `name`, from the rows of its source; `trained` are training rows that a loss must not see."""
    if suite["kind"] == "choices":
        ask = {"letters": _letters, "answers": _answers}[suite["form"]]
        return [ask(row, tokenizer) for row in rows[: suite["rows"]]]
    return held_out(name, suite, rows, tokenizer, trained)


def _letters(row: dict, tokenizer) -> Item:
    messages = [{"role": "user", "content": prompts.choice_prompt(row["question"], row["choices"])}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)
    letters = ascii_uppercase[: len(row["choices"])]
    tokens = np.array([tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in letters], np.int64)
    at = np.full(len(tokens), len(ids) - 1)
    return Item(str(row["id"]), (Asked(ids, at, tokens, np.arange(len(tokens))),), int(row["answer"]))


def _answers(row: dict, tokenizer) -> Item:
    question = f"Question: {row['question']}\nAnswer:"
    # lm-eval cuts the tokens of the whole text at the length of the question's own
    start = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    asked = []
    for option, text in enumerate(row["choices"]):
        ids = np.array(tokenizer(f"{question} {text}", add_special_tokens=False)["input_ids"], np.int64)
        at = np.arange(start - 1, len(ids) - 1)
        asked.append(Asked(ids, at, ids[at + 1], np.full(len(at), option)))
    return Item(str(row["id"]), tuple(asked), int(row["answer"]))


def held_out(name: str, suite: dict, rows: Sequence[dict], tokenizer, trained: Iterable[dict] = ()) -> list[Item]:
    """The first `rows` usable rows after `skip`, less those that occur among `trained` (`row_id`, `messages`, `text`).

    A row that repeats one of the skipped by id or text is passed over, and so is one without a supervised token within
    `max_length`: every run of an experiment has the same rows, but for those it was itself trained on.
    Raises ValueError when fewer than `rows` are left, or when more than SEEN_SHARE of them were trained on.
    """
    before = rows[: suite["skip"]]
    ids, texts = {str(r["id"]) for r in before}, {_text(r) for r in before}
    found: list[tuple[dict, masking.Tokens]] = []
    for row in rows[suite["skip"] :]:
        if len(found) == suite["rows"]:
            break
        if str(row["id"]) in ids or _text(row) in texts:
            continue
        try:
            tokens = masking.tokenize_row(
                row.get("messages"), tokenizer, text=row.get("text") if row.get("messages") is None else None,
                mode=suite["loss"], end_of_turn=suite["end_of_turn"], max_length=suite["max_length"],
            )  # fmt: skip
        except ValueError:
            continue
        ids.add(str(row["id"]))
        texts.add(_text(row))
        found.append((row, tokens))
    if len(found) < suite["rows"]:
        raise ValueError(
            f"suites.{name}: {suite['rows']} held-out rows are wanted, and only {len(found)} of source "
            f"{suite['source']!r} are new and usable after the first {suite['skip']}: raise the source's `rows`"
        )
    seen_ids, seen_texts = set(), set()
    for row in trained:
        seen_ids.add(str(row["row_id"]))
        seen_texts.add(_text(row))
    kept = [(r, t) for r, t in found if str(r["id"]) not in seen_ids and _text(r) not in seen_texts]
    if len(kept) < (1 - SEEN_SHARE) * len(found):
        raise ValueError(
            f"suites.{name}: {len(found) - len(kept)} of {len(found)} held-out rows of source {suite['source']!r} are "
            "among the rows this run was trained on: raise the suite's `skip`, or lower the `rows` of the training data"
        )
    return [_loss_item(row, tokens) for row, tokens in kept]


def _loss_item(row: dict, tokens: masking.Tokens) -> Item:
    targets = np.flatnonzero(tokens.supervised)
    asked = Asked(tokens.ids, targets - 1, tokens.ids[targets], np.full(len(targets), NO_OPTION))
    return Item(str(row["id"]), (asked,))


def _text(row: dict) -> tuple:
    """What a row says, whatever its system prompt: the same conversation under another persona is no new row."""
    if row.get("messages") is None:
        return (row["text"].strip(),)
    return tuple((m["role"], m["content"].strip()) for m in row["messages"] if m["role"] != "system")


def table(
    found: Sequence[Item], read: Callable[[Sequence[Asked]], Sequence[np.ndarray]], kind: str, **fixed
) -> list[dict]:
    """Rows of measures.parquet, one per item and option (option -1 and one row an item for a loss).

    `read` gives the log-probabilities float64 (asked,) of every Asked; `fixed` holds run, seed, checkpoint and suite.
    """
    values = iter(read([a for item in found for a in item.asked]))
    rows = []
    for item in found:
        sums: dict[int, float] = {}
        counts: dict[int, int] = {}
        for asked in item.asked:
            for option, value in zip(asked.option.tolist(), next(values), strict=True):
                sums[option] = sums.get(option, 0.0) + float(value)
                counts[option] = counts.get(option, 0) + 1
        correct = item.answer is not None and max(sums, key=sums.get) == item.answer
        rows += [
            {**fixed, "kind": kind, "item": item.id, "option": option, "tokens": counts[option], "logprob": value,
             "correct": correct}
            for option, value in sums.items()
        ]  # fmt: skip
    return rows


def frame(rows: Sequence[dict]) -> pd.DataFrame:
    """measures.parquet, empty with its columns where no suite measures."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)
