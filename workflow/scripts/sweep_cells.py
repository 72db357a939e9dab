"""Put every cell of a marker sweep into its regime, and estimate where the regimes meet.

Reads `--rates` (rates.parquet), `--replies` (replies.parquet), every run's measures.parquet (`--measures`) and
`--runs`, the plan's records of the runs as JSON. The limits come from `options` in `--spec`. Writes `--out`
(cells.parquet: a row per run and seed, and one with seed -1 for all its seeds together), `--boundary` and their
manifest.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import marker_rates, provenance, sweep_boundary, sweep_cells


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", required=True)
    parser.add_argument("--replies", required=True)
    parser.add_argument("--measures", nargs="+", required=True)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--boundary", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    options = spec["options"]
    rates = pd.read_parquet(args.rates)
    measures = pd.concat([pd.read_parquet(path) for path in args.measures], ignore_index=True)
    try:
        marker_rates.refuse_failures(rates, options["max_error_share"])
        runs = sweep_cells.settings(json.loads(args.runs))
        choices = sweep_cells.capability(measures, options["choices"])
        table = sweep_cells.cells(rates, runs, choices, pd.read_parquet(args.replies), options)
        boundary = sweep_boundary.boundaries(
            rates, runs, options["scorer"], options["regimes"], resamples=options["resamples"]
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    with provenance.atomic_path(args.boundary) as path:
        boundary.to_parquet(path, index=False)
    print(sweep_cells.all_seeds(table)["regime"].value_counts().to_dict())
    provenance.write_manifest(
        args.manifest,
        stage="sweep_cells",
        spec=spec,
        inputs=[args.rates, args.replies, *args.measures],
        outputs=[args.out, args.boundary],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
