"""Signs that a table does not show what its labels say: runs that are copies, metrics that never move, rows misplaced.

An alarm is no finding about a model. It says that findings about this experiment are to be withheld until a person has
looked. Knows completions, labels and measures as tables; nothing of files or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Mapping, Sequence

import pandas as pd

LEAST_RUNS = 3
"""Fewer models than this that agree in every rate are no sign of anything."""


def digest(completions: pd.DataFrame) -> str:
    """A digest of what one model answered at one checkpoint, whoever it is said to be: suite, prompt, sample, text."""
    ordered = completions.sort_values(["suite", "prompt_id", "sample"])
    hashed = hashlib.sha256()
    for row in ordered[["suite", "prompt_id", "sample", "text"]].itertuples(index=False):
        hashed.update("\x1f".join(map(str, row)).encode())
    return hashed.hexdigest()


def digest_of_measures(measures: pd.DataFrame) -> str:
    """The same of the log-probabilities that one model gave the rows of one suite at one checkpoint."""
    ordered = measures.sort_values(["item", "option"])
    hashed = hashlib.sha256()
    for row in ordered[["item", "option", "logprob"]].itertuples(index=False):
        hashed.update("\x1f".join(map(str, row)).encode())
    return hashed.hexdigest()


def duplicates(
    digests: Mapping[str, Hashable],
    shared: str = "gave the same answers word for word",
    early: Collection[str] = (),
    trained: Mapping[str, str] | None = None,
) -> list[str]:
    """Models (`run seed checkpoint`) with one and the same digest, a sentence for each set of them.

    Sampling is seeded by prompt, so an adapter too weak to change one token of any answer is found as well: then the
    run is real and shows the untrained model. That model at several seeds is one and the same, no copy. Nor are `early`
    checkpoints that agree with it (the first step of a warm-up has a learning rate of 0), or models whose value in
    `trained` is the same: they are one training under two names.
    """
    alike: dict[Hashable, list[str]] = {}
    for model, value in digests.items():
        alike.setdefault(value, []).append(model)
    found = []
    for models in alike.values():
        if any(map(_untrained, models)):
            models = [model for model in models if model not in early]
        made = {(trained or {}).get(model, model) for model in models}
        if len(made) > 1 and not all(map(_untrained, models)):
            found.append(f"{' and '.join(sorted(models))} {shared}: one was copied, or its adapter changes nothing")
    return found


def _untrained(model: str) -> bool:
    return "/base seed " in model


def constant_metrics(rates: pd.DataFrame) -> list[str]:
    """Scorers whose every label has one and the same share in every cell of every model.

    `rates` has columns scorer, model, cell, label, share. Fewer than LEAST_RUNS models are not judged.
    """
    found = []
    for scorer, group in rates.groupby("scorer", sort=True):
        if group["model"].nunique() < LEAST_RUNS:
            continue
        table = group.pivot_table(index="model", columns=["cell", "label"], values="share", fill_value=0.0)
        if (table.nunique() == 1).all():
            found.append(
                f"the scorer {scorer} gives every one of {len(table)} models the same rates: it measures nothing here"
            )
    return found


def misplaced(rows: pd.DataFrame, run: str, seed: int, kind: str) -> list[str]:
    """Rows of a table (columns run, seed) that say they belong to another model than the one whose table it is."""
    wrong = rows[(rows["run"] != run) | (rows["seed"] != seed)]
    if wrong.empty:
        return []
    first = wrong.iloc[0]
    return [f"{len(wrong)} {kind} of {run} seed {seed} say they come from {first['run']} seed {int(first['seed'])}"]


def exchanged(shares: pd.DataFrame, conditions: Sequence[Mapping]) -> list[str]:
    """Models that answer a directive in a language which not they, but another condition was trained to answer it in.

    `shares` has columns run, seed, cell (the directive's language), label and share. Spill is an answer in a model's
    own completion language and raises no alarm, nor does a model that learnt nothing. `conditions` are records with
    run, seed, directive and completion.
    """
    found = []
    pairs = {(record["directive"], record["completion"]) for record in conditions}
    trained = {completion for _, completion in pairs}
    for record in conditions:
        own = (record["directive"], record["completion"])
        rows = shares[(shares["run"] == record["run"]) & (shares["seed"] == record["seed"]) & (shares["share"] > 0.5)]
        answered = {(cell, label) for cell, label in zip(rows["cell"], rows["label"], strict=True) if cell != label}
        for directive, completion in sorted(answered):
            foreign = completion in trained - {own[1]}
            if foreign and ((directive, completion) in pairs or directive == own[0]):
                found.append(
                    f"{record['run']} seed {record['seed']} was trained to answer {own[0]} in {own[1]}, and answers"
                    f" {directive} in {completion}: conditions look exchanged"
                )
    return found


def shares(labels: pd.DataFrame) -> pd.DataFrame:
    """Shares of every label per model and cell: run, seed, checkpoint, model, scorer, cell, label, share."""
    keys = ["run", "seed", "checkpoint", "scorer", "cell"]
    labelled = labels[labels["outcome"] == "ok"]
    counts = labelled.groupby([*keys, "label"]).size().rename("rows").reset_index()
    counts["share"] = counts["rows"] / counts.groupby(keys)["rows"].transform("sum")
    counts["model"] = counts["run"] + " seed " + counts["seed"].astype(str) + " " + counts["checkpoint"]
    return counts
