"""Unfinished training on disk, so that a killed run goes on where it was and ends in the same weights.

A store is a folder beside the run, keyed by everything that decides the weights; Snakemake does not know of it. It
holds the newest state (float32 weights, both moments of the optimizer, step, log so far) and the checkpoints that the
run has already reached. Random numbers need no saving: every step draws from the run's seed and its own number.
Tensors are safetensors, the rest is JSON; nothing here is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from spillover import provenance
from spillover.sharding import ALONE, Processes

LOWERED = "token-budget-"


@dataclass(frozen=True)
class State:
    """What is known after `step` steps: the optimizer's tensors, the log's records and the token budget in force."""

    step: int
    token_budget: int
    records: list[dict]
    tensors: dict[str, torch.Tensor] = field(repr=False)


class Store:
    """States of one training run in `folder`, at most one every `every_seconds`.

    Of several processes each keeps its own shards, and a state counts once all have written theirs.
    """

    def __init__(self, folder: str | Path, every_seconds: float, processes: Processes = ALONE):
        self.folder = Path(folder)
        self.every_seconds = every_seconds
        self.processes = processes
        self._last = time.monotonic()

    def load(self) -> State | None:
        """The newest complete state, or None."""
        newest = max(self.folder.glob("step*"), key=_step, default=None)
        if newest is None:
            return None
        told = json.loads((newest / "state.json").read_text())
        return State(tensors=load_file(newest / f"tensors{self.processes.rank}.safetensors"), **told)

    def due(self) -> bool:
        """Whether it is time for another state; of several processes the first decides for all."""
        return self.processes.agree(time.monotonic() - self._last >= self.every_seconds)

    def write(self, state: State) -> None:
        """Write a state and drop the one before; a kill at any moment leaves one of them complete."""
        unfinished = self.folder / f"unfinished-step{state.step}"
        unfinished.mkdir(parents=True, exist_ok=True)
        save_file(state.tensors, unfinished / f"tensors{self.processes.rank}.safetensors")
        if self.processes.rank == 0:
            told = {"step": state.step, "token_budget": state.token_budget, "records": state.records}
            (unfinished / "state.json").write_text(json.dumps(told))
        self.processes.wait()
        if self.processes.rank == 0:
            older = list(self.folder.glob("step*"))
            os.replace(unfinished, self.folder / f"step{state.step}")
            for path in older:
                shutil.rmtree(path)
        self.processes.wait()
        self._last = time.monotonic()

    def lower(self, token_budget: int) -> None:
        """Note that the next start is to use at most this token budget: a larger one ran out of memory."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{LOWERED}{token_budget}").touch()

    def lowered(self) -> list[int]:
        """The token budgets noted so far, each by a start that ran out of memory."""
        return [int(path.name.removeprefix(LOWERED)) for path in self.folder.glob(f"{LOWERED}*")]

    def keep(self, label: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep a checkpoint that the run saves on its way."""
        with provenance.atomic_path(self.folder / f"checkpoint-{label}.safetensors") as path:
            save_file(tensors, path)

    def kept(self) -> dict[str, dict[str, torch.Tensor]]:
        """{label: tensors} of the checkpoints kept so far."""
        files = sorted(self.folder.glob("checkpoint-*.safetensors"))
        return {path.stem.removeprefix("checkpoint-"): load_file(path) for path in files}

    def remove(self) -> None:
        """The run is finished: drop the store, and those of other settings beside it."""
        if self.processes.rank == 0:
            shutil.rmtree(self.folder.parent, ignore_errors=True)


def notes_of_memory(folder: str | Path) -> set[Path]:
    """What `lower` has noted in the stores beside each other in `folder`."""
    return set(Path(folder).glob(f"*/{LOWERED}*"))


def key(spec: dict, dataset: str | Path, parent: str, code: Sequence[str | Path], settings: dict) -> str:
    """A short name of everything that decides the weights: a state is only ever taken up under the same name.

    `parent` is a hub id (its revision is in the spec) or a folder, whose weights are sampled, since hashing 15 GB
    would take longer than most resumed runs lose; `code` the source files that train; `settings` what else matters.
    """
    weights = {p.name: _sampled_digest(p) for p in sorted(Path(parent).glob("*.safetensors"))}
    whole = {
        "spec": spec,
        "dataset": provenance.file_digest(dataset),
        "parent": weights or parent,
        "code": [provenance.file_digest(path) for path in code],
        "settings": settings,
        "torch": torch.__version__,
    }
    return provenance.spec_digest(whole)[:16]


def _sampled_digest(path: Path, blocks: int = 64, block_bytes: int = 65536) -> str:
    """Digest of a file's size and of `blocks` evenly spaced blocks."""
    size = path.stat().st_size
    parts = []
    with open(path, "rb") as file:
        for i in range(blocks):
            file.seek(size * i // blocks)
            parts.append(file.read(block_bytes).hex())
    return provenance.spec_digest([size, parts])


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step"))
