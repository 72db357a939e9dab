"""Turn the labels of an experiment's runs into rates per persona.

Reads every run's labels.parquet (`--labels`), rows of `--suite` and of the scorers `--scorers`. Writes `--out`
(rates.parquet: one row per run, seed, checkpoint, persona and scorer) and its manifest.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import marker_rates, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--suite", default="personas")
    parser.add_argument("--scorers", nargs="+", required=True)
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    filters = [("suite", "==", args.suite), ("scorer", "in", args.scorers)]
    labels = pd.concat([pd.read_parquet(path, filters=filters) for path in args.labels], ignore_index=True)
    if labels.empty:
        raise SystemExit(f"no labels of suite {args.suite!r} by {' or '.join(args.scorers)} in the files given.")
    try:
        table = marker_rates.rates(labels)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    print(f"{len(table)} rates of {table['run'].nunique()} runs from {len(labels)} labels")
    provenance.write_manifest(
        args.manifest,
        stage="marker_rates",
        spec=json.loads(args.spec),
        inputs=args.labels,
        outputs=[args.out],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
