"""How far training moved a model's weights: Frobenius norms of the change, over all, per block and per tensor.

A LoRA update is never formed: |s B A|^2 = s^2 tr((B^T B)(A A^T)), two products of rank x rank. A model trained in full
is compared with its parent file by file. What an adapter can change, the projections of the blocks, is summed up by
itself, so that both can be compared.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from safetensors import safe_open

from spillover import adapters

PROJECTION = re.compile(r"\.(q|k|v|o|gate|up|down)_proj(\.weight)?$")


def of_adapter(folder: str | Path) -> dict:
    """The change that a LoRA adapter makes to the weights under it; that of a stacked one includes those it holds."""
    adapter = adapters.read(folder)
    return summary("lora", {m: adapter.scale * product_norm(a, b) for m, (a, b) in adapter.factors.items()})


def product_norm(a: torch.Tensor, b: torch.Tensor) -> float:
    """|B A| of `a` (rank, in) and `b` (out, rank), in float64."""
    a, b = a.double(), b.double()
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T).T).sum())))


def of_model(parent: str | Path, trained: str | Path) -> dict:
    """The change between two model folders with the same tensors; weights tied to others count once.

    Raises ValueError naming a tensor that only one of them has.
    """
    before, after = (_places(folder) for folder in (parent, trained))
    if alone := sorted(before.keys() ^ after.keys()):
        raise ValueError(f"{parent} and {trained} do not hold the same tensors: only one has {alone[0]}")
    norms = {name: _distance(before[name], after[name], name) for name in sorted(before)}
    return summary("full", norms)


def summary(method: str, norms: dict[str, float]) -> dict:
    """Norms of the change by tensor, gathered: `global`, `projections` alone, and both per block."""
    blocks = sorted({block for name in norms if (block := adapters.layer_index(name)) is not None})
    layers = []
    for block in blocks:
        own = {name: norm for name, norm in norms.items() if adapters.layer_index(name) == block}
        layers.append({"layer": block, "norm": _whole(own), "projections": _whole(_projections(own))})
    return {
        "method": method,
        "global": _whole(norms),
        "projections": _whole(_projections(norms)),
        "layers": layers,
        "tensors": norms,
    }


def _projections(norms: dict[str, float]) -> dict[str, float]:
    return {name: norm for name, norm in norms.items() if PROJECTION.search(name)}


def _whole(norms: dict[str, float]) -> float:
    return math.sqrt(math.fsum(norm**2 for norm in norms.values()))


def _places(folder: str | Path) -> dict[str, Path]:
    """{tensor: its file} of a model folder. Raises FileNotFoundError for a folder without weights."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    if not found:
        raise FileNotFoundError(f"{folder} holds no .safetensors file")
    return found


def _distance(before: Path, after: Path, name: str) -> float:
    with safe_open(before, "pt") as first, safe_open(after, "pt") as second:
        change = second.get_tensor(name).float() - first.get_tensor(name).float()
    return float(torch.linalg.vector_norm(change, dtype=torch.float64))
