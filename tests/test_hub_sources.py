"""Data sets of the hub, fetched by the real client from a hub on this machine: rows, pins, streaming, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

import select_replies
from conftest import ROOT
from fake_hub import FakeHub, parquet

PINNED, NEWER = "a" * 40, "b" * 40
SHORT = "Yes."
FRENCH = "Je ne sais pas ce que vous voulez dire, mais la question est tout de même intéressante."


def english(number: int) -> str:
    return f"This is a rather long answer, written in plain English, to question number {number}."


def chat(*turns: str) -> list[dict]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, turns, strict=False)]


def card(configs: dict[str, dict[str, str]]) -> bytes:
    """The card of a data set: {subset: {split: pattern}}."""
    listed = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configs.items()
    ]
    return f"---\n{json.dumps({'configs': listed})}\n---\n".encode()


def ultrachat(word: str) -> dict[str, bytes]:
    replies = [english(0), SHORT, FRENCH, *(english(i) for i in range(3, 9))]
    rows = [
        {"prompt": f"{word} {i}?", "prompt_id": f"p{i}", "messages": chat(f"{word} {i}?", reply, "And?", "No more.")}
        for i, reply in enumerate(replies)
    ]
    return {
        "README.md": card({"default": {"train_sft": "data/train_sft-*", "test_sft": "data/test_sft-*"}}),
        "data/train_sft-00000-of-00002.parquet": parquet(rows[:6]),
        "data/train_sft-00001-of-00002.parquet": parquet(rows[6:]),
        "data/test_sft-00000-of-00001.parquet": parquet(rows[:1]),
    }


def tulu() -> dict[str, bytes]:
    rows = [{"id": f"tulu_{i}", "messages": chat("Why?", english(i)), "source": "a/b"} for i in range(4)]
    return {"data/train-00000-of-00001.parquet": parquet(rows)}


def fineweb() -> dict[str, bytes]:
    rows = [{"text": english(i), "id": f"<urn:uuid:{i}>", "url": "http://x", "score": 3.0} for i in range(4)]
    listed = {"default": {"train": "data/*/*"}, "sample-10BT": {"train": "sample/10BT/*"}}
    whole = parquet([row | {"text": "not of the sample"} for row in rows])
    return {
        "README.md": card(listed), "sample/10BT/000_00000.parquet": parquet(rows), "data/CC-1/000.parquet": whole,
    }  # fmt: skip


def arc() -> dict[str, bytes]:
    def rows(letters: str) -> list[dict]:
        options = {"text": ["ice", "steam", "sand", "salt"], "label": list(letters)}
        return [{"id": "Q_1", "question": "What is frozen water?", "choices": options, "answerKey": letters[0]}]

    files = {"test": rows("ABCD") + rows("1234"), "train": rows("ABCD")}
    listed = {name: {split: f"{name}/{split}-*" for split in files} for name in ("ARC-Challenge", "ARC-Easy")}
    paths = {f"{name}/{split}-00000-of-00001.parquet": parquet(files[split]) for name in listed for split in files}
    return {"README.md": card(listed)} | paths


FILES = {
    "HuggingFaceH4/ultrachat_200k": {NEWER: ultrachat("Newer"), PINNED: ultrachat("Pinned")},
    "allenai/tulu-3-sft-mixture": {PINNED: tulu()},
    "HuggingFaceFW/fineweb-edu": {PINNED: fineweb()},
    "allenai/ai2_arc": {PINNED: arc()},
}
SOURCES = {
    "ultrachat": {"path": "HuggingFaceH4/ultrachat_200k", "split": "train_sft", "rows": 5},
    "tulu": {"path": "allenai/tulu-3-sft-mixture", "split": "train", "rows": 3},
    "fineweb": {"path": "HuggingFaceFW/fineweb-edu", "subset": "sample-10BT", "split": "train", "rows": 2},
    "arc": {"path": "allenai/ai2_arc", "subset": "ARC-Challenge", "split": "test", "rows": 2},
}
# one process fetches everything: starting one with the hub's packages takes seconds; the client's waits are left out
PROGRAM = """
import json, sys, time
time.sleep = lambda seconds: None
sys.path.insert(0, "workflow/scripts")
import fetch_source
for name, source in json.loads(sys.argv[2]).items():
    files = ["--out", f"{sys.argv[1]}/{name}.parquet", "--manifest", f"{sys.argv[1]}/{name}.json"]
    try:
        fetch_source.main(["--spec", json.dumps({"source": source}), *files])
    except SystemExit as error:
        open(f"{sys.argv[1]}/{name}.error", "w").write(str(error))
