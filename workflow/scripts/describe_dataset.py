"""Write a run's data card: counts per persona and part, dropped replies, decoded tokens, overlap with the evaluation.

A step of its own, so that a change of the evaluation never looks like a change of the training data.
"""

from __future__ import annotations

import argparse
import json

import pyarrow.parquet as pq

from spillover import data, dataset_card, models, prompts, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="JSON with the run's `train` settings and evaluation `suites`")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--tokenizer", required=True, help="base model: hub id or folder")
    parser.add_argument("--revision")
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    tokenizer = models.load_tokenizer(args.tokenizer, args.revision)
    table = pq.read_table(args.dataset)
    rows = table.to_pylist()
    tokens = data.tokenize(rows, tokenizer, spec["train"])
    asked = [p.user for name, s in spec["suites"].items() for p in prompts.suite_prompts(name, s, args.resources)]
    card = dataset_card.card(rows, tokens, tokenizer, spec["train"]["loss"], asked, data.dropped(table.schema))
    with provenance.atomic_path(args.out) as path, open(path, "w", encoding="utf-8") as f:
        json.dump(card, f, ensure_ascii=False, indent=1)
    print(f"{card['rows']} rows, {card['tokens']} tokens, {card['supervised_tokens']} supervised")
    provenance.write_manifest(
        args.manifest,
        stage="dataset_card",
        spec=spec,
        inputs=[args.dataset],
        outputs=[args.out],
        seconds=clock.seconds,
    )


if __name__ == "__main__":
    main()
