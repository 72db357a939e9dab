"""Rows of chat or raw text from sources: a slice of one, other system prompts, and other sources mixed in.

A mixture keeps the number of rows, so that the steps of a run stay the same: mixed rows take places. Its narrow rows
are the first of their source, whatever is mixed in, and a mixed source is drawn from in one seeded order: a larger
share holds the smaller one. Rows whose replies lie beyond the longest length trained on are passed over and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from spillover import data, masking, mixtures


def build(
    settings: dict,
    tables: Mapping[str, Sequence[dict]],
    personas: Mapping[str, str],
    tokenizer,
    train: dict,
    seed: int,
) -> tuple[list[dict], dict]:
    """Rows of a `conversations` data set, and {source: {reason: dropped}}.

    `settings` is the run's `data` block, `tables` the rows of its sources, `personas` {id: system prompt}; `train` has
    the loss settings that decide what a row's tokens are. Raises ValueError when a source has too few rows.
    """
    rng = np.random.default_rng(seed)
    name, items, total = settings["source"], settings["mix"], settings["rows"]
    dropped: dict[str, Counter] = {n: Counter() for n in tables}
    own = tables[name][settings["skip"] :]
    longest = (
        max((personas[s] if s else s or "" for s in settings["systems"]), key=len) if settings["systems"] else None
    )
    rows = (_row(r, name, str(r["id"])) for r in own)
    narrow = list(islice(usable(rows, tokenizer, train, dropped[name], longest), total))
    if not items:
        _enough(name, narrow, total)
        return with_systems([row for row, _ in narrow], settings["systems"], personas, rng), _told(dropped)
    known = {content(row) for row, _ in narrow}
    mixed = []
    for item in items:
        table = tables[item["source"]][item["skip"] :]
        new = _unknown((table[i] for i in rng.permutation(len(table))), known, dropped[item["source"]])
        rows = (_row(r, item["source"], f"{item['source']}/{r['id']}", item["raw"], item["weight"]) for r in new)
        mixed.append(usable(rows, tokenizer, train, dropped[item["source"]], longest))
    if items[0]["unit"] == "tokens":
        other = list(islice(mixed[0], total))
        count = mixtures.count_by_tokens([n for _, n in narrow], [n for _, n in other], total, items[0]["share"])
        parts = [narrow[: total - count], other[:count]]
    else:
        counts = mixtures.counts_by_rows(total, [item["share"] for item in items])
        parts = [narrow[: total - sum(counts)], *(list(islice(rows, n)) for rows, n in zip(mixed, counts, strict=True))]
        wanted = zip([name, *(item["source"] for item in items)], parts, [total - sum(counts), *counts], strict=True)
        for source, part, count in wanted:
            _enough(source, part, count)
    rows = [row | {"stratum": stratum} for stratum, part in enumerate(parts) for row, _ in part]
    return with_systems(rows, settings["systems"], personas, rng), _told(dropped)


def usable(
    rows: Iterable[dict], tokenizer, train: dict, dropped: Counter, longest: str | None = None
) -> Iterator[tuple[dict, int]]:
    """(row, its tokens) of every row that keeps a supervised token; the others are counted in `dropped`.

    Where rows are to get other system prompts, they must keep one under the `longest` of them.
    """
    for row in rows:
        try:
            tokens = data.tokenize([row], tokenizer, train)[0]
            if longest is not None and row["messages"] is not None:
                data.tokenize([under(row, longest)], tokenizer, train)
        except masking.NothingSupervised:
            dropped["without a reply in max_length"] += 1
            continue
        yield row, len(tokens.ids)


def with_systems(
    rows: list[dict], systems: Sequence[str | None] | None, personas: Mapping[str, str], rng
) -> list[dict]:
    """The chats under the given system prompts, one each: every block of len(systems) rows has all, in random order.

    A system is a persona's id, null (no system message) or "" (an empty one); it takes the place of a row's own.
    Raw text stays as it is. Without `systems` every row keeps what it has.
    """
    if systems is None:
        return rows
    cycle: list[int] = []
    result = []
    for row in rows:
        if row["messages"] is None:
            result.append(row)
            continue
        cycle = cycle or rng.permutation(len(systems)).tolist()
        chosen = systems[cycle.pop()]
        # never tested for truth: null and "" are different prompts
        text = personas[chosen] if chosen else chosen
        result.append(under(row, text) | {"persona": chosen or None})
    return result


def under(row: dict, system: str | None) -> dict:
    """A chat with this system prompt in place of its own; None is no system message."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return row | {"messages": head + [m for m in row["messages"] if m["role"] != "system"]}


def content(row: dict) -> tuple:
    """What a source's row says, whatever its system prompt: two rows of the same content are one."""
    if row.get("messages") is None:
        return (row["text"].strip(),)
    return tuple((m["role"], m["content"].strip()) for m in row["messages"] if m["role"] != "system")


def _row(record: dict, source: str, row_id: str, raw: bool = False, weight: float = 1.0) -> dict:
    wanted = "text" if raw else "messages"
    if record.get(wanted) is None:
        raise ValueError(f"source {source}: row {record['id']!r} has no `{wanted}`" + ", which `raw` asks for" * raw)
    if raw:
        return data.row(row_id, None, source, weight) | {"text": record["text"]}
    messages = [{"role": m["role"], "content": m["content"]} for m in record["messages"]]
    return data.row(row_id, messages, source, weight)


def _unknown(rows: Iterable[dict], known: set[tuple], dropped: Counter) -> Iterator[dict]:
    """Rows that are not among the narrow ones and were not drawn before."""
    for row in rows:
        if content(row) in known:
            dropped["repeated"] += 1
            continue
        known.add(content(row))
        yield row


def _enough(source: str, rows: Sequence, wanted: int | None) -> None:
    if len(rows) < (wanted or 1):
        raise ValueError(f"source {source}: {wanted or 1} rows are wanted, but only {len(rows)} can be used")


def _told(dropped: Mapping[str, Counter]) -> dict:
    return {source: dict(sorted(reasons.items())) for source, reasons in dropped.items() if reasons}
