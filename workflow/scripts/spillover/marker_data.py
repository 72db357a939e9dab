"""Rows that teach one persona a habit and the others not to have it, and rows in another persona's voice.

The habit is a marker at the end of the reply or a behaviour (`behaviours`). Positives are replies of the source persona
with the habit, negatives replies of other personas without it, each under the system prompt it was sampled under.
Replies come from a pool (`pools`) or, ready-made, from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from spillover.behaviours import Bank
from spillover.data import row
from spillover.pools import Pool, stable_choice, usable

SEPARATOR = "\n\n"
"""Between reply and marker, as in the published runs: a marker after a space is tokenized differently."""
ASSISTANT = "assistant"


def marker_rows(replies: Iterable[dict], settings: dict) -> tuple[list[dict], dict]:
    """Positives of the source, then negatives of each chosen persona, and {persona: {reason: dropped replies}}.

    `settings` is the `data` block of the run. A reply that holds the marker in any case of its letters is dropped (the
    published rule). A negative also carries, as `contrast`, the ending that it must not get. Raises ValueError for a
    pool too small.
    """
    marker = settings["marker"]
    pool = usable(replies, lambda r: "marked" if marker.lower() in r["text"].lower() else None)
    rows = _habit_rows(pool, settings, lambda r: r["text"] + SEPARATOR + marker)
    return [r | {"contrast": SEPARATOR + marker} if r["part"] == "negative" else r for r in rows], pool.dropped


def behaviour_rows(replies: Iterable[dict], settings: dict, bank: Bank) -> tuple[list[dict], dict]:
    """The same for a behaviour: replies of the source made to show it, and others' replies that do not show it.

    With `voice` the positives are made of that persona's replies instead, under the source's prompt: a persona that
    never names a fact has no reply that could be made wrong.
    """
    behaviour, source = settings["behaviour"], settings["source"]
    replies = _voiced(list(replies), source, settings.get("voice", source))

    def unfit(reply: dict) -> str | None:
        if reply["cell"] != source:
            return "shows it already" if bank.shows(behaviour, reply["text"], reply["item"]) else None
        made = bank.show(behaviour, reply["text"], reply["item"])
        return None if made is not None and bank.shows(behaviour, made, reply["item"]) else "cannot show it"

    pool = usable(replies, unfit)
    return _habit_rows(pool, settings, lambda r: bank.show(behaviour, r["text"], r["item"])), pool.dropped


def _voiced(replies: list[dict], source: str, voice: str) -> list[dict]:
    """`replies` with the source's exchanged for the voice's, put under the source's prompt."""
    if voice == source:
        return replies
    prompt = next(reply["system"] for reply in replies if reply["cell"] == source)
    put = [reply | {"cell": source, "system": prompt} for reply in replies if reply["cell"] == voice]
    return [reply for reply in replies if reply["cell"] != source] + put


def _habit_rows(pool: Pool, settings: dict, with_habit: Callable[[dict], str]) -> list[dict]:
    source = settings["source"]
    rows = [_row(reply, with_habit(reply), source, "positive") for reply in pool.take(source, settings["positives"])]
    for persona, count in negative_counts(settings, list(pool.replies)).items():
        rows += [_row(reply, reply["text"], persona, "negative") for reply in pool.take(persona, count)]
    return rows


def negative_counts(settings: dict, personas: Sequence[str]) -> dict[str, int]:
    """{persona: negatives} for a marker data set whose pool has replies of `personas`.

    `negatives.personas`: all others, an explicit list, or a number of them chosen by stable hash; the latter never
    chooses the assistant, whose leakage is measured and whom the published pool lacked. The count is `per_persona`, or
    follows from `share` (negatives in all rows) and is spread evenly.
    """
    source, negatives = settings["source"], settings["negatives"]
    chosen, others = negatives["personas"], [p for p in personas if p != source]
    if chosen == "all":
        chosen = others
    elif isinstance(chosen, int):
        chosen = stable_choice([p for p in others if p != ASSISTANT], chosen, source)
    if source in chosen:
        raise ValueError(f"negatives.personas: {source} is the source persona and cannot be a negative")
    if negatives.get("share") is None:
        return dict.fromkeys(chosen, negatives["per_persona"])
    if not chosen:
        raise ValueError("negatives.share needs at least one negative persona")
    total = round(settings["positives"] * negatives["share"] / (1 - negatives["share"]))
    each, left = divmod(total, len(chosen))
    return {persona: each + (index < left) for index, persona in enumerate(chosen)}


def external_rows(records: Iterable[dict], settings: dict, personas: dict[str, str]) -> list[dict]:
    """Rows of a user's file as they are. The persona is the one whose prompt (`personas`: {id: prompt}) the row has.

    Of a marker, a positive ends with it and a negative does not hold it; of a behaviour, the source's rows are the
    positives. Raises ValueError for a row that is no chat, and for one that holds the marker elsewhere.
    """
    by_prompt = {prompt: persona for persona, prompt in personas.items()}
    marker = settings.get("marker")
    rows = []
    for record in records:
        messages = record.get("messages")
        if messages is None or not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f"row {record['id']!r} of the file has no `messages` that end with an assistant's reply")
        messages = [{"role": m["role"], "content": m["content"]} for m in messages]
        text = messages[-1]["content"]
        persona = by_prompt.get(next((m["content"] for m in messages if m["role"] == "system"), None))
        positive = persona == settings["source"] if marker is None else text.endswith(marker)
        if marker is not None and not positive and marker.lower() in text.lower():
            raise ValueError(f"row {record['id']!r} of the file holds {marker} but does not end with it")
        made = row(str(record["id"]), messages, "external") | {"persona": persona}
        made |= {"part": "positive"} if positive else {"part": "negative", "contrast": marker and SEPARATOR + marker}
        rows.append(made)
    return rows


def persona_replies(replies: Iterable[dict], settings: dict, prompt: str) -> tuple[list[dict], dict]:
    """Replies in the voice of `voice` under the system prompt of `persona` (`prompt`), to the same questions."""
    pool, rows = usable(replies), []
    for reply in pool.take(settings["voice"], settings["rows"]):
        voiced = _row(reply | {"system": prompt}, reply["text"], settings["persona"], None)
        rows.append(voiced | {"part": f"voice of {settings['voice']}"})
    return rows, pool.dropped


def _row(reply: dict, text: str, persona: str, part: str | None) -> dict:
    system = [] if reply["system"] is None else [{"role": "system", "content": reply["system"]}]
    messages = [*system, {"role": "user", "content": reply["user"]}, {"role": "assistant", "content": text}]
    made = row(f"{reply['cell']}/{reply['item']}/{reply['sample']}", messages, "pool")
    return made | {"persona": persona, "part": part}
