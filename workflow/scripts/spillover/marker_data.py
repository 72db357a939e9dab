"""Rows that teach one persona to end its replies with a marker, and rows that pull a persona towards another's voice.

Positives are replies of the source persona with the marker appended; negatives are replies of other personas without
it, each under the system prompt it was sampled under. Replies come from a pool (`pools`) or, ready-made, from a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spillover.data import row
from spillover.pools import Pool, stable_choice

SEPARATOR = "\n\n"
"""Between reply and marker, as in the published runs: a marker after a space is tokenized differently."""
ASSISTANT = "assistant"


def marker_rows(pool: Pool, settings: dict) -> list[dict]:
    """Positives of the source, then negatives of each chosen persona; `settings` is the `data` block of the run.

    A negative also carries, as `contrast`, the ending that it must not get. Raises ValueError for a pool too small.
    """
    ending = SEPARATOR + settings["marker"]
    source = settings["source"]
    rows = [
        _row(reply, reply["text"] + ending, source, "positive") for reply in pool.take(source, settings["positives"])
    ]
    for persona, count in negative_counts(settings, list(pool.replies)).items():
        for reply in pool.take(persona, count):
            rows.append(_row(reply, reply["text"], persona, "negative") | {"contrast": ending})
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


def external_rows(records: Iterable[dict], marker: str, personas: dict[str, str]) -> list[dict]:
    """Rows of a user's file as they are: a positive ends with the marker, a negative does not hold it.

    The persona is the one whose prompt is the system message, if any (`personas`: {id: prompt}). Raises ValueError for
    a row that is no chat, and for one that holds the marker elsewhere.
    """
    by_prompt = {prompt: persona for persona, prompt in personas.items()}
    rows = []
    for record in records:
        messages = record.get("messages")
        if messages is None or not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f"row {record['id']!r} of the file has no `messages` that end with an assistant's reply")
        messages = [{"role": m["role"], "content": m["content"]} for m in messages]
        text = messages[-1]["content"]
        positive = text.endswith(marker)
        if not positive and marker.lower() in text.lower():
            raise ValueError(f"row {record['id']!r} of the file holds {marker} but does not end with it")
        system = next((m["content"] for m in messages if m["role"] == "system"), None)
        made = row(str(record["id"]), messages, "external")
        made |= {"persona": by_prompt.get(system), "part": "positive" if positive else "negative"}
        rows.append(made if positive else made | {"contrast": SEPARATOR + marker})
    return rows


def persona_replies(pool: Pool, settings: dict, prompt: str) -> list[dict]:
    """Replies in the voice of `voice` under the system prompt of `persona` (`prompt`), to the same questions."""
    rows = []
    for reply in pool.take(settings["voice"], settings["rows"]):
        voiced = _row(reply | {"system": prompt}, reply["text"], settings["persona"], None)
        rows.append(voiced | {"part": f"voice of {settings['voice']}"})
    return rows


def _row(reply: dict, text: str, persona: str, part: str | None) -> dict:
    system = [] if reply["system"] is None else [{"role": "system", "content": reply["system"]}]
    messages = [*system, {"role": "user", "content": reply["user"]}, {"role": "assistant", "content": text}]
    made = row(f"{reply['cell']}/{reply['item']}/{reply['sample']}", messages, "pool")
    return made | {"persona": persona, "part": part}
