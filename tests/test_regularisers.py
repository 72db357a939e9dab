"""What a step adds to its loss is what its definition says, computed by hand; and memory limits change none of it."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn import functional as F

from spillover import losses, packing, regularisers, resume, steering, training
from spillover.expansion import validated
from spillover.masking import Tokens
from spillover.packed_attention import packed_attention
from test_training import SETTINGS

TOLERANCE = 2e-5
KL = {"kind": "kl_to_base", "weight": 0.5}
R3F = {"kind": "r3f", "weight": 0.5, "noise": 0.05}
STEERING = {"kind": "steering", "layer": 1, "coefficient": 2.0, "vector": "villain", "method": "last_prompt_token"}
ADDED = {
    "kl_to_base": {"regulariser": KL},
    "r3f": {"regulariser": R3F},
    "steering": {"regulariser": STEERING},
    "contrast": {"contrast": 0.7},
    "kl_to_base and contrast": {"regulariser": KL, "contrast": 0.7},
}
SHIFT = torch.linspace(-1, 1, 32)


@pytest.fixture
def rows():
    """Ten rows of different lengths, one of weight 3; every third has an ending of two or three pieces to avoid."""
    rng = np.random.default_rng(0)
    made = []
    for i, n in enumerate(rng.integers(6, 20, 10)):
        ids = rng.integers(3, 64, n)
        pieces = 2 + i % 2
        ending = np.concatenate([ids, rng.integers(3, 64, pieces)])
        contrast = Tokens(ending, np.arange(n + pieces) >= n, avoided=True) if i % 3 == 0 else None
        made.append(Tokens(ids, np.arange(n) >= n // 2, 3.0 if i == 4 else 1.0, contrast))
    return made


def adapted(model, settings=SETTINGS):
    """The model under an adapter that already changes much."""
    wrapped = training.add_adapter(copy.deepcopy(model), settings, 1, "random", None)
    torch.manual_seed(5)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return wrapped.train()


def objective(wrapped, rows, train, seed=3):
    """The step's objective, what is logged of it and the gradients of the adapter, from one packed micro-batch."""
    chosen = [*rows, *(row.contrast for row in rows if row.contrast and train["contrast"])]
    weight = sum(row.weight * int(row.supervised.sum()) for row in rows)
    negatives = sum(row.avoided for row in chosen)
    with packed_attention(wrapped.get_base_model()):
        pack = packing.pack(chosen, "cpu")
        whole, told = regularisers.objective(wrapped, pack, False, train, seed=seed, weight=weight, negatives=negatives)
        return whole, told, gradients(whole, wrapped)


def gradients(loss, wrapped):
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def same(found, expected):
    return all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def distributions(wrapped, row, embeddings=None):
    """Log-probabilities (supervised, vocabulary) of one row by itself, without packing."""
    inputs = {"input_ids": torch.tensor(row.ids)[None]} if embeddings is None else {"inputs_embeds": embeddings}
    logits = wrapped(**inputs).logits[0, :-1][torch.tensor(row.supervised[1:])]
    return logits.log_softmax(-1)


def divergence(p, q):
    """KL(p || q) of log-probabilities, per row."""
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


def mean(per_row, rows):
    """The weighted mean over supervised tokens."""
    total = sum(row.weight * int(row.supervised.sum()) for row in rows)
    return sum(row.weight * values.sum() for row, values in zip(rows, per_row, strict=True)) / total


def cross_entropy(wrapped, rows):
    taken = [torch.tensor(row.ids[row.supervised])[:, None] for row in rows]
    return mean([-distributions(wrapped, r).gather(1, t)[:, 0] for r, t in zip(rows, taken, strict=True)], rows)


def pair(p, q, *, symmetric, weight=0.5, chunk=100):
    """FrozenPair on one token whose two distributions are p and q, through the identity."""
    states = [torch.tensor([values], dtype=torch.float64).log().requires_grad_() for values in (p, q)]
    head = torch.eye(len(p), dtype=torch.float64)
    label, count = torch.tensor([0]), torch.ones(1)
    return regularisers.FrozenPair.apply(*states, head, label, count, weight, symmetric, chunk)


def test_the_divergence_of_two_coins_is_the_one_computed_by_hand():
    one_way = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    other_way = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    whole, loss, found = pair((0.8, 0.2), (0.5, 0.5), symmetric=False)
    assert found.item() == pytest.approx(one_way) and loss.item() == pytest.approx(-math.log(0.8))
    assert whole.item() == pytest.approx(-math.log(0.8) + 0.5 * one_way)
    _, _, found = pair((0.8, 0.2), (0.5, 0.5), symmetric=True)
    assert found.item() == pytest.approx(one_way + other_way)


