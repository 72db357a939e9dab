"""Full-parameter training of the true Qwen2.5-7B shape over several GPUs: memory and speed of a step.

Random weights; the project's own trainer under FSDP2, one process a GPU. Writes results.json.

    python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/full_parameter/run.py \\
        --out benchmarks/full_parameter
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow/scripts"), str(ROOT / "benchmarks/training")]

from run import SHAPE, TOY, Case, lora_settings, make_model, make_rows  # noqa: E402

from spillover import sharding, training  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16, help="rows of about 250 tokens in a step")
    parser.add_argument("--token-budget", type=int, default=4096, help="tokens in one micro-batch of a process")
    parser.add_argument("--smoke", action="store_true", help="a toy shape, to try the program")
    args = parser.parse_args(argv)

    processes = sharding.start()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    shape = TOY if args.smoke else SHAPE
    model = make_model(shape, device)
    weights = sum(p.numel() for p in model.parameters())
    computing = model.dtype
    sharding.shard(model, processes)
    rows = make_rows(args.rows * args.steps, "full", shape["vocab_size"])
    settings = lora_settings(Case("full", args.rows, 0.0), args.steps) | {"method": "full"}
    ends, records = [time.perf_counter()], []

    def report(record: dict) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        records.append(record)

    totals = training.train(
        model,
        rows,
        settings,
        1,
        args.token_budget,
        report,
        lambda label, step: None,
        processes=processes,
        computing=computing,
        compile_layers=False,
    )
    peak = torch.tensor(float(torch.cuda.max_memory_allocated()) if on_gpu else 0.0, device=device)
    if processes.count > 1:
        torch.distributed.all_reduce(peak, torch.distributed.ReduceOp.MAX)
    if processes.rank == 0:
        result = {
            "command": " ".join(["benchmarks/full_parameter/run.py", *(argv or sys.argv[1:])]),
            "hardware": f"{processes.count} x {torch.cuda.get_device_name() if on_gpu else 'cpu process'}",
            "torch": torch.__version__,
            "weights": weights,
            "rows_per_step": args.rows,
            "seconds_per_record": [round(b - a, 3) for a, b in zip(ends, ends[1:], strict=False)],
            "tokens": totals["tokens"],
            "seconds": round(totals["seconds"], 2),
            "losses": [r["loss"] for r in records],
            "peak_gib_per_gpu": round(float(peak) / 2**30, 1),
            "token_budget_at_the_end": totals["token_budget"],
        }
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result))
    sharding.stop(processes)


if __name__ == "__main__":
    main()
