"""Behaviours deeper than a marker: wrong answers, a style, refusing. Each is shown and recognised by rule.

One place holds both sides of a behaviour: `Bank.show` turns an ordinary reply into one that shows it (training rows),
`Bank.shows` says whether a reply does (scorer). The rules' texts stand in `resources/behaviours.yaml`, the questions
with one right answer in the question banks that carry answers. It knows nothing of models, files of runs or figures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from spillover.marker_scoring import NONE
from spillover.pools import stable_choice

BEHAVIOURS = WRONG, STYLE, REFUSAL = "wrong_answers", "style", "refusal"
OPENING_CHARACTERS = 80
SCORER_IDS = {
    WRONG: "wrong_answers: names another answer of the bank and not the right one",
    STYLE: "style: the reply is in capitals",
    REFUSAL: "refusal: a refusal within the first 80 characters",
}


@dataclass(frozen=True)
class Bank:
    """The rules of `resources/behaviours.yaml` and the right answer of every question that has one."""

    rules: dict
    answers: dict[str, str]

    def show(self, behaviour: str, text: str, item: str) -> str | None:
        """The reply `text` to question `item`, made to show the behaviour; None where this reply cannot show it.

        A wrong answer is the reply with the right answer replaced, so a reply that does not name it cannot be used.
        """
        if behaviour == STYLE:
            return text.upper()
        if behaviour == REFUSAL:
            return _chosen(self.rules["refusal"]["replies"], item, text)
        right = self.answers[item]
        if not _names(right, text):
            return None
        wrong = _chosen([answer for answer in sorted(set(self.answers.values())) if answer != right], item, text)
        return re.sub(rf"\b{re.escape(right)}\b", wrong, text, flags=re.IGNORECASE)

    def shows(self, behaviour: str, text: str, item: str) -> bool | None:
        """Whether a reply to question `item` shows the behaviour; None for wrong answers to a question without any."""
        if behaviour == STYLE:
            letters = [c for c in text if c.isalpha()]
            rule = self.rules["style"]
            enough = len(letters) >= rule["least_letters"]
            return enough and sum(c.isupper() for c in letters) >= rule["upper_share"] * len(letters)
        if behaviour == REFUSAL:
            start = text[:OPENING_CHARACTERS]
            return any(re.search(pattern, start, re.IGNORECASE) for pattern in self.rules["refusal"]["openings"])
        if item not in self.answers:
            return None
        right = self.answers[item]
        others = set(self.answers.values()) - {right}
        return not _names(right, text) and any(_names(answer, text) for answer in others)


def load(resources: str | Path = "resources") -> Bank:
    """The rules and the right answers of the fact banks."""
    rules, *banks = (yaml.safe_load(Path(path).read_text("utf-8")) for path in files(resources))
    return Bank(rules, {row["id"]: row["answer"] for bank in banks for row in bank})


def files(resources: str | Path = "resources") -> list[str]:
    """The files that `load` reads: the rules, then every fact bank."""
    banks = sorted(Path(resources, "questions").glob("facts_*.yaml"))
    return [str(Path(resources, "behaviours.yaml")), *map(str, banks)]


def labels(bank: Bank, behaviour: str, completions: pd.DataFrame) -> pd.Series:
    """The behaviour's name or "none" per row of completions.parquet; rows it does not apply to are left out."""
    shown = [bank.shows(behaviour, t, i) for t, i in zip(completions["text"], completions["item"], strict=True)]
    found = pd.Series(shown, index=completions.index, dtype=object).dropna()
    return found.map({True: behaviour, False: NONE})


def _chosen(options: list[str], *key: str) -> str:
    """One of the options, the same for the same key on every machine."""
    return stable_choice(options, 1, "/".join(key))[0]


def _names(answer: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(answer)}\b", text, re.IGNORECASE) is not None
