"""Draw the figures of a coupling run: the headline, the adapters' shared subspaces, the source persona's vector.

Reads `--conditions` (of coupling_table.py), `--overlap` and `--shift`; writes a PNG and a PDF of each figure.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import yaml

from spillover import coupling_figures, persona_shift, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conditions", required=True)
    parser.add_argument("--overlap", required=True)
    parser.add_argument("--shift", required=True)
    parser.add_argument("--published")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--headline", required=True)
    parser.add_argument("--overlap-figure", required=True)
    parser.add_argument("--vectors-figure", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    table, shifts = pd.read_parquet(args.conditions), pd.read_parquet(args.shift)
    published = yaml.safe_load(Path(args.published).read_text("utf-8")) if args.published else None
    draw = {
        args.headline: lambda *paths: coupling_figures.headline(table, shifts, published, *paths),
        args.overlap_figure: lambda *paths: coupling_figures.overlaps(pd.read_parquet(args.overlap), *paths),
        args.vectors_figure: lambda *paths: coupling_figures.vectors(shifts, table, persona_shift.QUANTITIES, *paths),
    }
    for png, figure in draw.items():
        with ExitStack() as stack:
            figure(*(stack.enter_context(provenance.atomic_path(p)) for p in (png, Path(png).with_suffix(".pdf"))))
    outputs = [path for png in draw for path in (png, str(Path(png).with_suffix(".pdf")))]
    provenance.write_manifest(
        args.manifest,
        stage="coupling_figures",
        spec=json.loads(args.spec),
        inputs=[args.conditions, args.overlap, args.shift],
        outputs=outputs,
        seconds=clock,
    )


if __name__ == "__main__":
    main()
