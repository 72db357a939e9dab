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

    def __init__(
        self,
        steps: int,
        learning_rate: float,
        device: torch.device,
        report: Callable[[dict], None],
        positive: bool = False,
    ):
        """`positive`: a regulariser of zero means that it does nothing, and stops the run."""
        self.steps, self.device, self.report = steps, device, report
        self.learning_rate, self.positive = learning_rate, positive
        self.records: list[dict] = []
        self.out_of_memory = 0
        self._tokens = self._supervised = 0
        self._pending: tuple[dict, tuple[str, ...], torch.Tensor] | None = None
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

    def add(self, step: int, numbers: dict, norm, rate: float, chosen: Sequence[Tokens], token_budget: int) -> None:
        """Note a step whose `numbers` (the loss and what was added to it, by name) may still be on their way."""
        self._tokens += sum(len(r.ids) for r in chosen)
        self._supervised += sum(int(r.supervised.sum()) for r in chosen if not r.avoided)
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
        numbers = {**numbers, "gradient_norm": norm}
        self._pending = (record, tuple(numbers), torch.stack([number.float() for number in numbers.values()]))

    def settle(self) -> None:
        """Read and report the step that is still open.

        Raises FloatingPointError for a loss that is no number, and for a regulariser of zero that should be positive.
        """
        if self._pending is None:
            return
        record, names, values = self._pending
        self._pending = None
        numbers = dict(zip(names, values.tolist(), strict=True))
        for name in names[:-1]:
            if not math.isfinite(numbers[name]):
                raise FloatingPointError(
                    f"the {name} is {numbers[name]} at step {record['step']}; lower learning_rate (now"
                    f" {self.learning_rate})"
                )
        if self.positive and numbers["regulariser"] <= 0:
            raise FloatingPointError(
                f"R3F's divergence is {numbers['regulariser']} at step {record['step']}: its noise was lost to"
                " rounding; raise train.regulariser.noise"
            )
        on_gpu = self.device.type == "cuda"
        record |= {
            **{name: float(f"{number:.6g}") for name, number in numbers.items()},
            "loss": round(numbers["loss"], 6),
            "gradient_norm": round(numbers["gradient_norm"], 4),
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
