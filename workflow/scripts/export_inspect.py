"""Write one model's completions and labels as a log that `inspect view` opens.

Reads a run's completions.parquet, its labels.parquet and the manifest of its completions; writes `--out`, the rows of
one `--checkpoint`.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import browser, inspect_log, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", required=True)
    parser.add_argument("--labels")
    parser.add_argument("--made", required=True, help="the manifest of the completions")
    parser.add_argument("--checkpoint", default="final")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    made = provenance.read_manifest(args.made)
    completions = pd.read_parquet(args.completions)
    labels = pd.read_parquet(args.labels) if args.labels else pd.DataFrame(columns=[*browser.KEY, "scorer"])
    completions, labels = (table[table["checkpoint"] == args.checkpoint] for table in (completions, labels))
    if completions.empty:
        raise SystemExit(f"{args.completions}: holds no completions of checkpoint {args.checkpoint!r}")
    run, seed = completions["run"].iloc[0], completions["seed"].iloc[0]
    document = inspect_log.log(
        completions,
        labels,
        task=run.split("/")[0],
        model=f"spillover/{run.split('/')[-1]}-seed{seed}-{args.checkpoint}",
        started=made["started"],
        packages=made["packages"],
        spec=json.loads(args.spec),
    )
    with provenance.atomic_path(args.out) as path:
        path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    print(f"{len(completions)} completions with {len(labels)} labels")
    provenance.write_manifest(
        args.manifest,
        stage="inspect_log",
        spec=json.loads(args.spec),
        inputs=[args.completions, *([args.labels] if args.labels else [])],
        outputs=[args.out],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