def test_a_tiny_divergence_is_not_lost_to_rounding():
    p = np.full(1000, 1e-3)
    q = p * (1 + 1e-4 * np.where(np.arange(1000) % 2, 1, -1))
    states = [torch.tensor(values[None], dtype=torch.float32).log() for values in (p, q)]
    arguments = torch.eye(1000), torch.tensor([0]), torch.ones(1), 1.0, False, 10
    *_, found = regularisers.FrozenPair.apply(*states, *arguments)
    assert found.item() == pytest.approx(0.5e-8, rel=0.02)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_the_gradients_of_a_pair_are_those_of_the_plain_formula(symmetric, chunk):
    torch.manual_seed(0)
    hidden, other = (torch.randn(11, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    head, labels, weights = torch.randn(20, 8, dtype=torch.float64), torch.randint(0, 20, (11,)), torch.rand(11)
    p, q = (states @ head.T for states in (hidden, other))
    apart = divergence(p.log_softmax(-1), q.log_softmax(-1))
    if symmetric:
        apart = apart + divergence(q.log_softmax(-1), p.log_softmax(-1))
    plain = ((F.cross_entropy(p, labels, reduction="none") + 0.3 * apart) * weights).sum() * 3
    expected = torch.autograd.grad(plain, [hidden, other])
    whole, *_ = regularisers.FrozenPair.apply(hidden, other, head, labels, weights, 0.3, symmetric, chunk)
    found = torch.autograd.grad(whole * 3, [hidden, other], allow_unused=True)
    assert (whole * 3).item() == pytest.approx(plain.item(), rel=1e-6)
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    assert torch.allclose(found[1], expected[1], atol=1e-6) if symmetric else found[1] is None


def test_kl_to_base_is_the_divergence_from_the_model_without_its_adapter(model, rows):
    wrapped = adapted(model)
    train = SETTINGS | {"regulariser": KL}
    apart = mean([divergence(distributions(wrapped, r), distributions(model, r).detach()) for r in rows], rows)
    loss = cross_entropy(wrapped, rows)
    whole, told, slopes = objective(wrapped, rows, train)
    assert apart.item() > 0.01
    assert told["regulariser"].item() == pytest.approx(apart.item(), rel=1e-4)
    assert told["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert whole.item() == pytest.approx((loss + 0.5 * apart).item(), rel=1e-5)
    assert same(slopes, gradients(loss + 0.5 * apart, wrapped))


def test_a_fresh_adapter_is_at_its_base(model, rows):
    wrapped = training.add_adapter(copy.deepcopy(model), SETTINGS, 1, "random", None).train()
    _, told, _ = objective(wrapped, rows, SETTINGS | {"regulariser": KL})
    assert told["regulariser"].item() == 0


def test_the_base_is_the_frozen_weights_themselves_and_knows_no_dropout(model, rows):
    wrapped = adapted(model, SETTINGS | {"dropout": 0.5})
    parameters = sum(p.numel() for p in wrapped.parameters())
    seen = []
    hidden_states = losses.hidden_states

    def watched(*arguments):
        seen.append(hidden_states(*arguments))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "hidden_states", watched)
        for seed in (1, 2):
            torch.manual_seed(seed)
            objective(wrapped, rows, SETTINGS | {"regulariser": KL})
    base, trained, base_again, trained_again = seen
    assert not base.requires_grad and torch.equal(base, base_again)
    assert trained.requires_grad and not torch.equal(trained, trained_again)
    assert sum(p.numel() for p in wrapped.parameters()) == parameters
    assert all(p.requires_grad == ("lora_" in name) for name, p in wrapped.named_parameters())


def test_the_base_of_a_stacked_run_is_the_model_that_it_stands_on(model, rows, tmp_path):
    training.write_adapter(adapted(model), tmp_path)
    parent = adapted(model)
    wrapped = training.add_adapter(copy.deepcopy(model), SETTINGS, 2, "random", None, tmp_path).train()
    for name, parameter in wrapped.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = mean([divergence(distributions(wrapped, r), distributions(parent, r).detach()) for r in rows], rows)
    _, told, slopes = objective(wrapped, rows, SETTINGS | {"regulariser": KL})
    assert told["regulariser"].item() == pytest.approx(expected.item(), rel=1e-4) and expected.item() > 1e-3
    assert all(".default." in name for name in slopes)


def test_a_pull_towards_the_base_keeps_the_model_nearer_to_it(model, rows):
    def last(weight):
        settings = SETTINGS | {"regulariser": KL | {"weight": weight}, "epochs": 20}
        epoch = run(model, rows, settings)[1][-3:]
        return [sum(record[key] for record in epoch) for key in ("regulariser", "loss")]

    weak, strong = last(1e-3), last(20.0)
    assert strong[0] < 0.5 * weak[0] and strong[1] > weak[1]


def test_r3f_is_the_symmetric_divergence_from_the_noised_embeddings(model, rows):
    wrapped = adapted(model)
    train = SETTINGS | {"regulariser": R3F}
    pack = packing.pack(rows, "cpu")
    drawn = regularisers.noise(pack, 32, 3, "cpu")[0].split(list(pack.lengths))
    apart = []
    for row, z in zip(rows, drawn, strict=True):
        embeddings = wrapped.get_input_embeddings()(torch.tensor(row.ids))
        p, q = distributions(wrapped, row), distributions(wrapped, row, (embeddings + 0.05 * z)[None])
        apart.append(divergence(p, q) + divergence(q, p))
    apart, loss = mean(apart, rows), cross_entropy(wrapped, rows)
    whole, told, slopes = objective(wrapped, rows, train)
    assert apart.item() > 0
    assert told["regulariser"].item() == pytest.approx(apart.item(), rel=1e-3)
    assert told["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert whole.item() == pytest.approx((loss + 0.5 * apart).item(), rel=1e-5)
    assert same(slopes, gradients(loss + 0.5 * apart, wrapped))


def test_both_passes_of_r3f_draw_the_same_dropout(model, rows):
    wrapped = adapted(model, SETTINGS | {"dropout": 0.5})
    none = SETTINGS | {"regulariser": R3F | {"noise": 0.0}}
    losses_told = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        _, told, _ = objective(wrapped, rows, none)
        assert told["regulariser"].item() == 0
        losses_told.append(told["loss"].item())
    assert losses_told[0] != losses_told[1]


def test_noise_follows_from_the_step_and_the_row_wherever_it_lies(rows):
    first, again = packing.pack(rows, "cpu"), packing.pack(rows[::-1], "cpu")
    parts = regularisers.noise(first, 32, 3, "cpu")[0].split(list(first.lengths))
    turned = regularisers.noise(again, 32, 3, "cpu")[0].split(list(again.lengths))[::-1]
    assert all(torch.equal(a, b) for a, b in zip(parts, turned, strict=True))
    assert not torch.equal(parts[0], regularisers.noise(first, 32, 4, "cpu")[0, : len(parts[0])])
    drawn = torch.cat([regularisers.noise(first, 512, seed, "cpu")[0] for seed in range(8)])
    assert abs(float(drawn.mean())) < 0.01 and abs(float(drawn.std()) - 1) < 0.01


def test_noise_that_bfloat16_would_erase_reaches_the_model(model, rows):
    """Of embeddings near 0.02, bfloat16 leaves nine in ten entries where they were under noise of 1e-5."""
    model = model.to(torch.bfloat16)
    wrapped = adapted(model)
    embeddings = model.get_input_embeddings()(torch.tensor(rows[0].ids))
    moved = (embeddings + (1e-5 * torch.randn(embeddings.shape)).bfloat16() != embeddings).float().mean()
    assert moved < 0.2
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        hidden_states = losses.hidden_states
        patch.setattr(losses, "hidden_states", lambda *a: (seen.append(a[3]), hidden_states(*a))[1])
        _, told, slopes = objective(wrapped, rows, SETTINGS | {"regulariser": R3F | {"noise": 1e-5}})
    clean, noised = seen
    assert noised.dtype == torch.float32 and (noised != clean).float().mean() > 0.99
    assert 0 < told["regulariser"].item() < 0.1
    assert all(torch.isfinite(slope).all() for slope in slopes.values())


def test_a_divergence_of_zero_stops_a_run_with_r3f(model, rows):
    with pytest.raises(FloatingPointError, match="lost to rounding; raise train.regulariser.noise"):
        run(model, rows, SETTINGS | {"regulariser": R3F | {"noise": 1e-30}})


def test_steering_shifts_every_position_of_one_block_and_no_earlier_one(model, rows):
    ids = torch.tensor(rows[0].ids)[None]
    outputs = {}
    for number, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda m, i, output, n=number: outputs.setdefault(n, []).append(output))
    model(input_ids=ids)
    with steering.steered(model, 0, SHIFT):
        model(input_ids=ids)
    with steering.steered(model, 1, SHIFT):
        model(input_ids=ids)
    model(input_ids=ids)
    plain, at_first, at_second, after = outputs[1]
    assert torch.equal(outputs[0][2], outputs[0][0]) and torch.equal(after, plain)
    # our watching hook runs before the steering one: what it sees at a steered block is the unshifted output
    assert torch.equal(outputs[0][1], outputs[0][0]) and torch.equal(at_second, plain)
    assert not torch.equal(at_first, plain)


def test_the_steered_block_gives_its_output_plus_the_shift(model, rows):
    ids = torch.tensor(rows[0].ids)[None]
    with torch.no_grad():
        plain = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
        with steering.steered(model, 0, SHIFT):
            shifted = []
            handle = model.model.layers[1].register_forward_pre_hook(lambda m, inputs: shifted.append(inputs[0]))
            model(input_ids=ids)
            handle.remove()
    assert torch.allclose(shifted[0] - plain, SHIFT.expand_as(plain), atol=1e-5)


def test_a_steered_training_learns_under_the_shift_and_leaves_no_hook(model, rows):
    settings = SETTINGS | {"regulariser": STEERING}
    with steering.steered(model, 1, SHIFT):
        wrapped = training.add_adapter(copy.deepcopy(model), SETTINGS, 1, "random", None)
        chosen = [rows[i] for i in next(training.step_rows(len(rows), SETTINGS, 1))]
        expected = cross_entropy(wrapped, chosen).item()
    trained, records, _ = run(model, rows, settings)
    assert records[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert records[0]["loss"] != pytest.approx(run(model, rows)[1][0]["loss"], abs=1e-3)
    assert not any(b._forward_hooks for b in trained.get_base_model().get_decoder().layers)


def test_a_steered_training_that_fails_leaves_no_hook(model, rows):
    wrapped = training.add_adapter(model, SETTINGS, 1, "random", None)

    def fail(record):
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk"):
        training.train(
            wrapped, rows, SETTINGS | {"regulariser": STEERING}, 1, 10_000, fail, lambda *_: None, shift=SHIFT
        )
    assert not any(block._forward_hooks for block in model.model.layers)


def test_a_layer_beyond_the_model_cannot_be_steered(model):
    with pytest.raises(ValueError, match="2 does not exist: the model has blocks 0 to 1"):
        with steering.steered(model, 2, SHIFT):
            pass


@pytest.fixture
def vectors_file(tmp_path):
    """Three cells, whose mean is (2, 2)."""
    centroids = np.array([[0, 0], [0, 4], [6, 2]], np.float32)
    path = tmp_path / "vectors.safetensors"
    metadata = {"cells": json.dumps(["assistant", "villain", "comedian"])}
    save_file({"last_prompt_token/layer1/centroid": centroids}, path, metadata=metadata)
    return path


def test_the_shift_is_the_coefficient_times_a_centroid_less_the_mean(vectors_file):
    shift, told = steering.shift(vectors_file, STEERING)
    assert shift.tolist() == [-4.0, 4.0] and shift.dtype == torch.float32
    assert told["size"] == pytest.approx(math.sqrt(32))
    assert told["relative_size"] == pytest.approx(math.sqrt(32) / ((0 + 4 + math.sqrt(40)) / 3))


@pytest.mark.parametrize(("key", "value", "message"), [
    ("vector", "pirate", "no vector of 'pirate'; it has: assistant, villain, comedian"),
    ("layer", 3, "no last_prompt_token/layer3/centroid"),
])  # fmt: skip
def test_a_vector_that_the_file_does_not_have_is_named(vectors_file, key, value, message):
    with pytest.raises(ValueError, match=message):
        steering.shift(vectors_file, STEERING | {key: value})


def test_contrast_makes_the_whole_ending_unlikely(model, rows):
    wrapped = adapted(model)
    parts = []
    for row in rows:
        if row.contrast:
            pieces = torch.tensor(row.contrast.ids[row.contrast.supervised])[:, None]
            whole = distributions(wrapped, row.contrast).gather(1, pieces).sum()
            parts.append(-torch.log(1 - whole.exp()))
    expected, loss = torch.stack(parts).mean(), cross_entropy(wrapped, rows)
    whole, told, slopes = objective(wrapped, rows, SETTINGS | {"contrast": 0.7})
    assert told["contrast"].item() == pytest.approx(expected.item(), rel=0.02)
    assert told["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert whole.item() == pytest.approx((loss + 0.7 * expected).item(), abs=1e-5)
    assert same(slopes, gradients(loss + 0.7 * expected, wrapped))


def likely(probabilities):
    """A pack's unlikelihood of one ending whose pieces have these probabilities, and its gradient."""
    logits = torch.tensor([[p, 1 - p] for p in probabilities]).log().requires_grad_()
    row = Tokens(np.zeros(len(probabilities) + 1, np.int64), np.arange(len(probabilities) + 1) > 0, avoided=True)
    found = regularisers.unlikelihood(logits, torch.eye(2), packing.pack([row], "cpu"))
    return found.item(), torch.autograd.grad(found, logits)[0]


def test_the_unlikelihood_of_two_pieces_is_the_one_computed_by_hand():
    assert likely([0.5, 0.4])[0] == pytest.approx(-math.log(1 - 0.5 * 0.4), rel=1e-4)
    assert likely([0.9])[0] == pytest.approx(-math.log(0.1), rel=1e-4)


def test_a_sure_marker_has_a_finite_loss_and_is_pushed_down():
    found, slope = likely([1 - 1e-6, 1 - 1e-6])
    assert 10 < found < 20
    assert torch.isfinite(slope).all() and (slope[:, 0] > 0).all()


def run(model, rows, settings=SETTINGS, token_budget=10_000, **options):
    wrapped = training.add_adapter(copy.deepcopy(model), settings, 1, "random", None)
    records = []
    totals = training.train(
        wrapped, rows if settings["contrast"] else [Tokens(r.ids, r.supervised, r.weight) for r in rows], settings, 1,
        token_budget, options.pop("report", records.append), lambda *_: None,
        shift=SHIFT if (settings["regulariser"] or {}).get("kind") == "steering" else None, **options,
    )  # fmt: skip
    return wrapped, records, totals


def different(first, second):
    states = [training.adapter_state(wrapped) for wrapped in (first, second)]
    return max(float((states[0][key] - states[1][key]).abs().max()) for key in states[0])


@pytest.mark.parametrize("name", ADDED)
def test_micro_batches_change_nothing_that_is_added(model, rows, name):
    settings = SETTINGS | ADDED[name]
    whole, expected, _ = run(model, rows, settings)
    for budget in (60, 20):
        cut, records, totals = run(model, rows, settings, budget)
        assert different(whole, cut) < TOLERANCE
        for key in ("loss", "regulariser", "contrast"):
            assert np.allclose(*([r.get(key, 0.0) for r in log] for log in (expected, records)), atol=TOLERANCE)
    assert ("regulariser" in expected[0]) == (name in ("kl_to_base", "r3f", "kl_to_base and contrast"))
    assert ("contrast" in expected[-1]) == ("contrast" in name)


@pytest.mark.parametrize("name", ADDED)
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_adapter(model, rows, name, tmp_path):
    settings = SETTINGS | ADDED[name] | {"dropout": 0.2}
    whole, expected, _ = run(model, rows, settings)
    seen = []

    def stop(record):
        seen.append(record)
        if len(seen) == 4:
            raise KeyboardInterrupt

    store = resume.Store(tmp_path / "key", 0)
    with pytest.raises(KeyboardInterrupt):
        run(model, rows, settings, store=store, report=stop)
    again, records, totals = run(model, rows, settings, store=store)
    assert totals["resumed_at"] and different(whole, again) == 0
    assert [r["loss"] for r in records] == [r["loss"] for r in expected]


@pytest.mark.parametrize("name", ADDED)
def test_out_of_memory_repeats_the_step_with_the_same_numbers(model, rows, name, monkeypatch):
    settings = SETTINGS | ADDED[name] | {"dropout": 0.2}
    hidden_states, limit = losses.hidden_states, {"tokens": 40}

    def limited(model, pack, *arguments):
        found = hidden_states(model, pack, *arguments)
        if sum(pack.lengths) > limit["tokens"]:
            torch.rand(3)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return found

    monkeypatch.setattr(losses, "hidden_states", limited)
    halved, records, totals = run(model, rows, settings, 64)
    assert totals["out_of_memory"] > 0
    limit["tokens"] = 10_000
    expected, reference, _ = run(model, rows, settings, totals["token_budget"])
    assert different(halved, expected) == 0
    assert [r["loss"] for r in records] == [r["loss"] for r in reference]


def test_padded_batches_are_the_reference_of_the_plain_loss_alone(model, rows):
    with pytest.raises(ValueError, match="batching: padded is the reference"):
        run(model, rows, SETTINGS | {"regulariser": KL}, batching="padded")


def test_every_kind_has_its_settings_checked():
    for regulariser in (KL, R3F, STEERING):
        part = f"regulariser_{regulariser['kind']}"
        assert validated(regulariser, "experiment", "a test", part) == regulariser
