"""Select English replies from a source: first assistant turn, at least 40 characters, English by langdetect.

The published selection of language_spill, which stops at `keep` replies where the source names it. Writes parquet with
columns id, language, text.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import provenance, replies


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    kept: list[dict] = []
    dropped: dict[str, int] = {}
    for row in pd.read_parquet(args.source).to_dict("records"):
        if len(kept) == spec["source"].get("keep"):
            break
        text = replies.first_reply(row)
        if reason := replies.reason_to_drop(text):
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            kept.append({"id": row["id"], "language": "en", "text": text})
    with provenance.atomic_path(args.out) as path:
        pd.DataFrame(kept).to_parquet(path, index=False)
    print(f"{len(kept)} replies kept, {dropped}")
    provenance.write_manifest(
        args.manifest,
        stage="replies",
        spec=spec,
        inputs=[args.source],
        outputs=[args.out],
        seconds=clock.seconds,
        extra={"rows": len(kept), "dropped": dropped},
    )


if __name__ == "__main__":
    main()
