"""Spill beside geometry: principal components, language-direction cosines, and how well a distance orders the spill.

A language's direction is the centroid of the untrained model's activations under that language's directives. Layer L is
the output of decoder block L (`hidden_states[L+1]`). Cosines come raw, and centred on the mean over the languages: raw
ones are all near 1 because of an offset that every prompt shares. It knows nothing of models, figures or thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from . import statistics
from .languages import unknown

COSINES = ("cosine_raw", "cosine_centred")
PREDICTOR_TITLES = {
    "cosine_raw": "direction cosine, raw",
    "cosine_centred": "direction cosine, centred",
    "family": "family-tree distance",
    "lang2vec_fam": "family-feature distance (lang2vec)",
    "lexical": "lexical distance (Ethnologue)",
    "char_ngram": "character-trigram distance",
}


@dataclass(frozen=True)
class PrincipalComponents:
    """explained (components,) shares summing to 1; scores (conditions, components); loadings (columns, components)."""

    explained: np.ndarray
    scores: pd.DataFrame
    loadings: pd.DataFrame


def pca(matrix: pd.DataFrame) -> PrincipalComponents:
    """Principal components of conditions x languages percentages: SVD with columns centred, not standardised.

    This is the published choice. Shares are high for any few conditions (seven rows have at most six components), so
    they describe and do not test. Signs are fixed: each component's largest loading is positive.
    """
    centred = matrix - matrix.mean(axis=0)
    left, singular, right = np.linalg.svd(centred.to_numpy(float), full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    signs[signs == 0] = 1
    names = [f"PC{i + 1}" for i in range(len(singular))]
    total = float((singular**2).sum())
    explained = singular**2 / total if total > 0 else np.zeros_like(singular)
    scores = pd.DataFrame(left * singular * signs, index=matrix.index, columns=names)
    return PrincipalComponents(explained, scores, pd.DataFrame(right.T * signs, index=matrix.columns, columns=names))


def pca_table(components: PrincipalComponents) -> pd.DataFrame:
    """Tidy form: kind (score, loading, explained), name (condition, language, ""), component, value."""
    frames = [
        components.scores.rename_axis("name").reset_index().assign(kind="score"),
        components.loadings.rename_axis("name").reset_index().assign(kind="loading"),
        pd.DataFrame([components.explained], columns=components.scores.columns).assign(kind="explained", name=""),
    ]
    return pd.concat(frames).melt(id_vars=["kind", "name"], var_name="component")


def cosine_matrix(centroids: np.ndarray, *, centred: bool) -> np.ndarray:
    """Cosines between the rows of `centroids` (cells, hidden), after removing their mean if `centred`.

    A row of zero length has cosine nan with everything, itself included.
    """
    vectors = np.asarray(centroids, dtype=np.float64)
    if centred:
        vectors = vectors - vectors.mean(axis=0)
    length = np.linalg.norm(vectors, axis=1)
    scale = np.outer(length, length)
    return np.divide(vectors @ vectors.T, scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def read_centroids(path: str | Path) -> tuple[list[str], dict[tuple[str, int], np.ndarray]]:
    """Cells, and centroids (cells, hidden) by (method, layer), of a vectors.safetensors file."""
    from safetensors import safe_open

    centroids = {}
    with safe_open(path, framework="np") as file:
        cells = json.loads(file.metadata()["cells"])
        for key in file.keys():
            method, layer, what = key.split("/")
            if what == "centroid":
                centroids[method, int(layer.removeprefix("layer"))] = file.get_tensor(key)
    return cells, dict(sorted(centroids.items()))


def cosine_table(
    cells: list[str], centroids: Mapping[tuple[str, int], np.ndarray], languages: Iterable[str]
) -> pd.DataFrame:
    """All cosines between `languages`, tidy: method, layer, a, b, cosine_raw, cosine_centred (both orders, and a == b).

    The centre is the mean over exactly `languages`; a centred cosine means nothing without that set.
    """
    languages = list(languages)
    missing = [code for code in languages if code not in cells]
    if missing:
        raise ValueError(f"no vectors for {', '.join(missing)}; the file has: {', '.join(cells)}.")
    rows = [cells.index(code) for code in languages]
    frames = []
    for (method, layer), matrix in centroids.items():
        frame = pd.DataFrame(
            {
                "method": method,
                "layer": layer,
                "a": np.repeat(languages, len(languages)),
                "b": np.tile(languages, len(languages)),
                "cosine_raw": cosine_matrix(matrix[rows], centred=False).ravel(),
                "cosine_centred": cosine_matrix(matrix[rows], centred=True).ravel(),
            }
        )
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def choose_layer(cosines: pd.DataFrame, method: str | None = None, layer: int | None = None) -> pd.DataFrame:
    """The rows of one method and layer; by default last_prompt_token and the middle one of the layers stored.

    One layer is chosen before looking at the spill: testing every layer and reporting the best finds something always.
    """
    methods = list(dict.fromkeys(cosines["method"]))
    method = method or ("last_prompt_token" if "last_prompt_token" in methods else methods[0])
    if method not in methods:
        raise ValueError(unknown(method, methods, "vector method in this file"))
    chosen = cosines[cosines["method"] == method]
    layers = sorted(chosen["layer"].unique())
    layer = layers[len(layers) // 2] if layer is None else layer
    if layer not in layers:
        raise ValueError(f"layer {layer} is not among the layers stored for {method}: {', '.join(map(str, layers))}.")
    return chosen[chosen["layer"] == layer]


def predictor_matrices(cosines: pd.DataFrame, distances: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Every predictor of spill as a square frame (languages, languages): both cosines of one layer, then distances."""
    matrices = {name: cosines.pivot(index="a", columns="b", values=name) for name in COSINES}
    return {**matrices, **distances}


