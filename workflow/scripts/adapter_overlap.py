"""Compare the subspaces of the adapters that a lineage stacks or merges: a first fine-tune's and the one trained on it.

Reads the adapters that `--pairs` names (a JSON list of {first, second, seed, folders, ranks}), writes `--out` (parquet:
one row per pair, module and space) and its manifest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from spillover import adapter_overlap, adapters, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    tables, read = [pd.DataFrame(columns=["first", "second", "seed", "space"])], []
    for pair in json.loads(args.pairs):
        try:
            first, second = (
                adapters.newest(adapters.read(f), r) for f, r in zip(pair["folders"], pair["ranks"], strict=True)
            )
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(str(error)) from None
        table = adapter_overlap.compare(first, second)
        tables.append(table.assign(first=pair["first"], second=pair["second"], seed=pair["seed"]))
        read += [str(Path(folder, "adapter_model.safetensors")) for folder in pair["folders"]]
    table = pd.concat(tables[1:] or tables, ignore_index=True)
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    print(f"{len(read) // 2} pairs of adapters, {len(table)} comparisons")
    provenance.write_manifest(
        args.manifest,
        stage="adapter_overlap",
        spec=json.loads(args.spec),
        inputs=sorted(set(read)),
        outputs=[args.out],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
