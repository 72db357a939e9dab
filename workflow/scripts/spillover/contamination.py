"""From language labels to contamination rates: one tidy row per condition, seed, directive language and scorer.

A condition trains replies in a completion language c on the directive of a language d. Its contamination in the
directive language l is the share of replies to l's directive that are labelled c. The untrained model has no c, so it
is read once for every completion language that some condition uses, and its own compliance is kept apart.

Errors are never data: a row whose outcome is not "ok" has no label; it is counted, and a cell with too many such
rows stops the analysis. The module knows nothing of identifiers, models or figures.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from . import statistics
from .languages import OTHER

BASE = "base"  # the untrained model: its condition name, and its name within a run id
DENOMINATORS = ("all", "identified")  # every usable row, or only rows labelled as a known language
KEY = ["run", "seed", "checkpoint", "suite", "prompt_id", "sample"]
GROUP = ["experiment", "condition", "learning_rate", "directive", "completion", "label_source", "denominator"]


def cell_role(language: str, directive: str | None, completion: str) -> str:
    """What a cell says about a condition.

    trained: the directive that was trained, towards another language; correct: the directive that rightly asks for the
    completion language; control: the same-language control's own cell, where both hold; bystander: everything else.
    The untrained model (no directive) has compliance (language == completion) and base (any other language).
    """
    if pd.isna(directive):
        return "compliance" if language == completion else "base"
    if directive == completion == language:
        return "control"
    return {directive: "trained", completion: "correct"}.get(language, "bystander")


def is_base(run: str) -> bool:
    """Whether a run id ("base", "language_spill/base") is the untrained model's."""
    return BASE in run.split("/")


