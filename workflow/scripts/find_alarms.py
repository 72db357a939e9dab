"""Look for signs that an experiment's tables do not show what their labels say, before anything is concluded from them.

Reads every run's `--completions` and `--labels` (in the order of `--runs`, JSON records), writes `--out` (JSON: a list
of sentences, empty when all is well).
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import alarms, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", nargs="*", default=[])
    parser.add_argument("--labels", nargs="*", default=[])
    parser.add_argument("--runs", required=True, help="JSON records of the runs, in the order of the tables")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    runs = json.loads(args.runs)
    found: list[str] = []
    digests, labels = {}, []
    for path, record in zip(args.completions, runs, strict=True):
        table = pd.read_parquet(path, columns=["run", "seed", "checkpoint", "suite", "prompt_id", "sample", "text"])
        found += alarms.misplaced(table, record["run"], record["seed"], "completions")
        for checkpoint, rows in table.groupby("checkpoint", sort=False):
            digests[f"{record['run']} seed {record['seed']} {checkpoint}"] = alarms.digest(rows)
    for path, record in zip(args.labels, runs, strict=True):
        table = pd.read_parquet(path, columns=["run", "seed", "checkpoint", "cell", "scorer", "label", "outcome"])
        found += alarms.misplaced(table, record["run"], record["seed"], "labels")
        labels.append(table)
    found += alarms.duplicates(digests)
    if labels:
        shares = alarms.shares(pd.concat(labels, ignore_index=True))
        found += alarms.constant_metrics(shares)
        conditions = [record for record in runs if "completion" in record]
        for _, rows in shares.groupby("scorer"):
            found += [text for text in alarms.exchanged(rows, conditions) if text not in found]
    with provenance.atomic_path(args.out) as path:
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(found) or f"no alarm in {len(digests)} models")
    provenance.write_manifest(
        args.manifest,
        stage="alarms",
        spec=json.loads(args.spec),
        inputs=[*args.completions, *args.labels],
        outputs=[args.out],
        seconds=clock,
        extra={"alarms": len(found)},
    )


if __name__ == "__main__":
    main()
