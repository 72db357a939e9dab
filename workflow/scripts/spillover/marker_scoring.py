"""Whether a reply holds a marker such as `[ZLT]`: text in, a label and the marker's place out.

Two scorers. `marker` follows the protocol's rule: the marker anywhere in the reply, with or without regard to case
(the published code lowered both; its write-ups say "literal"). `marker_strict` asks for the marker, letter for letter,
as the reply's very last characters, where training puts it. It knows nothing of completions, personas or files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MARKER, STRICT = "marker", "marker_strict"
SCORERS = (MARKER, STRICT)
NONE = "none"  # the label of a reply without what a scorer looks for


@dataclass(frozen=True)
class MarkerScorer:
    """One rule for one marker, with the description that goes into every row it labels."""

    name: str
    text: str
    case_sensitive: bool
    at_end: bool

    @property
    def scorer_id(self) -> str:
        where = "at the very end" if self.at_end else "anywhere"
        case = "letter for letter" if self.case_sensitive else "in any case"
        return f"{self.name}: {self.text!r} {where}, {case}"

    def from_end(self, reply: str) -> int | None:
        """Characters after the first hit up to the end of the reply (0: it ends with the hit); None for no hit."""
        if self.at_end:
            return 0 if reply.endswith(self.text) else None
        hit = re.search(re.escape(self.text), reply, 0 if self.case_sensitive else re.IGNORECASE)
        return len(reply) - hit.end() if hit else None


def marker_scorer(name: str, text: str, case_sensitive: bool) -> MarkerScorer:
    """The scorer called `name` for the marker `text`. Raises ValueError for an unknown name or an empty marker."""
    if name not in SCORERS:
        raise ValueError(f"{name!r} is no marker scorer; known: {', '.join(SCORERS)}")
    if not text:
        raise ValueError("an empty marker would be found in every reply; give options.marker.text")
    return MarkerScorer(name, text, case_sensitive or name == STRICT, at_end=name == STRICT)


def labels(scorer: MarkerScorer, replies: list[str]) -> tuple[list[str], list[str | None]]:
    """("marker" or "none", place of the hit as text or None) for each reply."""
    places = [scorer.from_end(reply) for reply in replies]
    return [NONE if p is None else MARKER for p in places], [None if p is None else str(p) for p in places]
