"""Label every completion: by language identifiers, and by the judge where one is asked for.

Reads `--completions` (completions.parquet), writes `--out` (labels.parquet: one row per completion and scorer) and its
manifest. Identification never fails: a text in no known language is labelled "other", so its outcome is always "ok".
The judge sees texts only; a reply of it that is no label keeps its outcome and has a null label. Judge replies are kept
in a journal, so running again asks nothing twice and `--no-calls` reads the stored replies anew.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import api_costs, api_jobs, judging, provenance
from spillover.api_outcomes import OK, FatalApiError
from spillover.language_id import IDENTIFIERS, identifier, label_texts
from spillover.languages import Registry, load_languages

KEPT = ["run", "seed", "checkpoint", "suite", "prompt_id", "cell", "item", "sample"]
JUDGE = "judge"


def identified(completions: pd.DataFrame, identify) -> pd.DataFrame:
    """Rows of one language identifier."""
    labels = label_texts(identify, completions["text"])
    scored = {"scorer": identify.name, "scorer_id": identify.scorer_id, "label": labels, "outcome": OK, "raw": None}
    return completions[KEPT].assign(**scored)


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
    parser.add_argument("--scorers", nargs="+", required=True, help=f"any of: {', '.join([*IDENTIFIERS, JUDGE])}")
    parser.add_argument("--languages", nargs="+", required=True, metavar="CODE")
    parser.add_argument("--registry", default="resources/languages.yaml")
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
        # identifiers first: a mistake in a name must not follow an hour of paid judging
        identifiers = [identifier(name, registry, args.languages) for name in args.scorers if name != JUDGE]
        tables = [identified(completions, identify) for identify in identifiers]
        if JUDGE in args.scorers:
            table, ledger = judged(completions, spec["judge"], registry, args)
            tables.append(table)
            extra = {key: ledger.pop(key) for key in ("api_calls", "cost_dollars", "tokens")} | {"judge": ledger}
    except (ValueError, FatalApiError) as error:
        raise SystemExit(str(error)) from None
    for table in tables:
        print(f"{table['scorer_id'].iloc[0]}: {table['label'].value_counts().to_dict()}", flush=True)
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
        extra={"scorers": [t["scorer_id"].iloc[0] for t in tables], "completions": len(completions), **extra},
    )


if __name__ == "__main__":
    main()
