"""The tables of the evaluation benchmark, from its JSON. Run by itself, it writes RESULTS.md anew from results.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean

BASELINE = "merge and a fresh engine per adapter"
ONE = ("ours, one job, merged", "ours, one job")
"""One engine for all adapters: starting it counts once."""
JOBS = ("ours, a job per adapter, merged", "ours, a job per adapter, merged, eager")
OURS = ("import", "start", "live", "generate", "choices", "other")
PARTS = {BASELINE: ("import", "load", "merge", "write", "start", "generate", "choices", "other")}
PARTS |= {name: OURS for name in (*ONE, *JOBS)}


def write_tables(result: dict) -> str:
    """Markdown: hardware, versions, one row an arm with seconds for all adapters, itemised."""
    packages = ", ".join(f"{name} {version}" for name, version in result.get("packages", {}).items())
    wanted = result.get("adapters", 0)
    lines = [
        "# Evaluating adapters: one engine for all, and merging with a fresh engine for each",
        "",
        f"One run on one {result.get('gpu') or 'CPU (a toy shape: nothing here is a measurement)'}; {packages}.",
        f"Command: `{result.get('command', '')}`.",
        "",
        f"Random weights of the Qwen2.5-7B shape, {wanted} adapters of rank 32 on all linear modules, each completing "
        f"{result.get('completions', 0):,} prompts by {result.get('tokens', 0)} tokens at temperature 1 and answering "
        f"{result.get('items', 0):,} multiple-choice questions. The baseline merges through PEFT, writes all weights "
        "and starts vLLM at its own settings; ours puts adapters on a running engine or merges them into its weights, "
        "seeds every completion by itself and checks that every adapter is applied. Compile caches are warm.",
        "",
        "| arm | timed | seconds for all | against the baseline | tokens/s while generating | memory |",
        "|---|---|---|---|---|---|",
    ]
    arms = {name: _arm(name, result["stages"]) for name in PARTS}
    baseline = _total(BASELINE, arms[BASELINE], wanted) if arms[BASELINE] else None
    for name, arm in arms.items():
        if not arm:
            continue
        seconds = _total(name, arm, wanted)
        projected = "" if arm["adapters"] >= wanted else ", the rest projected"
        ratio = f"{baseline / seconds:.1f} x" if baseline else ""
        memory = f"{arm['memory_bytes'] / 2**30:.0f} GiB" if arm.get("memory_bytes") else ""
        lines.append(
            f"| {name} | {arm['adapters']} of {wanted}{projected} | {seconds:,.0f} | {ratio} | "
            f"{arm['tokens'] / arm['generate']:,.0f} | {memory} |"
        )
    without = [
        f"{_replies(BASELINE, arms[BASELINE], wanted) / _replies(name, arm, wanted):.1f} x ({name})"
        for name, arm in arms.items()
        if arm and baseline and name != BASELINE
    ]
    if without:
        lines += ["", f"Without the multiple-choice questions: {', '.join(without)}."]
    lines += ["", "Seconds of an adapter (of the whole job where one serves all), by part:", ""]
    for name, arm in arms.items():
        if arm:
            per = 1 if name in ONE else arm["adapters"]
            parts = ", ".join(f"{part} {arm[part] / per:.1f}" for part in PARTS[name])
            lines.append(f"- {name}: {parts}.")
    lines.append("")
    lines += [f"Failed: {name}: {stage['error']}." for name, stage in result["stages"].items() if "error" in stage]
    return "\n".join(lines) + "\n"


def _arm(name: str, stages: dict) -> dict | None:
    """Sums of an arm's parts over the adapters it was timed for, or None."""
    if name == BASELINE:
        numbers = [n.split()[1] for n in stages if n.startswith("engine ")]
        done = [stages[f"merge {n}"] | stages[f"engine {n}"] for n in numbers]
        for both, n in zip(done, numbers, strict=True):
            both["import"] = stages[f"merge {n}"].get("import", 0) + stages[f"engine {n}"].get("import", 0)
            both["process"] = stages[f"merge {n}"].get("process", 0) + stages[f"engine {n}"].get("process", 0)
    else:
        done = [stage for key, stage in stages.items() if re.fullmatch(rf"{re.escape(name)}( \d+)?", key)]
    done = [stage | {"process": _seconds(stage)} for stage in done if _seconds(stage) and "generate" in stage]
    if not done:
        return None
    arm = {part: sum(stage.get(part, 0.0) for stage in done) for part in PARTS[name] if part != "other"}
    arm["other"] = sum(stage["process"] for stage in done) - sum(arm.values())
    arm["adapters"] = sum(stage.get("adapters", 1) for stage in done)
    arm["memory_bytes"] = fmean(stage.get("memory_bytes") or 0 for stage in done)
    return arm | {"tokens": sum(stage["tokens"] for stage in done), "process": sum(s["process"] for s in done)}


def _seconds(stage: dict) -> float | None:
    """Of a stage's process; of one that was interrupted, until its last finished adapter."""
    return stage.get("elapsed") if "error" in stage or "process" not in stage else stage["process"]


def _total(name: str, arm: dict, wanted: int) -> float:
    """Seconds for all adapters wanted: what an arm does once for all of them counts once."""
    once = sum(arm[part] for part in ("import", "start", "other")) if name in ONE else 0.0
    return once + (arm["process"] - once) * wanted / arm["adapters"]


def _replies(name: str, arm: dict, wanted: int) -> float:
    """Seconds for all adapters wanted, without the multiple-choice questions."""
    return _total(name, arm, wanted) - arm["choices"] * wanted / arm["adapters"]


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "RESULTS.md").write_text(write_tables(json.loads((folder / "results.json").read_text())))