def contamination_cells(
    labels: pd.DataFrame,
    conditions: pd.DataFrame,
    completions: pd.DataFrame | None = None,
    *,
    experiment: str = "language_spill",
    denominator: str = "all",
    max_error_share: float = 0.05,
    resamples: int = 2000,
) -> pd.DataFrame:
    """One row per run, directive language, completion language asked about and scorer.

    `labels`: columns of labels.parquet, one suite and one checkpoint; runs named "base" are the untrained model.
    Runs are told apart by id and seed. `conditions`: run, condition, seed, directive, completion and, optionally,
    learning_rate. `completions` (optional) adds the share of replies cut off by the length limit. Interval columns:
    wilson_* treats rows as independent; boot_* resamples phrasings, then rows. `effective_n` is n over the design
    effect of the phrasings. item_k and item_n hold the counts per phrasing, in the order of `items`, from which
    `pool_seeds` starts.

    Raises ValueError for several suites or scorer versions in one table, repeated rows, runs missing on either side,
    and cells whose share of failed labels exceeds `max_error_share`.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator {denominator!r} is none of: {', '.join(DENOMINATORS)}.")
    questions = _questions(conditions, labels)
    _check(labels, questions)
    studied = set(conditions["completion"])
    counts = _item_counts(labels, denominator)
    failed = _failed(labels, max_error_share)
    cut = _truncated(completions)
    rows = []
    for question in questions.itertuples():
        for (scorer, language), cell in counts[question.run, question.seed]:
            if question.completion not in studied and language != question.completion:
                continue  # of the untrained model: neither its compliance nor a studied completion language
            items = [(item, int(found.get(question.completion, 0)), n) for item, found, n in cell]
            k, n = sum(k for _, k, _ in items), sum(n for _, _, n in items)
            directive = None if pd.isna(question.directive) else question.directive
            row = {
                "experiment": experiment,
                "run": question.run,
                "condition": question.condition,
                "seed": question.seed,
                "learning_rate": question.learning_rate,
                "directive": directive,
                "completion": question.completion,
                "language": language,
                "role": cell_role(language, directive, question.completion),
                "label_source": scorer,
                "denominator": denominator,
                "errors": failed.get((question.run, question.seed, scorer, language), 0),
                "truncated_share": cut.get((question.run, question.seed, language), np.nan),
            }
            rows.append({**row, **_rates(k, n, items, row, resamples)})
    return pd.DataFrame(rows)


def pool_seeds(cells: pd.DataFrame, *, resamples: int = 2000, confidence: float = 0.95) -> pd.DataFrame:
    """One row per condition, learning rate, language and scorer: the mean of the seeds' rates.

    Seeds are a level of their own: the rate is the mean over seeds, with seed_min, seed_max and n_seeds beside it. With
    one seed [low, high] is its Wilson interval and covers the sampling of completions only. With several, seeds, then
    phrasings, then rows are resampled; the interval is never narrower than Wilson's on the pooled counts, because a
    bootstrap of zeros has no width. `interval` says which it is.
    """
    pooled = []
    for _, group in cells.groupby([*GROUP, "language", "role"], dropna=False, sort=False):
        first = group.iloc[0]
        k, n, seeds = int(group["k"].sum()), int(group["n"].sum()), group["seed"].nunique()
        low, high = statistics.wilson(k, n, confidence)
        rate = float(group["rate"].mean())
        if seeds > 1:
            draws = _bootstrap(
                [group], ("pool", *map(str, first[["condition", "language", "label_source"]])), resamples
            )
            boot = statistics.percentile_interval(draws, confidence)
            low, high = min(low, boot[0], rate), max(high, boot[1], rate)
        pooled.append(
            {
                **{name: first[name] for name in [*GROUP, "language", "role"]},
                "n_seeds": seeds,
                "n_items": max(len(items) for items in group["items"]),
                "k": k,
                "n": n,
                "rate": rate,
                "seed_min": group["rate"].min(),
                "seed_max": group["rate"].max(),
                "low": low,
                "high": high,
                "interval": _interval_words(seeds),
                "effective_n": group["effective_n"].sum(),
                "errors": int(group["errors"].sum()),
                "truncated_share": group["truncated_share"].mean(),
            }
        )
    return pd.DataFrame(pooled)


def bystander_means(cells: pd.DataFrame, *, resamples: int = 2000) -> pd.DataFrame:
    """Mean contamination of each condition's bystander languages (a fixed set), with its largest cell.

    The interval resamples seeds (shared by all languages), phrasings and rows, and is never narrower than Wilson's on
    the summed counts. Rows per condition, learning rate and scorer.
    """
    rows = []
    bystanders = cells[cells["role"] == "bystander"]
    for key, group in bystanders.groupby(GROUP, dropna=False, sort=False):
        by_language = group.groupby("language", sort=False)
        rates = by_language["rate"].mean()
        mean = float(rates.mean())
        draws = _bootstrap([cell for _, cell in by_language], ("mean", *map(str, key)), resamples)
        boot = statistics.percentile_interval(draws)
        wilson = statistics.wilson(int(group["k"].sum()), int(group["n"].sum()))
        row = dict(zip(GROUP, key, strict=True))
        row |= {"languages": len(rates), "n_seeds": group["seed"].nunique(), "n": int(group["n"].sum()), "rate": mean}
        row |= {"low": min(boot[0], wilson[0], mean), "high": max(boot[1], wilson[1], mean)}
        row |= {"largest": float(rates.max()), "largest_language": rates.idxmax()}
        rows.append(row)
    return pd.DataFrame(rows)


def bystander_control(cells: pd.DataFrame) -> pd.DataFrame:
    """Pooled bystander contamination of the same-language controls, with upper bounds.

    One row per control condition and scorer, and one "all controls" row where there are several. wilson_high and
    exact_high are the upper ends of two-sided 95 % intervals; largest_high bounds the largest single cell (its
    seeds taken together; Sidak over the cells). Rows are treated as independent here, which is fair only near zero.
    """
    control = cells[(cells["role"] == "bystander") & (cells["directive"] == cells["completion"])]
    rows = []
    for scorer, of_scorer in control.groupby("label_source", sort=False):
        groups = [(str(name), group) for name, group in of_scorer.groupby("condition", sort=False)]
        if len(groups) > 1:
            groups.append(("all controls", of_scorer))
        for name, group in groups:
            k, n = int(group["k"].sum()), int(group["n"].sum())
            by_cell = group.groupby(["condition", "language"])[["k", "n"]].sum()
            largest = by_cell.loc[(by_cell["k"] / by_cell["n"]).idxmax()]
            rows.append(
                {
                    "condition": name,
                    "label_source": scorer,
                    "cells": len(by_cell),
                    "seeds": group["seed"].nunique(),
                    "k": k,
                    "n": n,
                    "rate": k / n,
                    "wilson_high": statistics.wilson(k, n)[1],
                    "exact_high": statistics.clopper_pearson(k, n)[1],
                    "largest": float(largest["k"] / largest["n"]),
                    "largest_high": statistics.sidak_upper(int(largest["k"]), int(largest["n"]), len(by_cell)),
                }
            )
    return pd.DataFrame(rows)


def agreement(labels: pd.DataFrame, conditions: pd.DataFrame) -> pd.DataFrame:
    """Agreement of every pair of scorers, per condition and over all rows ("all").

    Every label counts, "other" included: the published disagreement rate looked only at rows where both scorers named
    a known language, and so reported 0-1 % where the two matrices differ by up to 62 points. Rows that either scorer
    failed on are left out and counted as `unpaired`.
    """
    names = dict(zip(conditions["run"], conditions["condition"], strict=True))
    names |= {run: BASE for run in labels["run"].unique() if is_base(run)}
    table = labels.assign(condition=labels["run"].map(names), label=labels["label"].where(labels["outcome"] == "ok"))
    wide = table.pivot(index=["condition", *KEY], columns="scorer", values="label").reset_index()
    rows = []
    for first, second in itertools.combinations(sorted(labels["scorer"].unique()), 2):
        groups = [*wide.groupby("condition", sort=False), ("all", wide)]
        for name, group in groups:
            both = group.dropna(subset=[first, second])
            if both.empty:
                continue
            found = statistics.cohen_kappa(both[first].tolist(), both[second].tolist())
            row = {"condition": name, "first": first, "second": second, "unpaired": len(group) - len(both)}
            rows.append({**row, **vars(found)})
    return pd.DataFrame(
        rows, columns=["condition", "first", "second", "unpaired", *statistics.Agreement.__annotations__]
    )


def _interval_words(seeds: int) -> str:
    if seeds == 1:
        return "Wilson 95 %, one seed: covers the sampling of completions only"
    return f"bootstrap 95 % over {seeds} seeds, then phrasings, then completions; at least Wilson's"


def _questions(conditions: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Every (run, completion language) to be read off the labels, the untrained model's included."""
    table = conditions[["run", "condition", "seed", "directive", "completion"]].copy()
    given = "learning_rate" in conditions
    table["learning_rate"] = conditions["learning_rate"].astype(float) if given else np.nan
    base = labels.loc[labels["run"].map(is_base), ["run", "seed", "cell"]]
    asked = list(dict.fromkeys([*table["completion"], *base["cell"]]))
    untrained = {"condition": BASE, "directive": None, "learning_rate": np.nan}
    rows = [
        {"run": run, "seed": seed, "completion": code, **untrained}
        for run, seed in base[["run", "seed"]].drop_duplicates().itertuples(index=False)
        for code in asked
    ]
    return pd.DataFrame([*table[~table["run"].map(is_base)].to_dict("records"), *rows])


