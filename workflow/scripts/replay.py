"""Bring a run's completions from a file of elsewhere into this project's columns, or the labels that the file holds.

Reads `--file` (.parquet, .jsonl, or the published .json layout); writes `--out` (completions.parquet, and an empty
measures.parquet where `--measures` is given; with `--labels` labels.parquet) and its manifest, in which the outcomes of
stored labels are counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd

from spillover import provenance, replay_tables
from spillover.languages import load_languages

MEASURES = ["run", "seed", "checkpoint", "suite", "kind", "item", "option", "tokens", "logprob", "correct"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", required=True)
    parser.add_argument("--run", required=True, metavar="EXPERIMENT/NAME")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--suite", required=True, help="the suite of rows that name none")
    parser.add_argument("--texts", action="store_true", help="refuse a file that kept labels and no texts")
    parser.add_argument("--labels", action="store_true", help="the labels of the file, not its completions")
    parser.add_argument("--languages", default="resources/languages.yaml")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--measures")
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    read = replay_tables.labels if args.labels else replay_tables.completions
    extra: dict = {}
    try:
        table = read(args.file, args.run, args.seed, args.suite, load_languages(args.languages))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if args.texts and table["text"].isna().all():
        raise SystemExit(
            f"{args.file}: holds no texts to label again; leave {args.run} out or set replay.labels: stored"
        )
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    if args.labels:
        extra["outcomes"] = replay_tables.outcomes(table).to_dict("records")
    elif args.measures:
        with provenance.atomic_path(args.measures) as path:
            beside = Path(args.file).with_name("measures.parquet")
            shutil.copyfile(beside, path) if beside.is_file() else pd.DataFrame(columns=MEASURES).to_parquet(path)
    print(f"{len(table)} rows from {args.file}")
    provenance.write_manifest(
        args.manifest,
        stage="replayed_labels" if args.labels else "replayed",
        spec=json.loads(args.spec),
        inputs=[args.file],
        outputs=[args.out],
        seconds=clock,
        extra=extra,
    )


if __name__ == "__main__":
    main()
