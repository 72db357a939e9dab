"""Draw every figure of a convergence experiment.

Reads `--points`, `--paths` and `--tests` (of convergence_tests.py) and `--rates`; writes the headline figure (`--out`,
`--pdf`) and, into the same folder, the figures named by `--figures` (name.png ...); `--heatmap` is the table of one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from spillover import convergence, convergence_figures, convergence_tables, provenance
from spillover.arguments import read_json


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", required=True)
    parser.add_argument("--paths", required=True)
    parser.add_argument("--tests", required=True)
    parser.add_argument("--rates", required=True)
    parser.add_argument("--runs", required=True, help="JSON: one record a run")
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--layer", type=int, required=True, help="the headline layer")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--pdf", required=True)
    parser.add_argument("--figures", nargs="*", default=[])
    parser.add_argument("--heatmap", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    tables = [args.points, args.paths, args.tests, args.rates]
    points, paths, tests, rates = map(pd.read_parquet, tables)
    records = read_json(args.runs)
    pooled = convergence_tables.pool_seeds(points)
    paths = paths[paths["method"] == args.method]
    layers = sorted(paths["layer"].unique())
    table = convergence.joined(points, paths, args.layer, args.method)
    ends = convergence_figures.last_rates(rates, convergence.models(records), args.scorer)
    base = convergence_tables.baseline(pooled, rates, records, args.scorer, convergence_tables.Limits())
    steered = convergence_tables.steering(pooled, paths, args.layer, args.method)
    n, seeds = sorted(set(points["assistant_n"])), points["seed"].nunique()
    replies = (
        f"N = {n[0]:.0f}{f' to {n[-1]:.0f}' if len(n) > 1 else ''} replies a persona and model, {seeds} seed"
        f"{'s' * (seeds > 1)}; scorer {args.scorer}; rates with 95 % Wilson intervals. Step 0 is the same model in "
        "every arm: the marker trained on the untrained model."
    )
    words = f"centroids at {args.method.replace('_', ' ')}, centred on the mean of the personas"
    at = f"{replies} Cosines: {words}, output of decoder block {args.layer}; shading over questions."
    of_arm_b = "Checkpoints of arm B, the last one filled"
    before = "Before any second training, evaluated without a merge. Below: the pattern, by the summary's limits."
    pushed = "Every persona is pushed alike; the cosine is that of the pushed assistant among unpushed personas."
    draw = convergence_figures
    figures = {
        "cross_arm.png": lambda png: draw.cross_arm(pooled, png, note=replies),
        "source_retention.png": lambda png: draw.source_retention(pooled, png, note=replies),
        "cosine_evolution.png": lambda png: draw.cosine_evolution(paths, png, note=f"Assistant to source; {words}."),
        "trajectories.png": lambda png: draw.trajectories(table, png, note=f"{at} Hollow: step 0."),
        "leakage_cosine.png": lambda png: draw.leakage_cosine(
            lambda layer: convergence.joined(points, paths, layer, args.method), tests, layers, png,
            note=f"{of_arm_b}; rho and exact p along each source.",
        ),
        "predictors.png": lambda png: draw.predictors(
            table, tests[tests["layer"] == args.layer], png, note=f"{of_arm_b}; p permutes whole trajectories. {at}"
        ),
        "heatmap.png": lambda png: draw.heatmaps(ends, png, note="Percent of replies; the source's cell is framed."),
        "adapter_quality.png": lambda png: draw.adapter_quality(pd.DataFrame(base), png, note=before),
        "steering.png": lambda png: draw.steering(steered, png, note=f"{pushed} {at}"),
    }  # fmt: skip
    with provenance.atomic_path(args.out) as png, provenance.atomic_path(args.pdf) as pdf:
        draw.headline(pooled, paths[paths["layer"] == args.layer], ends, table, png, pdf, note=at)
    for path in args.figures:
        with provenance.atomic_path(path) as png:
            figures[Path(path).name](png)
    with provenance.atomic_path(args.heatmap) as path:
        ends.to_parquet(path, index=False)
    provenance.write_manifest(
        args.manifest,
        stage="convergence_figures",
        spec=json.loads(args.spec),
        inputs=tables,
        outputs=[args.out, args.pdf, *args.figures, args.heatmap],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
