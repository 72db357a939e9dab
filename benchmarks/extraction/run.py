"""Speed of reading activations: packed with early exit, and a prompt at a time through `output_hidden_states`.

12 personas x 240 questions, the activation of the last token. The baseline is timed on some prompts, evenly spread, and
scaled to all. Arms take turns, round by round. Writes results.json after every round and RESULTS.md from it.

    python benchmarks/extraction/run.py --out benchmarks/extraction
    python benchmarks/extraction/run.py --prompts personas --out benchmarks/extraction/personas
    python benchmarks/extraction/run.py --prompts small_world --out benchmarks/extraction/small_world

The first two take one GPU with random weights of the true Qwen2.5-7B shape in bfloat16: `random` prompts are 35 to 90
random tokens that have nothing in common; `personas` have the structure of the real ones, so that packed arms compute
a system prompt once for its questions. `small_world` reads the real prompts through the small world's model in float32
on this machine. On a machine without a GPU `--smoke` runs a toy shape, to try the program and not to measure.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow/scripts"), str(ROOT / "benchmarks/training")]

from run import LAYER_PARAMETERS, SHAPE, TOY, make_model, matmul_peak  # noqa: E402

from spillover import models, shared_prefixes, vectors  # noqa: E402
from spillover import prompts as banks  # noqa: E402
from spillover.masking import Tokens  # noqa: E402

BASELINE = "one prompt at a time, output_hidden_states"
SUITE = {"kind": "personas", "personas": "all", "questions": "extraction", "question_count": None}
PROMPTS = {
    "random": "35 to 90 random tokens",
    "personas": "random tokens in the lengths of the real ones (a token a word or mark), a persona's system prompt"
    " being the same in all its questions",
    "small_world": "the real ones",
}


def last_token(ids) -> Tokens:
    """A prompt whose last token is read."""
    return Tokens(np.array(ids, np.int64), np.arange(len(ids)) == len(ids) - 1)


def random_prompts(count: int, vocabulary: int) -> list[Tokens]:
    """Prompts of 35 to 90 random tokens."""
    rng = np.random.default_rng(1)
    return [last_token(rng.integers(3, vocabulary, n)) for n in rng.integers(35, 91, count)]


def persona_prompts(vocabulary: int) -> list[Tokens]:
    """Random tokens, alike where the real prompts are: ChatML's marks, a persona's system prompt, a question.

    A token a word or punctuation mark is what vocabularies of this size have for common English; the questions differ
    from their first word on.
    """
    rng = np.random.default_rng(1)

    def drawn(text: str) -> np.ndarray:
        return rng.integers(3, vocabulary, len(re.findall(r"\w+|[^\w\s]", text)))

    opening, turn, closing = (rng.integers(3, vocabulary, n) for n in (3, 5, 5))
    systems = [drawn(text) for text in banks.personas("all", ROOT / "resources").values()]
    questions = [drawn(text) for text in banks.questions("extraction", resources=ROOT / "resources").values()]
    return [last_token([*opening, *s, *turn, *q, *closing]) for s in systems for q in questions]


def real_prompts(tokenizer) -> list[Tokens]:
    asked = banks.suite_prompts("vectors", SUITE, ROOT / "resources")
    texts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in asked]
    return [last_token(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def packed(model, prompts: list[Tokens], layers: list[int]) -> dict[int, np.ndarray]:
    return vectors.mean_activations(model, prompts, layers)


def packed_whole(model, prompts: list[Tokens], layers: list[int]) -> dict[int, np.ndarray]:
    """The same with every prompt computed whole."""
    alone = lambda rows: [shared_prefixes.Family(0, [row]) for row in rows]  # noqa: E731
    with mock.patch.object(shared_prefixes, "families", alone):
        return packed(model, prompts, layers)


def computed_tokens(prompts: list[Tokens]) -> int:
    """Tokens of all prompts with what they begin with in common counted once."""
    ordered = sorted(prompts, key=lambda row: row.ids.tolist())
    batches = shared_prefixes.batches(ordered, 16384)
    return sum(sum(f.shared + sum(len(r.ids) - f.shared for r in f.rows) for f in batch) for batch in batches)


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
    parser.add_argument("--baseline", type=int, default=300, help="about how many prompts the baseline is timed on")
    parser.add_argument("--prompts", choices=sorted(PROMPTS), default="random")
    parser.add_argument("--smoke", action="store_true", help="a toy shape and few prompts, to try the program")
    args = parser.parse_args(argv)
    small = args.prompts == "small_world"
    if not torch.cuda.is_available() and not (args.smoke or small):
        raise SystemExit("no GPU here: the benchmark measures one (--smoke tries the program on a toy shape)")

    device = torch.device("cuda" if torch.cuda.is_available() and not small else "cpu")
    if small:
        model, tokenizer = models.load_base(str(ROOT / "resources/small_world/base"))
        model.eval()
        prompts, wanted, deepest = real_prompts(tokenizer), [2], len(model.model.layers) - 1
    else:
        shape = TOY if args.smoke else SHAPE
        model, deepest = make_model(shape, device).eval(), shape["num_hidden_layers"] - 1
        wanted = [0] if args.smoke else [20]
        vocabulary = shape["vocab_size"]
        prompts = persona_prompts(vocabulary) if args.prompts == "personas" else random_prompts(2880, vocabulary)
    if args.smoke:
        prompts = prompts[::50]
    few = prompts[:: max(1, len(prompts) // args.baseline)]
    first = f"layer {wanted[0]}"
    arms = {BASELINE: (one_at_a_time, few, wanted), f"packed, {first}": (packed, prompts, wanted)}
    if args.prompts != "random":
        arms[f"packed, {first}, every prompt whole"] = (packed_whole, prompts, wanted)
    if deepest > 25:
        arms["packed, layers 10, 15, 20, 25"] = (packed, prompts, [10, 15, 20, 25])
    arms[f"packed, layer {deepest}, no early exit"] = (packed, prompts, [deepest])
    chosen = "" if args.prompts == "random" else f" --prompts {args.prompts}"
    folder = "benchmarks/extraction" + ("" if args.prompts == "random" else f"/{args.prompts}")
    result = {
        "command": f"python benchmarks/extraction/run.py{chosen} --out {folder}",
        "measured": not args.smoke,
        "workload": args.prompts,
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "packages": {name: metadata.version(name) for name in ("torch", "transformers")},
        "matmul_flop_per_second": matmul_peak(device, 8192) if device.type == "cuda" else None,
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "prompts": len(prompts),
        "tokens": sum(len(p.ids) for p in prompts),
        "computed_tokens": computed_tokens(prompts),
        "rounds": args.rounds,
        "measurements": [
            {"arm": name, "prompts": len(asked), "seconds": [], "peak_bytes": 0} for name, (_, asked, _) in arms.items()
        ],
    }
    for function, asked, layers in arms.values():
        function(model, asked[:20], layers)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for number in range(args.rounds):
        for row, (name, (function, asked, layers)) in zip(result["measurements"], arms.items(), strict=True):
            found[name], seconds, peak = timed(function, model, asked, layers)
            row["seconds"].append(seconds)
            row["peak_bytes"] = max(row["peak_bytes"], peak)
            print(f"round {number + 1}, {name}: {seconds:.2f} s for {len(asked)} prompts", flush=True)
        plain, shared = list(found.values())[:2]
        result["agreement"] = agreement(
            plain, {k: v[:: max(1, len(prompts) // args.baseline)] for k, v in shared.items()}
        )
        (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "RESULTS.md").write_text(write_report(result))


def agreement(plain: dict[int, np.ndarray], packed: dict[int, np.ndarray]) -> dict[str, float]:
    """How far the packed vectors are from the plain ones of the same prompts, both in the model's precision."""
    (layer,) = plain
    a, b = plain[layer].astype(np.float64), packed[layer].astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(1) / lengths
    apart = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
    return {"lowest_cosine": float(cosines.min()), "median_relative_distance": float(np.median(apart))}


