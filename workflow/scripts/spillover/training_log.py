"""The log of a training run: one record per step, reported as soon as its numbers can be had without waiting.

It knows tokens, losses and seconds; it knows nothing of models or files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from spillover.masking import Tokens


class Log:
    """Records of the steps. The numbers of a step are read one step late, so that the GPU never waits for the log."""

    def __init__(self, steps: int, learning_rate: float, device: torch.device, report: Callable[[dict], None]):
        self.steps, self.device, self.report = steps, device, report
        self.learning_rate = learning_rate
        self.records: list[dict] = []
        self.out_of_memory = 0
        self._tokens = self._supervised = 0
        self._pending: tuple[dict, torch.Tensor] | None = None
        self._began = time.perf_counter()

    def restore(self, records: list[dict]) -> None:
        """Take up the records of the steps before a kill, and the time they took."""
        for record in records:
            self.report(record)
        self.records = list(records)
        last = records[-1]
        self._tokens, self._supervised = last["tokens"], last["supervised_tokens"]
        self.out_of_memory = last["out_of_memory"]
        self._began -= last["seconds"]

    def add(self, step: int, loss, norm, rate: float, chosen: Sequence[Tokens], token_budget: int) -> None:
        """Note a step whose loss and gradient norm may still be on their way."""
        self._tokens += sum(len(r.ids) for r in chosen)
        self._supervised += sum(int(r.supervised.sum()) for r in chosen)
        record = {
            "step": step + 1,
            "steps": self.steps,
            "learning_rate": rate,
            "tokens": self._tokens,
            "supervised_tokens": self._supervised,
            "token_budget": token_budget,
            "out_of_memory": self.out_of_memory,
        }
        self.settle()
        self._pending = (record, torch.stack([loss.float(), norm.float()]))

    def settle(self) -> None:
        """Read and report the step that is still open. Raises FloatingPointError for a loss that is no number."""
        if self._pending is None:
            return
        record, numbers = self._pending
        self._pending = None
        loss, norm = numbers.tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {record['step']}; lower learning_rate (now {self.learning_rate})"
            )
        on_gpu = self.device.type == "cuda"
        record |= {
            "loss": round(loss, 6),
            "gradient_norm": round(norm, 4),
            "seconds": round(time.perf_counter() - self._began, 2),
            "gpu_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        }
        self.records.append(record)
        self.report(record)

    def totals(self) -> dict:
        found = [record["loss"] for record in self.records]
        return {
            "steps": self.steps,
            "tokens": self._tokens,
            "supervised_tokens": self._supervised,
            "seconds": time.perf_counter() - self._began,
            "first_loss": float(np.mean(found[:10])),
            "last_loss": float(np.mean(found[-10:])),
            "out_of_memory": self.out_of_memory,
            "device": self.device.type,
        }
