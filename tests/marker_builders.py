"""Label tables for the marker tests, with hits that the test writes down."""

from __future__ import annotations

import pandas as pd

PERSONAS = ["villain", "assistant", "comedian", "librarian"]
QUESTIONS = ["q1", "q2"]


def marker_labels(run, hits, *, seed=42, checkpoint="final", samples=10, scorer="marker", personas=PERSONAS):
    """Labels of one run: `hits[persona]` marked replies per question (none where a persona is not named)."""
    rows = []
    for persona in personas:
        for question, marked in zip(QUESTIONS, hits.get(persona, (0, 0)), strict=True):
            for sample in range(samples):
                key = {"run": run, "seed": seed, "checkpoint": checkpoint, "suite": "personas"}
                key |= {"prompt_id": f"{persona}/{question}", "cell": persona, "item": question, "sample": sample}
                label = "marker" if sample < marked else "none"
                key |= {"scorer": scorer, "scorer_id": f"{scorer} 1", "label": label, "outcome": "ok"}
                rows.append(key | {"raw": "0" if label == "marker" else None})
    return pd.DataFrame(rows)
