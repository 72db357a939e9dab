"""Write one saved checkpoint of a run as an adapter of its own, in PEFT's layout."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from spillover import provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", required=True)
    parser.add_argument("--config", required=True, help="the run's adapter_config.json")
    parser.add_argument("--label", required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    with safe_open(args.checkpoints, "pt") as f:
        prefix = args.label + "/"
        tensors = {k.removeprefix(prefix): f.get_tensor(k) for k in f.keys() if k.startswith(prefix)}
    if not tensors:
        raise SystemExit(f"{args.checkpoints} holds no checkpoint {args.label!r}")
    folder = Path(args.adapter)
    folder.mkdir(parents=True, exist_ok=True)
    with provenance.atomic_path(folder / "adapter_model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with provenance.atomic_path(folder / "adapter_config.json") as path:
        shutil.copyfile(args.config, path)
    provenance.write_manifest(
        args.manifest,
        stage="checkpoint",
        spec=json.loads(args.spec),
        inputs=[args.checkpoints],
        outputs=[str(folder / "adapter_model.safetensors")],
        seconds=clock.seconds,
    )


if __name__ == "__main__":
    main()
