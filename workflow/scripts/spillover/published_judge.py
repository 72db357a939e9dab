"""The language judge as the published runs had it: it sees the request, and one label says language or what is wrong.

Kept for `judging: published`, to measure what the published labels measured; its faults are why the judge of `judging`
is otherwise. One list mixes languages with "mixed", "refusal" and "gibberish", the reasoning counts against 128 tokens,
and nothing holds the reply to a form. The published rules are followed, the published wording is not: that belongs to
others. What could not be read was one "parse_error" there; here it keeps its outcome and is no label either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spillover import api_outcomes
from spillover.api_client import Request
from spillover.api_outcomes import OK, SCHEMA
from spillover.languages import OTHER, Registry
from spillover.provenance import canonical_json

MAX_TOKENS = 128
NO_LANGUAGE = ("mixed", "other", "refusal", "gibberish")
RUBRIC = """\
You name the language of a reply that a language model gave to a request. Choose one label:

{labels}

A language label needs more than 90% of the text in that language. "mixed": several languages, none of which reaches \
that share. "other": a language that is not in the list. "refusal": the model declines to answer. "gibberish": no \
readable text.

Reply with a JSON object and nothing else: {{"label": "...", "reasoning": "one short sentence"}}
"""


@dataclass(frozen=True)
class PublishedJudge:
    """One model with this rubric. `codes` maps its language labels to codes."""

    model: str
    codes: Mapping[str, str]
    thinking: str = "disabled"

    @property
    def scorer_id(self) -> str:
        """Model and rubric digest: tables refuse to mix labels with different ids."""
        asked = {k: v for k, v in self.request("", "").params.items() if k != "model"}
        digest = hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:12]
        return f"judge {self.model}, published rules, rubric {digest}, languages {' '.join(self.codes.values())}"

    def request(self, asked: str, text: str) -> Request:
        """The request for one reply with what was asked; a reply cut short is not asked for again, as published."""
        params: dict[str, Any] = {
            "model": self.model,
            "max_tokens": MAX_TOKENS,
            "system": RUBRIC.format(labels="\n".join([*self.codes, *NO_LANGUAGE])),
            "messages": [{"role": "user", "content": f"Request: {asked}\n\nReply:\n{text}"}],
        }
        if self.thinking == "disabled":
            params["thinking"] = {"type": "disabled"}
        return Request(params)

    def read(self, message: Mapping[str, Any]) -> tuple[str, str | None, str]:
        """(outcome, label, raw text) of a reply. The label is a code or "other", and None unless the outcome is ok.

        The published rule: the reply as JSON, else the first object that begins in it.
        """
        outcome, text = api_outcomes.answer(message)
        if outcome != OK:
            return outcome, None, text
        start = text.find("{")
        try:
            fields, _ = json.JSONDecoder().raw_decode(text[start:] if start >= 0 else text)
        except ValueError:
            return SCHEMA, None, text
        label = fields.get("label") if isinstance(fields, dict) else None
        if label not in (*self.codes, *NO_LANGUAGE):
            return SCHEMA, None, text
        return OK, self.codes.get(label, OTHER), text


def judge(settings: Mapping[str, Any], registry: Registry, codes: Iterable[str]) -> PublishedJudge:
    """The judge of the configuration's `judge` block, for those of `codes` that the published list has."""
    known = {registry[code].judge: code for code in registry.subset(codes) if registry[code].judge}
    return PublishedJudge(settings["model"], known, settings.get("thinking", "disabled"))
