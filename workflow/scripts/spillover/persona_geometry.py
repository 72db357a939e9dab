"""Geometry of persona vectors: how alike they are, what makes them alike, how much of the untrained model's is left.

The published figure M1 is the mean raw cosine between the personas' centroids. With v_i = m + d_i and sum(d_i) = 0 it
is nearly (|m|^2 - s^2 / (n - 1)) / (|m|^2 + s^2), where s is the root mean square of |d_i|: it rises when the
differences d_i shrink and just as well when the offset m that all personas share grows. Both parts are therefore
reported, together with measures of the differences alone. Arrays are `(personas, questions, hidden)`; nothing here
knows of models, runs or thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from scipy.spatial.distance import pdist

from .statistics import percentile_interval

QUANTITIES = {
    "m1": "mean cosine between centroids, not centred (M1)",
    "kept": "share of the untrained model's distance from full collapse that is left, (1 - M1) / (1 - M1 untrained)",
    "offset": "length of the offset that all personas share, |m|",
    "spread": "root mean square distance of the personas from it, s",
    "offset_ratio": "that offset over the untrained model's",
    "spread_ratio": "that distance over the untrained model's",
    "effective_rank": "effective rank of the differences between personas",
    "participation_ratio": "participation ratio of the differences between personas",
    "similarity": "rank correlation of the distances between personas with the untrained model's",
    "cka": "debiased CKA of the centroids with the untrained model's",
    "procrustes": "Procrustes distance of the differences to the untrained model's (0 same shape, 1 unrelated)",
    "decodability": "share of held-out questions whose persona a linear probe names",
}
OVER_PERSONAS = ("m1", "kept", "offset", "spread", "offset_ratio", "spread_ratio")
"""Quantities whose interval resamples questions and personas. The others resample questions alone: a persona drawn
twice is two equal rows, which a rank, a shape or a probe would take for collapse."""


def mean_off_diagonal(cosines: np.ndarray) -> float:
    """Mean of the n (n - 1) / 2 cosines above the diagonal of a square matrix."""
    return float(np.asarray(cosines)[np.triu_indices(len(cosines), 1)].mean())


def cosines(centroids: np.ndarray) -> np.ndarray:
    """Raw cosines (personas, personas) between the rows of `centroids` (personas, hidden)."""
    vectors = np.asarray(centroids, dtype=np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def m1(centroids: np.ndarray) -> float:
    """The published M1: mean raw off-diagonal cosine of `centroids` (personas, hidden), no centring."""
    return mean_off_diagonal(cosines(centroids))


def offset_and_spread(centroids: np.ndarray) -> tuple[float, float]:
    """|m| and s of `centroids` (personas, hidden), in the units of the activations."""
    vectors = np.asarray(centroids, dtype=np.float64)
    common = vectors.mean(axis=0)
    return float(np.linalg.norm(common)), float(np.sqrt(((vectors - common) ** 2).sum(axis=1).mean()))


def m1_of(offset: float, spread: float, personas: int) -> float:
    """The M1 that an offset and a spread imply for `personas` vectors of about equal length (module docstring)."""
    return (offset**2 - spread**2 / (personas - 1)) / (offset**2 + spread**2)


@dataclass(frozen=True)
class Attribution:
    """A rise of M1 split into the part that a grown common offset implies and the part that a shrunk spread implies."""

    rise: float
    from_offset: float
    from_spread: float


def attribute(before: tuple[float, float], after: tuple[float, float], personas: int) -> Attribution:
    """Split the change of M1 between two (offset, spread) pairs.

    Each part is the mean over the two orders in which offset and spread can be exchanged, so the parts add up to the
    change that `m1_of` implies. `rise` is that change: negative when the personas move apart.
    """
    (m0, s0), (m1_, s1) = before, after
    at = {(i, j): m1_of(m, s, personas) for i, m in enumerate((m0, m1_)) for j, s in enumerate((s0, s1))}
    by_offset = (at[1, 0] - at[0, 0] + at[1, 1] - at[0, 1]) / 2
    by_spread = (at[0, 1] - at[0, 0] + at[1, 1] - at[1, 0]) / 2
    return Attribution(at[1, 1] - at[0, 0], by_offset, by_spread)


def differences(centroids: np.ndarray) -> np.ndarray:
    """`centroids` (personas, hidden) without their mean: what tells personas apart."""
    vectors = np.asarray(centroids, dtype=np.float64)
    return vectors - vectors.mean(axis=0)


def effective_rank(centroids: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values of the differences (Roy and Vetterli 2007)."""
    singular = np.linalg.svd(differences(centroids), compute_uv=False)
    share = singular[singular > singular.max() * 1e-12] / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def participation_ratio(centroids: np.ndarray) -> float:
    """(sum l)^2 / sum l^2 over the eigenvalues l of the differences' covariance."""
    eigenvalues = np.linalg.svd(differences(centroids), compute_uv=False) ** 2
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def representational_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of the pairwise distances within two sets of centroids of the same personas."""
    return float(stats.spearmanr(pdist(np.asarray(first, float)), pdist(np.asarray(second, float))).statistic)


def debiased_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear CKA with the unbiased HSIC of Song et al. (2012); near 0 for unrelated sets, negative by chance.

    Plain CKA is close to 1 for any two sets of a dozen points in many dimensions. Needs more than three personas.
    """

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        n = len(x)
        trace = (x * y).sum()
        means = x.sum() * y.sum() / ((n - 1) * (n - 2))
        crossed = 2 * (x.sum(axis=0) @ y.sum(axis=0)) / (n - 2)
        return (trace + means - crossed) / (n * (n - 3))

    grams = []
    for vectors in (differences(first), differences(second)):
        gram = vectors @ vectors.T
        np.fill_diagonal(gram, 0)
        grams.append(gram)
    x, y = grams
    own = hsic(x, x) * hsic(y, y)
    return float(hsic(x, y) / np.sqrt(own)) if own > 0 else float("nan")


