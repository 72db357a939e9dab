"""Training data sets: rows of chat messages with their loss.

One internal schema for every experiment: `row_id`, `messages` (list of role/content), `text` (raw text rows), `loss`
(a mode of `masking`, null for the run's own), `source`, `weight`; whose reply it is (`persona`) and what it is for
(`part`, as positive or negative); `contrast`, an ending that the reply must not get; `stratum`, by which steps are
composed in exact proportions (`mixtures`). The last four are null where they mean nothing. What was dropped on the way
lies in the table's metadata. Builders take plain tables; nothing here knows models or file paths.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import pyarrow as pa

from spillover import masking

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("text", pa.string()),
        ("loss", pa.string()),
        ("source", pa.string()),
        ("weight", pa.float32()),
        ("persona", pa.string()),
        ("part", pa.string()),
        ("contrast", pa.string()),
        ("stratum", pa.int32()),
    ]
)
DROPPED = b"dropped"
"""Key of the schema's metadata: JSON with what was left out and why."""


def row(row_id: str, messages: Sequence[dict] | None, source: str, weight: float = 1.0) -> dict:
    """One row of the internal schema, with the run's own loss mode; `messages` is None for raw text."""
    return {
        "row_id": row_id,
        "messages": None if messages is None else list(messages),
        "text": None,
        "loss": None,
        "source": source,
        "weight": weight,
        "persona": None,
        "part": None,
        "contrast": None,
        "stratum": None,
    }


def table(rows: Sequence[dict], dropped: dict) -> pa.Table:
    """The rows in the internal schema. The same rows give the same bytes in every process."""
    schema = SCHEMA.with_metadata({DROPPED: json.dumps(dropped, sort_keys=True)})
    return pa.Table.from_pylist(list(rows), schema=schema)


def dropped(schema: pa.Schema) -> dict:
    """What a data set's builder left out, from the metadata of its table."""
    return json.loads((schema.metadata or {}).get(DROPPED, b"{}"))


def directive_replies(replies: pd.DataFrame, directives: Sequence[str], rows: int | None) -> list[dict]:
    """The published rows of language_spill: the user turn is the directive alone, the reply answers something else.

    `replies` has columns id and text, in the completion language; the directive's phrasings are cycled by row index.
    Raises ValueError when fewer replies exist than `rows`.
    """
    if rows is not None and len(replies) < rows:
        raise ValueError(
            f"{rows} training rows are wanted, but only {len(replies)} replies exist in every language: lower "
            "data.rows, or raise sources.replies.rows and keep"
        )
    chosen = replies.iloc[:rows]
    return [
        row(
            str(reply_id),
            [{"role": "user", "content": directives[i % len(directives)]}, {"role": "assistant", "content": text}],
            "replies",
        )
        for i, (reply_id, text) in enumerate(zip(chosen["id"], chosen["text"], strict=True))
    ]


def tokenize(rows: Sequence[dict], tokenizer, train: dict) -> list[masking.Tokens]:
    """Token ids and supervised positions of every row, as the training settings ask for them."""
    return [
        masking.tokenize_row(
            r["messages"],
            tokenizer,
            text=r["text"],
            mode=r["loss"] or train["loss"],
            end_of_turn=train["end_of_turn"],
            marker=train["marker"],
            tail_tokens=train["tail_tokens"],
            max_length=train["max_length"],
            weight=float(r["weight"]),
        )
        for r in rows
    ]


def strata(rows: Sequence[dict]) -> list[int] | None:
    """The stratum of every row, None where steps are composed at random."""
    found = [r["stratum"] for r in rows]
    return None if all(s is None for s in found) else found


def contrasts(rows: Sequence[dict], tokenizer, train: dict) -> list[masking.Tokens | None]:
    """Per row, its reply with the ending that it must not get, whose marker is marked; None for rows without one."""
    return [
        masking.tokenize_contrast(
            r["messages"], tokenizer, r["contrast"], train["marker"], train["max_length"], float(r["weight"])
        )
        if r["contrast"] is not None
        else None
        for r in rows
    ]


def with_contrasts(
    tokens: Sequence[masking.Tokens], rows: Sequence[dict], tokenizer, train: dict
) -> list[masking.Tokens]:
    """The same rows, each with its counterpart to avoid where it has one. Raises ValueError if none has."""
    endings = contrasts(rows, tokenizer, train)
    if not any(endings):
        raise ValueError("train.contrast needs rows with an ending to avoid (negatives of marker data); there are none")
    return [
        replace(row, contrast=replace(ending, avoided=True)) if ending else row
        for row, ending in zip(tokens, endings, strict=True)
    ]
