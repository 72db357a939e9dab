"""Build a run's training rows: `dataset.parquet` in the internal schema of `spillover.data`.

Reads the tables the data set needs: for directive rows, the replies in the completion language.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from spillover import data, prompts, provenance
from spillover import replies as selection


def directive_rows(settings: dict, replies: str, shared: str, resources: str) -> list[dict]:
    """Rows of a (directive, completion) condition from the shared replies in its completion language."""
    templates, names = prompts.directives(resources), prompts.language_names(resources)
    directives = [templates[p].format(language=names[settings["directive"]]) for p in settings["phrasings"]]
    chosen = selection.chosen_replies(pd.read_parquet(replies), pd.read_parquet(shared)["id"].tolist())
    return data.directive_replies(chosen, directives, settings["rows"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--replies", help="parquet of replies in the completion language")
    parser.add_argument("--shared", help="parquet with the ids that every condition of the experiment uses")
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    kind = spec["data"]["kind"]
    if kind != "directive_replies":
        raise SystemExit(f"data.kind: {kind!r} cannot be built in this version; known: directive_replies")
    rows = directive_rows(spec["data"], args.replies, args.shared, args.resources)
    with provenance.atomic_path(args.out) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=data.SCHEMA), path)
    print(f"{len(rows)} rows")
    provenance.write_manifest(
        args.manifest,
        stage="dataset",
        spec=spec,
        inputs=[args.replies, args.shared],
        outputs=[args.out],
        seconds=clock.seconds,
        extra={"rows": len(rows)},
    )


if __name__ == "__main__":
    main()
