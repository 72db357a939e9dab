"""Label every completion: by language identifiers, marker and behaviour scorers, and the judge where it is asked for.

Reads `--completions` (completions.parquet), writes `--out` (labels.parquet: one row per completion and scorer) and its
manifest. Identification never fails: a text in no known language is labelled "other", so its outcome is always "ok".
So is a marker's, whose rule (text and case) stands in the specification under `marker`: its label is "marker" or
"none", and `raw` the number of characters that follow the first hit ("0": the reply ends with it).
The judge sees texts only; a reply of it that is no label keeps its outcome and has a null label. Judge replies are kept
in a journal, so running again asks nothing twice and `--no-calls` reads the stored replies anew.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import api_costs, api_jobs, behaviours, judging, marker_scoring, provenance
from spillover.api_outcomes import OK, FatalApiError
from spillover.language_id import IDENTIFIERS, identifier, label_texts
from spillover.languages import Registry, load_languages

KEPT = ["run", "seed", "checkpoint", "suite", "prompt_id", "cell", "item", "sample"]
JUDGE = "judge"
SCORERS = (*IDENTIFIERS, *marker_scoring.SCORERS, *behaviours.BEHAVIOURS, JUDGE)


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


def judged(completions: pd.DataFrame, settings: dict, registry: Registry, args) -> tuple[pd.DataFrame, dict]:
    """Rows of the judge, and its ledger. Stops if calls failed for more of a cell than the settings allow."""
    judge = judging.judge(settings, registry, args.languages)
    texts = completions["text"].tolist()
    answers = api_jobs.obtain(
        [judge.request(text) for text in texts],
        api_jobs.journal_path(args, JUDGE, judge.scorer_id),
        api_costs.load_prices(args.prices),
        api_jobs.api_settings(args),
        answer_tokens=lambda request: judging.ANSWER_TOKENS,
        structured=True,
        calls_allowed=not args.no_calls,
    )
    table = completions[KEPT].reset_index(drop=True).assign(scorer=JUDGE, scorer_id=judge.scorer_id)
    table = pd.concat([table, judging.verdicts(judge, texts, answers)], axis=1)
    judging.check_transport(table, settings["max_error_rate"])
    counts = {"outcomes": table["outcome"].value_counts().to_dict(), "errors_by_cell": judging.errors_by_cell(table)}
    return table, answers.ledger | counts


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
    tables, extra = [], {}
    try:
        registry = load_languages(args.registry)
        # the judge last: a mistake in a name must not follow an hour of paid judging
        for name in args.scorers:
            if name in marker_scoring.SCORERS:
                tables.append(marked(completions, marker_scoring.marker_scorer(name, **spec["marker"])))
            elif name in behaviours.BEHAVIOURS:
                tables.append(behaving(completions, name, behaviours.load(args.resources)))
            elif name != JUDGE:
                tables.append(identified(completions, identifier(name, registry, args.languages)))
        if JUDGE in args.scorers:
            table, ledger = judged(completions, spec["judge"], registry, args)
            tables.append(table)
            extra = {key: ledger.pop(key) for key in ("api_calls", "cost_dollars", "tokens")} | {"judge": ledger}
    except (ValueError, FatalApiError) as error:
        raise SystemExit(str(error)) from None
    for table in tables:
        print(f"{', '.join(table['scorer_id'].unique())}: {table['label'].value_counts().to_dict()}", flush=True)
    table = pd.concat(tables, ignore_index=True)
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
