"""Count the replies of an experiment's runs that are no replies any more, and those that are lists.

Reads every run's completions.parquet (`--completions`), rows of `--suite`. Writes `--out` (replies.parquet: counts per
run, seed and checkpoint) and its manifest.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import provenance, reply_checks

READ = [*reply_checks.KEY, "suite", "text", "finish_reason"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", nargs="+", required=True)
    parser.add_argument("--suite", default="personas")
    parser.add_argument("--marker", required=True)
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    tables = [
        reply_checks.checks(pd.read_parquet(path, columns=READ), args.suite, args.marker) for path in args.completions
    ]
    table = pd.concat(tables, ignore_index=True)
    if table.empty:
        raise SystemExit(f"no completions of suite {args.suite!r} in the files given.")
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    print(f"{int(table['replies'].sum())} replies of {table['run'].nunique()} runs")
    provenance.write_manifest(
        args.manifest,
        stage="reply_checks",
        spec=json.loads(args.spec),
        inputs=args.completions,
        outputs=[args.out],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
