"""Write one adapter that holds a run's adapter, or part of its update, and with --under all that it stands on.

Nothing is trained. A stacked lineage needs this where a reference filters or scales the last update of a run, and where
a run applies the adapter of another run. Writes `adapter_model.safetensors` and `adapter_config.json` into --out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spillover import adapters, models, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="the model under all adapters: hub id or folder")
    parser.add_argument("--revision")
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--under", help="folder of the adapter that it stands on")
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    train, applied = adapters.trained_with(spec), spec.get("applied", {})
    try:
        whole = adapters.read(args.adapter)
        adapters.check_scale(whole, train, args.adapter)
        keep = adapters.keeping(applied, models.depth(args.base, args.revision))
        adapter = adapters.part(whole, train["rank"], keep, applied.get("scale", 1.0))
        if args.under:
            adapter = adapters.stack(adapters.read(args.under), adapter)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    adapters.write(adapter, args.out)
    print(f"rank {adapter.config['r']}, scale {adapter.scale:.4g}, {len(adapter.factors)} modules")
    provenance.write_manifest(
        args.manifest,
        stage="stack",
        spec=spec,
        inputs=[str(Path(f, "adapter_model.safetensors")) for f in (args.adapter, args.under) if f],
        outputs=[str(Path(args.out, "adapter_model.safetensors"))],
        seconds=clock.seconds,
    )


if __name__ == "__main__":
    main()
