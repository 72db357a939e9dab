"""A run's completions and labels as a log of Inspect, so that `inspect view` shows them.

Written is version 2 of the documented JSON format of inspect_ai (one model, one task, a sample per prompt and an epoch
per completion of it); the package itself is not needed. A label that failed is a score without a value, not a wrong
one.
"""

from __future__ import annotations

import hashlib
import math
from datetime import datetime
from typing import Any

import pandas as pd

from spillover.browser import KEY

STOPS = {"stop": "stop", "length": "max_tokens"}
UNSCORED = math.nan
"""What Inspect reads and writes for "not scored", with the reason beside it; as JSON it is the bare word NaN."""


def log(
    completions: pd.DataFrame, labels: pd.DataFrame, *, task: str, model: str, started: str, packages: dict, spec: dict
) -> dict[str, Any]:
    """The log of one model, rows of one run, seed and checkpoint; `started` is an ISO time, `spec` kept as metadata."""
    samples = _samples(completions, labels, model)
    scorers = list(dict.fromkeys(labels["scorer"])) if len(labels) else []
    identity = hashlib.sha256("/".join([task, model, started]).encode()).hexdigest()[:22]
    epochs = max((sample["epoch"] for sample in samples), default=1)
    created = datetime.fromisoformat(started).isoformat()
    ids = list(dict.fromkeys(sample["id"] for sample in samples))
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": identity,
            "run_id": identity,
            "task_id": identity,
            "created": created,
            "task": task,
            "dataset": {"name": task, "samples": len(ids), "sample_ids": ids, "shuffled": False},
            "model": model,
            "config": {"epochs": epochs},
            "packages": packages,
            "metadata": spec,
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}, "params_passed": {}}], "config": {}},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": [_score(name, labels[labels["scorer"] == name]) for name in scorers],
        },
        "stats": {"started_at": created, "completed_at": created, "model_usage": {model: _usage(completions)}},
        "samples": samples,
    }


def _samples(completions: pd.DataFrame, labels: pd.DataFrame, model: str) -> list[dict]:
    found: dict[tuple, dict] = {}
    for row in labels.itertuples():
        key = tuple(getattr(row, name) for name in KEY)
        found.setdefault(key, {})[row.scorer] = _label(row)
    samples = []
    for row in completions.itertuples():
        key = tuple(getattr(row, name) for name in KEY)
        asked = [{"role": "system", "content": row.system}] if _given(row.system) else []
        asked.append({"role": "user", "content": row.user or ""})
        answer = {"role": "assistant", "content": row.text or "", "source": "generate", "model": model}
        usage = _usage(pd.DataFrame([row._asdict()]))
        stop = STOPS.get(row.finish_reason, "unknown") if _given(row.finish_reason) else "unknown"
        samples.append(
            {
                "id": f"{row.suite}/{row.prompt_id}",
                "epoch": int(row.sample) + 1,
                "input": asked,
                "target": "",
                "messages": [*asked, answer],
                "output": {
                    "model": model,
                    "choices": [{"message": answer, "stop_reason": stop}],
                    "completion": answer["content"],
                    "usage": usage,
                },
                "model_usage": {model: usage},
                "scores": {name: score | {"answer": answer["content"]} for name, score in found.get(key, {}).items()},
                "metadata": {"suite": row.suite, "cell": row.cell, "item": row.item},
            }
        )
    return samples


def _label(row: Any) -> dict:
    usable = row.outcome == "ok"
    score = {
        "value": row.label if usable else UNSCORED,
        "metadata": {"scorer_id": row.scorer_id, "outcome": row.outcome},
    }
    score |= {} if usable else {"reason": row.outcome}
    return score | ({"explanation": row.raw} if _given(row.raw) else {})


def _score(name: str, labels: pd.DataFrame) -> dict:
    """Shares of each label among the labels that are labels."""
    usable = labels.loc[labels["outcome"] == "ok", "label"]
    shares = usable.value_counts(normalize=True).sort_index()
    metrics = {label: {"name": label, "value": float(share)} for label, share in shares.items()}
    return {
        "name": name,
        "scorer": name,
        "scored_samples": len(usable),
        "unscored_samples": len(labels) - len(usable),
        "metrics": metrics,
    }


def _usage(completions: pd.DataFrame) -> dict:
    counts = [int(completions[f"{kind}_tokens"].fillna(0).sum()) for kind in ("prompt", "completion")]
    return {"input_tokens": counts[0], "output_tokens": counts[1], "total_tokens": sum(counts)}


def _given(value: Any) -> bool:
    return isinstance(value, str)
