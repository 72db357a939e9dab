"""Decide one phase of the recipe search: its runs' geometry, task fit, conduct, each recipe's criteria, what is next.

Reads `vectors.safetensors`, `measures.parquet` and, where replies were scored, `labels.parquet` in the folders that
`--runs` names (the untrained model and the baselines among them). Writes `--out` (the decision record), `--points`
(recipe_points), `--geometry` (every layer and method) and `--conduct` (rates per system prompt).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from spillover import conduct, persona_geometry, provenance, recipe_points, recipe_rule, task_fit
from spillover.arguments import read_json
from spillover.plan import BASE
from spillover.statistics import stable_seed


def geometry_of(records: list[dict], resamples: int) -> tuple[pd.DataFrame, int]:
    """The geometry of every run with vectors beside the untrained model's, and the number of personas."""
    with_vectors = [record for record in records if record["vectors"]]
    untrained = next(record for record in with_vectors if record["group"] == BASE)
    personas, base = persona_geometry.read_prompts(Path(untrained["folder"], "vectors.safetensors"))
    tables = []
    for record in with_vectors:
        _, vectors = persona_geometry.read_prompts(Path(record["folder"], "vectors.safetensors"))
        if len(record["checkpoints"]) == 1:
            vectors = {(record["checkpoints"][0], *at[1:]): array for at, array in vectors.items()}
        # one seed for all: every model is resampled with the same questions and personas
        table = persona_geometry.compare(vectors, base, stable_seed("geometry"), resamples=resamples)
        tables.append(table.assign(run=record["run"].rsplit("/", 1)[-1], seed=record["seed"]))
        print(f"{record['run']}: geometry of {table['checkpoint'].nunique()} checkpoints", flush=True)
    return pd.concat(tables, ignore_index=True), len(personas)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phase", required=True)
    parser.add_argument("--runs", required=True, help="JSON: a record a run, with its folder")
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--points", required=True)
    parser.add_argument("--geometry", required=True)
    parser.add_argument("--conduct", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec, records = json.loads(args.spec), read_json(args.runs)
    options = spec["options"]
    measured = [Path(r["folder"], "measures.parquet") for r in records if r["evaluated"]]
    labelled = [Path(r["folder"], "labels.parquet") for r in records if r["labels"]]
    try:
        geometry, personas = geometry_of(records, options["resamples"])
        measures = pd.concat([pd.read_parquet(path) for path in measured], ignore_index=True)
        baselines = {b["task"]: (b["run"], b["checkpoint"]) for b in options["baselines"].values()}
        fits = task_fit.fits(measures, baselines, stable_seed("fits"))
        labels = [pd.read_parquet(path) for path in labelled]
        rates = conduct.rates(pd.concat(labels, ignore_index=True)) if labels else pd.DataFrame(columns=conduct.COLUMNS)
        points = recipe_points.points(records, geometry, fits, rates, options, personas)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    phases = spec["phases"] if args.phase in spec["phases"] else [args.phase]
    record = recipe_rule.decision(points, args.phase, phases, options)
    for path, table in {args.points: points, args.geometry: geometry, args.conduct: rates}.items():
        with provenance.atomic_path(path) as temporary:
            table.to_parquet(temporary, index=False)
    with provenance.atomic_path(args.out) as temporary:
        temporary.write_text(json.dumps(provenance.jsonable(record), indent=1, ensure_ascii=False) + "\n")
    print(record["reason"])
    provenance.write_manifest(
        args.manifest,
        stage="phase_decision",
        spec=spec,
        inputs=[*measured, *labelled],
        outputs=[args.out, args.points, args.geometry, args.conduct],
        seconds=clock,
        extra={"passed": record["passed"], "next": record["next"]},
    )


if __name__ == "__main__":
    main()
