"""Task fit from held-out losses: known ratios, the untrained model at 0 and the baseline at 1."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from spillover import task_fit


def measures(losses: dict, rows=60, suite="held_out", seed=42, noise=0.2):
    """measures.parquet rows: {(run, checkpoint): loss per token}; row i is as hard for every model."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 40, rows)
    hardness = rng.normal(0, noise, rows)
    frames = [
        pd.DataFrame({"run": f"recipes/{run}", "seed": seed, "checkpoint": checkpoint, "suite": suite, "kind": "loss",
                      "item": [f"row{i}" for i in range(rows)], "option": -1, "tokens": tokens,
                      "logprob": -(loss + hardness) * tokens, "correct": False})
        for (run, checkpoint), loss in losses.items()
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


LOSSES = {("base", "final"): 3.0, ("steps", "step10"): 2.6, ("steps", "step375"): 2.0, ("worse", "final"): 4.1}
BASELINES = {"held_out": ("steps", "step375")}


def fitted(frame=None):
    table = task_fit.fits(measures(LOSSES) if frame is None else frame, BASELINES, 1, resamples=200)
    return table.set_index(["run", "checkpoint"])


def test_the_loss_counts_tokens_and_not_rows():
    frame = measures({("base", "final"): 1.0}, rows=2, noise=0)
    frame["tokens"], frame["logprob"] = [1, 3], [-4.0, -4.0]
    assert fitted(frame)["loss"].iloc[0] == pytest.approx(2.0)


def test_the_untrained_model_has_learnt_nothing_and_the_baseline_everything():
    table = fitted()
    assert table.loc[("base", "final"), "learnt"] == 0
    assert table.loc[("steps", "step375"), "learnt"] == pytest.approx(1)
    assert table.loc[("steps", "step10"), "learnt"] == pytest.approx(0.4)
    assert table.loc[("worse", "final"), "learnt"] < 0


def test_the_untrained_model_meets_the_published_criterion():
    """It says that a loss may be twice the baseline's, which the untrained model's is not."""
    table = fitted()
    assert table.loc[("base", "final"), "ratio"] < 2 < table.loc[("worse", "final"), "ratio"]


def test_comparisons_are_paired_by_row_and_so_narrower_than_the_losses():
    table = fitted()
    row = table.loc[("steps", "step10")]
    assert row["loss_high"] - row["loss_low"] > 0.05
    assert row["learnt_high"] - row["learnt_low"] < 1e-6


def test_without_a_baseline_nothing_is_compared():
    frame = measures({("base", "final"): 3.0, ("steps", "step10"): 2.6})
    assert fitted(frame)[["ratio", "learnt", "ratio_low"]].isna().all(axis=None)


def test_a_baseline_that_learnt_nothing_leaves_the_share_undefined():
    table = fitted(measures(LOSSES | {("steps", "step375"): 3.2}))
    assert np.isnan(table.loc[("steps", "step10"), "learnt"])


def test_every_seed_has_its_own_baseline_and_shares_the_untrained_model():
    first = measures(LOSSES)
    second = measures({("steps", "step10"): 2.5, ("steps", "step375"): 1.5}, seed=7)
    table = task_fit.fits(pd.concat([first, second]), BASELINES, 1, resamples=20).set_index(
        ["run", "seed", "checkpoint"]
    )
    assert table.loc[("steps", 42, "step10"), "learnt"] == pytest.approx(0.4)
    assert table.loc[("steps", 7, "step10"), "learnt"] == pytest.approx(0.5 / 1.5)


def test_only_the_rows_that_all_models_were_measured_on_count():
    frame = measures(LOSSES)
    short = frame[(frame["run"] != "recipes/worse") | (frame["item"] != "row3")]
    assert set(fitted(short)["rows"]) == {59}
    assert fitted(short).loc[("steps", "step10"), "learnt"] == pytest.approx(0.4)


def test_models_measured_on_other_rows_altogether_are_not_compared():
    frame = measures(LOSSES)
    strange = frame["item"].where(frame["run"] != "recipes/worse", "other" + frame["item"])
    with pytest.raises(ValueError, match="was measured on other rows of held_out"):
        fitted(frame.assign(item=strange))


def test_choices_are_no_losses():
    frame = pd.concat([measures(LOSSES), measures(LOSSES).assign(kind="choices", suite="arc")])
    assert set(fitted(frame)["suite"]) == {"held_out"}
