"""Tabulate coupling: every condition's rate, interval, reference, training loss and verdict.

Reads the habit rates per persona (`--rates`), labels of every evaluated run (`--labels`, for the habit that has a suite
of its own), training logs (`--train-logs`, in the order of the trained records of `--runs`) and measures. Writes
`--seeds` (one row per run and seed), `--out` (one row per condition) and the manifest.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import coupling, marker_rates, provenance
from spillover.arguments import read_json

FACTS = [("suite", "==", "facts"), ("scorer", "==", "wrong_answers")]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", required=True)
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--measures", nargs="+", required=True)
    parser.add_argument("--train-logs", nargs="*", default=[])
    parser.add_argument("--runs", required=True)
    parser.add_argument("--source", required=True, help="the persona that is taught")
    parser.add_argument("--spec", required=True)
    parser.add_argument("--seeds", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec, records = json.loads(args.spec), read_json(args.runs)
    trained = [(r["run"], r["seed"]) for r in records if "method" in r]
    try:
        rates = pd.read_parquet(args.rates)
        rates = rates[~rates["scorer"].isin(["marker_strict", "wrong_answers"])]
        facts = pd.concat([pd.read_parquet(path, filters=FACTS) for path in args.labels], ignore_index=True)
        if len(facts):
            rates = pd.concat([rates, marker_rates.rates(facts)], ignore_index=True)
        measures = pd.concat([pd.read_parquet(path) for path in args.measures], ignore_index=True)
        seeds = coupling.seeds_table(
            rates,
            coupling.conditions(records),
            args.source,
            coupling.losses(dict(zip(trained, args.train_logs, strict=True))),
            coupling.accuracy(measures),
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    table = coupling.compared(coupling.pooled(seeds), spec["options"])
    for path_out, frame in ((args.seeds, seeds), (args.out, table)):
        with provenance.atomic_path(path_out) as path:
            frame.to_parquet(path, index=False)
    print(table[[*coupling.KEYS, "rate", "last_loss", "verdict"]].to_string())
    provenance.write_manifest(
        args.manifest,
        stage="coupling_table",
        spec=spec,
        inputs=[args.rates, *args.labels, *args.measures, *args.train_logs],
        outputs=[args.seeds, args.out],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