def procrustes_distance(first: np.ndarray, second: np.ndarray) -> float:
    """1 - (nuclear norm of X'Y)^2 for differences scaled to unit Frobenius norm: 0 for the same shape, 1 for unrelated.

    The same number as scipy.spatial.procrustes, found through personas x personas matrices instead of hidden x hidden.
    """
    factors = []
    for vectors in (differences(first), differences(second)):
        left, singular, _ = np.linalg.svd(vectors / np.linalg.norm(vectors), full_matrices=False)
        factors.append(left * singular)
    return float(1 - np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum() ** 2)


def probe(prompts: np.ndarray, folds: int = 5) -> np.ndarray:
    """(personas, questions) bool: whether a linear probe, trained without that question, names the persona.

    A ridge classifier on standardised activations; whole questions are held out, so that no wording is known to it.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    personas, questions, hidden = prompts.shape
    rows = np.asarray(prompts, dtype=np.float32).reshape(personas * questions, hidden)
    persona = np.repeat(np.arange(personas), questions)
    question = np.tile(np.arange(questions), personas)
    right = np.zeros(len(rows), dtype=bool)
    for train, test in GroupKFold(min(folds, questions)).split(rows, groups=question):
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=hidden)).fit(rows[train], persona[train])
        right[test] = model.predict(rows[test]) == persona[test]
    return right.reshape(personas, questions)


def describe(prompts: np.ndarray, base: np.ndarray, seed: int, *, resamples: int = 500) -> pd.DataFrame:
    """All QUANTITIES of one model beside the untrained one: columns quantity, value, low, high, over.

    `prompts`, `base`: float (personas, questions, hidden) of the same personas and questions. Intervals are percentile
    bootstraps at 95 %, over questions and personas or over questions alone (`over`); both models are drawn alike.
    Raises ValueError if the two arrays do not fit each other.
    """
    if prompts.shape != base.shape:
        raise ValueError(f"the vectors {prompts.shape} and the untrained model's {base.shape} have different shapes")
    personas, questions, _ = prompts.shape
    values = _from_centroids(prompts.mean(axis=1, dtype=np.float64), base.mean(axis=1, dtype=np.float64))
    right = probe(prompts)
    values["decodability"] = float(right.mean())

    rng = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, questions, questions), minlength=questions) / questions
        ours, theirs = (np.einsum("q,pqd->pd", weights, array, optimize=True) for array in (prompts, base))
        for name, value in _from_centroids(ours, theirs).items():
            draws[name].append(value)
        draws["decodability"].append(float(right.mean(axis=0) @ weights))
        counts = np.bincount(rng.integers(0, personas, personas), minlength=personas)
        if (counts > 0).sum() > 1:
            for name, value in _collapse(_with_counts(ours, counts), _with_counts(theirs, counts)).items():
                draws[name][-1] = value
    rows = []
    for name, value in values.items():
        low, high = percentile_interval(np.array(draws[name]))
        over = "questions and personas" if name in OVER_PERSONAS else "questions"
        rows.append({"quantity": name, "value": value, "low": low, "high": high, "over": over})
    return pd.DataFrame(rows)


def read_prompts(path: str | Path) -> tuple[list[str], dict[tuple[str, str, int], np.ndarray]]:
    """Personas, and activations (personas, questions, hidden) by (checkpoint, method, layer), of vectors.safetensors.

    A file of one model alone has no checkpoint in its keys; it is called "final".
    """
    from safetensors import safe_open

    found = {}
    with safe_open(path, framework="np") as file:
        personas = json.loads(file.metadata()["cells"])
        for key in file.keys():
            *checkpoint, method, layer, what = key.split("/")
            if what == "prompts":
                at = (checkpoint[0] if checkpoint else "final", method, int(layer.removeprefix("layer")))
                found[at] = file.get_tensor(key)
    return personas, dict(sorted(found.items()))


def compare(
    vectors: Mapping[tuple[str, str, int], np.ndarray],
    base: Mapping[tuple[str, str, int], np.ndarray],
    seed: int,
    *,
    resamples: int = 500,
) -> pd.DataFrame:
    """`describe` for every (checkpoint, method, layer) of a file beside the same method and layer of the untrained one.

    Columns checkpoint, method, layer and those of `describe`. Raises ValueError for a layer the untrained model lacks.
    """
    tables = []
    for (checkpoint, method, layer), prompts in vectors.items():
        if ("final", method, layer) not in base:
            raise ValueError(f"the untrained model has no vectors of {method}, layer {layer}, to compare with")
        table = describe(prompts, base["final", method, layer], seed, resamples=resamples)
        for position, (name, value) in enumerate({"checkpoint": checkpoint, "method": method, "layer": layer}.items()):
            table.insert(position, name, value)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _from_centroids(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    once = np.ones(len(ours))
    return _collapse(_with_counts(ours, once), _with_counts(theirs, once)) | {
        "effective_rank": effective_rank(ours),
        "participation_ratio": participation_ratio(ours),
        "similarity": representational_similarity(ours, theirs),
        "cka": debiased_cka(ours, theirs),
        "procrustes": procrustes_distance(ours, theirs),
    }


def _collapse(ours: tuple[float, float, float], theirs: tuple[float, float, float]) -> dict[str, float]:
    (m1, offset, spread), (base_m1, base_offset, base_spread) = ours, theirs
    return {
        "m1": m1,
        "kept": (1 - m1) / (1 - base_m1),
        "offset": offset,
        "spread": spread,
        "offset_ratio": offset / base_offset,
        "spread_ratio": spread / base_spread,
    }


def _with_counts(centroids: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """M1, offset and spread when persona i is drawn counts[i] times.

    A persona is no pair with its own copy, whose cosine would be 1; and copies shrink the spread's square by
    (n - 1) / n on average, which is put back.
    """
    n = counts.sum()
    pairs = np.triu(np.outer(counts, counts), 1)
    gram = centroids @ centroids.T
    offset = counts @ gram @ counts / n**2
    spread = counts @ np.diag(gram) / n - offset
    if counts.max() > 1:
        spread *= n / (n - 1)
    similar = float((pairs * cosines(centroids)).sum() / pairs.sum())
    return similar, float(np.sqrt(offset)), float(np.sqrt(max(spread, 0)))
