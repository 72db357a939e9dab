"""Gather every declared claim with its published and its measured verdict: `claims.parquet` and its prose.

Reads `--declared` (YAML), the experiments' `--summaries` (`<root>/<experiment>/analysis/summary.json`) and `--alarms`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spillover import claims, provenance


def by_experiment(paths: list[str]) -> dict:
    """{experiment: content} of files that lie in `<experiment>/analysis`."""
    return {Path(path).parts[-3]: json.loads(Path(path).read_text(encoding="utf-8")) for path in paths}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--declared", required=True)
    parser.add_argument("--summaries", nargs="*", default=[])
    parser.add_argument("--alarms", nargs="*", default=[])
    parser.add_argument("--kinds", required=True, help="JSON: which analysis closes each experiment")
    parser.add_argument("--out", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    try:
        table = claims.judged(
            claims.declared(args.declared),
            json.loads(args.kinds),
            by_experiment(args.summaries),
            by_experiment(args.alarms),
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    titles = {name: name.replace("_", " ").capitalize() for name in table["experiment"].unique()}
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    with provenance.atomic_path(args.text) as path:
        path.write_text(claims.markdown(table, titles), encoding="utf-8")
    print(table.groupby(["experiment", "verdict"]).size().to_string())
    provenance.write_manifest(
        args.manifest,
        stage="claims",
        spec={"kinds": json.loads(args.kinds)},
        inputs=[args.declared, *args.summaries, *args.alarms],
        outputs=[args.out, args.text],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
