"""Generate the completions of one model: every suite at every evaluated checkpoint, in one process.

Reads the model and, per checkpoint, its adapter (`--adapters label=folder ...`, none for the base model), writes
`completions.parquet`. An adapter must change the logits of probe prompts, or the program fails.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import engines, models, prompts, provenance


def rows(completions, run: str, seed: int, checkpoint: str) -> list[dict]:
    """Rows of completions.parquet."""
    return [
        {
            "run": run,
            "seed": seed,
            "checkpoint": checkpoint,
            "suite": c.prompt.suite,
            "prompt_id": c.prompt.prompt_id,
            "cell": c.prompt.cell,
            "item": c.prompt.item,
            "system": c.prompt.system,
            "user": c.prompt.user,
            "sample": c.sample,
            "sample_seed": c.sample_seed,
            "text": c.text,
            "finish_reason": c.finish_reason,
            "prompt_tokens": c.prompt_tokens,
            "completion_tokens": c.completion_tokens,
        }
        for c in completions
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapters", nargs="*", default=[], metavar="LABEL=FOLDER")
    parser.add_argument("--batch", type=int, default=64, help="completions in one batch")
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    engine, seed = spec["engine"], spec["seed"]
    if engine["name"] != "transformers":
        raise SystemExit(f"engine.name: {engine['name']!r} is not available in this version; known: transformers")
    asked = {name: prompts.suite_prompts(name, suite, args.resources) for name, suite in spec["suites"].items()}
    base, tokenizer = models.load_base(args.base, args.revision, args.dtype)
    table, live = [], {}
    for label, folder in [a.split("=", 1) for a in args.adapters] or [("final", None)]:
        model = engines.attach_adapter(base, folder) if folder else base
        if folder:
            probes = [p for group in asked.values() for p in group[:2]]
            live[label] = engines.assert_adapter_is_live(model, tokenizer, probes)
        for name, suite in spec["suites"].items():
            completions = engines.generate(
                model, tokenizer, asked[name], samples=suite["samples"], temperature=suite["temperature"],
                top_p=suite["top_p"], max_tokens=suite["max_tokens"], seed=seed, batch_size=args.batch,
                progress=lambda done, total, at=f"{label} {name}": print(f"{at}: {done} of {total}", flush=True),
            )  # fmt: skip
            table += rows(completions, args.run, seed, label)
        if folder:
            base = model.unload()
    frame = pd.DataFrame(table)
    with provenance.atomic_path(args.out) as path:
        frame.to_parquet(path, index=False)
    cut = float((frame.finish_reason == "length").mean())
    tokens = int(frame.completion_tokens.sum())
    print(f"{len(frame)} completions, {tokens} tokens, {cut:.1%} cut at the limit, {clock.seconds:.0f} s")
    provenance.write_manifest(
        args.manifest,
        stage="completions",
        spec=spec,
        inputs=[],
        outputs=[args.out],
        seconds=clock.seconds,
        extra={"completions": len(frame), "tokens": tokens, "cut_share": cut, "largest_logit_change": live},
    )


if __name__ == "__main__":
    main()
