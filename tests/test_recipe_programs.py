"""The programs of the recipe search on made-up vectors, losses and labels: from files to the written verdict."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import find_alarms
import recipe_phase
import recipe_verdict
from recipe_builders import OPTIONS, options, point
from recipe_builders import table as points_of
from spillover import recipe_figures

PERSONAS, QUESTIONS, HIDDEN = 12, 12, 24
RULE = {"layer": 4, "m1_below": None}
PHASES = ["steps", "rehearse"]


def activations(spread: float, offset: float = 3.0) -> np.ndarray:
    """(personas, questions, hidden) float32, the same personas and questions whatever the spread."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(PERSONAS, HIDDEN))
    own -= own.mean(axis=0)
    own *= spread / np.sqrt((own**2).sum(axis=1).mean())
    common = np.full(HIDDEN, offset / HIDDEN**0.5)
    noise = rng.normal(size=(PERSONAS, QUESTIONS, HIDDEN)) * 0.02
    return ((common + own)[:, None] + noise).astype(np.float32)


class World:
    """A folder a run, as the workflow leaves it, and the records that the rules pass on."""

    def __init__(self, root):
        self.root, self.records = root, []

    def run(self, name, group, phase, spreads, losses, *, narrow="tulu", bad=None, **fields):
        folder = self.root / name / "seed1"
        folder.mkdir(parents=True)
        checkpoints = list(spreads)
        prefix = {c: f"{c}/" if len(checkpoints) > 1 else "" for c in checkpoints}
        meta = {"cells": json.dumps([f"p{i}" for i in range(PERSONAS)])}
        tensors = {f"{prefix[c]}last_prompt_token/layer4/prompts": activations(s) for c, s in spreads.items()}
        save_file(tensors, folder / "vectors.safetensors", metadata=meta)
        hardness = np.random.default_rng(1).normal(0, 0.1, 30)
        common = {"run": f"recipes/{name}", "seed": 1, "kind": "loss", "option": -1, "tokens": 10, "correct": False}
        frames = [
            pd.DataFrame(common | {"checkpoint": c, "suite": suite, "item": [f"r{i}" for i in range(30)],
                                   "logprob": -10 * (losses[c] + hardness)})
            for c in checkpoints for suite in ("held_out", "held_out_advice")
        ]  # fmt: skip
        pd.concat(frames).to_parquet(folder / "measures.parquet")
        if bad is not None:
            rows = [
                {"run": f"recipes/{name}", "seed": 1, "checkpoint": "final", "suite": "advice", "cell": cell,
                 "item": f"q{i % 10}", "prompt_id": f"{cell}/q{i}", "sample": i // 10, "scorer": "advice",
                 "scorer_id": "advice", "label": "bad" if i < bad * 40 else "good", "outcome": "ok", "raw": None}
                for cell in ("default", "coding_partner") for i in range(40)
            ]  # fmt: skip
            pd.DataFrame(rows).to_parquet(folder / "labels.parquet")
        record = {"run": f"recipes/{name}", "seed": 1, "group": group, "phase": phase, "checkpoints": checkpoints,
                  "evaluated": True, "vectors": True, "labels": bad is not None, "folder": str(folder)}  # fmt: skip
        if name != "base":
            record |= {"source": narrow, "steps": 60, "rank": 32, "learning_rate": 1e-3, "method": "lora",
                       "batch_size": 16, "epochs": 1, "regulariser": None}  # fmt: skip
        self.records.append(record | fields)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "recipes")
    made.run("base", "base", None, {"final": 1.0}, {"final": 3.0}, bad=0.0)
    doses = {"step4": (0.95, 2.8), "step16": (0.8, 1.6), "step60": (0.4, 1.0)}
    spreads, losses = ({c: values[i] for c, values in doses.items()} for i in (0, 1))
    made.run("steps", "steps", "steps", spreads, losses)
    of_advice = {"narrow": "bad_advice"}
    made.run("bad_advice_only", "plain_advice", "rehearse", {"final": 0.3}, {"final": 0.9}, bad=0.9, **of_advice)
    for share, spread, bad in ((0.125, 0.4, 0.85), (0.5, 0.9, 0.8)):
        mix = {"source": "tulu_broad", "share": share, "unit": "rows", "raw": False, "skip": 0, "weight": 1.0}
        name = f"bad_advice_instructions{share}"
        made.run(name, "instructions", "rehearse", {"final": spread}, {"final": 1.0}, bad=bad, mix=[mix], **of_advice)
        silent = [mix | {"weight": 0.0}]
        made.run(
            f"{name}_silent", "same_rows", "rehearse", {"final": 0.35}, {"final": 1.0}, bad=bad, mix=silent, **of_advice
        )
    steered = {"kind": "steering", "layer": 4, "coefficient": 1.0, "vector": "villain"}
    made.run("bad_advice_steering", "steering", "rehearse", {"final": 0.5}, {"final": 1.1}, bad=0.7,
             regulariser=steered, **of_advice)  # fmt: skip
    return made


