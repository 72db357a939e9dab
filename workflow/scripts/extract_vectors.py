"""Extract a model's persona or language vectors into `vectors.safetensors`.

Per method and layer: `centroid` (cells, hidden), `spread` (cells,) and `prompts` (cells, prompts, hidden), float32; the
metadata names cells, layers, the layer convention and the methods. Where the specification says `steer`, the model is
read with one block's output shifted along a vector of `--steering`.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext

from safetensors.numpy import save_file

from spillover import engine_transformers, models, prompts, provenance, steering, vectors


def cell_prompts(settings: dict, resources: str) -> list[prompts.Prompt]:
    """The prompts whose activations are averaged: language directives or persona questions."""
    asked = None
    if settings.get("questions"):
        asked = prompts.questions(settings["questions"], settings.get("question_count"), resources)
    if settings["cells"] == "languages":
        return prompts.directive_prompts("vectors", settings["languages"], settings["phrasings"], asked, resources)
    suite = {
        "kind": "personas",
        "personas": settings["personas"],
        "questions": settings["questions"],
        "question_count": settings.get("question_count"),
    }
    return prompts.suite_prompts("vectors", suite, resources)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapters", nargs="*", default=[], metavar="LABEL=FOLDER")
    parser.add_argument("--steering", help="vectors.safetensors behind the spec's `steer`")
    parser.add_argument("--token-budget", type=int, default=16384, help="tokens read at a time")
    parser.add_argument("--batch", type=int, default=32, help="replies generated at a time")
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    settings = spec["vectors"]
    asked = cell_prompts(settings, args.resources)
    tokenizer = models.load_tokenizer(args.base, args.revision)
    merge = spec.get("evaluate_as") == "merged" and bool(args.adapters)
    adapted = engine_transformers.Adapted(args.base, args.revision, args.dtype, merge)
    steer = spec.get("steer")
    shift, _ = steering.shift(args.steering, steer) if steer else (None, {})
    tensors, cells = {}, []
    labels = [a.split("=", 1) for a in args.adapters] or [("final", None)]
    for label, folder in labels:
        model = adapted.use(folder)
        prefix = "" if len(labels) == 1 else f"{label}/"
        for method in settings["methods"]:
            with steering.steered(models.causal_model(model), steer["layer"], shift) if steer else nullcontext():
                found = vectors.prompt_vectors(
                    model,
                    tokenizer,
                    asked,
                    settings["layers"],
                    method,
                    batch_size=args.batch,
                    token_budget=args.token_budget,
                )
            for layer, array in found.items():
                cells, centroid, spread, stacked = vectors.summarise(array, [p.cell for p in asked])
                at = f"{prefix}{method}/layer{layer}"
                tensors |= {f"{at}/centroid": centroid, f"{at}/spread": spread, f"{at}/prompts": stacked}
    metadata = {
        "cells": json.dumps(cells),
        "layers": json.dumps(settings["layers"]),
        "prompts": json.dumps([p.prompt_id for p in asked]),
        "convention": vectors.LAYER_CONVENTION,
        "methods": json.dumps({m: vectors.METHODS[m] for m in settings["methods"]}),
    }
    with provenance.atomic_path(args.out) as path:
        save_file(tensors, path, metadata=metadata)
    print(f"{len(cells)} cells, {len(asked)} prompts, layers {settings['layers']}, {clock.seconds:.0f} s")
    provenance.write_manifest(
        args.manifest,
        stage="vectors",
        spec=spec,
        inputs=[],
        outputs=[args.out],
        seconds=clock.seconds,
        extra={"prompts": len(asked)},
    )


if __name__ == "__main__":
    main()
