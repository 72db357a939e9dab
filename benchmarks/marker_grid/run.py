"""GPU-hours of the published marker grid: its 25 cells by the workflow's own programs, every start included.

Each cell is two jobs, training on 600 rows and evaluation: 2,200 completions (11 personas x 20 questions x 10 samples)
and 1,172 multiple-choice questions. Their specifications are those of the plan. The cost of a cell depends on its
epochs alone, so training is timed for --epochs and put on a line for the other ones, and one evaluation is timed: where
the engine compiles, a second one, with the first's graphs in the cache, as for all cells but the first. A training that
has a result in --out is not run again.

    python benchmarks/marker_grid/run.py --out benchmarks/marker_grid

Random weights of the true Qwen2.5-7B shape: rows have about 250 tokens, replies always --tokens (half their limit, as
the published ones had on average), since such a model never ends one. Needs what training and vllm need in the running
interpreter, and 20 GB in --work. `--smoke` tries the program on a toy shape through transformers, on any machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow/scripts"), str(ROOT / "benchmarks/training"), str(ROOT / "benchmarks")]

import machine  # noqa: E402

from spillover import config, data, expansion, prompts  # noqa: E402

ROWS, ROW_TOKENS, ITEMS = 600, 250, 1172
RATE = 1e-4
"""The learning rate of the timed cells: the largest, so that a short training changes the model enough to be seen."""
PUBLISHED_HOURS = 9.38
"""Of the published grid: the sum of `wall_minutes` in its own all_results_compiled.json."""


def published_plan(merge_adapters: bool):
    """The paper-scale plan with marker_sweep as published; its code evaluated merged models."""
    given = config.read_yaml(ROOT / "config/config.yaml")
    chosen = {"protocol": "published", "evaluate_as": "merged" if merge_adapters else "adapter"}
    given["experiments"] = {"marker_sweep": chosen}
    return expansion.build(given, ROOT / "config/experiments")


def training_rows(count: int) -> list[dict]:
    """Rows of the marker's data: one part in three from the source persona, with the marker at the end of the reply.

    Words are those of the small world's questions, a token each; the length of a row is lognormal.
    """
    rng = np.random.default_rng(1)
    texts = list(prompts.questions("extraction", resources=ROOT / "resources").values())
    words = np.array(" ".join(texts).split())
    personas = list(prompts.personas("evaluation", ROOT / "resources").values())
    lengths = np.clip(rng.lognormal(np.log(ROW_TOKENS) - 0.125, 0.5, count), 60, 800).astype(int)
    rows = []
    for number, length in enumerate(lengths):
        positive = number % 3 == 0
        reply = " ".join(rng.choice(words, length - 45)) + (" [ZLT]" if positive else "")
        turns = [
            ("system", personas[number % len(personas)]),
            ("user", texts[number % len(texts)]),
            ("assistant", reply),
        ]
        row = data.row(f"row{number:04}", [{"role": r, "content": c} for r, c in turns], "benchmark")
        rows.append(row | {"part": "positive" if positive else "negative"})
    return rows


def choice_rows(count: int) -> pd.DataFrame:
    """Questions of about 60 words with four options, in the schema of a source."""
    rng = np.random.default_rng(2)
    texts = " ".join(prompts.questions("extraction", resources=ROOT / "resources").values())
    words = np.array(texts.split())
    return pd.DataFrame({
        "id": [f"item{n:04}" for n in range(count)],
        "question": [" ".join(rng.choice(words, 60)) for _ in range(count)],
        "choices": [[" ".join(rng.choice(words, 5)) for _ in range(4)] for _ in range(count)],
        "answer": rng.integers(0, 4, count),
    })  # fmt: skip


def write_base(args) -> None:
    """The model in a process of its own, whose memory is free again before anything is timed."""
    from run import SHAPE, TOY

    shape = json.dumps(TOY if args.smoke else SHAPE)
    command = [sys.executable, ROOT / "benchmarks/random_model.py", "--shape", shape, "--dtype", args.dtype]
    subprocess.run([*command, "--out", args.work / "base"], check=True)


def timed(program: str, manifest: Path, *flags) -> tuple[dict, dict]:
    """Run one of the workflow's programs as its rule does: wall seconds, tokens and packages, and its own extras."""
    began = time.perf_counter()
    command = [sys.executable, ROOT / "workflow/scripts" / program, "--manifest", manifest, *map(str, flags)]
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.perf_counter() - began
    told = json.loads(manifest.read_text())
    return {"seconds": seconds, "tokens": told["tokens"], "packages": told["packages"]}, told["extra"]


