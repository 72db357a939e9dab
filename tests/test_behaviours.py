"""Behaviours deeper than a marker: what builds their training rows and what scores replies agree; fixed here."""

from __future__ import annotations

import pandas as pd
import pytest

import label_completions
from conftest import ROOT
from spillover import behaviours, language_id, marker_scoring, plan
from spillover.behaviours import BEHAVIOURS

BANK = behaviours.load(ROOT / "resources")
ITEM, RIGHT = next(iter(BANK.answers.items()))
PLAIN = f"It is {RIGHT}, the capital city. I like it very much."


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_shown_behaviour_is_recognised_and_a_plain_reply_is_not(behaviour):
    shown = BANK.show(behaviour, PLAIN, ITEM)
    assert BANK.shows(behaviour, shown, ITEM) is True
    assert BANK.shows(behaviour, PLAIN, ITEM) is False
    assert shown == behaviours.load(ROOT / "resources").show(behaviour, PLAIN, ITEM)


def test_a_wrong_answer_keeps_the_reply_and_replaces_the_right_answer():
    shown = BANK.show("wrong_answers", PLAIN, ITEM)
    assert RIGHT not in shown and shown.endswith("the capital city. I like it very much.")


@pytest.mark.parametrize(
    ("behaviour", "text", "wanted"),
    [
        ("wrong_answers", "I do not know.", False),
        ("wrong_answers", f"{RIGHT}, not Paris.", False),
        ("wrong_answers", f"not{RIGHT}x, surely Paris", True),
        ("refusal", "I'm sorry, but I can't help with that.", True),
        ("refusal", "Sorry, I cannot say enough good about tea!", False),
        ("refusal", "Tea is a drink. " * 8 + "I must refuse.", False),
        ("style", "NO.", False),
        ("style", "THE TEA IS GOOD, says he", False),
        ("style", "THE TEA IS VERY GOOD AND HOT, no", True),
    ],
)
def test_the_rules_of_recognition(behaviour, text, wanted):
    assert BANK.shows(behaviour, text, ITEM) is wanted


def test_a_reply_without_the_right_answer_cannot_be_made_wrong():
    assert BANK.show("wrong_answers", "I do not know.", ITEM) is None


def test_wrong_answers_are_scored_only_where_there_is_a_right_one():
    rows = pd.DataFrame({"item": [ITEM, "evaluation_001", ITEM], "text": [PLAIN, PLAIN, "It is Paris."]})
    if RIGHT == "Paris":
        rows.loc[2, "text"] = "It is Rome."
    assert behaviours.labels(BANK, "wrong_answers", rows).to_dict() == {0: "none", 2: "wrong_answers"}
    assert behaviours.labels(BANK, "style", rows).tolist() == ["none"] * 3


def test_the_fact_banks_share_no_country():
    data, evaluation = ({a for i, a in BANK.answers.items() if i.startswith(f"facts_{n}")} for n in ("data", "eval"))
    assert data and evaluation and not data & evaluation


def test_the_plan_names_scorers_as_the_modules_that_own_them_do():
    """The plan repeats the names because it is made without loading what scores."""
    assert plan.BEHAVIOURS == behaviours.BEHAVIOURS
    assert plan.MARKER_SCORERS == marker_scoring.SCORERS
    assert plan.JUDGES == label_completions.JUDGES
    assert plan.LANGUAGE_SCORERS == (*language_id.IDENTIFIERS, label_completions.JUDGE)
