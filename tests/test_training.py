"""Training: steps, schedule, checkpoints, and that micro-batches change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spillover import losses, packing, training
from spillover.expansion import validated
from spillover.masking import Tokens

SETTINGS = validated(
    {"learning_rate": 1e-2, "rank": 4, "alpha": 8, "batch_size": 4, "epochs": 2, "schedule": "cosine"},
    "experiment", "a test", "train",
)  # fmt: skip


@pytest.fixture
def rows():
    """Ten rows of different lengths, the second half of each supervised."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 20, 10)
    return [Tokens(rng.integers(3, 64, n), np.arange(n) >= n // 2) for n in lengths]


def run(model, rows, settings=SETTINGS, seed=1, token_budget=10_000):
    wrapped = training.add_adapter(model, settings, seed, "random", None)
    records, saved = [], {}
    totals = training.train(
        wrapped, rows, settings, seed, token_budget, records.append,
        lambda label, step: saved.update({label: (step, training.adapter_state(wrapped))}),
    )  # fmt: skip
    return wrapped, records, saved, totals


def test_steps_follow_from_rows_batch_size_and_epochs():
    assert training.total_steps(600, SETTINGS | {"batch_size": 16, "epochs": 20}) == 760
    assert training.total_steps(4989, SETTINGS | {"batch_size": 16, "epochs": 1}) == 312
    assert training.total_steps(600, SETTINGS | {"steps": 25}) == 25


def test_every_row_is_seen_once_an_epoch():
    batches = list(training.step_rows(10, SETTINGS, seed=3))
    assert [len(b) for b in batches] == [4, 4, 2, 4, 4, 2]
    assert sorted(np.concatenate(batches[:3])) == sorted(np.concatenate(batches[3:])) == list(range(10))


def test_the_order_of_rows_follows_the_seed():
    first, again, other = (np.concatenate(list(training.step_rows(10, SETTINGS, seed))) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_schedules_are_those_of_transformers(schedule):
    from transformers import get_scheduler

    settings = SETTINGS | {"schedule": schedule, "warmup_ratio": 0.1}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings["learning_rate"])
    name = "constant_with_warmup" if schedule == "constant" else schedule
    reference = get_scheduler(name, optimizer, num_warmup_steps=math.ceil(0.1 * 38), num_training_steps=38)
    for step in range(38):
        assert training.learning_rate(step, 38, settings) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_checkpoints_by_percent_and_by_step():
    assert training.checkpoint_steps(["pct20", "pct100"], 125) == {25: ["pct20"], 125: ["pct100"]}
    assert training.checkpoint_steps(["step10"], 125) == {10: ["step10"]}


def test_a_checkpoint_beyond_the_run_is_refused():
    with pytest.raises(ValueError, match="step200 lies outside the run of 125 steps"):
        training.checkpoint_steps(["step200"], 125)


def test_the_loss_of_a_step_is_the_mean_over_its_supervised_tokens(model, rows):
    expected, count = 0.0, 0
    for row in rows:
        ids = torch.tensor(row.ids)[None]
        logits = model(input_ids=ids).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        expected += float(each[torch.tensor(row.supervised[1:])].sum().detach())
        count += int(row.supervised[1:].sum())
    measured = float(losses.padded_loss(model, packing.pad(rows, "cpu")).detach())
    assert measured / count == pytest.approx(expected / count, rel=1e-5)


def test_micro_batches_of_any_size_give_the_same_training(model, rows):
    import copy

    results = [run(copy.deepcopy(model), rows, token_budget=budget) for budget in (10_000, 40, 20)]
    losses = np.array([[r["loss"] for r in records] for _, records, _, _ in results])
    assert np.allclose(losses, losses[0], atol=1e-5)
    states = [training.adapter_state(wrapped) for wrapped, *_ in results]
    for key, tensor in states[0].items():
        assert torch.allclose(states[1][key], tensor, atol=1e-5) and torch.allclose(states[2][key], tensor, atol=1e-5)


def test_training_lowers_the_loss_and_moves_the_adapter_only(model, rows):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrapped, records, _, totals = run(model, rows, SETTINGS | {"epochs": 20})
    assert totals["last_loss"] < totals["first_loss"] - 0.2
    assert totals["steps"] == len(records) == 60
    after = {k.replace(".base_layer", ""): v for k, v in wrapped.get_base_model().state_dict().items()}
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_the_same_seed_gives_the_same_adapter(model, rows):
    import copy

    first, again, other = (training.adapter_state(run(copy.deepcopy(model), rows, seed=s)[0]) for s in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_checkpoints_hold_the_adapter_at_their_step(model, rows):
    wrapped, _, saved, _ = run(model, rows, SETTINGS | {"checkpoints": ["pct50", "pct100"]})
    assert [step for step, _ in saved.values()] == [3, 6]
    final = training.adapter_state(wrapped)
    assert all(torch.equal(saved["pct100"][1][k], final[k]) for k in final)
    assert any(not torch.equal(saved["pct50"][1][k], final[k]) for k in final)


def test_a_loss_that_is_no_number_stops_the_run(model, rows):
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        run(model, rows)


def test_the_adapter_config_states_scale_and_base(model, rows, tmp_path):
    from spillover import adapters

    wrapped, *_ = run(model, rows)
    training.write_adapter(wrapped, tmp_path)
    config = adapters.read_config(tmp_path)
    assert config["target_modules"] == sorted(SETTINGS["target_modules"])
    assert config["use_rslora"] and config["base_model_name_or_path"] == "random"
    assert adapters.effective_scale(config) == 8 / math.sqrt(4)
