"""Select English replies from a source: first assistant turn, at least 40 characters, English by langdetect.

The published selection of language_spill, which stops at `keep` replies where the source names it and refuses to end
with fewer. Writes parquet with columns id, language, text.
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
    rows = pd.read_parquet(args.source).to_dict("records")
    keep = spec["source"].get("keep")
    for row in rows:
        if len(kept) == keep:
            break
        text = replies.first_reply(row)
        if reason := replies.reason_to_drop(text):
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            kept.append({"id": row["id"], "language": "en", "text": text})
    if keep and len(kept) < keep:
        # refused before the replies are translated, which is what they cost
        told = "".join(f", {count} {reason}" for reason, count in dropped.items())
        raise SystemExit(
            f"sources.replies: {len(rows)} rows have {len(kept)} English replies of {replies.SHORTEST} characters or"
            f" more{told}; `keep` asks for {keep}: raise `rows`, or lower `keep` to {len(kept)} to take what is there"
        )
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
