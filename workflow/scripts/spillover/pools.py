"""A model's own replies as raw material for training rows: which are usable, and how many of whom are taken.

A pool is the completions table of a persona suite (`cell` is the persona, `item` the question). It is read as plain
records, since a system prompt of null, "" and text are three different things. Nothing here knows what the rows teach.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pool:
    """Usable replies per persona, in the order in which they are taken, and {persona: {reason: dropped replies}}."""

    replies: dict[str, list[dict]]
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)

    def take(self, persona: str, count: int) -> list[dict]:
        """The first `count` replies of a persona. Raises ValueError, with the fix, when there are fewer."""
        usable = self.replies.get(persona, [])
        if len(usable) < count:
            lost = ", ".join(f"{n} {reason}" for reason, n in sorted(self.dropped.get(persona, {}).items()))
            raise ValueError(
                f"{count} replies of {persona} are wanted, but its pool has only {len(usable)} usable ones"
                f" (dropped: {lost or 'none'}); raise samples or max_tokens of the pool's suite, or ask for fewer rows"
            )
        return usable[:count]


def usable(rows: Iterable[dict], unfit: Callable[[dict], str | None] = lambda row: None) -> Pool:
    """The replies of a completions table that can be trained on, per persona, spread evenly over the questions.

    Dropped and counted: `truncated` (finish_reason is not "stop"), `empty`, and whatever reason `unfit` gives. The rest
    are ordered by their rank within the question, then by question in the order of the table, so that any first N cover
    the questions as evenly as the pool allows.
    """
    kept: dict[str, list[dict]] = {}
    dropped: dict[str, Counter] = {}
    for row in rows:
        reason = "truncated" if row["finish_reason"] != "stop" else None if row["text"].strip() else "empty"
        reason = reason or unfit(row)
        kept.setdefault(row["cell"], [])
        if reason:
            dropped.setdefault(row["cell"], Counter())[reason] += 1
        else:
            kept[row["cell"]].append(row)
    ordered = {persona: _by_turns(replies) for persona, replies in kept.items()}
    return Pool(ordered, {persona: dict(sorted(reasons.items())) for persona, reasons in dropped.items()})


def _by_turns(replies: Sequence[dict]) -> list[dict]:
    questions = list(dict.fromkeys(r["item"] for r in replies))
    turn: Counter = Counter()
    ranked = []
    for reply in sorted(replies, key=lambda r: r["sample"]):
        ranked.append((turn[reply["item"]], questions.index(reply["item"]), reply))
        turn[reply["item"]] += 1
    return [reply for _, _, reply in sorted(ranked, key=lambda r: r[:2])]


def stable_choice(candidates: Iterable[str], count: int, key: str) -> list[str]:
    """`count` of the candidates by hash of (key, candidate): the same in every process, run and seed.

    Python's own hash differs between processes, which made the published choice irreproducible. Raises ValueError when
    there are too few candidates.
    """
    ranked = sorted(candidates, key=lambda name: hashlib.sha256(f"{key}/{name}".encode()).hexdigest())
    if len(ranked) < count:
        raise ValueError(f"{count} are to be chosen from only {len(ranked)}: {', '.join(sorted(ranked))}")
    return ranked[:count]
