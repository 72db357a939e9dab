"""Cosines between the persona centroids of every model of a convergence experiment, with intervals over questions.

Reads the vectors (`--vectors`, in the order of the records of `--runs` that have vectors), writes `--out`: run, seed,
checkpoint, method, layer, a, b, raw and centred cosines with their 95 % intervals.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import centroid_cosines, provenance
from spillover.arguments import read_json


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", nargs="+", required=True)
    parser.add_argument("--runs", required=True, help="JSON: one record a run")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    records = [record for record in read_json(args.runs) if record["vectors"]]
    files = {
        (record["run"], record["seed"]): (record, path) for record, path in zip(records, args.vectors, strict=True)
    }
    frames = []
    for (_, seed), (record, path) in files.items():
        parent = None
        if "steer" in record:
            of, at = files[record["parent"]["run"], seed]
            parent = centroid_cosines.read(at, of["checkpoints"])
        frames.append(centroid_cosines.run_table(record, centroid_cosines.read(path, record["checkpoints"]), parent))
    with provenance.atomic_path(args.out) as path:
        pd.concat(frames, ignore_index=True).to_parquet(path, index=False)
    print(f"{len(files)} runs, {clock.seconds:.0f} s")
    provenance.write_manifest(
        args.manifest,
        stage="convergence_cosines",
        spec=json.loads(args.spec),
        inputs=args.vectors,
        outputs=[args.out],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
