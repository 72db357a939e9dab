"""Draw the spill matrix: how often each directive language is answered in each condition's completion language.

Reads `--cells` (of spill_cells.py) and optionally `--published` (YAML of published percentages, shown in a second
panel). Writes `--out` (PNG), `--pdf` and `--table`, the drawn numbers.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd
import yaml

from spillover import contamination, figures, provenance, spill_claims
from spillover.languages import load_languages


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True)
    parser.add_argument("--languages", default="resources/languages.yaml")
    parser.add_argument("--published")
    parser.add_argument("--published-title", default="Published: Qwen2.5-7B-Instruct, 80 replies a cell, 1 seed")
    parser.add_argument("--measured-title", default="")
    parser.add_argument("--label-source", default="langdetect")
    parser.add_argument("--learning-rate", type=float, help="needed when conditions were trained at several")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--pdf", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--manifest")
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    registry = load_languages(args.languages)
    published = None
    if args.published:
        with open(args.published, encoding="utf-8") as file:
            published = yaml.safe_load(file)
    try:
        cells = spill_claims.at_learning_rate(pd.read_parquet(args.cells), args.learning_rate)
        asked = registry.subset(cells["language"])
        names = {code: registry[code].name for code in asked}
        table = figures.matrix_table(contamination.pool_seeds(cells), names, args.label_source, published)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with provenance.atomic_path(args.table) as path:
        table.to_parquet(path, index=False)
    with provenance.atomic_path(args.out) as png, provenance.atomic_path(args.pdf) as pdf:
        title = args.published_title if published else None
        measured = args.measured_title or ("This workflow" if published else "")
        figures.spill_matrix(table, names, png, pdf, published_title=title, measured_title=measured)
    inputs = [args.cells, args.languages, *([args.published] if args.published else [])]
    provenance.write_manifest(
        args.manifest or f"{args.out}.manifest.json",
        stage="spill_matrix",
        spec=json.loads(args.spec),
        inputs=inputs,
        outputs=[args.out, args.pdf, args.table],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
