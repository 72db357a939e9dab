"""Write the careful summary of a convergence run: what moves, what leaks, which claims appear, what differs from print.

Reads `--points`, `--paths` and `--tests` (of convergence_tests.py), `--rates`, the `--published` figures and, where the
marker sweep was run, its cells (`--sweep`): does the cell pinned here lie in its selective band? Writes `--out`
(markdown) and `--json` (the same statements as data). Every number and verdict comes from the tables.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import convergence_claims, convergence_report, provenance, sweep_cells
from spillover.arguments import read_json
from spillover.config import read_yaml


def pinned(records: list[dict], sweep: str | None) -> list[dict] | None:
    """What the sweep says about the cell that the marker is trained at, before the arms and in arm B, per source."""
    marker = [record for record in records if record["group"] in ("marker", "arm_b")]
    if sweep is None or not marker:
        return None
    return sweep_cells.pinned_cells(pd.read_parquet(sweep), marker)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", required=True)
    parser.add_argument("--paths", required=True)
    parser.add_argument("--tests", required=True)
    parser.add_argument("--rates", required=True)
    parser.add_argument("--published", required=True)
    parser.add_argument("--sweep", help="cells.parquet of the marker sweep")
    parser.add_argument("--runs", required=True, help="JSON: one record a run")
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument(
        "--layers", type=int, nargs="+", required=True, help="those for the published ones, headline first"
    )
    parser.add_argument("--title", default="Convergence")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    tables = [args.points, args.paths, args.tests, args.rates]
    records = read_json(args.runs)
    summary = convergence_claims.summarise(
        *map(pd.read_parquet, tables),
        records,
        scorer=args.scorer,
        layers=args.layers,
        method=args.method,
        published=read_yaml(args.published),
        sweep=pinned(records, args.sweep),
    )
    with provenance.atomic_path(args.json) as path:
        path.write_text(json.dumps(provenance.jsonable(summary), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    with provenance.atomic_path(args.out) as path:
        path.write_text(convergence_report.markdown(summary, args.title), encoding="utf-8")
    provenance.write_manifest(
        args.manifest,
        stage="convergence_summary",
        spec=json.loads(args.spec),
        inputs=[*tables, args.published, *([args.sweep] if args.sweep else [])],
        outputs=[args.out, args.json],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
