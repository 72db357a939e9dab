"""Look for signs that an experiment's tables do not show what their labels say, before anything is concluded from them.

Reads every run's `--completions` and `--labels` (in the order of `--runs`, JSON records), writes `--out` (JSON: a list
of sentences, empty when all is well). Of a phased search also `--measures` and the `--points` of the phases' records.
There a record's `tables` says which tables the run has, `early` which of its checkpoints may still be the untrained
model, `trained` what each of them was trained as; and scorers may agree in all models, since a recipe that changes no
behaviour is what the search is for. Losses and geometry never agree to the last digit.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import alarms, provenance
from spillover.arguments import read_json


def model(record: dict, checkpoint: str) -> str:
    """How sentences name one run at one checkpoint."""
    return f"{record['run']} seed {record['seed']} {checkpoint}"


def having(runs: list[dict], kind: str) -> list[dict]:
    """The records of the runs that have a table of this kind; a record without `tables` has them all."""
    return [record for record in runs if kind in record.get("tables", [kind])]


def geometry(paths: list[str], runs: list[dict]) -> dict[str, float]:
    """{model: its M1} of the tables of points; every phase repeats the untrained model and its baselines."""
    named = {(record["run"].rsplit("/", 1)[-1], record["seed"]): record for record in runs}
    found = {}
    for path in paths:
        table = pd.read_parquet(path, columns=["run", "seed", "checkpoint", "m1"]).dropna()
        for row in table.itertuples():
            found[model(named[row.run, row.seed], row.checkpoint)] = row.m1
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", nargs="*", default=[])
    parser.add_argument("--labels", nargs="*", default=[])
    parser.add_argument("--measures", nargs="*", default=[])
    parser.add_argument("--points", nargs="*", default=[], help="recipe_points of each phase")
    parser.add_argument("--scorers-may-agree", action="store_true", help="a metric that never moves is no alarm")
    parser.add_argument("--runs", required=True, help="JSON records of the runs, in the order of the tables")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    runs = read_json(args.runs)
    found: list[str] = []
    early = {model(record, checkpoint) for record in runs for checkpoint in record.get("early", [])}
    trained = {model(record, c): made for record in runs for c, made in record.get("trained", {}).items()}
    digests, measured, labels = {}, {}, []
    for path, record in zip(args.completions, having(runs, "completions"), strict=True):
        table = pd.read_parquet(path, columns=["run", "seed", "checkpoint", "suite", "prompt_id", "sample", "text"])
        found += alarms.misplaced(table, record["run"], record["seed"], "completions")
        for checkpoint, rows in table.groupby("checkpoint", sort=False):
            digests[model(record, checkpoint)] = alarms.digest(rows)
    for path, record in zip(args.measures, having(runs, "measures") if args.measures else [], strict=True):
        table = pd.read_parquet(path, columns=["run", "seed", "checkpoint", "suite", "item", "option", "logprob"])
        found += alarms.misplaced(table, record["run"], record["seed"], "measures")
        for (suite, checkpoint), rows in table.groupby(["suite", "checkpoint"], sort=False):
            measured.setdefault(suite, {})[model(record, checkpoint)] = alarms.digest_of_measures(rows)
    for path, record in zip(args.labels, having(runs, "labels") if args.labels else [], strict=True):
        table = pd.read_parquet(path, columns=["run", "seed", "checkpoint", "cell", "scorer", "label", "outcome"])
        found += alarms.misplaced(table, record["run"], record["seed"], "labels")
        labels.append(table)
    found += alarms.duplicates(digests, early=early, trained=trained)
    for suite, values in measured.items():
        shared = f"have the same loss on every row of {suite} to the last digit"
        found += alarms.duplicates(values, shared, early, trained)
    found += alarms.duplicates(geometry(args.points, runs), "have the same M1 to the last digit", early, trained)
    if labels:
        shares = alarms.shares(pd.concat(labels, ignore_index=True))
        found += [] if args.scorers_may_agree else alarms.constant_metrics(shares)
        conditions = [record for record in runs if "completion" in record]
        for _, rows in shares.groupby("scorer"):
            found += [text for text in alarms.exchanged(rows, conditions) if text not in found]
    with provenance.atomic_path(args.out) as path:
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    compared = set(digests).union(*measured.values())
    print("\n".join(found) or f"no alarm in {len(compared)} models")
    provenance.write_manifest(
        args.manifest,
        stage="alarms",
        spec=json.loads(args.spec),
        inputs=[*args.completions, *args.labels, *args.measures, *args.points],
        outputs=[args.out],
        seconds=clock,
        extra={"alarms": len(found)},
    )


if __name__ == "__main__":
    main()
