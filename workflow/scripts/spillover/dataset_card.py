"""The card of a data set: what is in it, what was left out, and which tokens carry loss, to be read before training.

It takes rows and their tokens (`data`) and knows nothing of how they were built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from spillover import masking

SHOWN = 2
"""Examples of each kind of row."""


def card(
    rows: Sequence[dict],
    tokens: Sequence[masking.Tokens],
    tokenizer,
    loss: str,
    evaluation_prompts: Iterable[str],
    dropped: dict,
) -> dict:
    """Counts, token statistics, what was dropped, overlap with the evaluation, and decoded tokens of every kind of row.

    `loss` is the run's own mode, `dropped` what the builder left out. A kind of row is a source and a part (positive,
    negative, ...). Overlap is the number of rows whose last user turn equals an evaluation prompt's user turn.
    """
    lengths = np.array([len(t.ids) for t in tokens])
    supervised = np.array([int(t.supervised.sum()) for t in tokens])
    counted = supervised * np.array([r["weight"] > 0 for r in rows])
    asked = [next((m["content"] for m in reversed(r["messages"] or []) if m["role"] == "user"), None) for r in rows]
    prompts = set(evaluation_prompts)
    sources = [r["source"] for r in rows]
    return {
        "rows": len(rows),
        "by_source": _counts(sources),
        "by_part": _counts(r["part"] for r in rows if r["part"]),
        "by_persona": {
            persona: _counts(r["part"] or "rows" for r in rows if r["persona"] == persona)
            for persona in dict.fromkeys(r["persona"] for r in rows if r["persona"])
        },
        "by_loss": _counts(r["loss"] or loss for r in rows),
        "by_system_prompt": _counts(_system(r) for r in rows),
        "rows_of_weight_0": sum(r["weight"] == 0 for r in rows),
        "dropped": dropped,
        "tokens": int(lengths.sum()),
        "tokens_by_source": _sums(sources, lengths),
        "tokens_per_row": {
            "mean": float(lengths.mean()),
            "median": float(np.median(lengths)),
            "longest": int(lengths.max()),
        },
        "supervised_tokens": int(supervised.sum()),
        "supervised_tokens_by_source": _sums(sources, supervised),
        "supervised_tokens_with_weight": int(counted.sum()),
        "supervised_tokens_per_row": {
            "mean": float(supervised.mean()),
            "fewest": int(supervised.min()),
            "most": int(supervised.max()),
        },
        "rows_with_an_evaluation_prompt": sum(a in prompts for a in asked),
        "distinct_user_turns": len({a for a in asked if a is not None}),
        "examples": [
            {
                "source": rows[i]["source"],
                "part": rows[i]["part"],
                "persona": rows[i]["persona"],
                "messages": rows[i]["messages"],
                "text": rows[i]["text"],
                "supervised_tokens": masking.decode_supervised(tokens[i], tokenizer),
            }
            for i in _examples([(r["source"], r["part"]) for r in rows])
        ],
    }


def _counts(values: Iterable[Hashable]) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).items()}


def _sums(names: Sequence[str], numbers: np.ndarray) -> dict[str, int]:
    sums: Counter = Counter()
    for name, number in zip(names, numbers.tolist(), strict=True):
        sums[name] += number
    return dict(sums)


def _examples(kinds: Sequence[Hashable]) -> list[int]:
    """Indices of the first rows of each kind."""
    seen: Counter = Counter()
    chosen = []
    for index, kind in enumerate(kinds):
        if seen[kind] < SHOWN:
            chosen.append(index)
        seen[kind] += 1
    return chosen


def _system(row: dict) -> str:
    if row["messages"] is None:
        return "(raw text)"
    systems = [m["content"] for m in row["messages"] if m["role"] == "system"]
    if not systems:
        return "(model default)"
    return systems[0] or "(empty)"
