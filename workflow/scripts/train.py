"""Train one run: a LoRA adapter (with the checkpoints it saves on the way) or all weights.

Reads `dataset.parquet`, the parent model and, where vectors steer the training, `vectors.safetensors`. With `method:
lora` it writes `adapter_model.safetensors` and `adapter_config.json` into --adapter, and all saved checkpoints into one
`checkpoints.safetensors` (tensor names prefixed by the checkpoint's label); with --under each of them holds the frozen
adapter below as well. With `method: full` it writes a model folder, and --processes may share the work; when one of
them runs out of memory all start again with a smaller token budget. Killed, it goes on from `.resume` beside its
manifest when it is started again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from spillover import (
    adapters,
    data,
    losses,
    masking,
    mixtures,
    models,
    optimizer,
    packed_attention,
    packing,
    provenance,
    regularisers,
    resume,
    sharding,
    steering,
    training,
)

TRAINING_CODE = (
    adapters,
    data,
    masking,
    mixtures,
    packing,
    packed_attention,
    losses,
    regularisers,
    steering,
    optimizer,
    training,
)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.processes > 1 and not sharding.is_launched():
        raise SystemExit(in_processes(args, sys.argv[1:] if argv is None else argv))
    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    settings, seed = spec["train"], spec["seed"]
    full = settings["method"] == "full"
    if full and (settings["checkpoints"] or settings["layers"]):
        raise SystemExit("train.method: full trains all weights to the end: drop train.checkpoints and train.layers")
    steered = (settings["regulariser"] or {}).get("kind") == "steering"
    if steered != bool(args.steering):
        raise SystemExit("--steering goes with train.regulariser: {kind: steering}, and with nothing else")
    if bool(args.model) != full or bool(args.adapter and args.checkpoints) == full:
        raise SystemExit("--model goes with train.method: full, --adapter and --checkpoints with lora")
    processes = sharding.start()
    if processes.count > 1 and not (full and args.batching == "packed"):
        raise SystemExit("several processes train with method: full in packed batches only")
    model, tokenizer = models.load_base(args.base, args.revision, args.dtype)
    table = pq.read_table(args.dataset).to_pylist()
    rows = data.tokenize(table, tokenizer, settings)
    if settings["contrast"]:
        rows = data.with_contrasts(rows, table, tokenizer, settings)
    if full:
        sharding.shard(model, processes)
    else:
        model = training.add_adapter(model, settings, factor_seed(spec), args.name, args.revision, args.under)
    shift, shifted = steering.shift(args.steering, settings["regulariser"]) if steered else (None, {})
    how = {
        "steering": shifted,
        "dtype": args.dtype,
        "batching": args.batching,
        "processes": processes.count,
        "device": model.device.type,
    }
    if args.under:
        how["under"] = provenance.file_digest(Path(args.under, "adapter_model.safetensors"))
    name = resume.key(spec, args.dataset, args.base, [m.__file__ for m in TRAINING_CODE], how)
    every = args.resume_every if args.resume_every is not None else (1800 if full else 300)
    store = resume.Store(stores(args) / name, every, processes)
    with logged(args.train_log, training.total_steps(len(rows), settings), processes) as report:

        def save(label: str, step: int) -> None:
            store.keep(label, training.adapter_state(model))

        try:
            totals = training.train(
                model,
                rows,
                settings,
                seed,
                args.token_budget,
                report,
                save,
                batching=args.batching,
                store=store,
                processes=processes,
                computing=getattr(torch, args.dtype),
                shift=shift,
                strata=data.strata(table),
            )
        except training.BudgetTooLarge as error:
            store.lower(error.token_budget)
            raise SystemExit(str(error)) from None
        except torch.OutOfMemoryError as error:
            raise SystemExit(str(error)) from None
    folder = Path(args.model or args.adapter)
    unfinished = folder / ".unfinished"
    if full:
        with provenance.writing(folder, unfinished):
            training.write_model(model, tokenizer, unfinished, getattr(torch, args.dtype), processes)
    else:
        with provenance.writing(folder, unfinished):
            training.write_adapter(model, unfinished)
            states = store.kept()
            if args.under:
                states = stacked(args.under, unfinished, states)
        kept = {f"{label}/{k}": tensor for label, part in states.items() for k, tensor in part.items()}
        with provenance.atomic_path(args.checkpoints) as path:
            save_file(kept, path, metadata={"labels": json.dumps(settings["checkpoints"])})
    if processes.rank == 0:
        written = sorted(path.name for path in unfinished.iterdir())
        for file in written:
            (unfinished / file).replace(folder / file)
        shutil.rmtree(unfinished)
        losses_told = f"loss {totals['first_loss']:.3f} -> {totals['last_loss']:.3f}"
        print(f"{losses_told} in {totals['steps']} steps, {totals['seconds']:.0f} s")
        provenance.write_manifest(
            args.manifest,
            stage="train",
            spec=spec,
            inputs=[args.dataset, *([args.steering] if steered else [])],
            seconds=clock.seconds,
            outputs=[*(str(folder / file) for file in written), *([] if full else [args.checkpoints])],
            extra={
                **totals,
                **({"steering": shifted} if steered else {}),
                "batching": args.batching,
                "processes": processes.count,
                "gpu_seconds": totals["seconds"] * processes.count if totals["device"] == "cuda" else 0.0,
            },
        )
    store.remove()
    sharding.stop(processes)


def stores(args: argparse.Namespace) -> Path:
    """The folder of unfinished training, one store a set of settings."""
    return Path(args.manifest).parent / ".resume"


def in_processes(args: argparse.Namespace, argv: list[str]) -> int:
    """Run this program in --processes, again whenever one of them has noted that the token budget is too large."""
    noted = resume.notes_of_memory(stores(args))

    def again() -> bool:
        nonlocal noted
        before, noted = noted, resume.notes_of_memory(stores(args))
        return noted > before

    return sharding.launch(args.processes, [sys.argv[0], *argv], again)


def factor_seed(spec: dict) -> int:
    """The seed a run's LoRA factors are drawn from: the run's own, but another one for every stage of a lineage.

    One seed for all stages would draw equal A factors, and the stages' spaces would coincide before any training.
    """
    stage, parent = 0, spec["parent"]
    while "trained" in parent:
        stage, parent = stage + 1, parent["trained"]["parent"]
    return int(np.random.SeedSequence([spec["seed"], stage]).generate_state(1)[0]) if stage else spec["seed"]


def stacked(under: str, folder: Path, states: dict) -> dict:
    """Put the frozen adapter under the new one in `folder` and under each checkpoint's tensors, which are returned."""
    frozen, own = adapters.read(under), adapters.read(folder)
    adapters.write(adapters.stack(frozen, own), folder)
    parts = {label: adapters.of(own.config, tensors, label) for label, tensors in states.items()}
    return {label: adapters.tensors(adapters.stack(frozen, part)) for label, part in parts.items()}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--base", required=True, help="the parent model: hub id or folder")
    parser.add_argument("--under", help="folder of a frozen adapter to train on top of (lineage: stacked)")
    parser.add_argument("--revision")
    parser.add_argument("--name", required=True, help="the base model's name as recorded in the adapter")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steering", help="vectors.safetensors of the model that steers the training")
    parser.add_argument("--token-budget", type=int, default=16384, help="tokens in one micro-batch")
    parser.add_argument("--batching", choices=["packed", "padded"], default="packed", help="padded is the reference")
    parser.add_argument("--resume-every", type=float, help="seconds between states to resume from (default 300)")
    parser.add_argument("--processes", type=int, default=1, help="that share the work (method: full)")
    parser.add_argument("--adapter", help="folder of the adapter")
    parser.add_argument("--checkpoints")
    parser.add_argument("--model", help="folder of the whole model (method: full)")
    parser.add_argument("--train-log", required=True)
    parser.add_argument("--manifest", required=True)
    return parser.parse_args(argv)


@contextmanager
def logged(path: str, steps: int, processes: sharding.Processes):
    """Yields what takes a step's record: a line in the log and a step of the progress bar, in the first process."""
    if processes.rank:
        yield lambda record: None
        return
    with (
        provenance.atomic_path(path) as log_path,
        open(log_path, "w") as log,
        tqdm(total=steps, unit="step", mininterval=5) as bar,
    ):

        def report(record: dict) -> None:
            print(json.dumps(record), file=log)
            bar.set_postfix(loss=record["loss"], refresh=False)
            bar.update()

        yield report


if __name__ == "__main__":
    main()
