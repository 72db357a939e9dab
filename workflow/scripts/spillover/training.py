"""Supervised fine-tuning of one model on one data set: LoRA through PEFT, or all weights.

It knows tensors, schedules and checkpoints; it knows nothing of experiments, personas or languages. A step's loss is
the mean cross-entropy over the step's supervised tokens, whatever the micro-batches and processes, so memory limits
never change the experiment: the same rows a step, steps, schedule and normalisation. `regularisers` says what may be
added to that loss. Dropout is drawn per step from
the run's seed; how rows lie in micro-batches decides which numbers fall on which token, never their distribution.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch

from spillover import losses, mixtures, packing, regularisers, steering
from spillover.masking import Tokens
from spillover.models import causal_model
from spillover.optimizer import Optimizer
from spillover.packed_attention import has_kernel, packed_attention
from spillover.resume import State, Store
from spillover.sharding import ALONE, Processes, whole_weights
from spillover.training_log import Log

COMPILING_SECONDS = 50.0
SAVED_SECONDS_PER_STEP = 0.065
SAVED_SECONDS_PER_TOKEN = 16e-6
"""What compiling the layers costs at the start and saves afterwards (H200, benchmarks/training and regularisers).

It took 57 to 68 s, 40 to 45 s with a warm compile cache; a step became 64 ms shorter at 4,000 tokens and 73 ms at 900,
where launching kernels is the limit.
"""


class BudgetTooLarge(torch.OutOfMemoryError):
    """One of several processes ran out of memory: all must start again with at most `token_budget` tokens at a time.

    The others wait for it in the middle of a step, so no budget can be agreed on while they run.
    """

    def __init__(self, sentence: str, token_budget: int):
        super().__init__(sentence)
        self.token_budget = token_budget


def add_adapter(model, train: dict, seed: int, name: str, revision: str | None, under: str | Path | None = None):
    """Wrap `model` with a fresh LoRA adapter as `train` describes it; its factors are drawn from `seed`.

    `name` and `revision` are recorded in the adapter's config as its base model. The factors have the base's precision,
    so that no layer casts; `Optimizer` keeps them in float32. The saved adapter in the folder `under` is applied as
    well, frozen and without its dropout: a stacked run trains on top of it.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if under:
        model = PeftModel.from_pretrained(model, under, adapter_name="under", autocast_adapter_dtype=False)
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=train["rank"],
        lora_alpha=train["alpha"],
        lora_dropout=train["dropout"],
        use_rslora=train["rslora"],
        target_modules=list(train["target_modules"]),
        layers_to_transform=train["layers"],
    )
    if under:
        wrapped = model
        wrapped.add_adapter("default", config, autocast_adapter_dtype=False)
        wrapped.base_model.set_adapter(["under", "default"])
        for key, parameter in wrapped.named_parameters():
            if ".under." in key:
                parameter.requires_grad_(False)
        for module in wrapped.modules():
            if "under" in getattr(module, "lora_dropout", {}):
                module.lora_dropout["under"] = torch.nn.Identity()
    else:
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    wrapped.peft_config["default"].base_model_name_or_path = name
    wrapped.peft_config["default"].revision = revision
    return wrapped


def total_steps(rows: int, train: dict) -> int:
    """Optimizer steps: `steps` if given, else epochs x ceil(rows / batch_size), at least one."""
    if train["steps"]:
        return train["steps"]
    return max(1, round(math.ceil(rows / train["batch_size"]) * train["epochs"]))


def step_rows(rows: int, train: dict, seed: int, strata: Sequence[int] | None = None) -> Iterator[np.ndarray]:
    """Row indices of each step: a new permutation per epoch, the last batch of an epoch may be smaller.

    With `strata` (one per row) every step has its share of each stratum: `mixtures.interleaved`.
    """
    rng = np.random.default_rng(seed)
    remaining = total_steps(rows, train)
    while remaining:
        order = rng.permutation(rows) if strata is None else mixtures.interleaved(strata, rng)
        for start in range(0, rows, train["batch_size"]):
            if not remaining:
                return
            yield order[start : start + train["batch_size"]]
            remaining -= 1


def learning_rate(step: int, steps: int, train: dict) -> float:
    """Learning rate of 0-based `step`: linear warm-up over ceil(warmup_ratio x steps), then the schedule.

    The formulas are those of transformers' schedules, which the published runs used.
    """
    warm = math.ceil(train["warmup_ratio"] * steps)
    if step < warm:
        return train["learning_rate"] * step / max(1, warm)
    progress = (step - warm) / max(1, steps - warm)
    factor = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return train["learning_rate"] * factor[train["schedule"]]


