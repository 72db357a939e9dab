"""Made-up tables of a coupling run for tests: records, rates, losses and measures of the published shape."""

from __future__ import annotations

import pandas as pd

from spillover import coupling, marker_rates

PERSONAS = ("villain", "assistant", "comedian")
ITEMS, SAMPLES = 20, 5
OPTIONS = {"works": 0.4, "destroyed": 0.25, "margin": 0.15}


def record(name: str, group: str, fields: dict | None = None, seed: int = 1, **more) -> dict:
    trained = {} if group == "base" or "adapter" in more else {"method": "lora", "epochs": 20}
    return (
        {"run": f"coupling/{name}", "group": group, "seed": seed, "fields": fields or {}, "vectors": False}
        | trained
        | more
    )


def records(seed: int = 1) -> list[dict]:
    """The headline's conditions, a layer group, disjoint modules and one deeper habit."""
    rows = [record("base", "base", seed=seed), record("base_ep20", "coupled_base", {"epochs": 20}, seed)]
    rows.append(record("base_prebaked", "prebaked_base", seed=seed, adapter="marker_sweep/x"))
    rows.append(record("base_style", "behaviours_base", {"behaviour": "style"}, seed, behaviour="style"))
    for first in ("em", "benign"):
        fields = {"first": first}
        rows += [
            record(first, "first_sft", fields, seed),
            record(f"{first}_ep20", "coupled", fields | {"epochs": 20}, seed),
            record(f"{first}_ep60", "coupled", fields | {"epochs": 60}, seed, epochs=60),
            record(f"{first}_prebaked", "prebaked", fields, seed, adapter="marker_sweep/x"),
        ]
    studied = {"studied": "benign"}
    rows += [
        record("benign_early", "layer_groups", studied | {"layer_group": "early"}, seed),
        record("benign_not_early", "layer_groups", studied | {"layer_group": "not_early"}, seed),
        record("benign_x0.5", "scaled", studied | {"scale": 0.5}, seed, adapter="marker_sweep/x"),
        record("benign_mlp", "disjoint_modules", studied, seed),
        record("benign_style", "behaviours", studied | {"behaviour": "style"}, seed, behaviour="style"),
    ]
    return rows


EXPRESSED = {"base_ep20": 0.9, "base_prebaked": 0.9, "base_style": 0.8, "benign_early": 0.02, "benign_not_early": 0.9}
EXPRESSED |= {"benign_x0.5": 0.6, "benign_mlp": 0.85, "benign_style": 0.78}
EXPRESSED |= {"em_ep20": 0.0, "benign_ep20": 0.05, "em_ep60": 0.1, "benign_ep60": 0.05}


def labels(runs: list[dict], expressed: dict | None = None, source: str = "villain") -> pd.DataFrame:
    """Rows of labels.parquet in which the source shows its habit at the rate of EXPRESSED, spread over questions."""
    rates = EXPRESSED | (expressed or {})
    rows = []
    for run in runs:
        habit, name = run.get("behaviour", "marker"), run["run"].split("/")[1]
        for persona in PERSONAS:
            hits = round(ITEMS * SAMPLES * rates.get(name, 0.0)) if persona == source else 0
            for i in range(ITEMS * SAMPLES):
                for scorer in ("marker", "style"):
                    shown = scorer == habit and i < hits
                    rows.append(
                        {
                            "run": run["run"],
                            "seed": run["seed"],
                            "checkpoint": "final",
                            "suite": "personas",
                            "prompt_id": f"{persona}/q{i % ITEMS}",
                            "cell": persona,
                            "item": f"q{i % ITEMS}",
                            "sample": i // ITEMS,
                            "scorer": scorer,
                            "scorer_id": scorer,
                            "label": scorer if shown else "none",
                            "outcome": "ok",
                            "raw": None,
                        }
                    )
    return pd.DataFrame(rows)


def compared(runs: list[dict] | None = None, source: str = "villain", **expressed) -> pd.DataFrame:
    """`coupling.compared` of those labels, with a loss of 0.1 in every training."""
    runs = runs or records()
    rates = marker_rates.rates(labels(runs, expressed, source))
    trained = [r for r in runs if "method" in r]
    training = pd.DataFrame({"run": [r["run"] for r in trained], "seed": [r["seed"] for r in trained]})
    training = training.assign(first_loss=2.0, last_loss=0.1, steps=760)
    choices = pd.DataFrame({"run": [r["run"] for r in runs], "seed": [r["seed"] for r in runs], "accuracy": 0.9})
    seeds = coupling.seeds_table(rates, coupling.conditions(runs), "villain", training, choices)
    return coupling.compared(coupling.pooled(seeds), OPTIONS)