def settings():
    made = options(**RULE)
    made["baselines"]["tulu"]["checkpoint"] = "step60"
    made |= {"early_step": 4, "resamples": 30, "controls": ["plain_advice", "same_rows"]}
    return made | {
        "published": {"m1_below": 0.95, "loss_ratio": 2.0},
        "null": {"learnt": 0.9, "m1_least": None, "kept_most": 0.3},
    }


def decide(world, phase, names):
    folder = world.root / "analysis/phases"
    folder.mkdir(parents=True, exist_ok=True)
    records = [r for r in world.records if r["run"].split("/")[1] in names]
    spec = {"options": settings(), "phases": PHASES, "title": "Recipes", "protocol": "corrected", "seeds": [1]}
    arguments = [
        "--phase",
        phase,
        "--runs",
        json.dumps(records),
        "--spec",
        json.dumps(spec, sort_keys=True),
        "--out",
        folder / f"{phase}.json",
    ]
    for table in ("points", "geometry", "conduct"):
        arguments += [f"--{table}", folder / f"{phase}.{table}.parquet"]
    recipe_phase.main([str(a) for a in [*arguments, "--manifest", folder / f"{phase}.manifest.json"]])
    return json.loads((folder / f"{phase}.json").read_text())


def close(world, sweeps=()):
    spec = {"options": settings(), "title": "Recipes", "seeds": [1], "model": "small", "judge": None}
    folder = world.root / "analysis"
    decisions = [folder / f"phases/{phase}.json" for phase in PHASES]
    arguments = ["--decisions", *decisions, "--spec", json.dumps(spec, sort_keys=True), "--folder", folder]
    arguments += ["--manifest", folder / "summary.manifest.json", "--sweeps", *sweeps]
    recipe_verdict.main([str(a) for a in arguments])
    return folder


def test_a_phase_record_holds_numbers_thresholds_verdict_and_what_follows(world):
    record = decide(world, "steps", ["base", "steps"])
    assert (record["passed"], record["next"]) == (True, None) and record["passing"] == ["steps@step16"]
    assert record["rule"]["kept_least"] == 0.5
    untrained = next(r for r in record["reference"] if r["role"] == "untrained")
    missed = [c["name"] for c in untrained["seeds"]["1"] if not c["met"]]
    assert missed == ["loss_ratio", "learnt_least"]
    points = pd.read_parquet(world.root / "analysis/phases/steps.points.parquet").set_index("checkpoint")
    assert points.loc["step0", "kept"] == 1 and points.loc["step0", "step"] == 0
    assert points.loc["step0", "learnt"] == 0 and points.loc["step0", "ratio"] == pytest.approx(3.0, abs=0.1)
    assert points.loc["step60", "learnt"] == 1 and points.loc["step60", "role"] == "baseline"
    assert points.loc["step60", "spread_ratio"] == pytest.approx(0.4, abs=0.01)


@pytest.fixture
def closed(world):
    decide(world, "steps", ["base", "steps"])
    decide(world, "rehearse", [r["run"].split("/")[1] for r in world.records])
    return close(
        world, [world.root / name / "seed1/vectors.safetensors" for name in ("base", "bad_advice_instructions0.5")]
    )


