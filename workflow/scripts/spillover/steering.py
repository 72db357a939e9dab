"""Steering: a constant shift of one decoder block's output at every position, in training or at generation.

The shift points to a persona from the mean of all personas, as the untrained model's vectors have them. It is put in by
a forward hook of the block and is gone afterwards. The module knows models and vectors and nothing of losses or suites.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open


def shift(path: str | Path, settings: dict) -> tuple[torch.Tensor, dict[str, float]]:
    """The shift of a block's output (size,) float32, and what a manifest should say of it.

    It is the coefficient times the centroid of the cell `vector` less the mean centroid of all cells of the file, not
    normalised; `relative_size` is its length over the mean length of a centroid. Raises ValueError naming what the
    file does not have.
    """
    at = f"{settings['method']}/layer{settings['layer']}/centroid"
    with safe_open(path, "np") as file:
        cells = json.loads(file.metadata()["cells"])
        if settings["vector"] not in cells:
            raise ValueError(f"{path} has no vector of {settings['vector']!r}; it has: {', '.join(cells)}")
        if at not in file.keys():
            raise ValueError(f"{path} has no {at}; it has: {', '.join(k for k in file.keys() if 'centroid' in k)}")
        centroids = file.get_tensor(at).astype(np.float64)
    moved = settings["coefficient"] * (centroids[cells.index(settings["vector"])] - centroids.mean(0))
    size = float(np.linalg.norm(moved))
    told = {"size": size, "relative_size": size / float(np.linalg.norm(centroids, axis=1).mean())}
    return torch.from_numpy(moved.astype(np.float32)), told


@contextmanager
def steered(causal, layer: int, shift: torch.Tensor) -> Iterator[None]:
    """Within the block, `shift` (size,) is added to the output of decoder block `layer` at every position.

    Raises ValueError for a layer that the model does not have.
    """
    blocks = causal.get_decoder().layers
    if layer >= len(blocks):
        raise ValueError(f"steering: layer {layer} does not exist: the model has blocks 0 to {len(blocks) - 1}")

    on_device = shift.to(next(causal.parameters()).device)

    def add(module, inputs, output: torch.Tensor) -> torch.Tensor:
        return output + on_device.to(output.dtype)

    handle = blocks[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
