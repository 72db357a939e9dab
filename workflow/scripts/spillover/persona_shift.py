"""Where fine-tuning moves one persona's vector: its shift, what is left of its own direction, and a linear probe.

Everything is relative to the untrained model, so that models and layers can be compared: lengths are in units of the
spread of its persona centroids (root mean square distance to their mean), and the persona's own direction is the one
from the other personas' mean to its centroid there. Arrays are (personas, questions, hidden); nothing here knows of
runs or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spillover.statistics import percentile_interval

QUANTITIES = {
    "shift": "how far the persona's centroid moved, in spreads of the untrained model's personas",
    "own_shift": "the same beyond the mean shift of all personas",
    "cosine": "cosine of its centroid with the untrained model's",
    "cosine_centred": "the same after each model's mean over personas is taken off",
    "projection": "what is left of its own direction: 1 as in the untrained model, 0 none",
    "probe_base": "area under the curve of a probe trained on the untrained model, on held-out questions",
    "probe_own": "the same of a probe trained on the model itself",
    "probe_gap": "how far that first probe sets the persona apart, in standard deviations of its scores",
}
FOLDS = 5


def measure(
    prompts: np.ndarray, base: np.ndarray, personas: Sequence[str], source: str, seed: int, *, resamples: int = 300
) -> pd.DataFrame:
    """Every one of QUANTITIES for one model and layer: columns quantity, value, low, high.

    `prompts`, `base`: float (personas, questions, hidden) of the model and the untrained one. Intervals resample
    questions, the same for both models; the probes' areas have none (nan). Raises ValueError for arrays that do not fit
    each other or a source persona that they lack.
    """
    if prompts.shape != base.shape:
        raise ValueError(f"the vectors {prompts.shape} and the untrained model's {base.shape} have different shapes")
    if source not in personas:
        raise ValueError(f"there are no vectors of the source persona {source!r}")
    own = list(personas).index(source)
    values = _geometry(prompts.mean(axis=1, dtype=np.float64), base.mean(axis=1, dtype=np.float64), own)
    rng = np.random.default_rng(seed)
    questions = prompts.shape[1]
    draws: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, questions, questions), minlength=questions) / questions
        drawn = (np.einsum("q,pqd->pd", weights, array, optimize=True) for array in (prompts, base))
        for name, value in _geometry(*drawn, own).items():
            draws[name].append(value)
    rows = [{"quantity": n, "value": v} | _interval(draws[n]) for n, v in values.items()]
    return pd.DataFrame(rows + [{"quantity": n, "value": v} for n, v in probes(prompts, base, own).items()])


def probes(prompts: np.ndarray, base: np.ndarray, own: int) -> dict[str, float]:
    """Areas under the curve (0.5 chance, 1 perfect) of ridge probes that tell persona `own` from the others.

    Whole questions are held out. The probe of the untrained model is also asked how far it sets the persona apart in
    this model, since an area of 1 says nothing about the distance.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    personas, questions, hidden = prompts.shape
    ours, theirs = (np.asarray(a, np.float64).reshape(personas * questions, hidden) for a in (prompts, base))
    is_source = np.repeat(np.arange(personas) == own, questions)
    question = np.tile(np.arange(questions), personas)
    scores = {"probe_base": np.zeros(len(ours)), "probe_own": np.zeros(len(ours))}
    for train, test in GroupKFold(min(FOLDS, questions)).split(ours, groups=question):
        for name, rows in (("probe_base", theirs), ("probe_own", ours)):
            probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=hidden, class_weight="balanced"))
            scores[name][test] = probe.fit(rows[train], is_source[train]).decision_function(ours[test])
    found = {name: float(roc_auc_score(is_source, score)) for name, score in scores.items()}
    inside, outside = scores["probe_base"][is_source], scores["probe_base"][~is_source]
    pooled = np.sqrt((inside.var() + outside.var()) / 2)
    return found | {"probe_gap": float((inside.mean() - outside.mean()) / pooled) if pooled > 0 else float("nan")}


def _geometry(ours: np.ndarray, theirs: np.ndarray, own: int) -> dict[str, float]:
    """The quantities that follow from centroids (personas, hidden) of the model and of the untrained one."""
    spread = np.sqrt(((theirs - theirs.mean(axis=0)) ** 2).sum(axis=1).mean())
    moved = ours - theirs
    others = np.arange(len(ours)) != own
    direction = theirs[own] - theirs[others].mean(axis=0)
    now = ours[own] - ours[others].mean(axis=0)
    return {
        "shift": float(np.linalg.norm(moved[own]) / spread),
        "own_shift": float(np.linalg.norm(moved[own] - moved.mean(axis=0)) / spread),
        "cosine": _cosine(ours[own], theirs[own]),
        "cosine_centred": _cosine(ours[own] - ours.mean(axis=0), theirs[own] - theirs.mean(axis=0)),
        "projection": float(now @ direction / (direction @ direction)),
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _interval(draws: list[float]) -> dict[str, float]:
    low, high = percentile_interval(np.array(draws))
    return {"low": low, "high": high}