def _check(labels: pd.DataFrame, questions: pd.DataFrame) -> None:
    for column, what in (("suite", "suites"), ("checkpoint", "checkpoints")):
        # Runs may end at checkpoints of different names; one run at two would be counted twice.
        groups = labels.groupby(["run", "seed"])[column] if column == "checkpoint" else labels.groupby("scorer")[column]
        if (groups.nunique() > 1).any():
            found = ", ".join(sorted(map(str, labels[column].unique())))
            raise ValueError(f"the labels mix several {what} ({found}); choose one.")
    versions = labels.groupby("scorer")["scorer_id"].unique()
    for scorer, ids in versions.items():
        if len(ids) > 1:
            raise ValueError(
                f"the labels of {scorer!r} come from different versions, which no table may mix: {'; '.join(ids)}."
            )
    if labels.duplicated([*KEY, "scorer"]).any():
        raise ValueError("the labels hold the same completion and scorer more than once.")
    given, asked = ({*zip(t["run"], t["seed"], strict=True)} for t in (labels, questions))
    for missing, words in (
        (given - asked, "labels of runs that no condition names"),
        (asked - given, "conditions without labels"),
    ):
        if missing:
            named = ", ".join(f"{run} (seed {seed})" for run, seed in sorted(missing))
            raise ValueError(f"{words}: {named}.")