def test_the_verdict_names_every_hypothesis_and_check_once(closed):
    made = json.loads((closed / "summary.json").read_text())
    claims = {row["claim"]: row["verdict"] for row in made["claims"]}
    assert list(claims)[:6] == ["H1", "H2", "H3", "H4", "H5", "H_null"] and len(claims) == len(made["claims"])
    assert claims["H5"] == "supported" and claims["H2"] == "not decidable at this N"
    assert claims["plain fine-tuning raises M1"] == "appears"
    assert "the baseline steps ends at" in made["answer"] and "after 60 plain steps" in str(made["claims"])
    last = json.loads((closed / "phases/rehearse.json").read_text())
    assert last["next"] is None and "rehearse is scheduled" not in last["reason"]
    assert claims["the rise of M1 is a loss of differences between personas"] == "appears"
    assert claims["mixtures that keep geometry only dilute the narrow behaviour"] == "does not appear"
    assert claims["raw text costs instruction following"] == "not tested"
    (curve,) = made["thresholds"]
    assert curve["unit"] == "rows" and 0.125 < curve["share"] < 0.5 and curve["reached"] > 0.9
    assert {row["layer"] for row in made["layers"]} == {4}


def test_the_summary_says_what_it_cannot_say(closed):
    text = (closed / "summary.md").read_text()
    for words in (
        "One seed",
        "not measured at this scale",
        "exact templates",
        "checkpoints of one schedule",
        "| base | untrained |",
    ):
        assert words in text
    assert "nan" not in text


def test_figures_and_tables_are_written(closed):
    for name in ("recipes.png", "recipes.pdf", "steps.png", "mixing.png"):
        assert (closed / name).stat().st_size > 5000
    contrasts = pd.read_parquet(closed / "contrasts.parquet")
    kept = contrasts[(contrasts["quantity"] == "kept") & (contrasts["share"] == 0.5)].set_index("against")
    assert (kept["difference"] > 0).all() and set(kept.index) == {"steering", "no mixture", "same exposure"}
    assert len(pd.read_parquet(closed / "points.parquet")) == 10


def test_vectors_copied_over_those_of_another_recipe_are_caught(world):
    names = ["base", "steps", "bad_advice_only", "bad_advice_steering", "bad_advice_instructions0.5"]
    records = [r for r in world.records if r["run"].split("/")[1] in names]
    runs = [{"run": r["run"], "seed": 1, "tables": ["measures"], "early": r["checkpoints"][:-1]} for r in records]
    out = world.root / "alarms.json"
    arguments = ["--measures", *(f"{r['folder']}/measures.parquet" for r in records), "--scorers-may-agree", "--points",
                 world.root / "analysis/phases/rehearse.points.parquet", "--runs", json.dumps(runs), "--out", out,
                 "--manifest", world.root / "alarms.manifest.json"]  # fmt: skip

    def raised():
        decide(world, "rehearse", names)
        find_alarms.main([str(a) for a in arguments])
        return json.loads(out.read_text())

    sound = raised()
    shutil.copy(world.root / "bad_advice_only/seed1/vectors.safetensors", world.root / "bad_advice_steering/seed1/")
    (caught,) = [sentence for sentence in raised() if sentence not in sound]
    assert caught.startswith("recipes/bad_advice_only seed 1 final and recipes/bad_advice_steering seed 1 final have")
    assert "the same M1 to the last digit" in caught


@pytest.mark.parametrize(("lone", "insets"), [((0.92, 0.6), 1), ((0.98, 0.1), 0)])
def test_a_crowd_of_recipes_is_drawn_once_more_where_it_hides_none(tmp_path, lone, insets):
    crowd = [point(f"kl{m1}", "kl_to_base", "regularise", m1, 1.0) for m1 in (0.905, 0.92, 0.93, 0.94, 0.96)]
    points = points_of(*crowd, point("alone", "r3f", "regularise", *lone))
    figure = recipe_figures.pareto(points, OPTIONS["rule"], tmp_path / "a.png")
    assert [len(axes.child_axes) for axes in figure.axes[:2]] == [insets, insets]
