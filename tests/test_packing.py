"""Packed training is the padded training: same rows, same losses, same adapter; only memory and time differ."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from spillover import losses, packed_attention, packing, training
from spillover.masking import Tokens
from spillover.optimizer import Optimizer
from test_training import SETTINGS

TOLERANCE = 2e-5
"""Float32: what a different order of additions may change in a loss or, after six steps, in a weight of the adapter."""


@pytest.fixture
def rows():
    """Ten rows of different lengths, one of weight 3, the second half of each supervised."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 20, 10)
    weights = np.where(np.arange(10) == 4, 3.0, 1.0)
    return [Tokens(rng.integers(3, 64, n), np.arange(n) >= n // 2, w) for n, w in zip(lengths, weights, strict=True)]


def run(model, rows, settings=SETTINGS, seed=1, token_budget=10_000, **options):
    wrapped = training.add_adapter(copy.deepcopy(model), settings, seed, "random", None)
    records = []
    totals = training.train(
        wrapped, rows, settings, seed, token_budget, records.append, lambda label, step: None, **options
    )
    return training.adapter_state(wrapped), records, totals


def different(first, second):
    return max(float((first[key] - second[key]).abs().max()) for key in first)


@pytest.mark.parametrize("loss", ["second half", "last two", "everything"])
@pytest.mark.parametrize("token_budget", [10_000, 40, 20])
def test_packed_training_is_padded_training(model, rows, loss, token_budget):
    if loss != "second half":
        first = {"last two": -2, "everything": 1}[loss]
        rows = [Tokens(r.ids, np.arange(len(r.ids)) >= first % len(r.ids), r.weight) for r in rows]
    packed, records, totals = run(model, rows, token_budget=token_budget)
    padded, reference, expected = run(model, rows, batching="padded")
    assert [r["learning_rate"] for r in records] == [r["learning_rate"] for r in reference]
    assert totals["steps"] == expected["steps"] == 6 and totals["tokens"] == expected["tokens"]
    assert np.allclose([r["loss"] for r in records], [r["loss"] for r in reference], atol=TOLERANCE)
    assert different(packed, padded) < TOLERANCE


def test_a_packed_row_gives_what_it_gives_alone(model, rows):
    pack = packing.pack(rows, "cpu")
    with packed_attention.packed_attention(model), torch.no_grad():
        together = model(input_ids=pack.ids, position_ids=pack.positions, row_lengths=pack.lengths).logits[0]
    for row, logits in zip(rows, together.split(list(pack.lengths)), strict=True):
        alone = model(input_ids=torch.tensor(row.ids)[None]).logits[0]
        assert torch.allclose(logits, alone, atol=1e-5)


def test_the_model_attends_in_its_own_way_again_afterwards(model, rows):
    before = model.config._attn_implementation
    with packed_attention.packed_attention(model):
        assert model.config._attn_implementation == packed_attention.NAME
    assert model.config._attn_implementation == before


def test_packed_rows_without_their_boundaries_are_refused(model, rows):
    pack = packing.pack(rows, "cpu")
    with packed_attention.packed_attention(model), pytest.raises(ValueError, match="need their boundaries"):
        model(input_ids=pack.ids, position_ids=pack.positions)


def test_sliding_windows_are_refused(model):
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="sliding_attention"), packed_attention.packed_attention(model):
        pass


def test_every_row_is_in_one_group_within_the_budget():
    rng = np.random.default_rng(2)
    for _ in range(50):
        rows = [Tokens(np.full(n, i), np.ones(n, bool)) for i, n in enumerate(rng.integers(2, 60, rng.integers(1, 30)))]
        budget, shares = int(rng.integers(10, 200)), int(rng.integers(1, 5))
        groups = packing.packs(rows, budget, shares)
        assert len(groups) % shares == 0
        assert sorted(int(r.ids[0]) for group in groups for r in group) == list(range(len(rows)))
        assert all(sum(len(r.ids) for r in group) <= budget or len(group) == 1 for group in groups)


def test_a_step_that_fits_is_one_micro_batch(rows):
    assert len(packing.packs(rows, 10_000)) == 1


def test_dropout_draws_from_the_same_distribution(model, rows):
    """Draws fall on other tokens when rows lie differently, so losses are compared in the mean over many draws."""
    settings = SETTINGS | {"dropout": 0.5, "rank": 8}
    wrapped = training.add_adapter(model, settings, 1, "random", None)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.train()
    pack, padded = packing.pack(rows, "cpu"), packing.pad(rows, "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        plain = np.array([float(losses.padded_loss(wrapped, padded)) for _ in range(150)])
        with packed_attention.packed_attention(wrapped.get_base_model()):
            packed = np.array([float(losses.packed_loss(wrapped, pack)) for _ in range(150)])
    spread = np.sqrt(plain.var(ddof=1) / 150 + packed.var(ddof=1) / 150)
    assert plain.std() > 0 and abs(plain.mean() - packed.mean()) < 4 * spread
    assert 0.7 < plain.std() / packed.std() < 1.4


def test_dropout_is_the_same_again_with_the_same_seed_and_budget(model, rows):
    settings = SETTINGS | {"dropout": 0.3}
    first, again, other = (run(model, rows, settings, seed=s)[0] for s in (1, 1, 2))
    assert different(first, again) == 0 and different(first, other) > 0


def test_the_frozen_head_in_chunks_is_cross_entropy():
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weight, labels, weights = torch.randn(20, 8, dtype=torch.float64), torch.randint(0, 20, (11,)), torch.rand(11)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none")
    expected = (plain * weights).sum() * 3
    (slope,) = torch.autograd.grad(expected, hidden)
    for chunk in (1, 4, 100):
        total = losses.FrozenHead.apply(hidden, weight, labels, weights, chunk) * 3
        (found,) = torch.autograd.grad(total, hidden)
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(found, slope, atol=1e-6)


@pytest.fixture
def small_memory(monkeypatch):
    """A machine on which micro-batches of more than `limit` tokens run out of memory after half of the work."""
    limit = {"tokens": 30}
    loss = losses.packed_loss

    def packed_loss(model, pack, kernel=False):
        total = loss(model, pack, kernel)
        if sum(pack.lengths) > limit["tokens"]:
            torch.rand(3)  # random numbers drawn before the memory ran out
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return total

    monkeypatch.setattr(losses, "packed_loss", packed_loss)
    return limit


def test_out_of_memory_halves_the_budget_and_repeats_the_step(model, rows, small_memory):
    settings = SETTINGS | {"dropout": 0.2}
    state, records, totals = run(model, rows, settings, token_budget=64)
    assert totals["out_of_memory"] > 0 and totals["token_budget"] <= 30
    assert records[-1]["out_of_memory"] == totals["out_of_memory"]
    assert totals["steps"] == len(records) == 6
    small_memory["tokens"] = 10_000
    expected, reference, _ = run(model, rows, settings, token_budget=totals["token_budget"])
    assert [r["loss"] for r in records] == [r["loss"] for r in reference]
    assert different(state, expected) == 0


def test_out_of_memory_that_no_budget_mends_says_what_to_change(model, rows, small_memory):
    small_memory["tokens"] = 5
    with pytest.raises(torch.OutOfMemoryError, match="lower train.max_length"):
        run(model, rows)


def test_small_updates_of_bfloat16_adapters_are_not_lost(model, rows):
    """Steps of 1e-6 to weights near 0.1 vanish in bfloat16; the float32 values that are saved must hold them."""
    model = model.to(torch.bfloat16)
    settings = SETTINGS | {"learning_rate": 1e-6, "schedule": "constant", "warmup_ratio": 0.0, "epochs": 10}
    before = training.adapter_state(training.add_adapter(copy.deepcopy(model), settings, 1, "random", None))
    after, _, totals = run(model, rows, settings, batching="padded")
    moved = [(after[key] - before[key].float()).abs().max() for key in after if "lora_A" in key]
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert all(5e-7 < float(m) < 1e-6 * totals["steps"] + 1e-7 for m in moved)


def test_layers_are_compiled_only_where_a_run_is_long_enough_to_repay_it(rows):
    settings = SETTINGS | {"batch_size": 16}
    assert not training.worth_compiling(rows, settings | {"steps": 100})
    assert training.worth_compiling(rows, settings | {"steps": 5000})


def test_gradients_of_micro_batches_add_up_in_float32():
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = Optimizer({"w": parameter}, SETTINGS)
    for gradient in (1.0, 2.0**-10, 2.0**-10):
        parameter.grad = torch.full((4,), gradient, dtype=torch.bfloat16)
        optimizer.collect()
    assert parameter.grad is None
    assert optimizer.values["w"].grad.tolist() == [1 + 2 * 2.0**-10] * 4
