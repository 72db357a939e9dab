"""Set a replay's conclusions beside those of the original analysis, and count how its labels ended.

Reads both `summary.json`, both cell tables where they are given, and every run's labels.parquet; writes `--out`
(markdown), `--json` (the same as data) and `--outcomes` (labels per run, scorer and outcome).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from spillover import conclusions, provenance, replay_tables


def outcome_lines(counts: pd.DataFrame) -> list[str]:
    """Per run and scorer how many labels failed and how; one sentence where none did."""
    failed = counts[counts["outcome"] != "ok"]
    if failed.empty:
        return [f"All {int(counts['labels'].sum())} labels of the replay are labels: none failed."]
    lines = []
    for (run, seed, scorer, total), rows in failed.groupby(["run", "seed", "scorer", "of"], sort=False):
        kinds = ", ".join(f"{row.labels} {row.outcome}" for row in rows.itertuples())
        lines.append(f"- {run} seed {seed}, {scorer}: {int(rows['labels'].sum())} of {total} labels failed ({kinds})")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--title", required=True)
    parser.add_argument("--before", help="summary.json of the original")
    parser.add_argument("--after", required=True, help="summary.json of the replay")
    parser.add_argument("--cells", nargs=2, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--outcomes", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    counts = replay_tables.outcomes(pd.concat([pd.read_parquet(path) for path in args.labels], ignore_index=True))
    after = json.loads(Path(args.after).read_text(encoding="utf-8"))
    found, text = {}, f"# {args.title}: replay\n\nNo original to compare with was named (replay.compare).\n"
    if args.before:
        before = json.loads(Path(args.before).read_text(encoding="utf-8"))
        cells = tuple(pd.read_parquet(path) for path in args.cells) if args.cells else None
        found = conclusions.compared(before, after, cells)
        text = conclusions.markdown(found, args.title)
    text += "\n## How the labels ended\n\n" + "\n".join(outcome_lines(counts)) + "\n"
    with provenance.atomic_path(args.outcomes) as path:
        counts.to_parquet(path, index=False)
    with provenance.atomic_path(args.json) as path:
        path.write_text(json.dumps(provenance.jsonable(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with provenance.atomic_path(args.out) as path:
        path.write_text(text, encoding="utf-8")
    provenance.write_manifest(
        args.manifest,
        stage="compare_conclusions",
        spec=json.loads(args.spec),
        inputs=[*([args.before] if args.before else []), args.after, *args.labels, *(args.cells or [])],
        outputs=[args.out, args.json, args.outcomes],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
