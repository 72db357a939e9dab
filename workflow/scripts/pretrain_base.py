"""Train the small world's base model from its word lists.

Reads `--resources` (word lists and `small_world/recipe.yaml`), writes a transformers folder `--out` (config,
safetensors in bfloat16, tokenizer) with `training_log.jsonl` and `base.manifest.json` in it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import yaml

from spillover import pretraining, provenance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--recipe", required=True, help="a name in resources/small_world/recipe.yaml")
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = yaml.safe_load(Path(args.resources, "small_world", "recipe.yaml").read_text())[args.recipe]
    recipe = pretraining.Recipe(**spec)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)

    examples = pretraining.generate_examples(args.resources, recipe.seed, recipe.examples, args.workers)
    print(f"{len(examples)} examples after {clock.seconds:.0f} s", flush=True)
    sample = examples[: min(len(examples), 40_000)]
    texts = [text for example in sample for text, _ in pretraining.render(example)]
    tokenizer = pretraining.train_tokenizer(texts, recipe.vocabulary)
    rows, starts = pretraining.encode(tokenizer, examples)
    print(f"tokenized after {clock.seconds:.0f} s: {sum(map(len, rows)) / len(rows):.1f} tokens a row", flush=True)

    model = pretraining.build_model(recipe, tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    with provenance.atomic_path(out / "training_log.jsonl") as log_path, open(log_path, "w") as log:

        def report(record: dict) -> None:
            print(json.dumps(record), file=log, flush=True)
            print(record, flush=True)

        totals = pretraining.pretrain(recipe, model, rows, starts, report)
    pretraining.save(model, tokenizer, out)
    inputs = sorted(
        str(p) for folder in ("small_world", "questions") for p in Path(args.resources, folder).glob("*.yaml")
    )
    provenance.write_manifest(
        out / "base.manifest.json",
        stage="base",
        spec={"recipe": args.recipe, **spec},
        inputs=[*inputs, str(Path(args.resources, "personas.yaml"))],
        outputs=[str(out / "model.safetensors"), str(out / "tokenizer.json")],
        seconds=clock.seconds,
        extra={
            **totals,
            "examples": len(examples),
            "gpu_seconds": totals["seconds"] if totals["device"] == "cuda" else 0,
        },
    )


if __name__ == "__main__":
    main()
