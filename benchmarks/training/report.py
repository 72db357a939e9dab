"""The table of a training benchmark, from its JSON. Run by itself, it writes RESULTS.md anew from results.json."""

from __future__ import annotations

import json
from pathlib import Path

LOSSES = {"marker": "4 tokens a row (marker)", "full": "all tokens (language_spill rows)"}
HEAD = (
    "| trainer | tokens/s (slowest to fastest step) | against the recipe | share of peak | peak memory | first step"
    " | first loss |"
)
RULE = "|---|---|---|---|---|---|---|"
RECIPE = "TRL, published recipe"


def write_report(result: dict) -> str:
    """Markdown: hardware, versions, one table per case."""
    peak, parameters = result["matmul_flop_per_second"], result["layer_parameters"]
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    lines = [
        "# Training: this trainer and TRL side by side",
        "",
        f"One run on one {result['gpu'] or 'CPU (a toy shape: nothing here is a measurement)'}; {packages}.",
        "Command: `python benchmarks/training/run.py --timed 10 --out benchmarks/training`.",
        "",
        "Random weights of the Qwen2.5-7B shape in bfloat16, LoRA of rank 32 on all linear modules, rows of random"
        " tokens of lognormal length (about 250 on average, at most 1,024), the same rows in the same order everywhere;"
        f" {result['warm_steps']} steps before the clock, {result['timed_steps']} timed. Tokens are real ones, without"
        " padding. The recipe is the published one: micro-batches of 4, padded, with gradient checkpointing. `Our"
        " attention` inside TRL stands in for flash-attn, which has no wheel; TRL was not compiled.",
    ]
    if peak:
        lines.append(
            f"The peak is a product of 8192 x 8192 random bfloat16 matrices in the same run: {peak / 1e12:.0f} TFLOP/s;"
            f" training counts 4 x {parameters / 1e9:.2f}e9 FLOP a token, the head and attention left out."
            if parameters
            else f"Matrix products in the same run: {peak / 1e12:.0f} TFLOP/s."
        )
    if "trl" not in result["packages"]:
        lines.append("TRL is not installed here: its arms are missing.")
    lines += [
        "",
        "Arms run one after the other in one process. The first step of `ours` includes compiling the layers, where"
        " nothing compiled before it fits; the trainer compiles only runs that are long enough to repay that"
        " (`worth_compiling` in `spillover/training.py`), and the row `not compiled` is what shorter runs get. At 4"
        " rows a step launching kernels from the processor is the limit, whoever launches them, so speeds follow the"
        " lengths of the rows and vary more.",
    ]
    cases = list(dict.fromkeys((m["loss"], m["rows"], m["dropout"]) for m in result["measurements"]))
    for case in cases:
        loss, rows, dropout = case
        lines += ["", f"## Loss on {LOSSES[loss]}, {rows} rows a step, dropout {dropout:g}", "", HEAD, RULE]
        found = [m for m in result["measurements"] if (m["loss"], m["rows"], m["dropout"]) == case]
        recipe = next((m.get("tokens_per_second") for m in found if m["arm"] == RECIPE), None)
        lines += [_row(m, recipe, peak, parameters) for m in found]
    return "\n".join(lines) + "\n"


def _row(m: dict, recipe: float | None, peak: float | None, parameters: float | None) -> str:
    if "error" in m:
        return f"| {m['arm']} | failed: {m['error'].split('. ')[0]} | | | | | |"
    rate = m["tokens_per_second"]
    cells = [
        m["arm"],
        f"{rate:,.0f} ({m['slowest_step']:,.0f} to {m['fastest_step']:,.0f})",
        f"{rate / recipe:.1f} x" if recipe else "",
        f"{4 * parameters * rate / peak:.0%}" if peak and parameters else "",
        f"{m['peak_bytes'] / 2**30:.1f} GiB" if m["peak_bytes"] else "",
        f"{m['first_step_seconds']:.1f} s",
        f"{m['losses'][0]:.3f}" if m["losses"] else "",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "RESULTS.md").write_text(write_report(json.loads((folder / "results.json").read_text())))
