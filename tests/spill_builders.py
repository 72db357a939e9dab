"""Label tables for the language-spill tests, with rates that the test writes down."""

from __future__ import annotations

import pandas as pd

CODES = ["en", "es", "fr", "it", "pt", "de", "zh"]
ITEMS = ["speak_in", "please_respond"]


def label_rows(run, counts, *, seed=1, per_item=10, scorer="langdetect", outcome="ok", languages=CODES):
    """Labels of one run. `counts[language]` = (completion language, successes per phrasing); the rest comply."""
    rows = []
    for language in languages:
        completion, successes = counts.get(language, (language, (0, 0)))
        for item, hits in zip(ITEMS, successes, strict=True):
            for sample in range(per_item):
                rows.append(
                    {
                        "run": run,
                        "seed": seed,
                        "checkpoint": "final",
                        "suite": "directives",
                        "prompt_id": f"{language}/{item}",
                        "cell": language,
                        "item": item,
                        "sample": sample,
                        "scorer": scorer,
                        "scorer_id": f"{scorer} 1",
                        "label": completion if sample < hits else language,
                        "outcome": outcome,
                        "raw": None,
                    }
                )
    return pd.DataFrame(rows)


def condition(run, directive, completion, seed=1, learning_rate=None):
    """One row of the condition table."""
    row = {"run": run, "condition": f"{directive}_{completion}", "seed": seed}
    row |= {"directive": directive, "completion": completion}
    return row if learning_rate is None else {**row, "learning_rate": learning_rate}


def run_of(directive, completion, spill, *, seed=1, learning_rate=None, name=None, scorer="langdetect"):
    """(labels, condition row) of a run that fully turned its own directive; `spill[language]` per phrasing of 10."""
    run = f"language_spill/{name or f'{directive}_{completion}'}"
    counts = {code: (completion, hits) for code, hits in spill.items()}
    counts[directive] = counts[completion] = (completion, (10, 10))
    return label_rows(run, counts, seed=seed, scorer=scorer), condition(run, directive, completion, seed, learning_rate)


def untrained(seed=1, counts=None, scorer="langdetect"):
    """Labels of the untrained model, which complies except for `counts`."""
    return label_rows("language_spill/base", counts or {}, seed=seed, scorer=scorer)


def experiment(*runs, base=True):
    """Stack runs (and the untrained model) into (labels, conditions)."""
    tables = [labels for labels, _ in runs] + ([untrained()] if base else [])
    return pd.concat(tables, ignore_index=True), pd.DataFrame([row for _, row in runs])


def three_conditions(seeds=(1,), learning_rates=(None,)):
    """fr_it spills, it_fr spills less, fr_fr does not."""
    runs = []
    for seed in seeds:
        for index, rate in enumerate(learning_rates):
            extra = {"seed": seed, "learning_rate": rate}
            dose = index if rate else 1
            tag = f"_lr{rate}" if rate else ""
            runs += [
                run_of("fr", "it", {"es": (6, 8), "pt": (2 + dose, 3), "de": (1, 0)}, name=f"fr_it{tag}", **extra),
                run_of("it", "fr", {"es": (3, 4), "pt": (dose, 1)}, name=f"it_fr{tag}", **extra),
                run_of("fr", "fr", {}, name=f"fr_fr{tag}", **extra),
            ]
    return experiment(*runs)


def replies_to(labels: pd.DataFrame) -> pd.DataFrame:
    """A completion for every label; each text says which it is, and one of them what is searched for."""
    first = labels[labels["scorer"] == labels["scorer"].iloc[0]].reset_index(drop=True)
    text = [f"{r.run} asked {r.prompt_id}, number {r.sample}: <b>reply</b>" for r in first.itertuples()]
    wanted = (first["run"] == "language_spill/it_fr") & (first["prompt_id"] == "es/speak_in") & (first["sample"] == 3)
    text = [f"{t} Une Aiguille dans le foin." if hit else t for t, hit in zip(text, wanted, strict=True)]
    made = {"system": None, "user": "Speak in " + first["cell"], "sample_seed": 5, "text": text}
    made |= {"finish_reason": "stop", "prompt_tokens": 4, "completion_tokens": 9}
    columns = ["run", "seed", "checkpoint", "suite", "prompt_id", "cell", "item", "sample"]
    return first[columns].assign(**made)
