"""Cosines between the centroids of one model's personas, raw and centred, with intervals over the questions.

A centroid is the mean activation of a persona over the questions it is asked. Raw cosines are all near 1 because of an
offset that every prompt shares; centred ones remove the mean over the personas and so mean something only beside the
set of personas they are relative to. It knows files of vectors and nothing of experiments.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .statistics import percentile_interval, stable_seed

RESAMPLES = 1000
COLUMNS = ["a", "b", "raw", "raw_low", "raw_high", "centred", "centred_low", "centred_high"]


@dataclass(frozen=True)
class Vectors:
    """A vectors.safetensors file: cells, prompt ids, and (cells, prompts, hidden) by (checkpoint, method, layer)."""

    cells: list[str]
    prompts: list[str]
    arrays: dict[tuple[str, str, int], np.ndarray]


def read(path: str | Path, checkpoints: list[str]) -> Vectors:
    """The vectors of every checkpoint of a run; a file of one checkpoint does not name it."""
    from safetensors import safe_open

    arrays = {}
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        for key in file.keys():
            *checkpoint, method, layer, what = key.split("/")
            if what == "prompts":
                at = (checkpoint[0] if checkpoint else checkpoints[0], method, int(layer.removeprefix("layer")))
                arrays[at] = file.get_tensor(key)
    return Vectors(json.loads(metadata["cells"]), json.loads(metadata["prompts"]), arrays)


def with_cell(vectors: np.ndarray, cells: list[str], cell: str, other: np.ndarray) -> np.ndarray:
    """`vectors` (cells, prompts, hidden) with one cell's rows taken from `other` of the same shape.

    Where one push moves every persona alike, only a moved persona among unmoved ones has a centred cosine that tells.
    """
    mixed = vectors.copy()
    mixed[cells.index(cell)] = other[cells.index(cell)]
    return mixed


def cosines(vectors: np.ndarray, *, centred: bool) -> np.ndarray:
    """Cosines (cells, cells) between the centroids of `vectors` (cells, prompts, hidden); nan for a zero centroid."""
    flat = vectors.reshape(-1, vectors.shape[-1]).astype(np.float64)
    weights = np.full((1, vectors.shape[1]), 1 / vectors.shape[1])
    return _from_products(_products(flat @ flat.T, weights, len(vectors)), centred)[0]


def table(vectors: np.ndarray, cells: list[str], seed: int, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Every pair of cells (a before b) with raw and centred cosines and 95 % intervals (columns: COLUMNS).

    The questions are resampled, the same ones for all cells, since every persona answers the same. Centroids are linear
    in their prompts, so all resamples follow from one table of inner products.
    """
    flat = vectors.reshape(-1, vectors.shape[-1]).astype(np.float64)
    questions = vectors.shape[1]
    drawn = np.random.default_rng(seed).multinomial(questions, np.full(questions, 1 / questions), size=resamples)
    weights = np.vstack([np.ones((1, questions)), drawn]) / questions
    products = _products(flat @ flat.T, weights, len(vectors))
    found = {name: _from_products(products, name == "centred") for name in ("raw", "centred")}
    rows = []
    for i, j in itertools.combinations(range(len(cells)), 2):
        row = {"a": cells[i], "b": cells[j]}
        for name, values in found.items():
            low, high = percentile_interval(values[1:, i, j])
            row |= {name: values[0, i, j], f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def run_table(record: dict, vectors: Vectors, parent: Vectors | None = None) -> pd.DataFrame:
    """`table` of every checkpoint, method and layer of one run, with columns run, seed, checkpoint, method, layer.

    `parent` is given for a steered run: its assistant is set among the personas of the model that was steered.
    """
    frames = []
    for (checkpoint, method, layer), array in vectors.arrays.items():
        if parent is not None:
            label = record["parent"]["label"]
            if (parent.cells, parent.prompts) != (vectors.cells, vectors.prompts):
                raise ValueError(f"{record['run']}: its vectors and its parent's are not over the same prompts")
            array = with_cell(parent.arrays[label, method, layer], parent.cells, "assistant", array)
        frame = table(array, vectors.cells, stable_seed(record["run"], record["seed"], checkpoint, method, layer))
        frame.insert(0, "layer", layer)
        frame.insert(0, "method", method)
        frame.insert(0, "checkpoint", checkpoint)
        frame.insert(0, "seed", record["seed"])
        frame.insert(0, "run", record["run"])
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def between(cosines: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """The rows of one pair of cells, in whichever order the table holds it."""
    return cosines[((cosines["a"] == a) & (cosines["b"] == b)) | ((cosines["a"] == b) & (cosines["b"] == a))]


def _products(gram: np.ndarray, weights: np.ndarray, cells: int) -> np.ndarray:
    """Inner products of weighted centroids (weights, cells, cells) from those of all prompts."""
    questions = weights.shape[1]
    blocks = gram.reshape(cells, questions, cells, questions)
    return np.einsum("wi,aibj,wj->wab", weights, blocks, weights, optimize=True)


def _from_products(products: np.ndarray, centred: bool) -> np.ndarray:
    if centred:
        rows = products.mean(axis=2, keepdims=True)
        products = products - rows - rows.transpose(0, 2, 1) + rows.mean(axis=1, keepdims=True)
    # What is left of a centroid that equals the mean is rounding, and its direction means nothing.
    squares = np.einsum("waa->wa", products)
    floor = 1e-12 * np.abs(products).max(axis=(1, 2), keepdims=True)[:, 0]
    length = np.sqrt(np.where(squares > floor, squares, np.nan))
    return products / (length[:, :, None] * length[:, None, :])
