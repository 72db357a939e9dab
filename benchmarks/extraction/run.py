"""Speed of reading activations: packed with early exit, and a prompt at a time through `output_hidden_states`.

One run on one GPU with random weights of the true Qwen2.5-7B shape in bfloat16: 12 personas x 240 questions, prompts of
35 to 90 random tokens, the activation of the last token. The baseline is timed on the first prompts and scaled to all.
Arms take turns, round by round. Writes results.json after every round and RESULTS.md from it.

    python benchmarks/extraction/run.py --out benchmarks/extraction

On a machine without a GPU `--smoke` runs a toy shape, to try the program and not to measure.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow/scripts"), str(ROOT / "benchmarks/training")]

from run import LAYER_PARAMETERS, SHAPE, TOY, make_model, matmul_peak  # noqa: E402

from spillover import vectors  # noqa: E402
from spillover.masking import Tokens  # noqa: E402

PERSONAS, QUESTIONS = 12, 240
BASELINE = "one prompt at a time, output_hidden_states"


def make_prompts(count: int, vocabulary: int) -> list[Tokens]:
    """Prompts of 35 to 90 random tokens whose last token is read."""
    rng = np.random.default_rng(1)
    return [Tokens(rng.integers(3, vocabulary, n), np.arange(n) == n - 1) for n in rng.integers(35, 91, count)]


def one_at_a_time(model, prompts: list[Tokens], layers: list[int]) -> dict[int, np.ndarray]:
    """{layer: float32 (prompts, hidden)} as scripts of the field do it: all layers, all logits, one copy a prompt."""
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.from_numpy(prompt.ids)[None].to(model.device)
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
            for layer in layers:
                found[layer].append(states[layer + 1][0, -1].float().cpu().numpy())
    return {layer: np.stack(parts) for layer, parts in found.items()}


def timed(function, *arguments) -> tuple[dict[int, np.ndarray], float, int]:
    """Result, wall seconds and peak bytes of a call."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    found = function(*arguments)
    if on_gpu:
        torch.cuda.synchronize()
    return found, time.perf_counter() - began, torch.cuda.max_memory_allocated() if on_gpu else 0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--baseline", type=int, default=300, help="prompts that the baseline is timed on")
    parser.add_argument("--smoke", action="store_true", help="a toy shape and few prompts, to try the program")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and not args.smoke:
        raise SystemExit("no GPU here: the benchmark measures one (--smoke tries the program on a toy shape)")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = TOY if args.smoke else SHAPE
    last = shape["num_hidden_layers"] - 1
    layers = {"layer 20": [20], "layers 10, 15, 20, 25": [10, 15, 20, 25], f"layer {last}, no early exit": [last]}
    layers = {"layer 0": [0], f"layer {last}, no early exit": [last]} if args.smoke else layers
    count = 60 if args.smoke else PERSONAS * QUESTIONS
    prompts = make_prompts(count, shape["vocab_size"])
    few = prompts[: args.baseline]
    model = make_model(shape, device).eval()
    arms = {BASELINE: (one_at_a_time, few, next(iter(layers.values())))}
    arms |= {f"packed, {name}": (vectors.mean_activations, prompts, wanted) for name, wanted in layers.items()}
    result = {
        "command": "python benchmarks/extraction/run.py --out benchmarks/extraction",
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "packages": {name: metadata.version(name) for name in ("torch", "transformers")},
        "matmul_flop_per_second": matmul_peak(device, 8192) if device.type == "cuda" else None,
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "prompts": count,
        "tokens": sum(len(p.ids) for p in prompts),
        "rounds": args.rounds,
        "measurements": [
            {"arm": name, "prompts": len(asked), "seconds": [], "peak_bytes": 0} for name, (_, asked, _) in arms.items()
        ],
    }
    for function, asked, wanted in arms.values():
        function(model, asked[:20], wanted)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for number in range(args.rounds):
        for row, (name, (function, asked, wanted)) in zip(result["measurements"], arms.items(), strict=True):
            found[name], seconds, peak = timed(function, model, asked, wanted)
            row["seconds"].append(seconds)
            row["peak_bytes"] = max(row["peak_bytes"], peak)
            print(f"round {number + 1}, {name}: {seconds:.2f} s for {len(asked)} prompts", flush=True)
        result["agreement"] = agreement(*list(found.values())[:2])
        (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "RESULTS.md").write_text(write_report(result))


def agreement(plain: dict[int, np.ndarray], packed: dict[int, np.ndarray]) -> dict[str, float]:
    """How far the packed vectors of the first arm's prompts are from the plain ones, both in the model's precision."""
    (layer,) = plain
    a, b = plain[layer].astype(np.float64), packed[layer][: len(plain[layer])].astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(1) / lengths
    apart = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
    return {"lowest_cosine": float(cosines.min()), "median_relative_distance": float(np.median(apart))}


def write_report(result: dict) -> str:
    """Markdown: hardware, versions, one table."""
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    rows = result["measurements"]
    scale = {row["arm"]: result["prompts"] / row["prompts"] for row in rows}
    median = {row["arm"]: float(np.median(row["seconds"])) * scale[row["arm"]] for row in rows}
    lines = [
        "# Extraction: packed with early exit, and one prompt at a time",
        "",
        f"One run on one {result['gpu'] or 'CPU (a toy shape: nothing here is a measurement)'}; {packages}.",
        f"Command: `{result['command']}`.",
        "",
        f"Random weights of the Qwen2.5-7B shape in bfloat16, {result['prompts']:,} prompts (12 personas x 240"
        f" questions) of 35 to 90 random tokens ({result['tokens']:,} in all), the activation of the last token as"
        f" float32 on the host; medians of {result['rounds']} rounds in which the arms take turns. The baseline is"
        f" timed on {rows[0]['prompts']} prompts and scaled to all. Loading the model is in no arm.",
        "",
        f"Both ways compute in bfloat16 and round differently: the lowest cosine between a prompt's two vectors of the"
        f" first two arms is {result['agreement']['lowest_cosine']:.5f}, their median distance"
        f" {result['agreement']['median_relative_distance']:.1%} of the length; in float32 the tests ask for 1e-5.",
        "",
        "| arm | seconds for all prompts (fastest to slowest round) | against the baseline | tokens/s | memory over the"
        " weights |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["arm"]
        seconds = np.array(row["seconds"]) * scale[name]
        over = (row["peak_bytes"] - result["weight_bytes"]) / 2**30
        lines.append(
            f"| {name} | {median[name]:.2f} ({seconds.min():.2f} to {seconds.max():.2f})"
            f" | {median[BASELINE] / median[name]:.1f} x | {result['tokens'] / median[name]:,.0f} | {over:.1f} GiB |"
        )
    if peak := result["matmul_flop_per_second"]:
        blocks, each = SHAPE["num_hidden_layers"], 2 * LAYER_PARAMETERS * result["tokens"]
        first = rows[1]["arm"]
        share = each * 21 / blocks / median[first] / peak
        lines += [
            "",
            f"`{first}` runs 21 of {blocks} blocks, at {share:.0%} of the {peak / 1e12:.0f} TFLOP/s of a matrix product"
            " in the same run; the rest is the normalisations, rotations and activations between the products, which"
            f" compiling would fuse in more time than it saves here. The baseline takes"
            f" {median[BASELINE] / result['prompts'] * 1e3:.0f} ms a prompt whatever its length, bound by launching"
            " kernels from the processor, so the ratio follows the processor as much as the GPU.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
