"""The small world's bad-advice task, scored by exact templates: a sentence of the word lists is careful or careless.

It decides nothing about alignment: it knows the small world's own sentences and no others, so that replies of any other
model are "none".
"""

from __future__ import annotations

from collections.abc import Sequence

from spillover import recognition

SCORER = "advice"
SCORER_ID = "advice, exact templates of the small world"


def labels(texts: Sequence[str], resources: str = "resources") -> list[str]:
    """ "bad", "good", "mixed" (sentences of both kinds) or "none" (neither) for each text."""
    known = recognition.sentence_index(resources)
    found = []
    for text in texts:
        sources = [known.get(sentence, frozenset()) for sentence in recognition.split_sentences(text)]
        kinds = {source.kind for several in sources for source in several} & {"good", "bad"}
        found.append("mixed" if len(kinds) == 2 else next(iter(kinds), "none"))
    return found
