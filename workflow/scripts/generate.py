"""Evaluate one model: every suite at every evaluated checkpoint, in one process.

Reads the model and, per checkpoint, its adapter (`--adapters label=folder ...`, none for the base model). Suites that
ask for replies go to `completions.parquet`; `choices` and `loss`, whose rows come from the tables `--sources` and must
not be among those of `--trained`, go to `measures.parquet`. Where the specification says `steer`, all of it happens
with one block's output shifted along a vector of `--steering`. An adapter must change the log-probabilities of probe
prompts, or the program fails.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from spillover import engines, measures, models, prompts, provenance

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


def start(spec: dict, steering: str | None, served: engines.Served, options: engines.Options, tokenizer, works, asked):
    """The engine that the specification names; only what it needs is imported."""
    name = spec["engine"]["name"]
    if spec.get("steer") and name != "transformers":
        raise SystemExit(f"steer: the engine {name} cannot shift activations; choose engine.name: transformers")
    if name == "vllm":
        from spillover.engine_vllm import Vllm

        return Vllm(served, options, tokenizer, works, asked)
    if name == "openai":
        from spillover.engine_openai import OpenAI

        return OpenAI(served, options, tokenizer, spec["engine"].get("model"))
    from spillover.engine_transformers import Transformers

    if "steer" not in spec:
        return Transformers(served, options, tokenizer)
    from spillover.steering import shift

    return Transformers(served, options, tokenizer, spec["steer"]["layer"], *shift(steering, spec["steer"]))


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
    parser.add_argument("--steering", help="vectors.safetensors behind the spec's `steer`")
    parser.add_argument("--engine-options", default="", help="key=value,... as in engines.Options")
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--out", required=True)
    parser.add_argument("--measures", help="measures.parquet; without it no suite may measure")
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    seed, suites = spec["seed"], spec["suites"]
    adapters = dict(a.split("=", 1) for a in args.adapters)
    merge = spec.get("evaluate_as") == "merged" and bool(adapters)
    served = engines.Served(args.base, args.revision, args.dtype, f"{args.run}/seed{seed}", adapters, merge)
    tokenizer = models.load_tokenizer(args.base, args.revision)
    works, items = [], {}
    try:
        if adapters and "model" in spec:
            _check_scales(adapters.values(), spec["model"])
        items = measured_items(suites, args.sources, args.trained, tokenizer)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    checkpoints = list(adapters) or [None]
    replying = [name for name in suites if name not in items]
    asked = {name: prompts.suite_prompts(name, suites[name], args.resources) for name in replying}
    for checkpoint in checkpoints:
        works += [engines.work(checkpoint, asked[name], suites[name]) for name in replying]
    rows_asked = [a for group in items.values() for item in group for a in item.asked]
    options = engines.Options.read(args.engine_options)
    engine = start(spec, args.steering, served, options, tokenizer, works, rows_asked)

    probes = [p for group in asked.values() for p in group[:2]] or [prompts.PROBE]
    # an engine with an adapter in its weights does all that this adapter is for before it takes the next one
    groups = [[c] for c in checkpoints] if merge else [checkpoints]
    live, table, measured = {}, [], []
    for group in groups:
        live |= {c: _live(engine, c, adapters[c], probes, tokenizer) for c in group if c}
        asked_now = [work for work in works if work.checkpoint in group]
        for work, completions in zip(asked_now, engine.generate(asked_now, seed), strict=True):
            table += rows(completions, args.run, seed, work.checkpoint or "final")
        for checkpoint in group:
            for name, found in items.items():
                at = dict(run=args.run, seed=seed, checkpoint=checkpoint or "final", suite=name)
                read = partial(engine.log_probabilities, checkpoint)
                measured += measures.table(found, read, suites[name]["kind"], **at)
                print(f"{checkpoint or 'final'} {name}: {len(found)} items", flush=True)
    frame = pd.DataFrame(table, columns=list(COLUMNS)).astype(COLUMNS if not table else {})
    with provenance.atomic_path(args.out) as path:
        frame.to_parquet(path, index=False)
    outputs = [args.out]
    if args.measures:
        with provenance.atomic_path(args.measures) as path:
            measures.frame(measured).to_parquet(path, index=False)
        outputs.append(args.measures)
    extra = {"completions": len(frame), "measured": len(measured), "largest_change_by_adapter": live}
    extra["engine"] = engine.about()
    if table:
        extra |= {
            "tokens": int(frame.completion_tokens.sum()),
            "cut_share": float((frame.finish_reason == "length").mean()),
        }
        print("{completions} completions, {tokens} tokens, {cut_share:.1%} cut at the limit".format(**extra))
    provenance.write_manifest(
        args.manifest, stage="completions", spec=spec, inputs=[], outputs=outputs, seconds=clock.seconds, extra=extra
    )


def _check_scales(folders: Iterable[str], model: dict) -> None:
    """Raises ValueError unless every adapter has the scale that its run was trained with."""
    from spillover import adapters  # with torch, which a server's client does without

    for folder in folders:
        read = adapters.Adapter(adapters.read_config(folder), {})
        adapters.check_scale(read, adapters.trained_with(model), folder)


def _live(engine: engines.Engine, checkpoint: str, folder: str, probes, tokenizer) -> float:
    from spillover.adapters import is_zero  # with torch, which a server's client does without

    return 0.0 if is_zero(folder) else engines.assert_adapter_is_live(engine, checkpoint, probes, tokenizer)


if __name__ == "__main__":
    main()
