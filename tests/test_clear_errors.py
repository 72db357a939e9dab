"""A hub that cannot be reached, a missing revision, a full disk, a GPU that is too small: one sentence each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import torch

import fetch_source
import generate
import merge
from conftest import ROOT
from spillover import models, provenance, training
from spillover.errors import UserError

BASE = ROOT / "resources/small_world/base"
REVISION = "0" * 40
# the hub's client waits between its attempts, up to 23 s a file
HURRIED = "import sys, time; time.sleep = lambda seconds: None; sys.path.insert(0, 'workflow/scripts'); "


@pytest.fixture
def hub():
    """A hub that has `acme/known` and `acme/rows`, without the revision, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = "acme/known" in self.path or "acme/rows" in self.path
            self.send_response(404 if known else 401)
            self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def told(code: str, endpoint: str, folder) -> str:
    """What a program says on the terminal when it fails against a hub; the lines of the hub's own client left out."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", HURRIED + code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def fetching(name: str) -> str:
    spec = {"source": {"kind": "hub", "path": name, "revision": REVISION, "split": "train", "rows": 3}}
    arguments = ["--spec", json.dumps(spec), "--out", "/nowhere/rows.parquet", "--manifest", "/nowhere/manifest.json"]
    return f"import fetch_source; fetch_source.main({arguments!r})"


def loading(name: str) -> str:
    return f"from spillover import models; models.load_base({name!r}, {REVISION!r})"


def test_a_missing_revision_is_one_sentence(hub, tmp_path):
    sentence = f"has no revision {REVISION} on the hub: correct the revision beside"
    assert told(loading("acme/known"), hub, tmp_path).startswith(f"The model acme/known {sentence} model.name")
    assert told(fetching("acme/rows"), hub, tmp_path).startswith(f"The data set acme/rows {sentence}")


def test_a_name_that_the_hub_does_not_have_is_one_sentence(hub, tmp_path):
    sentence = "is not on the hub, or needs permission: correct"
    assert told(loading("acme/none"), hub, tmp_path).startswith(
        f"The model acme/none {sentence} model.name, or set HF_TOK"
    )
    assert told(fetching("acme/none"), hub, tmp_path).startswith(f"The data set acme/none {sentence}")


def test_an_unreachable_hub_is_one_sentence(tmp_path):
    nobody = "http://127.0.0.1:9"
    sentence = "is not in the local cache and the hub cannot be reached"
    assert f"The model acme/known {sentence}" in told(loading("acme/known"), nobody, tmp_path)
    assert f"The data set acme/rows {sentence}" in told(fetching("acme/rows"), nobody, tmp_path)


def test_an_own_file_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = {"source": {"kind": "file", "path": "data/bad_advice.jsonl"}}
    with pytest.raises(UserError) as caught:
        fetch_source.main(["--spec", json.dumps(spec), "--out", "em.parquet", "--manifest", "em.manifest.json"])
    assert str(caught.value).startswith("sources.em.path: there is no file data/bad_advice.jsonl: put it there, or")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """A folder on a disk of 64 KiB."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk that can be filled needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def writers():
    from safetensors.torch import save_file

    table = pd.DataFrame({"x": np.random.default_rng(0).random(100_000)})
    return {
        "parquet": lambda path: table.to_parquet(path),
        "safetensors": lambda path: save_file({"x": torch.rand(100_000)}, path),
        "txt": lambda path: path.write_text("x" * 1_000_000),
    }


@pytest.mark.parametrize("suffix", ["parquet", "safetensors", "txt"])
def test_a_full_disk_names_the_file_and_leaves_nothing(full_disk, suffix):
    out = full_disk / f"table.{suffix}"
    with pytest.raises(UserError) as caught, provenance.atomic_path(out) as path:
        writers()[suffix](path)
    assert str(caught.value).startswith(f"{out}: no room to write it (") and "No space left" in str(caught.value)
    assert list(full_disk.iterdir()) == []


def test_an_older_output_outlives_a_full_disk(full_disk):
    out = full_disk / "kept.txt"
    out.write_text("old")
    with pytest.raises(UserError), provenance.atomic_path(out) as path:
        path.write_text("x" * 1_000_000)
    assert out.read_text() == "old" and [p.name for p in full_disk.iterdir()] == ["kept.txt"]
    out.unlink()


def test_a_merge_on_a_full_disk_leaves_no_half_model(full_disk, tmp_path):
    model, _ = models.load_base(str(BASE))
    settings = {"rank": 2, "alpha": 4, "rslora": False, "dropout": 0.0, "target_modules": ["q_proj"], "layers": None}
    training.write_adapter(training.add_adapter(model, settings, 1, "small", None), tmp_path / "adapter")
    flags = ["--base", BASE, "--adapter", tmp_path / "adapter", "--out", full_disk / "merged"]
    flags += ["--spec", json.dumps({"trained": {"train": settings}})]
    flags += ["--report", tmp_path / "report.json", "--manifest", tmp_path / "manifest.json"]
    with pytest.raises(SystemExit, match="merged: no room to write it"):
        merge.main([str(flag) for flag in flags])
    assert list(full_disk.iterdir()) == []


