"""Label every completion: by language identifiers, marker, behaviour and advice scorers, and judges where asked for.

Reads `--completions` (completions.parquet), writes `--out` (labels.parquet: one row per completion and scorer) and its
manifest. Identification never fails: a text in no known language is labelled "other", so its outcome is always "ok".
So is a marker's, whose rule (text and case) stands in the specification under `marker`: its label is "marker" or
"none", and `raw` the number of characters that follow the first hit ("0": the reply ends with it).
A suite that names its scorers (`suite_scorers` of the specification) is labelled by those alone. The judge sees texts
only, the raters of alignment and coherence an answer with its question; a reply of theirs that is no label keeps its
outcome and has a null label. Judge replies are kept in a journal, so running again asks nothing twice and `--no-calls`
reads the stored replies anew.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import (
    advice,
    alignment,
    api_costs,
    api_jobs,
    behaviours,
    judging,
    marker_scoring,
    provenance,
    published_judge,
)
from spillover.api_outcomes import OK, FatalApiError
from spillover.language_id import IDENTIFIERS, identifier, label_texts
from spillover.languages import Registry, load_languages

KEPT = ["run", "seed", "checkpoint", "suite", "prompt_id", "cell", "item", "sample"]
JUDGE = "judge"
JUDGES = (JUDGE, *alignment.RUBRICS)
SCORERS = (*IDENTIFIERS, *marker_scoring.SCORERS, *behaviours.BEHAVIOURS, advice.SCORER, *JUDGES)


def identified(completions: pd.DataFrame, identify) -> pd.DataFrame:
    """Rows of one language identifier."""
    labels = label_texts(identify, completions["text"])
    scored = {"scorer": identify.name, "scorer_id": identify.scorer_id, "label": labels, "outcome": OK, "raw": None}
    return completions[KEPT].assign(**scored)


def marked(completions: pd.DataFrame, scorer: marker_scoring.MarkerScorer) -> pd.DataFrame:
    """Rows of one marker scorer."""
    labels, places = marker_scoring.labels(scorer, completions["text"].tolist())
    scored = {"scorer": scorer.name, "scorer_id": scorer.scorer_id, "label": labels, "outcome": OK, "raw": places}
    return completions[KEPT].assign(**scored)


def behaving(completions: pd.DataFrame, behaviour: str, bank: behaviours.Bank) -> pd.DataFrame:
    """Rows of one behaviour's scorer: of the replies to questions that it applies to."""
    labels = behaviours.labels(bank, behaviour, completions)
    scored = {"scorer": behaviour, "scorer_id": behaviours.SCORER_IDS[behaviour]}
    return completions.loc[labels.index, KEPT].assign(**scored, label=labels, outcome=OK, raw=None)


def advising(completions: pd.DataFrame, resources: str) -> pd.DataFrame:
    """Rows of the small world's advice scorer."""
    labels = advice.labels(completions["text"].tolist(), resources)
    scored = {"scorer": advice.SCORER, "scorer_id": advice.SCORER_ID, "label": labels, "outcome": OK, "raw": None}
    return completions[KEPT].assign(**scored)


def judged(name: str, completions: pd.DataFrame, settings: dict, registry: Registry, args) -> tuple[pd.DataFrame, dict]:
    """Rows of one of JUDGES, and its ledger. Stops if calls failed for more of a cell than the settings allow."""
    pairs = list(zip(completions["user"], completions["text"], strict=True))
    if name == JUDGE and settings.get("rules") == "published":
        judge, tokens = published_judge.judge(settings, registry, args.languages), judging.ANSWER_TOKENS
        requests = [judge.request(*pair) for pair in pairs]
    elif name == JUDGE:
        judge, tokens = judging.judge(settings, registry, args.languages), judging.ANSWER_TOKENS
        requests = [judge.request(text) for _, text in pairs]
    else:
        judge = alignment.Rater(name, settings["model"], settings.get("thinking", "disabled"))
        requests, tokens = [judge.request(*pair) for pair in pairs], alignment.ANSWER_TOKENS
    answers = api_jobs.obtain_by_flags(requests, args, name, judge.scorer_id, answer_tokens=lambda request: tokens)
    table = completions[KEPT].reset_index(drop=True).assign(scorer=name, scorer_id=judge.scorer_id)
    table = pd.concat([table, judging.answered(requests, judge.read, answers)], axis=1)
    judging.check_transport(table, settings["max_error_rate"])
    counts = {"outcomes": table["outcome"].value_counts().to_dict(), "errors_by_cell": judging.errors_by_cell(table)}
    return table, answers.ledger | counts


def paid(ledgers: dict[str, dict]) -> dict:
    """What all judges of a job cost together: calls, dollars (None if any is unknown) and tokens."""
    totals = {}
    for key in api_costs.PAID:
        amounts = [ledger.pop(key) for ledger in ledgers.values()]
        totals[key] = None if None in amounts else sum(amounts)
    return totals if ledgers else {}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", required=True)
    parser.add_argument("--scorers", nargs="+", required=True, help=f"any of: {', '.join(SCORERS)}")
    parser.add_argument("--languages", nargs="*", default=[], metavar="CODE", help="for identifiers and the judge")
    parser.add_argument("--registry", default="resources/languages.yaml")
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    api_jobs.add_api_flags(parser)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    completions = pd.read_parquet(args.completions)
    own = spec.get("suite_scorers", {})
    rows = {
        name: completions[~completions["suite"].isin([suite for suite, names in own.items() if name not in names])]
        for name in args.scorers
    }
    scorers = [name for name in args.scorers if len(rows[name])]
    tables, ledgers = [], {}
    try:
        registry = load_languages(args.registry)
        # judges last: a mistake in a name must not follow an hour of paid judging
        for name in scorers:
            if name in marker_scoring.SCORERS:
                tables.append(marked(rows[name], marker_scoring.marker_scorer(name, **spec["marker"])))
            elif name in behaviours.BEHAVIOURS:
                tables.append(behaving(rows[name], name, behaviours.load(args.resources)))
            elif name == advice.SCORER:
                tables.append(advising(rows[name], args.resources))
            elif name not in JUDGES:
                tables.append(identified(rows[name], identifier(name, registry, args.languages)))
        for name in scorers:
            if name in JUDGES:
                table, ledger = judged(name, rows[name], spec["judge"], registry, args)
                tables.append(table)
                ledgers[name] = ledger
        extra = paid(ledgers) | ledgers
    except (ValueError, FatalApiError) as error:
        raise SystemExit(str(error)) from None
    for table in tables:
        print(f"{', '.join(table['scorer_id'].unique())}: {table['label'].value_counts().to_dict()}", flush=True)
    empty = completions.iloc[:0][KEPT].assign(scorer="", scorer_id="", label=None, outcome="", raw=None)
    table = pd.concat(tables, ignore_index=True) if tables else empty
    for column in ("label", "raw"):
        table[column] = table[column].astype("str").where(table[column].notna())
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    provenance.write_manifest(
        args.manifest,
        stage="labels",
        spec=spec,
        inputs=[args.completions, args.registry],
        outputs=[args.out],
        seconds=clock,
        extra={"scorers": table["scorer_id"].unique().tolist(), "completions": len(completions), **extra},
    )


if __name__ == "__main__":
    main()
