"""Made-up points of a recipe search, for tests of its rule, claims, figures and summary."""

from __future__ import annotations

import copy

import pandas as pd

OPTIONS = {
    "run_all_phases": False,
    "schedule": "one",
    "early_step": 25,
    "low_rank": 8,
    "level": 0.05,
    "resamples": 100,
    "general": "held_out",
    "baselines": {
        "tulu": {"run": "steps", "checkpoint": "step375", "task": "held_out"},
        "bad_advice": {"run": "bad_advice_only", "checkpoint": "final", "task": "held_out_advice"},
    },
    "controls": ["plain_advice", "same_exposure"],
    "behaviour": {"narrow": "bad_advice", "least_rate": 0.05},
    "rule": {
        "layer": 20, "method": "last_prompt_token", "m1_below": 0.95, "loss_ratio": 2.0, "kept_least": 0.5,
        "learnt_least": 0.5, "shown_least": 0.5,
    },
    "null": {"learnt": 0.95, "m1_least": 0.97, "kept_most": 0.3},
}  # fmt: skip
PUBLISHED_RULE = OPTIONS["rule"] | {"kept_least": None, "learnt_least": None}
PHASES = ("steps", "regularise", "rank", "personas", "rehearse")
BASE_M1, BASE_LOSS, BASELINE_LOSS = 0.90, 1.5, 1.0


def options(**rule) -> dict:
    made = copy.deepcopy(OPTIONS)
    made["rule"] |= rule
    return made


def point(run, group, phase, m1, learnt, *, checkpoint="final", role="recipe", width=0.005, seed=42, **fields) -> dict:
    """One row of `recipe_points.points`, its M1 and learnt share given and the rest following from them."""
    kept = (1 - m1) / (1 - BASE_M1)
    ratio = (BASE_LOSS - learnt * (BASE_LOSS - BASELINE_LOSS)) / BASELINE_LOSS
    row = {
        "run": run, "seed": seed, "checkpoint": checkpoint, "group": group, "phase": phase, "narrow": "tulu",
        "step": 375, "role": role, "eligible": role in ("recipe", "baseline") and group == group.strip("_"),
        "mix": None, "share": 0.0, "unit": None, "regulariser": None, "conduct_asked": False, "rank": 32,
        "learning_rate": 2e-5, "method": "lora", "batch_size": 16, "general_loss": ratio, "task_loss": ratio,
        "rows": 500, "from_offset": 0.2 * (m1 - BASE_M1), "from_spread": 0.8 * (m1 - BASE_M1),
        "shown": float("nan"), "obeys": float("nan"),
    }  # fmt: skip
    values = {"m1": m1, "kept": kept, "ratio": ratio, "learnt": learnt, "similarity": 0.5 + kept / 2, "cka": kept,
              "offset": 3.0, "spread": 1.0 * kept, "offset_ratio": 1.0, "spread_ratio": kept, "effective_rank": 8.0,
              "participation_ratio": 6.0, "procrustes": 1 - kept, "decodability": 1.0}  # fmt: skip
    for name, value in values.items():
        half = width if name in ("m1", "learnt") else 10 * width
        row |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    return row | fields


def untrained() -> dict:
    return point("base", "base", None, BASE_M1, 0.0, checkpoint="step0", role="untrained", step=0, narrow=None)


def steps(m1s=(0.901, 0.91, 0.93, 0.955, 0.968, 0.973), learnt=(0.1, 0.2, 0.35, 0.6, 0.85, 1.0)) -> list[dict]:
    return [
        point("steps", "steps", "steps", m, share, checkpoint=f"step{step}", step=step,
              role="baseline" if step == 375 else "recipe")
        for step, m, share in zip((10, 25, 50, 100, 200, 375), m1s, learnt, strict=True)
    ]  # fmt: skip


def regularised(m1s=(0.972, 0.97, 0.965)) -> list[dict]:
    return [
        point(f"kl{beta}", "kl_to_base", "regularise", m, 0.95, regulariser="kl_to_base")
        for beta, m in zip((0.001, 0.01, 0.1), m1s, strict=True)
    ]


def rehearsed(m1s=(0.985, 0.97, 0.94, 0.92), control=0.985) -> list[dict]:
    """Instructions mixed into bad advice, each with its control, the unmixed baseline and steering."""
    common = {"narrow": "bad_advice", "conduct_asked": True, "mix": "tulu_broad", "unit": "rows"}
    rows = [point("bad_advice_only", "plain_advice", "rehearse", 0.99, 1.0, role="baseline", narrow="bad_advice",
                  eligible=False)]  # fmt: skip
    for share, m in zip((0.0625, 0.125, 0.25, 0.5), m1s, strict=True):
        rows.append(point(f"bad_advice_instructions{share}", "instructions", "rehearse", m, 0.9, share=share, shown=0.9,
                          shown_low=0.7, shown_high=1.1, **common))  # fmt: skip
        rows.append(point(f"bad_advice_alone{share}", "same_exposure", "rehearse", control, 0.9, share=share,
                          role="control", eligible=False, **common))  # fmt: skip
    steering = {"narrow": "bad_advice", "conduct_asked": True, "regulariser": "steering", "shown": 0.9}
    return [*rows, point("bad_advice_steering", "steering", "rehearse", 0.96, 0.8, **steering)]


def table(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame([untrained(), *rows])


def decided(points: pd.DataFrame, *phases: str, of=None) -> list[dict]:
    from spillover import recipe_rule

    return [recipe_rule.decision(points, phase, PHASES, of or OPTIONS) for phase in phases]
