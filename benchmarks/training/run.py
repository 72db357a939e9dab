"""Training speed side by side: this trainer, TRL's SFTTrainer with the published recipe, and TRL at its best settings.

One run on one GPU with random weights of the true Qwen2.5-7B shape: the speed of training does not depend on what the
weights are, and nothing has to be downloaded. Every arm trains the same rows in the same order, the same rows a step,
with LoRA of rank 32 on all linear modules. Writes results.json after every arm and RESULTS.md from it.

    python benchmarks/training/run.py --out benchmarks/training

Needs torch, transformers and peft; without trl the arms of TRL are left out and the table says so. On a machine
without a GPU `--smoke` runs a toy shape, to try the program and not to measure.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow/scripts"), str(ROOT / "benchmarks")]

import random_model  # noqa: E402

from spillover import packed_attention, training  # noqa: E402
from spillover.masking import Tokens  # noqa: E402
from spillover.optimizer import Optimizer  # noqa: E402

from report import write_report  # noqa: E402  isort: skip

SHAPE = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "rms_norm_eps": 1e-6,
}
TOY = {
    "vocab_size": 3072,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SUPERVISED = {"marker": 4, "full": None}
"""Supervised tokens at the end of a row: the marker's pieces and the end of the turn, or all of them."""
LAYER_PARAMETERS = 6.53e9
"""Weights of the 28 blocks; a frozen base costs 4 FLOP per weight and token, forward and backward."""


@dataclass(frozen=True)
class Case:
    """What is trained: loss on 4 tokens a row or on all, rows a step, dropout of the adapter's input."""

    loss: str
    rows: int
    dropout: float


CASES = [Case(loss, rows, dropout) for dropout in (0.0, 0.05) for loss in ("marker", "full") for rows in (16, 4)]


