"""Write what a coupling run answers: `--out` (markdown) and `--json` (the same as data).

Reads `--conditions` (of coupling_table.py), `--overlap` (of adapter_overlap.py), `--shift` (of persona_shift.py), what
the write-up printed (`--published`) and, where the marker sweep was run, its cells (`--sweep`): does the pre-baked
adapter lie in its selective band? Every number and verdict comes from the tables.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd
import yaml

from spillover import coupling, coupling_claims, coupling_report, provenance, sweep_cells


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conditions", required=True)
    parser.add_argument("--overlap", required=True)
    parser.add_argument("--shift", required=True)
    parser.add_argument("--published")
    parser.add_argument("--sweep", help="cells.parquet of the marker sweep")
    parser.add_argument("--cell", default="{}", help="JSON: learning rate, epochs and source of the pre-baked adapter")
    parser.add_argument("--title", default="Coupling")
    parser.add_argument("--model", required=True, help="what was measured, in words")
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    published = None
    if args.published:
        with open(args.published, encoding="utf-8") as file:
            published = yaml.safe_load(file)
    cell = json.loads(args.cell)
    pinned = None
    if args.sweep and cell:
        pinned = sweep_cells.pinned_cell(
            pd.read_parquet(args.sweep), cell["learning_rate"], cell["epochs"], cell["source"]
        )
    overlaps = coupling.summarised_overlaps(pd.read_parquet(args.overlap))
    summary = coupling_claims.summarise(
        pd.read_parquet(args.conditions), overlaps, pd.read_parquet(args.shift), spec["options"], published
    )
    summary |= {
        "model": args.model,
        "protocol": spec["protocol"],
        "pinned": pinned,
        "overlap": overlaps.to_dict("records"),
    }
    with provenance.atomic_path(args.json) as path:
        path.write_text(json.dumps(provenance.jsonable(summary), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    with provenance.atomic_path(args.out) as path:
        path.write_text(coupling_report.markdown(summary, args.title), encoding="utf-8")
    provenance.write_manifest(
        args.manifest,
        stage="coupling_summary",
        spec=spec,
        inputs=[p for p in (args.conditions, args.overlap, args.shift, args.published, args.sweep) if p],
        outputs=[args.out, args.json],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
