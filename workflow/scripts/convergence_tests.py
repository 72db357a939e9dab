"""Join marker rates and cosines of a convergence experiment, and test how they go together.

Reads `--rates` (of marker_rates.py) and `--cosines` (of convergence_cosines.py). Writes `--points`, one row a model
with its rates; `--paths`, its cosine at every layer; `--tests`, every test at every layer (column `test`: within,
within and start, between, pooled, clustering, predictors, personas); `--changes`, first to last step of every arm.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import convergence, provenance
from spillover.arguments import read_json

VARIABLES = ("assistant_rate", "source_rate", "bystander_mean", "centred", "raw")


def tests_at(points, paths, rates, cosines, models, scorer, layer, method) -> pd.DataFrame:
    """Every test at one layer."""
    table = convergence.joined(points, paths, layer, method)
    last = table.loc[table["arm"].isin(convergence.TRAINED_ARMS), "step"].max()
    found = {
        "within": convergence.within_source(table),
        "within and start": convergence.within_source(table, with_start=True),
        "between": convergence.between_sources(table, last),
        "pooled": convergence.pooled(table),
        "clustering": convergence.clustering(table, VARIABLES),
        "predictors": convergence.predictors(table),
        "personas": convergence.across_personas(models, rates, cosines, scorer, layer, method),
    }
    return pd.concat([frame.assign(test=name, layer=layer, method=method) for name, frame in found.items()])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", required=True)
    parser.add_argument("--cosines", required=True)
    parser.add_argument("--runs", required=True, help="JSON: one record a run")
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--points", required=True)
    parser.add_argument("--paths", required=True)
    parser.add_argument("--tests", required=True)
    parser.add_argument("--changes", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    records = read_json(args.runs)
    rates, cosines = pd.read_parquet(args.rates), pd.read_parquet(args.cosines)
    try:
        models = convergence.models(records)
        points = convergence.points(models, rates, args.scorer)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    paths = convergence.paths(models, cosines, records)
    layers = sorted(cosines.loc[cosines["method"] == args.method, "layer"].unique())
    tests = [tests_at(points, paths, rates, cosines, models, args.scorer, layer, args.method) for layer in layers]
    tables = {
        args.points: points,
        args.paths: paths,
        args.tests: pd.concat(tests, ignore_index=True),
        args.changes: convergence.changes(points),
    }
    for file, table in tables.items():
        with provenance.atomic_path(file) as path:
            table.to_parquet(path, index=False)
    print(f"{len(points)} points, layers {', '.join(map(str, layers))}, {clock.seconds:.0f} s")
    provenance.write_manifest(
        args.manifest,
        stage="convergence_tests",
        spec=json.loads(args.spec),
        inputs=[args.rates, args.cosines],
        outputs=list(tables),
        seconds=clock,
    )


if __name__ == "__main__":
    main()
