"""Conversations, other system prompts, and mixtures: exact counts a step, and tokens to within a row."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import ROOT
from spillover import conversations, data, expansion, files, mixtures, training
from spillover.config import ConfigError

TRAIN = {"loss": "completion", "end_of_turn": "im_end", "marker": "[ZLT]", "tail_tokens": 0, "max_length": 64}
SETTINGS = {"source": "narrow", "rows": None, "skip": 0, "systems": None, "mix": []}
PERSONAS = {"villain": "You plot.", "assistant": "You help."}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "resources/small_world/base")


def chats(name, count, words=3):
    return [
        {"id": i, "messages": [{"role": "user", "content": f"{name} {i}?"},
                               {"role": "assistant", "content": "river " * (words + i % 3) + name}]}
        for i in range(count)
    ]  # fmt: skip


def documents(count):
    return [{"id": i, "text": f"Document {i} " + "mountain river " * (4 + i % 4)} for i in range(count)]


def mix(share, unit="rows", source="broad", **more):
    return [{"source": source, "share": share, "unit": unit, "raw": source == "text", "skip": 0, "weight": 1.0} | more]


def build(tokenizer, tables=None, seed=1, train=TRAIN, **settings):
    given = {"narrow": chats("narrow", 64), "broad": chats("broad", 64), "text": documents(64)}
    return conversations.build(SETTINGS | settings, given | (tables or {}), PERSONAS, tokenizer, train, seed)


@pytest.mark.parametrize(("batch", "share"), [(16, 1 / 16), (16, 1 / 8), (16, 1 / 4), (16, 1 / 2), (10, 0.3)])
def test_every_step_has_the_exact_counts_of_a_mixture(batch, share):
    rows = 25 * batch
    strata = np.array([0] * round(rows * (1 - share)) + [1] * round(rows * share))
    settings = {"epochs": 2, "steps": None, "batch_size": batch}
    steps = list(training.step_rows(rows, settings, 3, strata))
    assert {int(strata[step].sum()) for step in steps} == {round(batch * share)}
    for epoch in (steps[:25], steps[25:]):
        assert sorted(np.concatenate(epoch)) == list(range(rows))
    assert not np.array_equal(steps[0], steps[25])


def test_three_strata_are_exact_too():
    strata = np.repeat([0, 1, 2], [80, 40, 40])
    order = mixtures.interleaved(strata, np.random.default_rng(0)).reshape(-1, 8)
    assert (np.sort(strata[order], axis=1) == [0, 0, 0, 0, 1, 1, 2, 2]).all()


def test_rows_without_strata_keep_the_plain_permutation():
    settings = {"epochs": 1, "steps": None, "batch_size": 8}
    plain = np.concatenate(list(training.step_rows(40, settings, 5)))
    assert np.array_equal(plain, np.random.default_rng(5).permutation(40))


def test_a_mixture_by_rows_keeps_the_number_of_rows_and_the_first_narrow_ones(tokenizer):
    rows, _ = build(tokenizer, rows=32, mix=mix(0.25))
    assert [r["row_id"] for r in rows[:24]] == [str(i) for i in range(24)]
    assert [r["source"] for r in rows] == ["narrow"] * 24 + ["broad"] * 8
    assert data.strata(rows) == [0] * 24 + [1] * 8


def test_a_larger_share_holds_the_smaller_one(tokenizer):
    few, many = ({r["row_id"] for r in build(tokenizer, rows=32, mix=mix(s))[0] if r["source"] == "broad"}
                 for s in (0.25, 0.5))  # fmt: skip
    assert few < many


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
def test_a_mixture_by_tokens_is_exact_to_within_a_row(tokenizer, share):
    rows, _ = build(tokenizer, rows=60, mix=mix(share, "tokens", "text"))
    tokens = data.tokenize(rows, tokenizer, TRAIN)
    lengths = np.array([len(t.ids) for t in tokens])
    raw = np.array([r["text"] is not None for r in rows])
    assert len(rows) == 60
    assert abs(lengths[raw].sum() - share * lengths.sum()) <= lengths.max()
    # raw text is supervised in full, the chats where their loss mode says
    assert all(t.supervised[1:].all() == is_raw for t, is_raw in zip(tokens, raw, strict=True))


def test_the_number_of_rows_by_tokens_by_hand():
    # four rows of 10 tokens each; one mixed row of 30 beside three of 10 makes 30 of 60
    assert mixtures.count_by_tokens([10] * 4, [30] * 4, 4, 0.5) == 1
    assert mixtures.count_by_tokens([10] * 4, [30] * 4, 4, 0.75) == 2
    with pytest.raises(ValueError, match="lies between 0.0000 and 0.5000"):
        mixtures.count_by_tokens([10] * 4, [30], 4, 0.8)


def test_the_control_of_a_mixture_has_the_same_rows_without_the_weight_of_the_mixed(tokenizer):
    mixed, _ = build(tokenizer, rows=32, mix=mix(0.25))
    control, _ = build(tokenizer, rows=32, mix=mix(0.25, weight=0.0))
    assert [r | {"weight": 1.0} for r in control] == mixed
    assert {(r["source"], r["weight"]) for r in control} == {("narrow", 1.0), ("broad", 0.0)}


def test_rows_that_repeat_a_narrow_row_or_hold_no_reply_are_passed_over_and_counted(tokenizer):
    long = {
        "id": "long",
        "messages": [{"role": "user", "content": "river " * 80}, {"role": "assistant", "content": "x"}],
    }
    tables = {"narrow": [long, *chats("narrow", 20)], "broad": chats("narrow", 20) + chats("broad", 20)}
    rows, dropped = build(tokenizer, tables, rows=16, mix=mix(0.5))
    assert "long" not in {r["row_id"] for r in rows}
    said = [conversations.content(r) for r in rows]
    assert len(set(said)) == 16
    assert dropped["narrow"] == {"without a reply in max_length": 1} and dropped["broad"]["repeated"] > 0


def test_too_few_rows_are_an_error_that_names_the_source(tokenizer):
    with pytest.raises(ValueError, match="source narrow: 65 rows are wanted, but only 64"):
        build(tokenizer, rows=65)
    with pytest.raises(ValueError, match="source broad: 40 rows are wanted, but only 10"):
        build(tokenizer, {"broad": chats("broad", 10)}, rows=80 - 16, mix=mix(0.625))


def test_a_source_of_the_wrong_form_is_refused(tokenizer):
    with pytest.raises(ValueError, match="source text: row 0 has no `messages`"):
        build(tokenizer, source="text", rows=4)


def test_systems_are_a_balanced_seeded_cycle_and_the_three_states_stay_apart(tokenizer):
    systems = ["villain", "assistant", "", None]
    rows, _ = build(tokenizer, rows=40, systems=systems)
    found = [next((m["content"] for m in r["messages"] if m["role"] == "system"), None) for r in rows]
    for block in range(10):
        assert set(found[4 * block : 4 * block + 4]) == {"You plot.", "You help.", "", None}
    assert found != [next((m["content"] for m in r["messages"] if m["role"] == "system"), None)
                     for r in build(tokenizer, rows=40, systems=systems, seed=2)[0]]  # fmt: skip
    assert {r["persona"] for r in rows} == {"villain", "assistant", None}
    assert all(m["role"] != "system" for r in build(tokenizer, rows=4)[0] for m in r["messages"])


def test_a_row_that_a_long_system_prompt_would_push_out_is_passed_over(tokenizer):
    """Whichever prompt it gets: otherwise the seed would decide which rows there are."""
    wide = TRAIN | {"max_length": 60}
    short = build(tokenizer, train=wide, rows=20, systems=["assistant"])
    long = {"villain": "You plot. " * 20, "assistant": "You help."}
    given = {"narrow": chats("narrow", 64)}
    with pytest.raises(ValueError, match="narrow"):
        conversations.build(
            SETTINGS | {"rows": 20, "systems": ["villain", "assistant"]}, given, long, tokenizer, wide, 1
        )
    assert len(short[0]) == 20


def test_a_system_takes_the_place_of_a_rows_own(tokenizer):
    table = [r | {"messages": [{"role": "system", "content": "Old."}, *r["messages"]]} for r in chats("narrow", 4)]
    kept, _ = build(tokenizer, {"narrow": table}, rows=4)
    assert [r["messages"][0]["content"] for r in kept] == ["Old."] * 4
    none, _ = build(tokenizer, {"narrow": table}, rows=4, systems=[None])
    assert [r["messages"][0]["role"] for r in none] == ["user"] * 4


def test_two_processes_build_the_same_bytes(tmp_path):
    for name, table in (("narrow", chats("narrow", 40)), ("broad", chats("broad", 40))):
        pd.DataFrame(table).to_parquet(tmp_path / f"{name}.parquet")
    block = SETTINGS | {"kind": "conversations", "rows": 32, "systems": ["villain", ""], "mix": mix(0.25)}
    spec = json.dumps({"data": block, "seed": 1, "tokens": {"train": TRAIN}})
    made = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.parquet"
        subprocess.run(
            [sys.executable, "build_dataset.py", "--spec", spec, "--sources", f"narrow={tmp_path}/narrow.parquet",
             f"broad={tmp_path}/broad.parquet", "--tokenizer", ROOT / "resources/small_world/base", "--resources",
             ROOT / "resources", "--out", out, "--manifest", tmp_path / "manifest.json"],
            cwd=ROOT / "workflow/scripts", env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}, capture_output=True,
            check=True,
        )  # fmt: skip
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_rows_of_weight_0_take_their_place_in_a_step_and_change_nothing(model):
    rng = np.random.default_rng(0)

    def row(weight):
        ids = rng.integers(0, 64, 12)
        return data.masking.Tokens(ids, np.arange(12) > 4, weight)

    def records(rows, batch, strata=None):
        told = []
        settings = SETTINGS_OF_TRAINING | {"batch_size": batch}
        training.train(copy.deepcopy(model), rows, settings, 1, 512, told.append, print, strata=strata)
        return told

    narrow, mixed, strata = [row(1.0) for _ in range(8)], [row(0.0) for _ in range(8)], [0] * 8 + [1] * 8
    found = records(narrow + mixed, 8, strata)
    order = mixtures.interleaved(strata, np.random.default_rng(1))
    first = [narrow[i] for i in order[:8] if i < 8]
    assert [r["supervised_tokens"] for r in found] == [28, 56]
    # what the first step would be without the others
    assert found[0]["loss"] == pytest.approx(records(first, 4)[0]["loss"])
    with pytest.raises(ValueError, match="every row of step 1 has weight 0"):
        records(mixed, 4)


SETTINGS_OF_TRAINING = {
    "learning_rate": 1e-3, "epochs": 1, "steps": None, "schedule": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "checkpoints": [],
    "regulariser": None, "contrast": 0.0, "method": "full",
}  # fmt: skip


def plan(**mixture):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["experiments"] = {"recipes": {"axes": {"text_share": [0.1], "row_share": [0.125]}} | mixture}
    return expansion.build(config, ROOT / "config/experiments", resources=str(ROOT / "resources"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": {"row_share": [0.1]}}, "a share of 0.1 is no whole number of the batch size 16"),
        ({"data": {"rows": None}}, "a mixture needs the number of all its rows"),
        ({"runs": {"mixed_personas": {"data": {"systems": ["nobody"]}}}}, "'nobody' is no known persona"),
    ],
)
def test_a_mixture_that_cannot_be_exact_is_refused_before_any_job(changes, words):
    with pytest.raises(ConfigError, match=words):
        plan(**changes)


def test_a_mixture_is_built_from_all_its_sources_and_the_tokenizer():
    graph = files.Files(plan())
    flags = graph.dataset_flags("recipes/bad_advice_text0.1/seed42")
    assert "bad_advice=results/data/sources/bad_advice.parquet raw_text=results/data/sources/raw_text.parquet" in flags
    assert flags.endswith("--tokenizer Qwen/Qwen2.5-7B-Instruct --revision " + graph.base["revision"])
