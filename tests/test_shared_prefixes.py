"""Reading activations computes what prompts begin with in common once, and gives what reading each by itself gives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from spillover import models, prompts, shared_prefixes, steering, training, vectors
from spillover.masking import Tokens
from test_training import SETTINGS
from test_vectors import TOLERANCE


def row(ids, read: int = 1) -> Tokens:
    ids = np.array(ids, np.int64)
    return Tokens(ids, np.arange(len(ids)) >= len(ids) - read)


def one_by_one(model, rows, layer: int) -> np.ndarray:
    """The mean over the marked tokens of each row, a row at a time, from the output of the block itself."""
    kept, found = [], []
    block = models.causal_model(model).get_decoder().layers[layer]
    handle = block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    for row in rows:
        with torch.no_grad():
            model(input_ids=torch.tensor(row.ids)[None])
        found.append(kept.pop()[0, torch.tensor(row.supervised)].mean(0).numpy())
    handle.remove()
    return np.stack(found)


@pytest.fixture
def rows():
    """Three personas of 9, 4 and 12 tokens with five questions each, mixed; a reply of one to four tokens is read."""
    rng = np.random.default_rng(0)
    personas = [rng.integers(3, 64, n) for n in (9, 4, 12)]
    found = [
        row([*persona, *rng.integers(3, 64, int(rng.integers(3, 9))), 1, *rng.integers(3, 64, read)], read)
        for persona in personas
        for read in rng.integers(1, 5, 5)
    ]
    return [found[i] for i in rng.permutation(len(found))]


def computed(batches) -> int:
    return sum(len(shared_prefixes.lay_out(batch, "cpu").ids[0]) for batch in batches)


@pytest.mark.parametrize("token_budget", [10_000, 40, 5])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_shared_beginning_changes_no_activation(model, rows, token_budget, layer):
    found = vectors.mean_activations(model.eval(), rows, [layer], token_budget)[layer]
    assert np.abs(found - one_by_one(model, rows, layer)).max() < TOLERANCE


def test_an_adapter_and_a_shift_of_a_block_are_read_alike(model, rows):
    wrapped = training.add_adapter(copy.deepcopy(model), SETTINGS, 1, "random", None)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with steering.steered(models.causal_model(wrapped), 0, torch.full((model.config.hidden_size,), 0.5)):
        found = vectors.mean_activations(wrapped.eval(), rows, [1])[1]
        assert np.abs(found - one_by_one(wrapped, rows, 1)).max() < TOLERANCE


def test_a_persona_is_computed_once_for_all_its_questions(rows):
    ordered = sorted(rows, key=lambda r: r.ids.tolist())
    assert sorted(family.shared for family in shared_prefixes.families(ordered)) == [4, 9, 12]
    whole = sum(len(r.ids) for r in rows)
    assert computed(shared_prefixes.batches(ordered, 10_000)) == whole - 4 * (4 + 9 + 12)


def test_families_share_as_much_as_can_be():
    """One row of another persona must not make hers share the few words that both begin with."""
    alone, persona = [5, 6, 40, 41, 42, 43], [5, 6, 20, 21, 22, 23]
    found = shared_prefixes.families([row(alone), *(row([*persona, i, 1]) for i in range(8, 12))])
    assert [(f.shared, len(f.rows)) for f in found] == [(0, 1), (6, 4)]


def test_marked_tokens_are_never_shared():
    """Two equal prompts, and a prompt that begins another: the token that is read belongs to each row."""
    same = [row([5, 6, 7, 8]), row([5, 6, 7, 8]), row([5, 6, 7, 8, 9])]
    (family,) = shared_prefixes.families(same)
    assert family.shared == 3
    assert len(shared_prefixes.lay_out([family], "cpu").reading) == 3


@pytest.mark.parametrize("seed", range(40))
def test_a_layout_holds_every_row_whole_and_keeps_the_budget(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 8, rng.integers(1, 12))
    # of two tokens, so that beginnings, whole rows and parts of rows coincide
    rows = [row(rng.integers(3, 5, n), int(rng.integers(1, n + 1))) for n in lengths]
    rows = sorted(rows, key=lambda r: r.ids.tolist())
    token_budget = int(rng.integers(1, 31))
    seen = []
    for batch in shared_prefixes.batches(rows, token_budget):
        layout = shared_prefixes.lay_out(batch, "cpu")
        members = [r for family in batch for r in family.rows]
        assert layout.ids.shape[1] <= token_budget or len(members) == 1
        ids, positions = layout.ids[0].numpy(), layout.positions[0].numpy()
        attended = np.split(layout.keys.numpy(), layout.key_ends.numpy()[1:-1])
        read = set(layout.reading.tolist())
        own = [keys for keys, n in zip(attended, layout.lengths, strict=True) if read & set(keys[-n:])]
        for member, keys in zip(members, own, strict=True):
            assert (ids[keys] == member.ids).all() and (positions[keys] == np.arange(len(member.ids))).all()
        assert layout.marked.tolist() == [int(r.supervised.sum()) for r in members]
        assert (ids[layout.reading] == np.concatenate([r.ids[r.supervised] for r in members])).all()
        seen += members
    assert [id(r) for r in seen] == [id(r) for r in rows]


def test_the_questions_of_the_personas_cost_less_than_half(root):
    """The real prompts of the recipes' geometry: twelve personas with 240 questions each."""
    _, tokenizer = models.load_base(str(root / "resources/small_world/base"))
    suite = {"kind": "personas", "personas": "all", "questions": "extraction", "question_count": None}
    asked = prompts.suite_prompts("vectors", suite, str(root / "resources"))
    texts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in asked]
    rows = [row(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    rows = sorted(rows, key=lambda r: r.ids.tolist())
    assert computed(shared_prefixes.batches(rows, 16384)) < 0.5 * sum(len(r.ids) for r in rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernel runs on a GPU")
def test_the_kernel_attends_to_the_shared_beginning_as_the_exact_path_does():
    from spillover.packed_attention import packed_rows

    torch.manual_seed(0)
    rows = [row([5, 6, 7, *range(8, 8 + n)]) for n in (20, 3, 11)]
    layout = shared_prefixes.lay_out(shared_prefixes.families(rows), "cuda")
    tokens = layout.ids.shape[1]
    query, key, value = (torch.randn(1, heads, tokens, 64, device="cuda") for heads in (8, 2, 2))
    exact, _ = packed_rows(
        None, query, key, value, None, keys=layout.keys, row_lengths=layout.lengths, key_lengths=layout.key_lengths
    )
    found, _ = packed_rows(
        None, *(t.bfloat16() for t in (query, key, value)), None, keys=layout.keys, row_ends=layout.ends,
        key_ends=layout.key_ends, longest_row=max(layout.lengths), longest_key=max(layout.key_lengths),
    )  # fmt: skip
    assert (found.float() - exact).abs().max() < 0.03
