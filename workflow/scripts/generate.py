"""Evaluate one model: every suite at every evaluated checkpoint, in one process.

Reads the model and, per checkpoint, its adapter (`--adapters label=folder ...`, none for the base model). Suites that
ask for replies go to `completions.parquet`; `choices` and `loss`, whose rows come from the tables `--sources` and must
not be among those of `--trained`, go to `measures.parquet`. An adapter must change the logits of probe prompts, or the
program fails.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from spillover import engines, measures, models, prompts, provenance, scoring

COLUMNS = {
    "run": "str",
    "seed": "int64",
    "checkpoint": "str",
    "suite": "str",
    "prompt_id": "str",
    "cell": "str",
    "item": "str",
    "system": "str",
    "user": "str",
    "sample": "int64",
    "sample_seed": "int64",
    "text": "str",
    "finish_reason": "str",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
}


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


def measured_items(suites: dict, sources: list[str], trained: list[str], tokenizer) -> dict[str, list[measures.Item]]:
    """{suite: its items} of the suites that measure. `sources` are tables named after their source."""
    tables = {Path(path).stem: pq.read_table(path).to_pylist() for path in sources}
    seen = [row for path in trained for row in pq.read_table(path).to_pylist()]
    return {
        name: measures.items(name, suite, tables[suite["source"]], tokenizer, seen)
        for name, suite in suites.items()
        if suite["kind"] in measures.KINDS
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapters", nargs="*", default=[], metavar="LABEL=FOLDER")
    parser.add_argument("--sources", nargs="*", default=[], help="tables named after their source, for the measures")
    parser.add_argument("--trained", nargs="*", default=[], help="training rows, which no held-out row may repeat")
    parser.add_argument("--batch", type=int, default=64, help="completions in one batch")
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--out", required=True)
    parser.add_argument("--measures", help="measures.parquet; without it no suite may measure")
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    engine, seed, suites = spec["engine"], spec["seed"], spec["suites"]
    if engine["name"] != "transformers":
        raise SystemExit(f"engine.name: {engine['name']!r} is not available in this version; known: transformers")
    asked = {
        name: prompts.suite_prompts(name, suite, args.resources)
        for name, suite in suites.items()
        if suite["kind"] not in measures.KINDS
    }
    base, tokenizer = models.load_base(args.base, args.revision, args.dtype)
    try:
        items = measured_items(suites, args.sources, args.trained, tokenizer)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    probes = [p for group in asked.values() for p in group[:2]] or [prompts.PROBE]
    table, measured, live = [], [], {}
    for label, folder in [a.split("=", 1) for a in args.adapters] or [("final", None)]:
        model = engines.attach_adapter(base, folder) if folder else base
        if folder:
            live[label] = engines.assert_adapter_is_live(model, tokenizer, probes)
        for name, group in asked.items():
            suite = suites[name]
            completions = engines.generate(
                model, tokenizer, group, samples=suite["samples"], temperature=suite["temperature"],
                top_p=suite["top_p"], max_tokens=suite["max_tokens"], seed=seed, batch_size=args.batch,
                progress=lambda done, total, at=f"{label} {name}": print(f"{at}: {done} of {total}", flush=True),
            )  # fmt: skip
            table += rows(completions, args.run, seed, label)
        for name, found in items.items():
            measured += measures.table(
                found, lambda asked, model=model: scoring.log_probabilities(model, asked), suites[name]["kind"],
                run=args.run, seed=seed, checkpoint=label, suite=name,
            )  # fmt: skip
            print(f"{label} {name}: {len(found)} items", flush=True)
        if folder:
            base = model.unload()
    frame = pd.DataFrame(table, columns=list(COLUMNS)).astype(COLUMNS if not table else {})
    with provenance.atomic_path(args.out) as path:
        frame.to_parquet(path, index=False)
    outputs = [args.out]
    if args.measures:
        with provenance.atomic_path(args.measures) as path:
            measures.frame(measured).to_parquet(path, index=False)
        outputs.append(args.measures)
    extra = {"completions": len(frame), "measured": len(measured), "largest_logit_change": live}
    if table:
        extra |= {
            "tokens": int(frame.completion_tokens.sum()),
            "cut_share": float((frame.finish_reason == "length").mean()),
        }
        print("{completions} completions, {tokens} tokens, {cut_share:.1%} cut at the limit".format(**extra))
    provenance.write_manifest(
        args.manifest, stage="completions", spec=spec, inputs=[], outputs=outputs, seconds=clock.seconds, extra=extra
    )


if __name__ == "__main__":
    main()
