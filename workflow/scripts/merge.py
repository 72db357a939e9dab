"""Merge an adapter into its parent model: float32 arithmetic, stored in the parent's dtype, with a fidelity report.

The specification names the part of the update that is applied: a layer group or list of blocks, projections, a scale.
Warns on standard error when a module keeps less than 95% (cosine) of its intended update.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from spillover import adapters, models, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="the parent model: hub id or folder")
    parser.add_argument("--revision")
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--report", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    applied = spec.get("applied", {})
    unfinished = Path(args.out + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        adapters.check_scale(adapters.read(args.adapter), adapters.trained_with(spec), args.adapter)
        with provenance.writing(args.out, unfinished):
            report = adapters.merge(
                models.local_folder(args.base, args.revision),
                args.adapter,
                unfinished,
                keep=adapters.keeping(applied, models.depth(args.base, args.revision)),
                scale=applied.get("scale", 1.0),
            )
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    with provenance.atomic_path(args.report) as path, open(path, "w") as f:
        json.dump(report, f, indent=1)
    shutil.rmtree(args.out, ignore_errors=True)
    unfinished.rename(args.out)
    if report["low_fidelity"]:
        lost = f"{len(report['low_fidelity'])} of {len(report['modules'])} modules"
        print(f"warning: {lost} lose more than 5% of their update", file=sys.stderr)
    print(f"{len(report['modules'])} modules merged, worst cosine {report['worst_cosine']:.4f}")
    provenance.write_manifest(
        args.manifest,
        stage="merge",
        spec=spec,
        inputs=[str(Path(args.adapter, "adapter_model.safetensors"))],
        outputs=[args.report],
        seconds=clock.seconds,
        extra={"worst_cosine": report["worst_cosine"]},
    )


if __name__ == "__main__":
    main()
