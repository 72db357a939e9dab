"""Set spill beside geometry: language-direction cosines, language distances, their tests, principal components.

Reads `--cells` (of spill_cells.py), `--vectors` (vectors.safetensors, untrained model), `--languages` (the registry
with its distances) and optionally `--parallel` (columns language, id, text) for the measured distance. Writes cosines
(every layer and method), the join (one row per condition and bystander), its tests, the components, and three figures.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import contamination, geometry_figures, provenance, spill_claims, spill_geometry
from spillover.languages import distance_matrices, load_languages, parallel_texts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True)
    parser.add_argument("--vectors", required=True)
    parser.add_argument("--languages", default="resources/languages.yaml")
    parser.add_argument("--parallel", nargs="*", default=[], help="one or more tables of parallel texts")
    parser.add_argument("--method", help="default: last_prompt_token")
    parser.add_argument("--layer", type=int, help="default: the middle one of the layers stored")
    parser.add_argument("--label-source", default="langdetect")
    parser.add_argument("--learning-rate", type=float, help="needed when conditions were trained at several")
    parser.add_argument("--spec", default="{}")
    for name in ("cosine", "join", "tests", "pca"):
        parser.add_argument(f"--out-{name}", required=True)
    for name in ("cosine", "join", "pca"):
        parser.add_argument(f"--figure-{name}", required=True)
    parser.add_argument("--manifest")
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    registry = load_languages(args.languages)
    tables = [pd.read_parquet(path) for path in args.parallel]
    parallel = parallel_texts(pd.concat(tables)) if tables else None
    try:
        cells = spill_claims.at_learning_rate(pd.read_parquet(args.cells), args.learning_rate)
        pooled = contamination.pool_seeds(cells[cells["label_source"] == args.label_source])
        codes = registry.subset({*pooled["language"], *pooled["completion"]})
        cosines = spill_geometry.cosine_table(*spill_geometry.read_centroids(args.vectors), codes)
        chosen = spill_geometry.choose_layer(cosines, args.method, args.layer)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    predictors = spill_geometry.predictor_matrices(chosen, distance_matrices(registry, codes, parallel))
    joined = spill_geometry.join_spill(pooled, predictors, args.label_source)
    tests = spill_geometry.join_tests(joined, predictors)
    components = spill_geometry.pca(spill_geometry.spill_matrix(pooled, args.label_source))
    outputs = {
        args.out_cosine: cosines.assign(chosen=cosines.index.isin(chosen.index)),
        args.out_join: joined.assign(method=chosen["method"].iloc[0], layer=int(chosen["layer"].iloc[0])),
        args.out_tests: tests,
        args.out_pca: spill_geometry.pca_table(components),
    }
    for out, table in outputs.items():
        with provenance.atomic_path(out) as path:
            table.to_parquet(path, index=False)
    with provenance.atomic_path(args.figure_cosine) as path:
        geometry_figures.cosine_matrix(chosen, path)
    with provenance.atomic_path(args.figure_join) as path:
        note = f"Label: {args.label_source}."
        geometry_figures.spill_join(joined, tests, list(predictors), path, note=note)
    trained = pooled[pooled["condition"] != contamination.BASE]
    pairs = {row.condition: (row.directive, row.completion) for row in trained.itertuples()}
    with provenance.atomic_path(args.figure_pca) as path:
        geometry_figures.pca_biplot(components, pairs, path)
    provenance.write_manifest(
        args.manifest or f"{args.out_join}.manifest.json",
        stage="spill_join",
        spec=json.loads(args.spec),
        inputs=[args.cells, args.vectors, args.languages, *args.parallel],
        outputs=[*outputs, args.figure_cosine, args.figure_join, args.figure_pca],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
