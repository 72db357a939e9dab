"""Turn the labels of all runs into contamination rates per cell, and measure how far the scorers agree.

Reads every run's labels.parquet and completions.parquet and `--conditions`, a JSON list of {run, condition, seed,
directive, completion, learning_rate?} (or @FILE holding it); runs named `base` are the untrained model. Writes `--out`
(cells: one row per run, directive language, completion language and scorer) and `--agreement`.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import contamination, provenance
from spillover.arguments import read_json

READ = ["run", "seed", "checkpoint", "suite", "prompt_id", "sample", "cell", "finish_reason"]


def read(paths: list[str], suite: str, conditions: pd.DataFrame, columns: list[str] | None = None) -> pd.DataFrame:
    """Rows of one suite, of each run at the `checkpoint` its condition names (`final` where it names none)."""
    filters = [("suite", "==", suite)]
    rows = pd.concat([pd.read_parquet(path, columns=columns, filters=filters) for path in paths], ignore_index=True)
    named = conditions.to_dict("records")
    wanted = {(c["run"], c["seed"]): c.get("checkpoint", "final") for c in named}
    keys = zip(rows["run"], rows["seed"], rows["checkpoint"], strict=True)
    return rows[[checkpoint == wanted.get((run, seed), "final") for run, seed, checkpoint in keys]]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--completions", nargs="*", default=[], help="for the share of replies cut at the length limit")
    parser.add_argument("--conditions", required=True)
    parser.add_argument("--scorers", nargs="*", help="only their labels; default: all that there are")
    parser.add_argument("--experiment", default="language_spill")
    parser.add_argument("--suite", default="directives")
    parser.add_argument("--denominator", default="all", choices=contamination.DENOMINATORS)
    parser.add_argument("--max-error-share", type=float, default=0.02)
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--agreement", required=True)
    parser.add_argument("--manifest")
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    conditions = pd.DataFrame(read_json(args.conditions))
    labels = read(args.labels, args.suite, conditions)
    labels = labels[labels["scorer"].isin(args.scorers)] if args.scorers else labels
    if labels.empty:
        raise SystemExit(f"no labels of suite {args.suite!r} by {args.scorers or 'anybody'} in the files given.")
    try:
        cells = contamination.contamination_cells(
            labels,
            conditions,
            read(args.completions, args.suite, conditions, READ) if args.completions else None,
            experiment=args.experiment,
            denominator=args.denominator,
            max_error_share=args.max_error_share,
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with provenance.atomic_path(args.out) as path:
        cells.to_parquet(path, index=False)
    with provenance.atomic_path(args.agreement) as path:
        contamination.agreement(labels, conditions).to_parquet(path, index=False)
    print(f"{len(cells)} cells of {cells['run'].nunique()} runs from {len(labels)} labels")
    provenance.write_manifest(
        args.manifest or f"{args.out}.manifest.json",
        stage="spill_cells",
        spec=json.loads(args.spec),
        inputs=[*args.labels, *args.completions],
        outputs=[args.out, args.agreement],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
