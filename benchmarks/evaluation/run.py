"""Evaluating 25 adapters side by side: this project's engine, and the usual merge with a fresh engine per adapter.

One run on one GPU with random weights of the true Qwen2.5-7B shape: the speed of generation does not depend on what the
weights are. Every adapter (rank 32, all linear modules) completes the same 2,200 prompts (11 personas x 20 questions x
10 samples) by 200 tokens and answers 1,172 multiple-choice questions by log-probability. Our engine puts adapters on
the running model (LoRARequest) or merges them into its weights, one after the other. Each stage is a process of its
own, so every start is real. Compiled graphs are cached by stages that are not counted. A stage that has a result in
--out is not run again: after an interruption the same command goes on (on the same machine: --work must still be
there).

    python benchmarks/evaluation/run.py --out benchmarks/evaluation

Baselines are timed for --baselines adapters, our jobs of one adapter for --jobs, one job without merging for --applied,
and projected for the rest, which the table says. Needs torch, transformers, peft and vllm in the running interpreter,
and 45 GB in --work. `--smoke` tries the program on a toy shape.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow/scripts"), str(ROOT / "benchmarks/training"), str(ROOT / "benchmarks")]

import machine  # noqa: E402
import random_model  # noqa: E402

from tables import write_tables  # noqa: E402  isort: skip

GROUP = 5
"""Adapters in one call of the engine that serves all of them: after each the result so far is written."""
ITEMS, ITEM_TOKENS, LETTERS = 1172, 110, 4
"""ARC-Challenge's test questions, as many tokens of random text."""
FIRST_LETTER = range(40, 40 + LETTERS)
"""Tokens in the place of A to D."""


def prepare(args) -> dict:
    """The base model's folder and every adapter's."""
    import torch
    from peft import LoraConfig, get_peft_model

    shape, modules = sizes(args)
    began = time.perf_counter()
    model = random_model.write(args.work / "base", shape, args.dtype)
    config = LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=64, use_rslora=True, target_modules=modules)
    wrapped = get_peft_model(model, config)
    for number in range(args.adapters):
        torch.manual_seed(number)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.01)
        wrapped.save_pretrained(args.work / f"adapter{number}")
    return {"seconds": time.perf_counter() - began}


def merge(args, number: int) -> dict:
    """The published way: base and adapter through PEFT, merged in memory, all weights written."""
    began = time.perf_counter()
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    imported = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(args.work / "base", dtype=getattr(torch, args.dtype)).to(device)
    loaded = time.perf_counter()
    model = PeftModel.from_pretrained(model, args.work / f"adapter{number}").merge_and_unload()
    merged = time.perf_counter()
    model.save_pretrained(args.work / "merged")
    random_model.copy_tokenizer(args.work / "merged")
    ends = {"import": imported - began, "load": loaded - imported, "merge": merged - loaded}
    return ends | {"write": time.perf_counter() - merged}


def fresh_engine(args) -> dict:
    """vLLM at its own settings on the merged model, ten samples of a prompt in one request."""
    began = time.perf_counter()
    import vllm

    from spillover import engines, models

    imported = time.perf_counter()
    llm = vllm.LLM(
        model=str(args.work / "merged"), dtype=args.dtype, max_model_len=2048, generation_config="vllm",
        skip_tokenizer_init=True,
    )  # fmt: skip
    started = time.perf_counter()
    works = suite(args, None)
    tokenizer = models.load_tokenizer(str(args.work / "base"))
    ids = [{"prompt_token_ids": p} for p in engines.encode(tokenizer, works.prompts)]
    params = vllm.SamplingParams(
        n=works.samples, temperature=1.0, max_tokens=works.max_tokens, ignore_eos=True, detokenize=False
    )
    outputs = llm.generate(ids, params)
    generated = time.perf_counter()
    letters = vllm.SamplingParams(
        temperature=0.0, max_tokens=1, logprobs=LETTERS, logprob_token_ids=list(FIRST_LETTER), detokenize=False
    )
    llm.generate([{"prompt_token_ids": row.tolist()} for row in choice_rows(args.items)], letters)
    tokens = sum(len(o.token_ids) for request in outputs for o in request.outputs)
    ends = {"import": imported - began, "start": started - imported, "generate": generated - started}
    return ends | {"choices": time.perf_counter() - generated, "tokens": tokens, "memory_bytes": memory()}


def ours(args, numbers: list[int], eager: str, merged: bool, write, start_only: bool = False) -> dict:
    """This project's engine with these adapters; `write` gets the result so far after every group."""
    started = time.perf_counter()
    import numpy as np

    from spillover import engine_vllm, engines, measures, models

    adapters = {f"step{n}": str(args.work / f"adapter{n}") for n in numbers}
    served = engines.Served(str(args.work / "base"), None, args.dtype, "benchmark", adapters, merged)
    tokenizer = models.load_tokenizer(served.base)
    works = [suite(args, checkpoint) for checkpoint in adapters]
    options = engines.Options(eager=eager, cache=str(args.work / "cache"))
    engine = engine_vllm.Vllm(served, options, tokenizer, works, [])
    if start_only:
        return dict(engine.seconds)
    result = dict(engine.seconds) | {"eager": engine.chosen["enforce_eager"], "adapters": 0, "tokens": 0}
    result |= {"live": 0.0, "generate": 0.0, "choices": 0.0}
    asked = [
        measures.Asked(ids, np.full(LETTERS, len(ids) - 1), np.array(FIRST_LETTER), np.arange(LETTERS))
        for ids in choice_rows(args.items)
    ]
    size = 1 if merged else GROUP
    for first in range(0, len(works), size):
        group = works[first : first + size]
        began = time.perf_counter()
        for work in group:
            engines.assert_adapter_is_live(engine, work.checkpoint, work.prompts[:2], tokenizer)
        alive = time.perf_counter()
        done = engine.generate(group, seed=1)
        generated = time.perf_counter()
        for work in group:
            engine.log_probabilities(work.checkpoint, asked)
        result["live"] += alive - began
        result["generate"] += generated - alive
        result["choices"] += time.perf_counter() - generated
        result["adapters"] += len(group)
        result["tokens"] += sum(c.completion_tokens for completions in done for c in completions)
        result |= {"memory_bytes": memory(), "elapsed": time.perf_counter() - started}
        write(result)
    return result