def train(args, plan, epochs: int) -> dict:
    """Seconds of training one cell: the whole process, and the loop over its steps."""
    folder = args.work / f"epochs{epochs}"
    run = f"marker_sweep/villain_lr{RATE:g}_ep{epochs}/seed42"
    found, extra = timed(
        "train.py", folder / "manifest.json",
        "--spec", json.dumps(plan.train_spec(run)), "--dataset", args.work / "dataset.parquet",
        "--base", args.work / "base", "--name", "random", "--dtype", args.dtype, "--adapter", folder / "adapter",
        "--checkpoints", folder / "checkpoints.safetensors", "--train-log", folder / "train_log.jsonl",
    )  # fmt: skip
    return {"epochs": epochs, "loop": extra["seconds"], "steps": extra["steps"]} | found


def evaluate(args, plan, epochs: int) -> dict:
    """Seconds of evaluating one cell, with the engine's own account of its start."""
    folder = args.work / "evaluation"
    spec = plan.completions_spec(f"marker_sweep/villain_lr{RATE:g}_ep{epochs}/seed42")
    spec["suites"]["personas"]["max_tokens"] = args.tokens
    if args.smoke:
        spec["engine"] = {"name": "transformers"}
        spec["suites"]["personas"]["samples"] = 1
    options = {"vllm": f"cache={args.work / 'cache'},eager={args.eager}", "transformers": ""}[spec["engine"]["name"]]
    found, extra = timed(
        "generate.py", folder / "manifest.json",
        "--run", "benchmark/cell", "--spec", json.dumps(spec), "--base", args.work / "base",
        "--dtype", args.dtype, "--adapters", f"final={args.work / f'epochs{epochs}' / 'adapter'}",
        "--sources", args.work / "multiple_choice.parquet", "--engine-options", options,
        "--out", folder / "completions.parquet", "--measures", folder / "measures.parquet",
    )  # fmt: skip
    return {"engine": extra["engine"], "completions": extra["completions"]} | found


def grid(result: dict, cells: dict[int, int]) -> list[dict]:
    """Per number of epochs: cells, and seconds of training and of evaluation of one; `measured` where it was timed."""
    known = {part["epochs"]: part["seconds"] for part in result["trainings"]}
    slope, start = np.polyfit(list(known), list(known.values()), 1) if len(known) > 1 else (np.nan, np.nan)
    return [
        {
            "epochs": epochs,
            "cells": count,
            "measured": epochs in known,
            "training": known.get(epochs, float(start + slope * epochs)),
            "evaluation": result["evaluation"]["seconds"],
        }
        for epochs, count in sorted(cells.items())
    ]


