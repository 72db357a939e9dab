"""Measure how far a run's training moved the weights, into `weight_change.json`.

Reads the run's adapter, or with --model all its weights and those of its parent. The file holds Frobenius norms:
`global`, `projections` (what an adapter can change), both per block under `layers`, and `tensors`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spillover import models, provenance, weight_change


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--adapter", help="folder of an adapter")
    what.add_argument("--model", help="folder of a model trained in full")
    parser.add_argument("--base", help="the parent of --model: hub id or folder")
    parser.add_argument("--revision")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)
    if bool(args.base) != bool(args.model):
        parser.error("--base goes with --model")

    clock = provenance.start_clock()
    if args.adapter:
        found = weight_change.of_adapter(args.adapter)
        inputs = [str(Path(args.adapter, "adapter_model.safetensors"))]
    else:
        found = weight_change.of_model(models.local_folder(args.base, args.revision), args.model)
        inputs = [str(path) for path in sorted(Path(args.model).glob("*.safetensors"))]
    with provenance.atomic_path(args.out) as path:
        Path(path).write_text(json.dumps(found, indent=1) + "\n")
    print(f"the weights moved by {found['global']:.4g}, the projections by {found['projections']:.4g}")
    provenance.write_manifest(
        args.manifest,
        stage="weight_change",
        spec=json.loads(args.spec),
        inputs=inputs,
        outputs=[args.out],
        seconds=clock.seconds,
        extra={"global": found["global"], "projections": found["projections"]},
    )


if __name__ == "__main__":
    main()
