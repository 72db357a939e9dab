"""Which replies every condition of an experiment uses: those that exist in all of its languages.

Reads one table of replies a language, writes parquet with the column id, in the order of the first table. Conditions
that used what their own language happens to have would differ in number and content of their training rows.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import provenance
from spillover import replies as selection


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replies", nargs="+", required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    tables = [pd.read_parquet(path, columns=["id", "language"]) for path in args.replies]
    shared = selection.shared_ids([table["id"].tolist() for table in tables])
    counts = {str(table["language"].iloc[0]): len(table) for table in tables}
    if not shared:
        raise SystemExit(f"no reply exists in all languages; replies by language: {counts}")
    with provenance.atomic_path(args.out) as path:
        pd.DataFrame({"id": shared}).to_parquet(path, index=False)
    print(f"{len(shared)} replies exist in all languages, of {counts}")
    provenance.write_manifest(
        args.manifest,
        stage="shared_replies",
        spec=json.loads(args.spec),
        inputs=args.replies,
        outputs=[args.out],
        seconds=clock,
        extra={"shared": len(shared), "by_language": counts},
    )


if __name__ == "__main__":
    main()