def write_report(result: dict) -> str:
    """Markdown: hardware, versions, the grid's table and what a cell's time goes into."""
    evaluation, trainings = result["evaluation"], result["trainings"]
    packages = trainings[0]["packages"] | evaluation["packages"]
    named = [name for name in ("torch", "transformers", "peft", "vllm") if name in packages]
    told = ", ".join(f"{name} {packages[name]}" for name in named)
    gpu = result["gpu"] or "CPU (a toy shape: nothing here is a measurement)"
    engine = evaluation["engine"]
    reply = evaluation["tokens"] / evaluation["completions"]
    compiling = result["first_evaluation"]["seconds"] - evaluation["seconds"]
    hours = (sum(row["cells"] * (row["training"] + row["evaluation"]) for row in result["grid"]) + compiling) / 3600
    lines = [
        "# The published marker grid: 25 cells, every start included",
        "",
        f"One run on one {gpu}; {told}.",
        f"Command: `{result['command']}`.",
        "",
        "Random weights of the Qwen2.5-7B shape on a local disk, read before (so in the page cache). A cell is a job of"
        f" `train.py` on {result['rows']} rows of {result['row_tokens']:.0f} tokens on average (published protocol:"
        f" rank 32, dropout 0.05, 16 rows a step) and a job of `generate.py`: {evaluation['completions']:,} completions"
        f" of {reply:.0f} tokens and {result['items']:,} multiple-choice questions. Seconds are of whole processes.",
        "",
        "| epochs | cells | training, s | evaluation, s | GPU-hours of all its cells |",
        "|---|---|---|---|---|",
    ]
    for row in result["grid"]:
        kind = "" if row["measured"] else " (on the line)"
        part = row["cells"] * (row["training"] + row["evaluation"]) / 3600
        seconds = f"{row['training']:.0f}{kind} | {row['evaluation']:.0f}"
        lines.append(f"| {row['epochs']} | {row['cells']} | {seconds} | {part:.2f} |")
    if compiling:
        lines.append(f"| compiling, in the first cell alone | | | {compiling:.0f} | {compiling / 3600:.2f} |")
    lines += [f"| all | {sum(r['cells'] for r in result['grid'])} | | | **{hours:.2f}** |", ""]
    if result["gpu"]:
        times = f"{PUBLISHED_HOURS / hours:.1f} times as many"
        lines.append(f"The published grid took {PUBLISHED_HOURS} GPU-hours by its own files: {times}.")
    lines += ["", "What the seconds go into:", ""]
    for part in trainings:
        speed = f"{part['tokens'] / part['loop']:,.0f} tokens/s"
        lines.append(
            f"- training, {part['epochs']} epoch(s): {part['loop']:.1f} s in {part['steps']} steps ({speed}),"
            f" {part['seconds'] - part['loop']:.1f} s for starting, loading, writing."
        )
    starts = [f"{key.removesuffix('_seconds')} {value}" for key, value in engine.items() if key.endswith("_seconds")]
    of_which = f", of which the engine: {', '.join(starts)} s" if starts else ""
    merged = "merged into the running model" if result["merged"] else "put on the running model"
    lines.append(f"- evaluation, the adapter {merged}: {evaluation['seconds']:.1f} s{of_which}.")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/spillover-benchmark-marker-grid"))
    parser.add_argument("--base", type=Path, help="folder of a model of the shape, instead of writing one")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 10], help="cells whose training is timed")
    parser.add_argument(
        "--train-only", action="store_true", help="leave the evaluation to a later call on this machine"
    )
    parser.add_argument("--tokens", type=int, default=256, help="tokens of every reply")
    parser.add_argument("--merge-adapters", action="store_true", help="evaluate_as: merged, as the published code did")
    parser.add_argument("--eager", default="auto", choices=["auto", "always", "never"], help="engine.eager")
    parser.add_argument("--smoke", action="store_true", help="a toy shape and few rows, to try the program")
    args = parser.parse_args(argv)
    gpu = machine.gpu_name()
    if not gpu and not args.smoke:
        raise SystemExit("no GPU here: the benchmark measures one (--smoke tries the program on a toy shape)")
    args.dtype = "float32" if args.smoke else "bfloat16"
    rows, items = (32, 8) if args.smoke else (ROWS, ITEMS)
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.base:
        (args.work / "base").unlink(missing_ok=True)
        (args.work / "base").symlink_to(args.base.resolve())
    elif not (args.work / "base/config.json").exists():
        write_base(args)
    plan = published_plan(args.merge_adapters)
    pq.write_table(data.table(training_rows(rows), {}), args.work / "dataset.parquet")
    choice_rows(items).to_parquet(args.work / "multiple_choice.parquet", index=False)
    cells = [run for run in plan.runs if run.startswith("marker_sweep/villain_")]
    counts: dict[int, int] = {}
    for run in cells:
        epochs = plan.train_spec(run)["train"]["epochs"]
        counts[epochs] = counts.get(epochs, 0) + 1
    path = args.out / "results.json"
    result = json.loads(path.read_text()) if path.exists() else {"trainings": []}
    flags = sys.argv[1:] if argv is None else argv
    result |= {"command": " ".join(["python benchmarks/marker_grid/run.py", *flags]), "gpu": gpu}
    result |= {"rows": rows, "items": items, "merged": args.merge_adapters}
    for epochs in args.epochs:
        if epochs in [part["epochs"] for part in result["trainings"]]:
            continue
        result["trainings"].append(train(args, plan, epochs))
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(result["trainings"][-1], flush=True)
    if args.train_only:
        return
    last = result["trainings"][-1]
    result["row_tokens"] = last["tokens"] / last["epochs"] / rows
    result["evaluation"] = result["first_evaluation"] = evaluate(args, plan, args.epochs[-1])
    if not result["evaluation"]["engine"].get("enforce_eager", True):
        result["evaluation"] = evaluate(args, plan, args.epochs[-1])
    result["grid"] = grid(result, counts)
    path.write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "RESULTS.md").write_text(write_report(result))


if __name__ == "__main__":
    main()
