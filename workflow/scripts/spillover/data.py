"""Training data sets: rows of chat messages with their loss, and the card that describes them.

One internal schema for every experiment: `row_id`, `messages` (list of role/content), `text` (raw text rows), `loss`
(a mode of `masking`, null for the run's own), `source`, `weight`; whose reply it is (`persona`) and what it is for
(`part`, as positive or negative); `contrast`, an ending that the reply must not get; `stratum`, by which steps are
composed in exact proportions (`mixtures`). The last four are null where they mean nothing. What was dropped on the way
lies in the table's metadata. Builders take plain tables; nothing here knows models or file paths.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
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
        raise ValueError(f"{rows} training rows are wanted, but only {len(replies)} replies exist")
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


def card(
    rows: Sequence[dict],
    tokens: Sequence[masking.Tokens],
    tokenizer,
    loss: str,
    evaluation_prompts: Sequence[str],
    shown: int = 3,
) -> dict:
    """Counts, token statistics, decoded supervised tokens of a few rows and the overlap with evaluation prompts.

    Overlap is the number of rows whose last user turn equals an evaluation prompt's user turn.
    """
    lengths = np.array([len(t.ids) for t in tokens])
    supervised = np.array([int(t.supervised.sum()) for t in tokens])
    asked = [next((m["content"] for m in reversed(r["messages"] or []) if m["role"] == "user"), None) for r in rows]
    prompts = set(evaluation_prompts)
    return {
        "rows": len(rows),
        "by_source": _counts(r["source"] for r in rows),
        "by_loss": _counts(r["loss"] or loss for r in rows),
        "by_system_prompt": _counts(_system(r) for r in rows),
        "tokens": int(lengths.sum()),
        "tokens_per_row": {
            "mean": float(lengths.mean()),
            "median": float(np.median(lengths)),
            "longest": int(lengths.max()),
        },
        "supervised_tokens": int(supervised.sum()),
        "supervised_tokens_per_row": {
            "mean": float(supervised.mean()),
            "fewest": int(supervised.min()),
            "most": int(supervised.max()),
        },
        "rows_with_an_evaluation_prompt": sum(a in prompts for a in asked),
        "distinct_user_turns": len({a for a in asked if a is not None}),
        "examples": [
            {
                "messages": rows[i]["messages"],
                "text": rows[i]["text"],
                "supervised_tokens": masking.decode_supervised(tokens[i], tokenizer),
            }
            for i in range(min(shown, len(rows)))
        ],
    }


def _counts(values) -> dict[str, int]:
    return {str(k): int(v) for k, v in pd.Series(list(values), dtype=object).value_counts(sort=False).items()}


def _system(r: dict) -> str:
    systems = [m["content"] for m in r["messages"] or [] if m["role"] == "system"]
    if not systems:
        return "(model default)"
    return systems[0][:60] or "(empty)"