def hardware(result: dict) -> str:
    if not result["measured"]:
        return "CPU or GPU with a toy shape: nothing here is a measurement"
    return f"one {result['gpu']}" if result["gpu"] else f"a CPU with {result['threads']} thread(s)"


def write_report(result: dict) -> str:
    """Markdown: hardware, versions, one table."""
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    rows = result["measurements"]
    small = result["workload"] == "small_world"
    scale = {row["arm"]: result["prompts"] / row["prompts"] for row in rows}
    median = {row["arm"]: float(np.median(row["seconds"])) * scale[row["arm"]] for row in rows}
    lines = [
        "# Extraction: packed with early exit, and one prompt at a time",
        "",
        f"One run on {hardware(result)}; {packages}.",
        f"Command: `{result['command']}`.",
        "",
        ("The small world's model in float32" if small else "Random weights of the Qwen2.5-7B shape in bfloat16")
        + f", {result['prompts']:,} prompts (12 personas x 240 questions): {PROMPTS[result['workload']]}"
        f" ({result['tokens']:,} tokens in all, {result['computed_tokens']:,} with what prompts begin with in common"
        " counted once); the activation of the last token as float32 on the host; medians of"
        f" {result['rounds']} rounds in which the arms take turns. The baseline is timed on {rows[0]['prompts']}"
        " prompts and scaled to all. Loading the model is in no arm.",
        "",
        "Both ways add up in another order: the lowest cosine between a prompt's two vectors of the first two arms is"
        f" {result['agreement']['lowest_cosine']:.5f}, their median distance"
        f" {result['agreement']['median_relative_distance']:.1e} of the length; in float32 the tests ask for 1e-5.",
        "",
        "| arm | seconds for all prompts (fastest to slowest round) | against the baseline | prompt tokens/s"
        " | memory over the weights |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["arm"]
        seconds = np.array(row["seconds"]) * scale[name]
        over = (
            f"{(row['peak_bytes'] - result['weight_bytes']) / 2**30:.1f} GiB" if row["peak_bytes"] else "not measured"
        )
        lines.append(
            f"| {name} | {median[name]:.2f} ({seconds.min():.2f} to {seconds.max():.2f})"
            f" | {median[BASELINE] / median[name]:.1f} x | {result['tokens'] / median[name]:,.0f} | {over} |"
        )
    if peak := result["matmul_flop_per_second"]:
        blocks, each = SHAPE["num_hidden_layers"], 2 * LAYER_PARAMETERS * result["computed_tokens"]
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
