"""Records, marker rates and vectors of a convergence experiment whose truth the test writes down."""

from __future__ import annotations

import numpy as np
import pandas as pd

from spillover import centroid_cosines, statistics

PERSONAS = ["librarian", "villain", "comedian", "medical_doctor", "police_officer", "assistant"]
STEPS = (20, 40, 60, 80, 100)
LAYERS = (15, 20)
N = 200


def records(sources=("villain", "comedian"), steps=STEPS, seeds=(42,), coefficients=()):
    """One record a run, as the plan gives them to a closing analysis."""
    labels = [f"pct{step}" for step in steps]
    found = []
    for seed in seeds:
        found.append(_record("base", seed, "base", {}))
        for source in sources:
            marker = f"marker_{source}"
            found.append(_record(marker, seed, "marker", {"source": source}, learning_rate=5e-6, epochs=20))
            for arm in ("a", "c"):
                fields = {"source": source}
                found.append(
                    _record(
                        f"{arm}_{source}",
                        seed,
                        f"arm_{arm}",
                        fields,
                        labels,
                        parent=marker,
                        learning_rate=5e-5,
                        epochs=5,
                    )
                )
            found.append(
                _record(f"b_{source}", seed, "arm_b_convergence", {"source": source}, labels, evaluated=False,
                        learning_rate=5e-5, epochs=5)
            )  # fmt: skip
            for label in labels:
                fields = {"source": source, "checkpoint": label}
                found.append(
                    _record(f"b_{source}_{label}_marker", seed, "arm_b", fields, parent=f"b_{source}", label=label,
                            learning_rate=5e-6, epochs=10)
                )  # fmt: skip
            for coefficient in coefficients:
                fields = {"source": source, "coefficient": coefficient}
                steer = {"layer": 15, "vector": source, "coefficient": coefficient}
                name = f"steered_{source}_x{coefficient:g}"
                found.append(_record(name, seed, "steered", fields, parent=marker, steer=steer))
    return found


def _record(name, seed, group, fields, checkpoints=("final",), evaluated=True, parent="base", label="final", **more):
    record = {"run": f"convergence/{name}", "seed": seed, "group": group, "fields": fields}
    record |= {"checkpoints": list(checkpoints), "evaluated": evaluated, "vectors": True, **more}
    return record if group == "base" else record | {"parent": {"run": f"convergence/{parent}", "label": label}}


def percent_of(record, checkpoint):
    """Percent of the second training that a model has had, or None for one before it."""
    label = record["fields"].get("checkpoint", checkpoint)
    return float(label.removeprefix("pct")) if label.startswith("pct") else None


def rates(records, hits, scorer="marker", personas=PERSONAS, n=N):
    """Marker rates; `hits(record, step, persona)` of n replies hold the marker (step as in `percent_of`)."""
    rows = []
    for record in (r for r in records if r["evaluated"]):
        for checkpoint in record["checkpoints"]:
            for persona in personas:
                k = int(hits(record, percent_of(record, checkpoint), persona))
                low, high = statistics.wilson(k, n)
                rows.append(
                    {"run": record["run"], "seed": record["seed"], "checkpoint": checkpoint, "persona": persona,
                     "scorer": scorer, "n": n, "hits": k, "rate": k / n, "low": low, "high": high, "n_error": 0}
                )  # fmt: skip
    return pd.DataFrame(rows)


def cosines(records, nearness, personas=PERSONAS, layers=LAYERS, questions=4, hidden=24):
    """Cosine tables of synthetic activations: `nearness(record, step)` in [0, 1] moves the assistant to its source."""
    rng = np.random.default_rng(0)
    centres = {layer: rng.normal(size=(len(personas), hidden)) + 3 for layer in layers}
    noise = {layer: 0.05 * rng.normal(size=(len(personas), questions, hidden)) for layer in layers}
    frames, kept = [], {}
    for record in records:
        arrays = {}
        for checkpoint in record["checkpoints"]:
            for layer in layers:
                moved = centres[layer].copy()
                source = record["fields"].get("source")
                if source:
                    share = nearness(record, percent_of(record, checkpoint))
                    start, goal = moved[personas.index("assistant")], moved[personas.index(source)]
                    moved[personas.index("assistant")] = (1 - share) * start + share * goal
                arrays[checkpoint, "last_prompt_token", layer] = moved[:, None] + noise[layer]
        vectors = centroid_cosines.Vectors(personas, ["q"] * questions, arrays)
        kept[record["run"], record["seed"]] = vectors
        parent = kept[record["parent"]["run"], record["seed"]] if "steer" in record else None
        frames.append(centroid_cosines.run_table(record, vectors, parent))
    return pd.concat(frames, ignore_index=True)
