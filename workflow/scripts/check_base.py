"""Measure the small world's base model and write how good it is.

Reads the model folder `--base` and the word lists in `--resources`, writes `--out` (JSON: the command's settings and a
list of rows with counts, rates and 95% Wilson intervals). `--samples` is the number of replies per language to a
directive with a question; the other measures take a fixed share of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spillover import base_quality, models, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="resources/small_world/base")
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    model, tokenizer = models.load_base(args.base)
    weights = Path(args.base, "model.safetensors")
    check = base_quality.Check(model, tokenizer, args.resources, report=lambda text: print(text, flush=True))
    table = check.table(args.samples)
    for entry in table:
        print("{measure:50} {cell:24} {scorer:26} {count:6} of {total:6} {rate:7.2%}".format(**entry))
    document = {
        "program": "workflow/scripts/check_base.py",
        "samples": args.samples,
        "weights_sha256": provenance.file_digest(weights),
        "weights_bytes": weights.stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "identifiers": [identify.scorer_id for identify in check.identifiers],
        "seconds": round(clock.seconds, 1),
        "rows": table,
    }
    with provenance.atomic_path(args.out) as path:
        rows = ",\n".join("  " + json.dumps(entry, ensure_ascii=False) for entry in document.pop("rows"))
        head = json.dumps(document, indent=1, ensure_ascii=False)[:-2]
        path.write_text(f'{head},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