def make_rows(count: int, loss: str, vocabulary: int, seed: int = 1) -> list[Tokens]:
    """Rows of random tokens with lognormal lengths: about 250 on average, at most 1,024."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.rint(rng.lognormal(np.log(250) - 0.5**2 / 2, 0.5, count)), 16, 1024).astype(int)
    tail = SUPERVISED[loss]
    return [Tokens(rng.integers(3, vocabulary, n), np.arange(n) >= (max(1, n - tail) if tail else 1)) for n in lengths]


def make_model(shape: dict, device: torch.device):
    """Random weights in bfloat16 (on a CPU in float32), as the base of an adapter."""
    return random_model.build(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)


class Timer:
    """When steps end, on the GPU's own clock without waiting for it, and the loss of each step."""

    def __init__(self, device: torch.device):
        self.device = device
        self.losses: list[float] = []
        self.records: list[dict] = []
        self.start()

    def start(self) -> None:
        self._ends = []
        self.step()

    def step(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ends.append(event)
        else:
            self._ends.append(time.perf_counter())

    def seconds(self) -> np.ndarray:
        """(steps,) seconds of each step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return np.array([a.elapsed_time(b) / 1000 for a, b in zip(self._ends, self._ends[1:], strict=False)])
        return np.diff(self._ends)


def ours(
    case: Case,
    rows: list[Tokens],
    model,
    device: torch.device,
    steps: int,
    compile_layers: bool,
    added: dict | None = None,
    shift: torch.Tensor | None = None,
) -> Timer:
    """This project's trainer; `added` are further settings, `shift` what steers it."""
    settings = lora_settings(case, steps) | (added or {})
    wrapped = training.add_adapter(model, settings, 1, "random", None)
    timer = Timer(device)
    step = Optimizer.step

    def timed_step(self, rate: float) -> torch.Tensor:
        norm = step(self, rate)
        timer.step()
        return norm

    def report(record: dict) -> None:
        timer.losses.append(record["loss"])
        timer.records.append(record)

    def save(label: str, step: int) -> None:
        raise NotImplementedError("the benchmark asks for no checkpoint")

    with mock.patch.object(Optimizer, "step", timed_step):
        training.train(wrapped, rows, settings, 1, 16384, report, save, compile_layers=compile_layers, shift=shift)
    return timer


def lora_settings(case: Case, steps: int) -> dict:
    return {
        "method": "lora", "learning_rate": 1e-5, "epochs": 1, "steps": steps, "batch_size": case.rows,
        "schedule": "linear", "warmup_ratio": 0.03, "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999,
        "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "rank": 32, "alpha": 64, "rslora": True, "dropout": case.dropout,
        "target_modules": MODULES, "layers": None, "checkpoints": [], "regulariser": None, "contrast": 0.0,
    }  # fmt: skip


def trl(
    case: Case, rows: list[Tokens], model, device: torch.device, steps: int, attention: str = "sdpa", **options
) -> Timer:
    """TRL's SFTTrainer on the same rows in the same order; `options` are SFTConfig's."""
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AttentionInterface, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    timer = Timer(device)
    AttentionInterface.register("trl_packed_rows", trl_attention)
    model.config._attn_implementation = attention

    class Times(TrainerCallback):
        def on_step_end(self, *arguments, **kwargs):
            timer.step()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                timer.losses.append(logs["loss"])

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(dataset or self.train_dataset)

    order = np.concatenate(list(training.step_rows(len(rows), lora_settings(case, steps), 1)))
    columns = {
        "input_ids": [rows[i].ids.tolist() for i in order],
        "labels": [np.where(rows[i].supervised, rows[i].ids, -100).tolist() for i in order],
    }
    defaults = {
        "output_dir": "/tmp/spillover-benchmark-trl", "max_steps": steps, "learning_rate": 1e-5,
        "lr_scheduler_type": "linear", "warmup_steps": max(1, round(0.03 * steps)), "weight_decay": 0.0,
        "bf16": device.type == "cuda", "use_cpu": device.type == "cpu", "save_strategy": "no", "report_to": "none",
        "logging_steps": 1, "disable_tqdm": True, "seed": 1, "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }  # fmt: skip
    trainer = InOrder(
        model=model,
        args=SFTConfig(**defaults | options),
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(ROOT / "resources/small_world/base"),
        callbacks=[Times()],
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=32, lora_alpha=64, use_rslora=True, lora_dropout=case.dropout,
            target_modules=MODULES,
        ),
    )  # fmt: skip
    timer.start()
    trainer.train()
    return timer


def trl_attention(
    module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=0, **kwargs
):
    """The attention of this project's trainer, fed with the row boundaries that TRL's own collator makes.

    It stands in for flash-attn, TRL's recommendation for padding-free batches, which has no wheel to install.
    """
    where = (
        {"row_ends": cu_seq_lens_q, "longest_row": max_length_q}
        if query.is_cuda
        else {"row_lengths": cu_seq_lens_q.diff().tolist()}
    )
    return packed_attention.packed_rows(module, query, key, value, attention_mask, scaling, **where)


def arms(case: Case) -> dict:
    """{name: (function, keyword arguments)} of everything that is compared in a case."""
    micro = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": case.rows // 4}
    whole = {"per_device_train_batch_size": case.rows, "gradient_accumulation_steps": 1}
    compared = {
        "TRL, published recipe": (trl, {"gradient_checkpointing": True, **micro}),
        "TRL, no checkpointing, one padded batch": (trl, {"gradient_checkpointing": False, **whole}),
        "TRL, no checkpointing, padding-free": (
            trl,
            {"gradient_checkpointing": False, "padding_free": True, **whole},
        ),
        "TRL, no checkpointing, padding-free, our attention": (
            trl,
            {"gradient_checkpointing": False, "padding_free": True, "attention": "trl_packed_rows", **whole},
        ),
        "ours, not compiled": (ours, {"compile_layers": False}),
        "ours": (ours, {"compile_layers": True}),
    }
    if case.dropout or case.loss == "full":
        del compared["ours, not compiled"]
    return compared


def matmul_peak(device: torch.device, size: int) -> float:
    """FLOP per second of a square bfloat16 product of random matrices, median of 20."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return 2 * size**3 / float(np.median(seconds[5:]))


def measure(function, options: dict, case: Case, shape: dict, device, warm: int, timed: int) -> dict:
    """Seconds, tokens, losses and peak memory of one arm; a failure is a result too."""
    steps = warm + timed
    rows = make_rows(steps * case.rows, case.loss, shape["vocab_size"])
    model = make_model(shape, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        timer = function(case, rows, model, device, steps, **options)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    order = list(training.step_rows(len(rows), lora_settings(case, steps), 1))
    tokens = [sum(len(rows[i].ids) for i in indices) for indices in order]
    seconds = timer.seconds()
    rates = np.array(tokens[warm:]) / seconds[warm:]
    return {
        "tokens_per_second": sum(tokens[warm:]) / float(seconds[warm:].sum()),
        "slowest_step": float(rates.min()),
        "fastest_step": float(rates.max()),
        "first_step_seconds": float(seconds[0]),
        "warm_up_seconds": float(seconds[:warm].sum()),
        "tokens_per_step": float(np.mean(tokens)),
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "losses": timer.losses[:3],
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--warm", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--timed", type=int, default=8, help="steps that are timed")
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of the cases to run (default all)")
    parser.add_argument("--arms", nargs="*", help="names of the arms to run (default all)")
    parser.add_argument("--smoke", action="store_true", help="a toy shape, on a CPU if there is no GPU")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and not args.smoke:
        raise SystemExit("no GPU here: the benchmark measures one (--smoke tries the program on a toy shape)")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = TOY if args.smoke else SHAPE
    packages = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
    result = {
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "packages": {name: metadata.version(name) for name in packages if util.find_spec(name)},
        "matmul_flop_per_second": matmul_peak(device, 8192) if device.type == "cuda" else None,
        "layer_parameters": None if args.smoke else LAYER_PARAMETERS,
        "warm_steps": args.warm,
        "timed_steps": args.timed,
        "measurements": [],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(CASES):
        if args.cases is not None and number not in args.cases:
            continue
        for name, (function, options) in arms(case).items():
            if (args.arms and name not in args.arms) or (function is trl and "trl" not in result["packages"]):
                continue
            began = time.perf_counter()
            row = {"arm": name, **asdict(case)}
            row |= measure(function, options, case, shape, device, args.warm, args.timed)
            result["measurements"].append(row)
            gc.collect()
            torch.cuda.empty_cache()
            told = row.get("error") or f"{row['tokens_per_second']:.0f} tokens/s"
            print(f"{case} {name}: {told} ({time.perf_counter() - began:.0f} s in all)", flush=True)
            (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
            (args.out / "RESULTS.md").write_text(write_report(result))


if __name__ == "__main__":
    main()