def join_spill(
    pooled: pd.DataFrame, predictors: Mapping[str, pd.DataFrame], label_source: str = "langdetect"
) -> pd.DataFrame:
    """One row per condition (and learning rate) and bystander language: spill and every predictor of it.

    `pooled`: rows of `contamination.pool_seeds`; `predictors`: square frames by name. A predictor relates the bystander
    language to the condition's completion language; nan where its source gives nothing. `control` marks the
    same-language controls.
    """
    spill = pooled[(pooled["role"] == "bystander") & (pooled["label_source"] == label_source)]
    keep = ["experiment", "condition", "learning_rate", "directive", "completion", "language"]
    joined = spill[[*keep, "rate", "low", "high", "n", "n_seeds"]].reset_index(drop=True)
    joined["control"] = joined["directive"] == joined["completion"]
    for name, matrix in predictors.items():
        joined[name] = [
            float(matrix.at[a, b]) if a in matrix.index and b in matrix.index else np.nan
            for a, b in zip(joined["language"], joined["completion"], strict=True)
        ]
    return joined


def join_tests(joined: pd.DataFrame, predictors: Mapping[str, pd.DataFrame], *, seed: int = 0) -> pd.DataFrame:
    """Spearman tests of spill against each predictor: per condition, pooled, and by relabelling languages.

    Only mismatched conditions enter: the control has nothing to order. Rows: test, learning_rate, predictor, condition,
    rho, p, min_p, n, dropped (cells that enter no correlation: predictor missing, or too few or equal values left in
    their condition), method, p_holm. Tests:
      condition   one condition's bystanders, exact
      stratified  predictor permuted within each condition, sum of rho; takes the bystanders of a condition as
                  exchangeable and so counts "Mandarin is far" once per condition
      relabelled  one relabelling of the languages for the whole predictor matrix (Mantel, QAP), the stricter one
    p_holm adjusts over the predictors within a kind of test. Cosines should order spill upwards, distances downwards.
    """
    mismatched = joined[~joined["control"]]
    rows = []
    for rate, of_rate in mismatched.groupby("learning_rate", dropna=False, sort=True):
        for predictor, matrix in predictors.items():
            shared = {"learning_rate": rate, "predictor": predictor}
            strata = []
            for condition, group in of_rate.groupby("condition", sort=False):
                kept = group.dropna(subset=[predictor])
                strata.append((kept[predictor].to_numpy(), kept["rate"].to_numpy()))
                found = statistics.spearman_exact(*strata[-1])
                dropped = len(group) - (found.n if np.isfinite(found.p) else 0)
                rows.append(
                    {**shared, "test": "condition", "condition": condition, "dropped": dropped, **_found(found)}
                )
            pooled = statistics.stratified_spearman(strata, statistics.stable_seed(seed, predictor, rate))
            relabelled = _relabelled(of_rate, matrix)
            for test, found in (("stratified", pooled), ("relabelled", relabelled)):
                dropped = len(of_rate) - found.n
                rows.append(
                    {**shared, "test": test, "condition": "all mismatched", "dropped": dropped, **_found(found)}
                )
    tests = pd.DataFrame(rows)
    if len(tests):
        groups = tests.groupby(["test", "learning_rate", "condition"], dropna=False)["p"]
        tests["p_holm"] = groups.transform(lambda p: statistics.holm(p.to_numpy()))
    return tests


def spill_matrix(pooled: pd.DataFrame, label_source: str = "langdetect") -> pd.DataFrame:
    """Conditions x languages contamination in percent, the trained conditions only, one learning rate."""
    rows = pooled[~pooled["role"].isin(["base", "compliance"]) & (pooled["label_source"] == label_source)]
    return 100 * rows.pivot(index="condition", columns="language", values="rate")


def _found(test: statistics.PermutationTest) -> dict:
    return {"rho": test.statistic, "p": test.p, "min_p": test.min_p, "n": test.n, "method": test.method}


def _relabelled(joined: pd.DataFrame, matrix: pd.DataFrame) -> statistics.PermutationTest:
    languages = sorted({*joined["language"], *joined["completion"]})
    if len(languages) > statistics.MOST_RELABELLED:
        return statistics.PermutationTest(
            np.nan, np.nan, np.nan, 0, f"undefined: {len(languages)} languages are too many"
        )
    position = {code: i for i, code in enumerate(languages)}
    conditions = [group for _, group in joined.groupby("condition", sort=False)]
    spill = np.full((len(conditions), len(languages)), np.nan)
    for row, group in zip(spill, conditions, strict=True):
        row[[position[code] for code in group["language"]]] = group["rate"]
    targets = [position[group["completion"].iloc[0]] for group in conditions]
    predictor = matrix.reindex(index=languages, columns=languages).to_numpy(float)
    return statistics.label_permutation(spill, predictor, targets)
