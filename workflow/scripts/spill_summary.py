"""Write the careful summary of a language-spill run: what spills, what the control bounds, which claims appear.

Reads `--cells` and `--agreement` (of spill_cells.py) and optionally `--tests` (of spill_join.py) and `--gold` (of
judge_gold.py). Writes `--out` (markdown) and `--json` (the same statements as data). Every number and verdict comes
from the tables.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import provenance, spill_claims, spill_report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True)
    parser.add_argument("--agreement", required=True)
    parser.add_argument("--tests", nargs="?", help="a replay has none")
    parser.add_argument("--gold", nargs="?", help="a gold set with the judge's labels, where there is one")
    parser.add_argument("--title", default="Language spill")
    parser.add_argument("--label-source", default="langdetect")
    parser.add_argument("--learning-rate", type=float, help="needed when conditions were trained at several")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--manifest")
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    tests = pd.read_parquet(args.tests) if args.tests else None
    try:
        summary = spill_claims.summarise(
            pd.read_parquet(args.cells),
            pd.read_parquet(args.agreement),
            tests,
            label_source=args.label_source,
            learning_rate=args.learning_rate,
            gold=pd.read_parquet(args.gold) if args.gold else None,
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with provenance.atomic_path(args.json) as path:
        path.write_text(
            json.dumps(
                provenance.jsonable(summary | {"answer": spill_report.answer(summary)}),
                indent=1,
                sort_keys=True,
                ensure_ascii=False,
            )
            + "\n"
        )
    with provenance.atomic_path(args.out) as path:
        path.write_text(spill_report.markdown(summary, args.title), encoding="utf-8")
    provenance.write_manifest(
        args.manifest or f"{args.out}.manifest.json",
        stage="spill_summary",
        spec=json.loads(args.spec),
        inputs=[args.cells, args.agreement, *filter(None, [args.tests, args.gold])],
        outputs=[args.out, args.json],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
