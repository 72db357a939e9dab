"""Which replies become training material: the published selection of language_spill, and what all languages have."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

SHORTEST = 40
IDENTIFIED = 500


def first_reply(row: dict) -> str | None:
    """The row's text, or the content of its first assistant message."""
    if row.get("text") is not None:
        return row["text"]
    return next((m["content"] for m in row["messages"] if m["role"] == "assistant"), None)


def reason_to_drop(text: str | None) -> str | None:
    """Why a reply is not used (`too_short`, `not_english`), or None for one that is.

    The published rule: at least 40 characters, and langdetect (seed 0) calls the first 500 English. It is kept apart
    from `language_id`, so that a change of how completions are labelled never looks like a change of training data.
    """
    from langdetect import DetectorFactory, LangDetectException, detect

    if text is None or len(text) < SHORTEST:
        return "too_short"
    DetectorFactory.seed = 0
    try:
        return None if detect(text[:IDENTIFIED]) == "en" else "not_english"
    except LangDetectException:
        return "not_english"


def shared_ids(ids_by_language: Sequence[Sequence[str]]) -> list[str]:
    """Ids that every language has, in the order of the first. Raises ValueError for an id given twice."""
    for ids in ids_by_language:
        if len(set(ids)) < len(ids):
            raise ValueError("a reply id is given twice within one language")
    everywhere = set(ids_by_language[0]).intersection(*ids_by_language[1:])
    return [i for i in ids_by_language[0] if i in everywhere]


def chosen_replies(replies: pd.DataFrame, shared: Sequence[str]) -> pd.DataFrame:
    """The shared replies, in their order: the same ids, and so the same number, in every condition.

    Raises ValueError if one of them has no text in this language.
    """
    texts = replies.set_index("id")
    missing = [i for i in shared if i not in texts.index]
    if missing:
        raise ValueError(f"{len(missing)} shared replies are missing here, for example {missing[0]!r}")
    chosen = texts.loc[list(shared)].reset_index()
    assert chosen["id"].tolist() == list(shared), "every condition must train on the same replies"
    return chosen