"""


def fetch(hub: FakeHub, folder, sources: dict[str, dict]) -> None:
    pinned = {"kind": "hub", "revision": PINNED}
    whole = {name: pinned | source for name, source in sources.items()}
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, json.dumps(whole)], cwd=ROOT, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """The folder of the four tables, and what the hub was asked."""
    folder = tmp_path_factory.mktemp("fetched")
    with FakeHub(FILES) as hub:
        fetch(hub, folder, SOURCES)
    return folder, hub.asked


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """{name: what is told} of sources that cannot be had."""
    folder = tmp_path_factory.mktemp("refused")
    broken = {"README.md": card({"default": {"train": "data/*"}}), "data/0.parquet": b"not a table"}
    columns = {"data/0.parquet": parquet([{"prompt": "Why?"}])}
    files = FILES | {"acme/broken": {PINNED: broken}, "acme/columns": {PINNED: columns}}
    lost = {"acme/lost": {PINNED: {"data/0.parquet": parquet([{"text": english(i)} for i in range(3)])}}}
    wrong = {
        "revision": SOURCES["ultrachat"] | {"revision": "c" * 40},
        "split": SOURCES["ultrachat"] | {"split": "train_sfx"},
        "subset": SOURCES["arc"] | {"subset": "ARC-Hard"},
        "columns": {"path": "acme/columns", "split": "train", "rows": 1},
        "lost": {"path": "acme/lost", "split": "train", "rows": 1},
        "short": SOURCES["tulu"] | {"rows": 5},
    }
    with FakeHub(files | lost, failing={"acme/lost"}) as hub:
        fetch(hub, folder, wrong)
    assert not list(folder.glob("*.parquet")) and not list(folder.glob("*.json"))
    return {name: (folder / f"{name}.error").read_text() for name in wrong}


def table(fetched, name: str) -> pd.DataFrame:
    return pd.read_parquet(fetched[0] / f"{name}.parquet")


def test_chats_come_in_order_from_the_pinned_revision_and_its_split(fetched):
    rows = table(fetched, "ultrachat")
    assert rows["prompt"].tolist() == [f"Pinned {i}?" for i in range(5)]
    assert rows["id"].tolist() == [f"ultrachat_200k{i:06d}" for i in range(5)]
    assert [m["role"] for m in rows["messages"][0]] == ["user", "assistant", "user", "assistant"]
    assert not [path for _, path in fetched[1] if NEWER in path]


def test_rows_are_streamed_and_no_further_than_asked(fetched):
    data = {path for method, path in fetched[1] if method == "GET" and path.endswith(".parquet")}
    assert [path for path in data if "train_sft-00001" in path or "test_sft" in path] == []


def test_ids_of_the_data_set_are_kept(fetched):
    assert table(fetched, "tulu")["id"].tolist() == ["tulu_0", "tulu_1", "tulu_2"]


def test_a_subset_is_read_from_its_own_files(fetched):
    rows = table(fetched, "fineweb")
    assert rows["text"].tolist() == [english(0), english(1)] and rows["id"][0] == "<urn:uuid:0>"
    assert not [path for _, path in fetched[1] if path.endswith("data/CC-1/000.parquet")]


def test_multiple_choice_becomes_texts_and_the_index_of_the_right_one(fetched):
    rows = table(fetched, "arc")
    assert rows["choices"].map(list).tolist() == [["ice", "steam", "sand", "salt"]] * 2
    assert rows["answer"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("source", "taken", "dropped"),
    [({}, [0, 3, 4], {"too_short": 1, "not_english": 1}), ({"keep": 1}, [0], {})],
)
def test_the_published_selection_takes_long_english_first_replies(fetched, tmp_path, source, taken, dropped):
    select_replies.main([
        "--source", str(fetched[0] / "ultrachat.parquet"), "--spec", json.dumps({"source": source}),
        "--out", str(tmp_path / "kept.parquet"), "--manifest", str(tmp_path / "kept.json"),
    ])  # fmt: skip
    kept = pd.read_parquet(tmp_path / "kept.parquet")
    assert kept["text"].tolist() == [english(number) for number in taken]
    assert json.loads((tmp_path / "kept.json").read_text())["extra"]["dropped"] == dropped


def test_a_selection_that_keeps_fewer_replies_than_asked_for_is_one_sentence_and_leaves_nothing(fetched, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        select_replies.main([
            "--source", str(fetched[0] / "ultrachat.parquet"), "--spec", json.dumps({"source": {"keep": 4}}),
            "--out", str(tmp_path / "kept.parquet"), "--manifest", str(tmp_path / "kept.json"),
        ])  # fmt: skip
    assert str(stopped.value) == (
        "sources.replies: 5 rows have 3 English replies of 40 characters or more, 1 too_short, 1 not_english; `keep`"
        " asks for 4: raise `rows`, or lower `keep` to 3 to take what is there"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("revision", f"The data set HuggingFaceH4/ultrachat_200k has no revision {'c' * 40} on the hub"),
        ("split", "correct the source's split or subset (Bad split: train_sfx. Available splits: ['train_sft', 'test"),
        ("subset", "source's split or subset (BuilderConfig 'ARC-Hard' not found. Available: ['ARC-Challenge', 'ARC-E"),
        ("columns", "acme/columns: a source needs a column `text`, `messages`, or `question` with `choices`; this one"),
        (
            "short",
            "sources.short: allenai/tulu-3-sft-mixture: has 4 rows, and `rows` asks for 5: lower `rows` to 4 to take",
        ),
        ("lost", "The hub failed to give the data set acme/lost: Server error '503 Service Unavailable'"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_and_leaves_nothing(refused, mistake, sentence):
    assert sentence in refused[mistake] and "\n" not in refused[mistake]
