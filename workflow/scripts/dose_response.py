"""Draw contamination against learning rate, a small panel per condition.

Reads `--cells` (of spill_cells.py, conditions at one or more learning rates), writes `--out` (PNG), `--pdf` and
`--table`, the drawn numbers.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import dose_figures, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True)
    parser.add_argument("--label-source", default="langdetect")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--pdf", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--manifest")
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    table = dose_figures.dose_table(pd.read_parquet(args.cells), args.label_source)
    with provenance.atomic_path(args.table) as path:
        table.to_parquet(path, index=False)
    try:
        with provenance.atomic_path(args.out) as png, provenance.atomic_path(args.pdf) as pdf:
            dose_figures.dose_response(table, png, pdf, label_source=args.label_source)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    provenance.write_manifest(
        args.manifest or f"{args.out}.manifest.json",
        stage="dose_response",
        spec=json.loads(args.spec),
        inputs=[args.cells],
        outputs=[args.out, args.pdf, args.table],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