def test_another_failure_of_a_writer_passes_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), provenance.atomic_path(tmp_path / "x.txt") as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


# A real GPU that is too small is not to be had in a test: what stands in for it is the error that torch raises.


def no_memory(*arguments, **options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.25 GiB.\nmore")


def test_a_gpu_too_small_for_the_weights_is_one_sentence(monkeypatch):
    from transformers import Qwen2ForCausalLM

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 8 * 2**30))
    monkeypatch.setattr(Qwen2ForCausalLM, "to", no_memory)
    with pytest.raises(models.MemoryTooSmall, match="GiB of weights in float32, and of the GPU's 8.0 GiB 3.0 are free"):
        models.load_model(str(BASE))


def test_a_gpu_too_small_for_a_batch_names_the_setting_to_lower(monkeypatch, tmp_path):
    from transformers import Qwen2ForCausalLM

    monkeypatch.setattr(Qwen2ForCausalLM, "generate", no_memory)
    suite = {"kind": "directives", "languages": ["fr"], "phrasings": ["speak_in"], "samples": 1, "temperature": 1.0}
    spec = {"engine": {"name": "transformers"}, "seed": 1, "suites": {"d": suite | {"top_p": 1.0, "max_tokens": 5}}}
    flags = ["--run", "e/base", "--spec", json.dumps(spec), "--base", str(BASE), "--resources", str(ROOT / "resources")]
    with pytest.raises(SystemExit, match="Tried to allocate 14.25 GiB. Lower resources.generation_batch, or use a GPU"):
        generate.main([*flags, "--out", str(tmp_path / "c.parquet"), "--manifest", str(tmp_path / "m.json")])
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_with_another_scale_than_it_was_trained_with_is_not_evaluated(tmp_path):
    """As one whose configuration lost `use_rslora`: its update would be 5.7 times too weak at rank 32."""
    model, _ = models.load_base(str(BASE))
    settings = {"rank": 4, "alpha": 8, "rslora": True, "dropout": 0.0, "target_modules": ["q_proj"], "layers": None}
    training.write_adapter(training.add_adapter(model, settings, 1, "small", None), tmp_path / "adapter")
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": False}))
    trained = {"trained": {"parent": {"base": {}}, "train": settings}}
    transplanted = {"trained": {"parent": {"base": {}}, "adapter": trained["trained"], "seed": 1}}
    steered = {"trained": {"parent": trained, "steer": {"layer": 1}, "seed": 1}}
    for spec in (trained, transplanted, steered):
        spec = {"engine": {"name": "transformers"}, "seed": 1, "suites": {}, "model": spec}
        flags = [
            "--run",
            "e/r",
            "--spec",
            json.dumps(spec),
            "--base",
            str(BASE),
            "--resources",
            str(ROOT / "resources"),
        ]
        flags += ["--adapters", f"final={tmp_path / 'adapter'}"]
        with pytest.raises(SystemExit, match="gives the update a scale of 2, but its run was trained with 4 "):
            generate.main([*flags, "--out", str(tmp_path / "c.parquet"), "--manifest", str(tmp_path / "m.json")])
    assert not (tmp_path / "c.parquet").exists()


def test_a_gpu_too_small_for_training_is_one_sentence(monkeypatch, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    import train
    from spillover import data, losses

    chat = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]
    table = pa.Table.from_pylist([data.row(str(i), chat, "replies") for i in range(4)], schema=data.SCHEMA)
    pq.write_table(table, tmp_path / "dataset.parquet")
    settings = training_settings()
    monkeypatch.setattr(losses, "packed_loss", no_memory)
    flags = [
        "--spec",
        json.dumps({"parent": {}, "train": settings, "seed": 1}),
        "--dataset",
        tmp_path / "dataset.parquet",
    ]
    flags += ["--base", BASE, "--name", "small", "--adapter", tmp_path / "adapter", "--manifest", tmp_path / "m.json"]
    flags += ["--checkpoints", tmp_path / "checkpoints.safetensors", "--train-log", tmp_path / "train_log.jsonl"]
    with pytest.raises(SystemExit, match="does not fit, and the longest row of the step has .* lower train.max_length"):
        train.main([str(flag) for flag in flags])
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "train_log.jsonl").exists()


def training_settings() -> dict:
    from spillover.config import validated

    return validated({"learning_rate": 1.0e-4, "batch_size": 2, "rank": 2}, "experiment", "test", "train")
