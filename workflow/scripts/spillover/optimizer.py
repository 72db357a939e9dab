"""AdamW over float32 values of the trained weights, whatever precision the model computes in.

A bfloat16 weight holds 8 bits: an update of 1e-5 to a weight of 0.01 would be rounded away. So the optimizer's own
copy is float32, gradients of several micro-batches add up in float32, and the model's weights are that copy rounded.
Where the model computes in float32 there is no copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Optimizer:
    """`parameters` {name: tensor} are the model's trained weights, plain or shards of a larger tensor."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], settings: dict):
        self.parameters = parameters
        self.values = {name: p if p.dtype == torch.float32 else p.detach().float() for name, p in parameters.items()}
        self.rounded = [name for name, p in parameters.items() if self.values[name] is not p]
        self.max_norm = settings["max_grad_norm"]
        self.adamw = torch.optim.AdamW(
            list(self.values.values()),
            lr=settings["learning_rate"],
            betas=(settings["adam_beta1"], settings["adam_beta2"]),
            eps=settings["adam_epsilon"],
            weight_decay=settings["weight_decay"],
            fused=True,
        )

    def collect(self) -> None:
        """Add the gradients of one micro-batch; call it after each backward pass."""
        names = [n for n in self.rounded if self.parameters[n].grad is not None]
        gradients = [self.parameters[n].grad for n in names]
        if not names:
            return
        if self.values[names[0]].grad is None:
            fresh = [torch.empty_like(self.values[n]) for n in names]
            torch._foreach_copy_(fresh, gradients)
            for name, gradient in zip(names, fresh, strict=True):
                self.values[name].grad = gradient
        else:
            torch._foreach_add_([self.values[n].grad for n in names], [g.float() for g in gradients])
        for name in names:
            self.parameters[name].grad = None

    def step(self, rate: float) -> torch.Tensor:
        """Clip, update at learning rate `rate`, forget the gradients; returns their norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(list(self.values.values()), self.max_norm)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.discard()
        self._round()
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def discard(self) -> None:
        """Forget the gradients collected so far."""
        for tensor in (*self.values.values(), *self.parameters.values()):
            tensor.grad = None

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Within the block the model's weights are the float32 values: for saving, not for computing."""
        kept = {name: self.parameters[name].data for name in self.rounded}
        for name in self.rounded:
            self.parameters[name].data = self.values[name]
        try:
            yield
        finally:
            for name, data in kept.items():
                self.parameters[name].data = data

    def finish(self) -> None:
        """Leave the model with the float32 values for good."""
        for name in self.rounded:
            self.parameters[name].data = self.values[name]

    def state(self) -> dict[str, torch.Tensor]:
        """Everything the next step depends on, this process's shards only, on the CPU; empty before the first step."""
        tensors = {}
        for name, value in self.values.items():
            if moments := self.adamw.state.get(value):
                tensors[f"value/{name}"] = value
                tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        return {key: _local(tensor).detach().cpu().clone() for key, tensor in tensors.items()}

    def restore(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        """Take up a state that was saved after `steps` steps."""
        with torch.no_grad():
            for name, value in self.values.items():
                _local(value).copy_(tensors[f"value/{name}"])
                moments = {key: torch.zeros_like(value) for key in ("exp_avg", "exp_avg_sq")}
                for key, moment in moments.items():
                    _local(moment).copy_(tensors[f"{key}/{name}"])
                device = _local(value).device
                self.adamw.state[value] = {"step": torch.tensor(float(steps), device=device), **moments}
        self._round()

    def _round(self) -> None:
        if self.rounded:
            with torch.no_grad():
                torch._foreach_copy_([self.parameters[n] for n in self.rounded], [self.values[n] for n in self.rounded])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