def checkpoint_steps(checkpoints: Sequence[str], steps: int) -> dict[int, list[str]]:
    """{step: labels}: `pct40` is after 40% of the steps (rounded, at least one), `step25` after 25 steps.

    Raises ValueError for a step beyond the run.
    """
    found: dict[int, list[str]] = {}
    for label in checkpoints:
        step = max(1, round(steps * int(label[3:]) / 100)) if label.startswith("pct") else int(label[4:])
        if not 1 <= step <= steps:
            raise ValueError(f"checkpoint {label} lies outside the run of {steps} steps")
        found.setdefault(step, []).append(label)
    return found


def worth_compiling(rows: Sequence[Tokens], train: dict) -> bool:
    """Whether a run on a GPU is long enough to repay compiling its layers."""
    tokens = float(np.mean([len(r.ids) for r in rows])) * min(train["batch_size"], len(rows))
    saved = max(SAVED_SECONDS_PER_STEP, tokens * SAVED_SECONDS_PER_TOKEN)
    return total_steps(len(rows), train) * saved > COMPILING_SECONDS


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of a step's random numbers: a resumed or repeated step draws what it would have drawn."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def compiled(model, but: int | None = None) -> Iterator[None]:
    """Within the block every decoder layer, `but` one if given, is compiled for any number of tokens."""
    layers = [layer for i, layer in enumerate(causal_model(model).get_decoder().layers) if i != but]
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def train(
    model,
    rows: Sequence[Tokens],
    settings: dict,
    seed: int,
    token_budget: int,
    report: Callable[[dict], None],
    save: Callable[[str, int], None],
    *,
    batching: str = "packed",
    store: Store | None = None,
    processes: Processes = ALONE,
    computing: torch.dtype | None = None,
    compile_layers: bool | None = None,
    shift: torch.Tensor | None = None,
    strata: Sequence[int] | None = None,
) -> dict:
    """Train in place, in micro-batches of at most `token_budget` tokens, packed or (the plain reference) padded.

    `strata` are those of `step_rows`. A row of weight 0 has its place in a step and is not computed.

    `report` gets a record per step, `save` is called with (label, step) at each checkpoint. A `store` is asked for a
    state to go on from, and given one now and then. `computing` is the precision of the blocks (default: the
    weights'). Layers are compiled on a GPU if the run is long enough to repay it, unless `compile_layers` says. `shift`
    is what the regulariser `steering` adds.
    When a micro-batch does not fit into memory the budget is halved, for good, and the step repeated from its start;
    several processes must start again instead, which BudgetTooLarge tells and the store is told.

    Returns totals: steps, tokens, supervised_tokens, seconds, first_loss and last_loss (means over up to ten steps),
    token_budget in the end, out_of_memory (times), resumed_at (a step or None).
    Raises FloatingPointError when the loss is no number any more or R3F's noise leaves no trace,
    torch.OutOfMemoryError when no smaller micro-batch is left to try.
    """
    causal = causal_model(model)
    regulariser = settings["regulariser"] or {"kind": None}
    pushed = regulariser["kind"] == "steering"
    if batching == "padded" and (settings["contrast"] or regulariser["kind"] in regularisers.PAIRED):
        raise ValueError("resources.batching: padded is the reference of the plain loss alone; use packed")
    device = next(model.parameters()).device
    kernel = batching == "packed" and has_kernel(device, computing or causal.dtype)
    if compile_layers is None:
        compile_layers = kernel and worth_compiling(rows, settings)
    optimizer = Optimizer({n: p for n, p in model.named_parameters() if p.requires_grad}, settings)
    steps = total_steps(len(rows), settings)
    saves = checkpoint_steps(settings["checkpoints"], steps)
    log = Log(steps, settings["learning_rate"], device, report, positive=regulariser["kind"] == "r3f")
    resumed = store.load() if store else None
    if resumed:
        optimizer.restore(resumed.tensors, resumed.step)
        token_budget = min(token_budget, resumed.token_budget)
        log.restore(resumed.records)
    if store and (lowered := store.lowered()):
        token_budget = min(token_budget, *lowered)
        log.out_of_memory = max(log.out_of_memory, len(lowered))
    model.train()

    def backward(step: int, chosen: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        """Gradients of the step's objective, in micro-batches; returns its mean loss and what was added to it."""
        total_weight = sum(float(r.weight) * int(r.supervised.sum()) for r in chosen if not r.avoided)
        negatives = sum(r.avoided for r in chosen)
        numbers = {"loss": torch.zeros((), device=device)}
        if batching == "padded":
            for group in packing.rectangles(chosen, token_budget):
                part = losses.padded_loss(model, packing.pad(group, device)) / total_weight
                part.backward()
                optimizer.collect()
                numbers["loss"] += part.detach()
            return numbers
        for group in packing.packs(chosen, token_budget, processes.count)[processes.rank :: processes.count]:
            # a process without rows left still takes part in gathering the weights, with a loss that counts nothing
            part, told = regularisers.objective(
                model,
                packing.pack(group or chosen[:1], device),
                kernel,
                settings,
                seed=step_seed(seed, step),
                weight=total_weight,
                negatives=negatives,
            )
            # FSDP averages gradients over the processes, and the loss is a sum over them
            (part * (processes.count * bool(group))).backward()
            optimizer.collect()
            for name, number in told.items():
                numbers[name] = numbers.get(name, 0) + number * bool(group)
        numbers["loss"] = processes.total(numbers["loss"])
        return numbers

    attention = packed_attention(causal) if batching == "packed" else nullcontext()
    # torch.compile shares one graph among all layers and does not look for hooks: a layer with one stays as it is
    compiling = compiled(model, regulariser["layer"] if pushed else None) if compile_layers else nullcontext()
    steered = steering.steered(causal, regulariser["layer"], shift) if pushed else nullcontext()
    with attention, steered, compiling:
        for step, indices in enumerate(step_rows(len(rows), settings, seed, strata)):
            if resumed and step < resumed.step:
                continue
            chosen = [rows[i] for i in indices if rows[i].weight]
            if not chosen:
                raise ValueError(f"every row of step {step + 1} has weight 0: there is nothing to learn from")
            chosen += [row.contrast for row in chosen if row.contrast]
            while True:
                torch.manual_seed(step_seed(seed, step, processes.rank))
                try:
                    numbers = backward(step, chosen)
                    break
                except torch.OutOfMemoryError as error:
                    if token_budget <= min(len(r.ids) for r in chosen):
                        raise torch.OutOfMemoryError(_too_small(error, chosen, token_budget)) from None
                    told = str(error).splitlines()[0]
                # outside the handler, whose traceback holds on to the tensors
                share = math.ceil(sum(len(r.ids) for r in chosen) / processes.count)
                token_budget = min(token_budget, share) // 2
                if processes.count > 1:
                    sentence = f"{told} Process {processes.rank} of {processes.count}: all start again with a smaller"
                    raise BudgetTooLarge(f"{sentence} token budget, {token_budget}", token_budget)
                optimizer.discard()
                torch.cuda.empty_cache()
                log.out_of_memory += 1
            rate = learning_rate(step, steps, settings)
            norm = optimizer.step(rate)
            log.add(step, numbers, norm, rate, chosen, token_budget)
            due = store is not None and step + 1 < steps and store.due()
            if step + 1 in saves or due:
                log.settle()
            for label in saves.get(step + 1, []):
                with optimizer.full_precision():
                    save(label, step + 1)
            if due:
                store.write(State(step + 1, token_budget, log.records, optimizer.state()))
        log.settle()
    optimizer.finish()
    return log.totals() | {"token_budget": token_budget, "resumed_at": resumed.step if resumed else None}


def _too_small(error: Exception, chosen: Sequence[Tokens], token_budget: int) -> str:
    return (
        f"{str(error).splitlines()[0]} A micro-batch of {token_budget} tokens does not fit, and the longest row of the"
        f" step has {max(len(r.ids) for r in chosen)}: lower train.max_length or resources.token_budget, or use a GPU"
        " with more memory (train.gpus with method: full)"
    )


def adapter_state(model) -> dict[str, torch.Tensor]:
    """The adapter's tensors under PEFT's saved names, on the CPU."""
    from peft import get_peft_model_state_dict

    # "auto" would look the base model up on the hub, only to see whether its vocabulary was resized.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}


def write_adapter(model, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT and vLLM read them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter_state(model), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(str(folder))
    # PEFT keeps these as sets, whose order differs between processes; the same training must give the same file.
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {key: sorted(value) for key, value in config.items() if isinstance(value, list)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def write_model(model, tokenizer, folder: Path, dtype: torch.dtype, processes: Processes = ALONE) -> None:
    """Write all weights, rounded to `dtype`, and the tokenizer as a folder that a child run loads like any base model.

    Every process must call it; the first writes.
    """
    from safetensors.torch import save_file

    weights = whole_weights(model, dtype, processes)
    if processes.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        model.config.dtype = dtype
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    processes.wait()
