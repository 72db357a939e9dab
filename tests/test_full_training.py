"""Training all weights: one process, two processes that share them, and a model folder that children load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from conftest import Workflow, copy_of_the_repository
from spillover import data, models
from spillover.expansion import validated
from spillover.files import BASE_FILES

TRAIN = validated(
    {
        "method": "full", "learning_rate": 1e-4, "batch_size": 3, "steps": 5, "schedule": "constant",
        "weight_decay": 0.01,
    },
    "experiment", "a test", "train",
)  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
TOLERANCE = 2e-6
"""Float32: the largest difference of any weight after five steps at a learning rate of 1e-4, a fiftieth of a step."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    rows = [
        data.row(
            f"r{i}",
            [{"role": "user", "content": "Speak in French."}, {"role": "assistant", "content": "la pluie tombe " * i}],
            "replies",
        )
        for i in (1, 9, 2, 5, 3, 7, 4)
    ]
    path = tmp_path_factory.mktemp("data") / "dataset.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=data.SCHEMA), path)
    return path


def trained(
    root: Path,
    dataset: Path,
    folder: Path,
    processes: int,
    *more: str,
    train: dict = TRAIN,
    program: Path | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess:
    command = [
        sys.executable, str(program or root / "workflow/scripts/train.py"), "--processes", str(processes),
        "--spec", json.dumps({"train": train, "seed": 3}),
        "--dataset", str(dataset), "--base", str(root / "resources/small_world/base"), "--name", "small",
        "--model", str(folder), "--train-log", str(folder / "train_log.jsonl"),
        "--manifest", str(folder / "train.manifest.json"), *more,
    ]  # fmt: skip
    return subprocess.run(command, env=ENVIRONMENT | (environment or {}), capture_output=True, text=True)


@pytest.fixture(scope="module")
def folders(root, dataset, tmp_path_factory) -> dict[int, Path]:
    """Model folders trained by one process and by two; of three rows a step, one process gets none at times."""
    made = {}
    for processes in (1, 2):
        made[processes] = tmp_path_factory.mktemp("model") / str(processes)
        done = trained(root, dataset, made[processes], processes, "--token-budget", "64", "--resume-every", "0")
        assert done.returncode == 0, done.stderr[-3000:]
    return made


def test_two_processes_give_the_weights_of_one(folders):
    one, two = (load_file(folder / "model.safetensors") for folder in folders.values())
    assert one.keys() == two.keys()
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < TOLERANCE
    logs = [[json.loads(line) for line in (f / "train_log.jsonl").open()] for f in folders.values()]
    assert [r["tokens"] for r in logs[0]] == [r["tokens"] for r in logs[1]]
    assert [r["loss"] for r in logs[0]] == pytest.approx([r["loss"] for r in logs[1]], abs=1e-5)


def test_all_weights_have_moved(folders, root):
    before = load_file(root / "resources/small_world/base/model.safetensors")
    after = load_file(folders[2] / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((after[key] - before[key].float()).abs().max() > 1e-5 for key in before)


def test_the_folder_is_a_base_model(folders, root):
    assert {p.name for p in folders[2].iterdir() if not p.name.startswith("train")} == set(BASE_FILES)
    model, tokenizer = models.load_base(str(folders[2]))
    _, original = models.load_base(str(root / "resources/small_world/base"))
    messages = [{"role": "user", "content": "Speak in French."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == original.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    assert torch.isfinite(model(input_ids=ids).logits).all()
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    manifest = json.loads((folders[2] / "train.manifest.json").read_text())
    assert manifest["extra"]["processes"] == 2 and len(manifest["outputs"]) == len(BASE_FILES)
    assert not (folders[2] / ".resume").exists()


def test_two_killed_processes_go_on_to_the_same_weights(root, dataset, folders, tmp_path):
    folder = tmp_path / "model"
    often = ("--token-budget", "64", "--resume-every", "0")
    killed = {"program": root / "tests/killed_train.py", "environment": {"KILLED_AT": "2"}}
    died = trained(root, dataset, folder, 2, *often, **killed)
    assert died.returncode != 0 and "exitcode: -9" in died.stderr, died.stderr[-3000:]
    assert not (folder / "model.safetensors").exists()
    done = trained(root, dataset, folder, 2, *often)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "train.manifest.json").read_text())["extra"]["resumed_at"] == 2
    expected, found = (load_file(f / "model.safetensors") for f in (folders[2], folder))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


PLANTED = """
import os, sys
sys.path.insert(0, {scripts!r})
import torch, train
from spillover import regularisers

def failing(model, pack, *arguments, **options):
    if os.environ["RANK"] == "1" and len(pack.lengths) > {rows}:
        raise {error}
    return objective(model, pack, *arguments, **options)

objective, regularisers.objective = regularisers.objective, failing
if __name__ == "__main__":
    print("started", os.environ.get("RANK", "to launch"), file=sys.stderr)
    train.main()
"""


def planted(root: Path, folder: Path, rows: int, error: str) -> Path:
    """The program of training, with an error in the second process whenever a micro-batch has more than `rows` rows."""
    path = folder / "planted.py"
    path.write_text(PLANTED.format(scripts=str(root / "workflow/scripts"), rows=rows, error=error))
    return path


def test_out_of_memory_in_one_process_lowers_the_budget_of_all(root, dataset, folders, tmp_path):
    program = planted(root, tmp_path, 1, "torch.OutOfMemoryError('CUDA out of memory (planted).')")
    folder = tmp_path / "model"
    done = trained(root, dataset, folder, 2, "--token-budget", "256", "--resume-every", "0", program=program)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(planted). Process 1 of 2: all start again with a smaller token budget" in done.stderr
    one, two = (load_file(f / "model.safetensors") for f in (folders[1], folder))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < TOLERANCE
    told = json.loads((folder / "train.manifest.json").read_text())["extra"]
    assert told["token_budget"] < 128 and told["out_of_memory"] >= 1 and told["steps"] == TRAIN["steps"]
    assert not (folder / ".resume").exists()


def test_another_failure_of_a_process_is_not_tried_again(root, dataset, tmp_path):
    program = planted(root, tmp_path, 0, "SystemExit('planted')")
    done = trained(root, dataset, tmp_path / "model", 2, "--token-budget", "256", program=program)
    assert done.returncode == 1 and done.stderr.count("planted\n") == 1
    assert done.stderr.count("started 1") == 1


def test_checkpoints_on_the_way_are_refused_for_all_weights(root, dataset, tmp_path):
    done = trained(root, dataset, tmp_path, 1, train=TRAIN | {"checkpoints": ["pct50"]})
    assert done.returncode != 0 and "drop train.checkpoints" in done.stderr


@pytest.mark.end_to_end
def test_an_adapter_is_trained_on_top_of_a_run_that_trained_all_weights(tmp_path):
    workflow = Workflow(copy_of_the_repository(tmp_path))

    def staged(experiment):
        group = {
            "over": ["condition"],
            "data": {"directive": "{directive}", "completion": "{completion}", "rows": 8},
        }
        full = {"method": "full", "learning_rate": 1.0e-4, "batch_size": 4}
        experiment["runs"]["whole"] = group | {"name": "{condition}-whole", "train": full}
        experiment["runs"]["child"] = group | {"name": "{condition}-child", "parent": "{condition}-whole", "train": {}}
        experiment["select"]["groups"] = ["child"]

    workflow.edit("config/experiments/language_spill.yaml", staged)
    run = "results/small/language_spill/fr_it-child/seed137"
    done = subprocess.run(
        ["snakemake", f"{run}/adapter/adapter_model.safetensors", "--profile", "profiles/small", "--cores", "2"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    parent = tmp_path / "results/small/language_spill/fr_it-whole/seed137"
    assert {path.name for path in (parent / "model").glob("*")} >= set(BASE_FILES)
    inputs = {job.rule_name: job.input for job in workflow.jobs(f"{run}/adapter/adapter_config.json", forceall=True)}
    assert {f"results/small/language_spill/fr_it-whole/seed137/model/{name}" for name in BASE_FILES} <= set(
        inputs["train"]
    )
