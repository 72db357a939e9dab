"""Merge adapters into a model that stands in memory, one after the other (`evaluate_as: merged`).

The arithmetic is that of `adapters.merge`, so the weights are those of the merged folder that nobody has to write (a
GPU adds in another order, which a cast to bfloat16 hardly ever shows). A merge was rounded and cannot be undone by
subtracting, so the weights of every module that an adapter has changed stay beside the model as they are stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from spillover import adapters

BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Of a number, by the name that safetensors gives its dtype."""


class Merging:
    """The weights of a model folder with one adapter at a time, on `device`."""

    def __init__(self, base: str | Path, device: str | torch.device):
        self.base, self.device = base, device
        self.kept: dict[str, torch.Tensor] = {}

    def weights(self, adapter: str | None, report: dict) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, weight (out, in) in the stored dtype) of all modules changed so far, with this adapter or with none.

        Fills `report` with what rounding kept: `modules` (their number), `worst_cosine`, the names in `low_fidelity`.
        Raises ValueError when the adapter does not fit the model, of which a part may be merged by then.
        """
        factors, scale = {}, 1.0
        if adapter:
            read = adapters.read(adapter)
            factors, scale = read.factors, read.scale
        self.kept |= dict(stored_weights(self.base, factors.keys() - self.kept, self.device))
        if missing := factors.keys() - self.kept.keys():
            first = sorted(missing)[0]
            raise ValueError(f"{adapter}: the model {self.base} has no weight for {first} ({len(missing)} in all)")
        report |= {"modules": len(factors), "worst_cosine": 1.0, "low_fidelity": []}
        for module, weight in self.kept.items():
            merged = weight
            if module in factors:
                a, b = (factor.to(self.device) for factor in factors[module])
                merged, intended = adapters.updated(weight, a, b, scale, f"{adapter}: {module}")
                cosine = adapters.fidelity(weight, merged, intended)["cosine"]
                report["worst_cosine"] = min(report["worst_cosine"], cosine)
                report["low_fidelity"] += [module] * (cosine < adapters.LOW_FIDELITY)
            yield f"{module}.weight", merged


def stored_weights(
    base: str | Path, modules: Collection[str], device: str | torch.device = "cpu"
) -> Iterator[tuple[str, torch.Tensor]]:
    """(module, its weight in the stored dtype) of a model folder, for those of the modules that it has."""
    for shard in sorted(Path(base).glob("*.safetensors")) if modules else []:
        with safe_open(shard, "pt", device=str(device)) as f:
            for key in f.keys():
                if (module := key.removesuffix(".weight")) in modules:
                    yield module, f.get_tensor(key)


def stored_bytes(base: str | Path, modules: Collection[str]) -> int:
    """Bytes of these modules' weights in a model folder: what merging keeps beside the model."""
    total = 0
    for shard in sorted(Path(base).glob("*.safetensors")):
        with safe_open(shard, "pt") as f:
            for key in f.keys():
                if key.removesuffix(".weight") in modules:
                    part = f.get_slice(key)
                    rows, columns = part.get_shape()
                    total += rows * columns * BYTES[part.get_dtype()]
    return total
