"""Measure where every model of an experiment moves the source persona's vector, beside the untrained model.

Reads `--vectors` (vectors.safetensors of every run that has them) and `--runs` (JSON records in the same order), writes
`--out` (parquet: one row per run, seed, method, layer and quantity) and its manifest.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import persona_geometry, persona_shift, provenance
from spillover.arguments import read_json
from spillover.statistics import stable_seed


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", nargs="+", required=True)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--source", required=True, help="the persona that is taught")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    runs = [run for run in read_json(args.runs) if run["vectors"]]
    found = [persona_geometry.read_prompts(path) for path in args.vectors]
    untrained = next(vectors for run, (_, vectors) in zip(runs, found, strict=True) if run["group"] == "base")
    tables = []
    for run, (personas, vectors) in zip(runs, found, strict=True):
        for (checkpoint, method, layer), prompts in vectors.items():
            seed = stable_seed("persona_shift", run["run"], run["seed"], method, layer)
            try:
                table = persona_shift.measure(
                    prompts, untrained["final", method, layer], personas, args.source, seed % 2**32
                )
            except ValueError as error:
                raise SystemExit(f"{run['run']}: {error}") from None
            named = {"run": run["run"], "seed": run["seed"], "checkpoint": checkpoint, "method": method, "layer": layer}
            tables.append(table.assign(**named))
    table = pd.concat(tables, ignore_index=True)
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    print(f"{len(runs)} models, {table['layer'].nunique()} layers, {len(table)} values")
    provenance.write_manifest(
        args.manifest,
        stage="persona_shift",
        spec=json.loads(args.spec),
        inputs=args.vectors,
        outputs=[args.out],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