def choice_rows(count: int) -> list:
    """Random token ids in place of questions, each (ITEM_TOKENS,)."""
    import numpy as np

    rng = np.random.default_rng(0)
    return [rng.integers(3, 3000, ITEM_TOKENS) for _ in range(count)]


def suite(args, checkpoint: str | None):
    """The published evaluation of one adapter: 11 personas, 20 questions, ten samples."""
    from spillover import engines, prompts

    asked = {"kind": "personas", "personas": "evaluation", "questions": "evaluation", "question_count": args.questions}
    found = prompts.suite_prompts("personas", asked, str(ROOT / "resources"))
    return engines.Work(checkpoint, found, args.samples, 1.0, 1.0, args.tokens)


def sizes(args) -> tuple[dict, list[str]]:
    from run import MODULES, SHAPE, TOY

    # vLLM on a CPU has no attention for heads of 16
    return (TOY | {"hidden_size": 128} if args.smoke else SHAPE), MODULES


def memory() -> int | None:
    """Bytes in use on the GPU, by all processes."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return max(map(int, told)) * 2**20 if told else None


def stages(args) -> dict:
    """{name: what a process of its own does}, in order; those that only warm caches count nowhere."""
    found = {"prepare": lambda write: prepare(args)}
    for n in range(args.baselines):
        found[f"merge {n}"] = lambda write, n=n: merge(args, n)
        if n == 0:
            found["warm baseline"] = lambda write: fresh_engine(args)
        found[f"engine {n}"] = lambda write: fresh_engine(args)
    applied = list(range(args.applied))
    if machine.gpu_name():  # vLLM for CPUs packs its weights
        found |= merging(args)
    found["warm ours"] = lambda write: ours(args, applied, "never", False, write, start_only=True)
    found["ours, one job"] = lambda write: ours(args, applied, "never", False, write)
    return found


def merging(args) -> dict:
    """The stages in which our engine merges."""
    found = {"warm ours, merged": lambda write: ours(args, [0], "never", True, write, start_only=True)}
    everything = list(range(args.adapters))
    found["ours, one job, merged"] = lambda write: ours(args, everything, "never", True, write)
    for n in range(args.jobs):
        found[f"ours, a job per adapter, merged {n}"] = lambda write, n=n: ours(args, [n], "never", True, write)
        found[f"ours, a job per adapter, merged, eager {n}"] = lambda write, n=n: ours(args, [n], "always", True, write)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/spillover-benchmark-evaluation"))
    parser.add_argument("--adapters", type=int, default=25)
    parser.add_argument("--baselines", type=int, default=3, help="adapters for which the baseline is timed")
    parser.add_argument("--jobs", type=int, default=1, help="adapters for which a job of its own is timed")
    parser.add_argument("--applied", type=int, default=10, help="adapters that one job applies without merging")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--items", type=int, default=ITEMS, help="multiple-choice questions by log-probability")
    parser.add_argument("--smoke", action="store_true", help="a toy shape in float32, on a CPU if there is no GPU")
    parser.add_argument("--stage", help="run this stage alone, in this process")
    args = parser.parse_args(argv)
    if args.stage != "prepare" and not util.find_spec("vllm"):
        raise SystemExit(f"{sys.executable} has no vLLM: run this with .venv-vllm/bin/python (make env-vllm builds it)")
    args.dtype = "float32" if args.smoke else "bfloat16"
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    result = json.loads(path.read_text()) if path.exists() else {"stages": {}}

    def record(name: str, values: dict) -> None:
        result["stages"][name] = values
        path.write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "RESULTS.md").write_text(write_tables(result))

    if args.stage:
        record(args.stage, stages(args)[args.stage](lambda values: record(args.stage, values | {"unfinished": True})))
        return
    packages = ("torch", "transformers", "peft", "vllm")
    result |= {
        "command": " ".join(["python benchmarks/evaluation/run.py", *(sys.argv[1:] if argv is None else argv)]),
        "gpu": machine.gpu_name(),
        "packages": {name: machine.version(name) for name in packages},
        "adapters": args.adapters,
        "completions": 11 * args.questions * args.samples,
        "tokens": args.tokens,
        "items": args.items,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    for name in stages(args):
        done = result["stages"].get(name)
        if done and not done.get("unfinished") and "error" not in done:
            continue
        began = time.perf_counter()
        command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--stage", name]
        status = subprocess.run(command).returncode
        result = json.loads(path.read_text())
        values = result["stages"].get(name, {})
        if status:
            values |= {"error": f"the process ended with status {status}"}
        record(name, values | {"process": time.perf_counter() - began})
        print(f"{name}: {result['stages'][name]}", flush=True)


if __name__ == "__main__":
    main()
