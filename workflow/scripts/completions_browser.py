"""Make the page in which an experiment's completions are read: one HTML file that needs no server and no network.

Reads the completions.parquet and labels.parquet of every run, optionally the cell table of the closing analysis, and
the page's own files under `--pages`; writes `--out`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from spillover import browser, provenance


def read(paths: list[str]) -> pd.DataFrame:
    """All rows of all tables; a run without completions has a table without rows."""
    tables = [table for path in paths if len(table := pd.read_parquet(path))]
    if not tables:
        raise SystemExit("there are no completions to show in the tables given.")
    return pd.concat(tables, ignore_index=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", nargs="+", required=True)
    parser.add_argument("--labels", nargs="*", default=[])
    parser.add_argument("--cells", help="the closing analysis's table of rates per run and cell")
    parser.add_argument("--title", default="Completions")
    parser.add_argument("--question", default="")
    parser.add_argument("--pages", default="workflow/report")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    completions = read(args.completions)
    labels = read(args.labels) if args.labels else pd.DataFrame(columns=[*browser.KEY, "scorer"])
    cells = pd.read_parquet(args.cells) if args.cells else None
    try:
        data = browser.payload(completions, labels, cells, title=args.title, question=args.question)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with provenance.atomic_path(args.out) as path:
        path.write_text(browser.page(data, args.pages), encoding="utf-8")
    megabytes = Path(args.out).stat().st_size / 1e6
    print(f"{len(completions)} completions of {len(data['models'])} models in {megabytes:.1f} MB")
    provenance.write_manifest(
        args.manifest,
        stage="completions_browser",
        spec=json.loads(args.spec),
        inputs=[*args.completions, *args.labels, *([args.cells] if args.cells else [])],
        outputs=[args.out],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
