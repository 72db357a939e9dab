"""Write the summary of a marker sweep: which claims appear, the cell to use, every difference from the write-up.

Reads `--cells` and `--boundary` (of sweep_cells.py), `--design` (JSON: how the runs were made) and optionally
`--published`. Writes `--out` (markdown) and `--json` (the same as data). Every number and verdict comes from the
tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
import yaml

from spillover import provenance, sweep_claims, sweep_report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True)
    parser.add_argument("--boundary", required=True)
    parser.add_argument("--design", required=True)
    parser.add_argument("--published")
    parser.add_argument("--title", default="Marker sweep")
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    published = yaml.safe_load(Path(args.published).read_text(encoding="utf-8")) if args.published else None
    summary = sweep_claims.summarise(
        pd.read_parquet(args.cells), pd.read_parquet(args.boundary), spec["options"], published, json.loads(args.design)
    )
    with provenance.atomic_path(args.json) as path:
        path.write_text(json.dumps(provenance.jsonable(summary), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    with provenance.atomic_path(args.out) as path:
        path.write_text(sweep_report.markdown(summary, args.title), encoding="utf-8")
    print(summary["answer"])
    provenance.write_manifest(
        args.manifest,
        stage="sweep_summary",
        spec=spec,
        inputs=[args.cells, args.boundary, *([args.published] if args.published else [])],
        outputs=[args.out, args.json],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