def _item_counts(labels: pd.DataFrame, denominator: str) -> dict[tuple, list]:
    """(run, seed) -> [((scorer, language), [(item, {label: count}, rows), ...]), ...] of the usable rows."""
    usable = labels[labels["outcome"] == "ok"]
    if denominator == "identified":
        usable = usable[usable["label"] != OTHER]
    models = labels[["run", "seed"]].drop_duplicates().itertuples(index=False)
    result: dict[tuple, dict] = {tuple(model): {} for model in models}
    by = ["run", "seed", "scorer", "cell", "item"]
    for (run, seed, scorer, cell, item), rows in usable.groupby(by, sort=True)["label"]:
        entry = (item, rows.value_counts().to_dict(), len(rows))
        result[run, seed].setdefault((scorer, cell), []).append(entry)
    return {model: list(cells.items()) for model, cells in result.items()}


def _failed(labels: pd.DataFrame, max_error_share: float) -> dict[tuple, int]:
    bad = (labels["outcome"] != "ok").groupby([labels[name] for name in ("run", "seed", "scorer", "cell")])
    table = bad.agg(["sum", "count"])
    over = table[table["sum"] > max_error_share * table["count"]]
    if len(over):
        (run, seed, scorer, cell), worst = over["sum"].idxmax(), over["sum"].max()
        rows = over.loc[(run, seed, scorer, cell), "count"]
        raise ValueError(
            f"{len(over)} cell(s) have more than {max_error_share:.0%} failed labels; the worst is {run} "
            f"(seed {seed}), {cell}, {scorer}: {worst} of {rows}. Score them again before making rates."
        )
    return table["sum"].astype(int).to_dict()


def _truncated(completions: pd.DataFrame | None) -> dict[tuple, float]:
    if completions is None or completions["finish_reason"].isna().all():
        return {}
    by = [completions[name] for name in ("run", "seed", "cell")]
    return (completions["finish_reason"] == "length").groupby(by).mean().to_dict()


def _rates(k: int, n: int, items: list, row: dict, resamples: int) -> dict:
    groups = [np.repeat([1, 0], [hits, size - hits]) for _, hits, size in items]
    seed = statistics.stable_seed(row["run"], row["seed"], row["completion"], row["language"], row["label_source"])
    low, high = statistics.wilson(k, n)
    boot_low, boot_high = statistics.cluster_bootstrap(groups, seed, resamples=resamples)
    shares = [hits / size for _, hits, size in items]
    icc = statistics.icc_oneway(groups)
    return {
        "k": k,
        "n": n,
        "rate": k / n,
        "wilson_low": low,
        "wilson_high": high,
        "boot_low": boot_low,
        "boot_high": boot_high,
        "item_rate_min": min(shares),
        "item_rate_max": max(shares),
        "effective_n": statistics.effective_n(n, icc, n / len(items)),
        "items": [item for item, _, _ in items],
        "item_k": [hits for _, hits, _ in items],
        "item_n": [size for _, _, size in items],
    }


def _bootstrap(cells: list[pd.DataFrame], seed_parts: tuple, resamples: int) -> np.ndarray:
    """Nested bootstrap of the mean over `cells` (one frame per stratum, one row per seed)."""
    width = max(len(counts) for cell in cells for counts in cell["item_n"])
    seeds = max(len(cell) for cell in cells)
    successes = np.zeros((len(cells), seeds, width), dtype=int)
    trials = np.zeros_like(successes)
    for i, cell in enumerate(cells):
        for j, (_, row) in enumerate(cell.sort_values("seed").iterrows()):
            successes[i, j, : len(row["item_k"])] = row["item_k"]
            trials[i, j, : len(row["item_n"])] = row["item_n"]
    return statistics.nested_bootstrap(successes, trials, statistics.stable_seed(*seed_parts), resamples)
