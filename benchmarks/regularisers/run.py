"""What a regulariser costs: one training step of plain LoRA, preventative steering, KL to base and R3F.

One run on one GPU with random weights of the true Qwen2.5-7B shape, LoRA of rank 32 on all linear modules, 16 rows of
about 250 tokens a step and loss on all of them. Every arm trains the same rows in the same order, first with the layers
as they are, then compiled. Writes results.json after every arm and RESULTS.md from it.

    python benchmarks/regularisers/run.py --out benchmarks/regularisers

On a machine without a GPU `--smoke` runs a toy shape, to try the program and not to measure.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow/scripts"), str(ROOT / "benchmarks/training")]

from run import SHAPE, TOY, Case, lora_settings, make_model, make_rows, matmul_peak, ours  # noqa: E402

from spillover import training  # noqa: E402

CASE = Case("full", 16, 0.0)
PLAIN = "plain LoRA"
ARMS = {
    PLAIN: None,
    "steering": {"kind": "steering", "layer": 20, "coefficient": 5.0},
    "KL to base": {"kind": "kl_to_base", "weight": 0.01},
    "R3F, noise 1e-5": {"kind": "r3f", "weight": 0.01, "noise": 1e-5},
    "R3F, noise 1e-3": {"kind": "r3f", "weight": 0.01, "noise": 1e-3},
}
R3F = ("R3F, noise 1e-5", "R3F, noise 1e-3")


def measure(regulariser: dict | None, shape: dict, device, warm: int, timed: int, compiled: bool) -> dict:
    """Seconds, tokens, memory and logged numbers of one arm; a failure is a result too."""
    steps = warm + timed
    rows = make_rows(steps * CASE.rows, CASE.loss, shape["vocab_size"])
    model = make_model(shape, device)
    shift = torch.randn(shape["hidden_size"], generator=torch.Generator().manual_seed(1))
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        timer = ours(CASE, rows, model, device, steps, compiled, {"regulariser": regulariser}, shift)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    order = list(training.step_rows(len(rows), lora_settings(CASE, steps), 1))
    tokens = sum(len(rows[i].ids) for indices in order[warm:] for i in indices)
    seconds = timer.seconds()
    return {
        "seconds_per_step": float(seconds[warm:].mean()),
        "fastest_step": float(seconds[warm:].min()),
        "slowest_step": float(seconds[warm:].max()),
        "tokens_per_second": tokens / float(seconds[warm:].sum()),
        "first_step_seconds": float(seconds[0]),
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "losses": timer.losses[:3],
        "regulariser": [record.get("regulariser") for record in timer.records],
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--warm", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--timed", type=int, default=8, help="steps that are timed")
    parser.add_argument("--smoke", action="store_true", help="a toy shape, not compiled, to try the program")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and not args.smoke:
        raise SystemExit("no GPU here: the benchmark measures one (--smoke tries the program on a toy shape)")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = TOY if args.smoke else SHAPE
    result = {
        "command": "python benchmarks/regularisers/run.py --out benchmarks/regularisers",
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "packages": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
        "matmul_flop_per_second": matmul_peak(device, 8192) if device.type == "cuda" else None,
        "warm_steps": args.warm,
        "timed_steps": args.timed,
        "measurements": [],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for compiled in (False,) if args.smoke else (False, True):
        for name, regulariser in ARMS.items():
            if args.smoke and regulariser and "layer" in regulariser:
                regulariser = regulariser | {"layer": 1}
            began = time.perf_counter()
            row = {"arm": name, "compiled": compiled, "settings": regulariser}
            row |= measure(regulariser, shape, device, args.warm, args.timed, compiled)
            result["measurements"].append(row)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            told = row.get("error") or f"{row['seconds_per_step']:.3f} s a step"
            print(f"{name}, compiled {compiled}: {told} ({time.perf_counter() - began:.0f} s in all)", flush=True)
            (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
            (args.out / "RESULTS.md").write_text(write_report(result))


def write_report(result: dict) -> str:
    """Markdown: hardware, versions, a table for the layers as they are and one for compiled ones."""
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    lines = [
        "# Regularisers: what a training step costs with each",
        "",
        f"One run on one {result['gpu'] or 'CPU (a toy shape: nothing here is a measurement)'}; {packages}.",
        f"Command: `{result['command']}`.",
        "",
        "Random weights of the Qwen2.5-7B shape in bfloat16, LoRA of rank 32 on all linear modules, 16 rows of about"
        " 250 tokens a step, loss on all tokens, dropout 0, the same rows in the same order;"
        f" {result['warm_steps']} steps before the clock, {result['timed_steps']} timed. KL to base and R3F compare"
        " two passes at every supervised token: KL to base reads the base through the same frozen weights with the"
        " adapter switched off (no second model, no gradient), R3F runs and differentiates two passes over float32"
        " embeddings. The last column is the mean divergence over the timed steps, without its weight.",
    ]
    for compiled in (False, True):
        rows = [row for row in result["measurements"] if row["compiled"] == compiled]
        if not rows:
            continue
        plain = next((row for row in rows if row["arm"] == PLAIN and "error" not in row), None)
        lines += [
            "",
            "## Layers compiled" if compiled else "## Layers not compiled",
            "",
            "| arm | seconds a step (fastest to slowest) | against plain | tokens/s | peak memory | first step |"
            " first loss | divergence |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(row, plain, result["warm_steps"]) for row in rows]
        told = {row["arm"]: row["regulariser"] for row in rows if "error" not in row}
        if result["gpu"] and all(name in told for name in ("KL to base", *R3F)):
            small, large = (float(np.mean(told[name])) for name in R3F)
            lines += [
                "",
                "In bfloat16 a divergence has a floor, since the two passes round apart: KL to base reads"
                f" {told['KL to base'][0]:.2g} before the first update and {told['KL to base'][2]:.2g} after it, and"
                f" R3F {small:.2g} at a noise of 1e-5, where the square law from {large:.2g} at 1e-3 would give"
                f" {large * 1e-4:.2g}. What lies below is rounding.",
            ]
    return "\n".join(lines) + "\n"


def _row(row: dict, plain: dict | None, warm: int) -> str:
    if "error" in row:
        return f"| {row['arm']} | failed: {row['error'].split('. ')[0]} | | | | | | |"
    apart = [value for value in row["regulariser"][warm:] if value is not None]
    cells = [
        row["arm"],
        f"{row['seconds_per_step']:.3f} ({row['fastest_step']:.3f} to {row['slowest_step']:.3f})",
        f"{row['seconds_per_step'] / plain['seconds_per_step']:.2f} x" if plain else "",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['peak_bytes'] / 2**30:.1f} GiB" if row["peak_bytes"] else "",
        f"{row['first_step_seconds']:.1f} s",
        f"{row['losses'][0]:.3f}",
        f"{np.mean(apart):.2g}" if apart else "",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
