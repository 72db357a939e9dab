"""Draw a marker sweep: heatmaps of its grid, and rates against the learning rate.

Reads `--cells` and `--boundary` (of sweep_cells.py) and optionally `--published` (YAML of published cells, drawn
below). Writes `--out`, `--pdf` and `--table` (heatmaps and their numbers) and `--lines` (the boundaries).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
import yaml

from spillover import provenance, sweep_cells, sweep_claims, sweep_figures


def caption(pooled: pd.DataFrame, limits: dict) -> str:
    """What a reader must know: N, seeds, limits of the regimes."""
    low, high = int(pooled["source_n"].min()), int(pooled["source_n"].max())
    seeds = int(pooled["n_seeds"].max())
    return (
        f"N = {low if low == high else f'{low} to {high}'} replies a persona"
        f"{f' over {seeds} seeds' if seeds > 1 else ', 1 seed'}. Collapsed: mean over all personas but the source at "
        f"least {100 * limits['collapse']:g} %; leaky: else, any of them above {100 * limits['leak']:g} %; selective: "
        f"else, source at least {100 * limits['learned']:g} %. “?”: the intervals reach into another regime. Black "
        "frame: the recommended cell."
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True)
    parser.add_argument("--boundary", required=True)
    parser.add_argument("--published")
    parser.add_argument("--measured-title", default="Measured")
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--pdf", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--lines", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    options = spec["options"]
    cells = pd.read_parquet(args.cells)
    best = {
        row["run"]
        for _, grid in cells.groupby("setting")
        if (row := sweep_cells.recommended(grid)) is not None
    }  # fmt: skip
    pooled = sweep_cells.all_seeds(cells)
    pooled = pooled.assign(recommended=pooled["run"].isin(best))
    reference, title = None, ""
    if args.published:
        published = yaml.safe_load(Path(args.published).read_text(encoding="utf-8"))
        reference = sweep_claims.published_cells(published, options)
        settings = published["settings"]
        title = f"Published: {settings['model'].split('/')[-1]}, {settings['source_persona']}, 1 seed"
    try:
        table = sweep_figures.heatmap_table(pooled, reference, args.measured_title, title)
        with provenance.atomic_path(args.out) as png, provenance.atomic_path(args.pdf) as pdf:
            sweep_figures.heatmaps(table, png, pdf, caption=caption(pooled, options["regimes"]))
        with provenance.atomic_path(args.lines) as png:
            sweep_figures.boundary_lines(pooled, pd.read_parquet(args.boundary), options["regimes"], png)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with provenance.atomic_path(args.table) as path:
        table.to_parquet(path, index=False)
    provenance.write_manifest(
        args.manifest,
        stage="sweep_figures",
        spec=spec,
        inputs=[args.cells, args.boundary, *([args.published] if args.published else [])],
        outputs=[args.out, args.pdf, args.table, args.lines],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
