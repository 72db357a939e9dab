"""Fetch one data source into a parquet file with columns `id` and `text` (or `messages`).

`--spec` holds the source's entry under `sources` of the configuration: the small world's generator, a local parquet or
jsonl file (checked against its sha256 if one is given), or a hub data set pinned by revision. `--out` has the source's
name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spillover import own_files, provenance, sources
from spillover.errors import UserError


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    name, entry = Path(args.out).stem, spec["source"]
    if told := own_files.missing(name, entry):
        raise UserError(told)
    try:
        table = sources.fetch(entry, args.resources)
    except ValueError as error:
        raise SystemExit(f"sources.{name}: {entry.get('path', entry['kind'])}: {error}") from None
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    print(f"{len(table)} rows")
    provenance.write_manifest(
        args.manifest,
        stage="source",
        spec=spec,
        inputs=[],
        outputs=[args.out],
        seconds=clock.seconds,
        extra={"rows": len(table)},
    )


if __name__ == "__main__":
    main()
