"""The dry-run audit, on a tiny workflow of its own: two experiments' runs, one aggregate, one checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import audit as program
from conftest import ROOT
from spillover import audit, audit_text, causes, estimates
from spillover.provenance import write_manifest

SNAKEFILE = """
import json
configfile: "config.yaml"
if "typo" in config:
    raise ValueError("config.yaml: typo: unknown key 'typo'; did you mean 'train'?")
R = "results/"
RUNS = [f"{e}/{n}/seed1" for e, names in config["experiments"].items() for n in names]
def spec(stage):
    def get(wildcards):
        train = config["train"] | config["experiments"][wildcards.experiment][wildcards.name]
        model = {"trained": {"train": train}}
        parts = {"train": {"train": train}, "completions": {"model": model, "suites": config["suites"]}}
        return json.dumps(parts[stage], sort_keys=True)
    return get
def analysis(wildcards):
    names = config["experiments"]["spill"]
    return json.dumps({"runs": {f"spill/{n}/seed1": {"fields": v} for n, v in names.items()}}, sort_keys=True)
rule all:
    input: R + "matrix.png"
rule train:
    input: code=["workflow/scripts/train.py", "workflow/scripts/spillover/training.py"], data="words.txt"
    output: R + "{experiment}/{name}/seed1/adapter.txt", R + "{experiment}/{name}/seed1/train.manifest.json"
    resources: gpu=1
    params: spec=spec("train")
    shell: "python workflow/scripts/train.py --spec {params.spec:q} --out {output}"
rule completions:
    input: R + "{experiment}/{name}/seed1/adapter.txt"
    output: R + "{experiment}/{name}/seed1/completions.txt", R + "{experiment}/{name}/seed1/completions.manifest.json"
    resources: gpu=1
    params: spec=spec("completions")
    shell: "python x.py --spec {params.spec:q} --out {output}"
rule matrix:
    input: expand(R + "{run}/completions.txt", run=[r for r in RUNS if r.startswith("spill/")])
    output: R + "matrix.png", R + "matrix.manifest.json"
    params: spec=analysis
    shell: "python y.py --spec {params.spec:q} {input} {output}"
checkpoint select:
    output: R + "verdict.json"
    shell: "echo {output}"
rule summary:
    input: lambda wildcards: checkpoints.select.get().output[0]
    output: R + "summary.txt"
    shell: "cp {input} {output}"
"""
CONFIG = {
    "train": {"learning_rate": 0.001, "steps": 10, "batch_size": 4},
    "suites": {"directives": {"languages": ["en", "fr"], "phrasings": ["a"], "samples": 5, "max_tokens": 8}},
    "experiments": {"spill": {"fr_it": {}, "it_fr": {}}, "other": {"es_pt": {}}},
}


class TinyWorkflow:
    """The workflow in a temporary folder; `finish` makes every output exist as if its job had run."""

    def __init__(self, path: Path):
        self.path = path

    def edit(self, change) -> None:
        config = yaml.safe_load((self.path / "config.yaml").read_text())
        change(config)
        (self.path / "config.yaml").write_text(yaml.safe_dump(config))

    def plan(self, *targets: str) -> list[audit.PlannedJob]:
        return audit.planned_jobs(targets, directory=self.path)

    def finish(self, *targets: str) -> None:
        for job in self.plan(*targets):
            for output in map(self.path.joinpath, job.outputs):
                output.parent.mkdir(parents=True, exist_ok=True)
                if not output.name.endswith(causes.MANIFEST):
                    output.write_text(job.rule)
            manifest = self.path / job.outputs[-1]
            write_manifest(
                manifest,
                stage=job.rule,
                spec=job.spec,
                inputs=[],
                outputs=[],
                seconds=1,
                extra={"gpu_seconds": 7200 * job.resources.get("gpu", 0), "api_calls": 0, "cost_dollars": 0},
            )
            content = json.loads(manifest.read_text())
            content["inputs"] = [{"path": path} for path in job.inputs]
            # the modules that other tests happened to import before are no code of this workflow
            content["code"]["files"] = {}
            manifest.write_text(json.dumps(content | {"cpu_seconds": 3600}))
        command = [
            sys.executable,
            "-m",
            "snakemake",
            *targets,
            "--touch",
            "--forceall",
            "--cores",
            "1",
            "-q",
            "all",
        ]
        subprocess.run(command, cwd=self.path, check=True, capture_output=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    (path / "Snakefile").write_text(SNAKEFILE)
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (path / "workflow/scripts/spillover").mkdir(parents=True)
    for name in ("words.txt", "workflow/scripts/train.py", "workflow/scripts/spillover/training.py"):
        (path / name).write_text("first version\n")
    workflow = TinyWorkflow(path)
    workflow.finish("all")
    return path


@pytest.fixture
def tiny(made, tmp_path):
    shutil.copytree(made, tmp_path / "w", copy_function=shutil.copy2)
    return TinyWorkflow(tmp_path / "w")


@pytest.fixture
def untouched(made, tmp_path):
    ignored = shutil.ignore_patterns("results", ".snakemake")
    shutil.copytree(made, tmp_path / "new", copy_function=shutil.copy2, ignore=ignored)
    return TinyWorkflow(tmp_path / "new")


def why(jobs, rule):
    return [cause.text for job in jobs if job.rule == rule for cause in job.causes]


def printed(capsys, tiny, *arguments) -> str:
    assert program.main(["--directory", str(tiny.path), *arguments]) == 0
    return capsys.readouterr().out


def test_a_finished_workflow_has_nothing_to_do(tiny, capsys):
    assert printed(capsys, tiny) == "Nothing to do: everything asked for is present and up to date.\n"


def test_a_changed_setting_is_named_with_its_old_and_new_value(tiny, capsys):
    tiny.edit(lambda config: config["experiments"]["spill"]["fr_it"].update(learning_rate=0.002))
    jobs = tiny.plan()
    assert [(job.rule, job.run) for job in jobs] == [
        ("train", "fr_it/seed1"),
        ("completions", "fr_it/seed1"),
        ("matrix", None),
    ]
    setting = jobs[0].causes[0]
    assert (setting.kind, setting.key, setting.old, setting.new) == (
        "setting",
        "train.learning_rate",
        0.001,
        0.002,
    )
    text = printed(capsys, tiny)
    assert text.count("train.learning_rate: 0.001 -> 0.002") == 1  # said once for the run, not once a stage
    assert "train, completions" in text


def test_every_change_is_named_also_below_another_planned_job(tiny):
    tiny.edit(lambda config: config["suites"]["directives"].update(samples=9))
    tiny.edit(lambda config: config["experiments"]["spill"]["fr_it"].update(learning_rate=0.002))
    tiny.edit(lambda config: config["experiments"]["spill"].update(it_es={}))
    jobs = tiny.plan()
    below = [job for job in jobs if job.rule == "completions" and job.run == "fr_it/seed1"]
    assert {"train.learning_rate: 0.001 -> 0.002", "suites.directives.samples: 5 -> 9"} <= set(
        why(below, "completions")
    )
    assert "run added: spill/it_es/seed1" in why(jobs, "matrix")


def test_an_old_value_is_found_without_a_manifest(tiny):
    tiny.edit(lambda config: config["experiments"]["spill"]["fr_it"].update(learning_rate=0.002))
    (tiny.path / "results/spill/fr_it/seed1/train.manifest.json").write_text("{ broken")
    assert "train.learning_rate: 0.001 -> 0.002" in why(tiny.plan(), "train")


def test_a_changed_library_module_is_named(tiny):
    (tiny.path / "workflow/scripts/spillover/training.py").write_text("second version\n")
    jobs = tiny.plan()
    assert set(why(jobs, "train")) == {"library module spillover/training.py changed"}
    assert why(jobs, "completions")[0] == "follows from adapter.txt"


def test_touched_files_plan_nothing(tiny):
    for path in tiny.path.rglob("*.py"):
        path.touch()
    (tiny.path / "words.txt").touch()
    assert tiny.plan() == []


def test_a_changed_data_file_and_a_changed_program_are_named(tiny):
    (tiny.path / "words.txt").write_text("other words\n")
    (tiny.path / "workflow/scripts/train.py").write_text("second version\n")
    assert set(why(tiny.plan(), "train")) == {"words.txt changed", "program train.py changed"}


def test_an_added_run_is_called_new_and_the_aggregate_says_what_it_gains(tiny, capsys):
    tiny.edit(lambda config: config["experiments"]["spill"].update(it_es={}))
    jobs = tiny.plan()
    assert {job.run for job in jobs} == {"it_es/seed1", None}
    assert why(jobs, "train") == ["new run"]
    assert "run added: spill/it_es/seed1" in why(jobs, "matrix")
    assert "new run" in printed(capsys, tiny)


def test_a_removed_run_leaves_only_the_aggregate(tiny):
    tiny.edit(lambda config: config["experiments"]["spill"].pop("it_fr"))
    jobs = tiny.plan()
    assert [job.rule for job in jobs] == ["matrix"]
    assert "run removed: spill/it_fr/seed1" in why(jobs, "matrix")


def test_a_deleted_output_is_named(tiny):
    adapter = "results/spill/fr_it/seed1/adapter.txt"
    (tiny.path / adapter).unlink()
    assert why(tiny.plan(adapter), "train") == ["missing: adapter.txt"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["fr.parquet", "dataset.parquet"], "follows from fr.parquet, dataset.parquet"),
        (["fr.parquet", "dataset.parquet", "adapter.txt"], "follows from other jobs of this plan"),
        (["spill/a/seed1", "spill/b/seed1", "spill/c/seed1"], "follows from 3 other runs above"),
    ],
)
def test_many_things_that_a_job_follows_from_are_one_phrase(names, said):
    job = dataclasses.replace(planned({}), causes=[causes.Cause("follows", f"follows from {name}") for name in names])
    text = audit_text.as_text([job], [estimates.estimate(job, {})], {})
    assert said in " ".join(text.split())


def test_a_checkpoint_says_that_more_may_follow(tiny, capsys):
    text = printed(capsys, tiny, "results/summary.txt")
    assert "More may follow" in text
    assert "select *" in text
    data = json.loads(printed(capsys, tiny, "results/summary.txt", "--json"))
    assert data["more_may_follow"] is True
    assert {job["rule"]: job["more_may_follow"] for job in data["jobs"]} == {"select": True, "summary": False}


def test_costs_are_unknown_where_nothing_is_known(untouched, capsys):
    text = printed(capsys, untouched)
    assert "GPU-hours: 0 where it is known, 4 jobs unknown" in text  # the matrix asks for no GPU, so its 0 is known
    assert "CPU-hours: unknown for every job" in text
    data = json.loads(printed(capsys, untouched, "--json"))
    train = next(job for job in data["jobs"] if job["rule"] == "train")
    assert train["estimate"] == {
        "gpu_seconds": None,
        "cpu_seconds": None,
        "api_calls": 0,
        "cost_dollars": 0,
        "source": "unknown",
    }


def test_costs_come_from_earlier_runs_of_the_same_experiment(tiny):
    tiny.edit(lambda config: config["experiments"]["spill"].update(it_es={}))
    job = next(job for job in tiny.plan() if job.rule == "train")
    found = estimates.estimate(job, {}, tiny.path)
    assert (found.gpu_seconds, found.cpu_seconds) == (7200, 3600)
    assert found.source == "median of 2 earlier runs of spill"


def test_another_experiment_is_the_second_best_source(tiny):
    tiny.edit(lambda config: config["experiments"].update(third={"de_fr": {}}))
    jobs = tiny.plan("results/third/de_fr/seed1/adapter.txt")
    assert estimates.estimate(jobs[0], {}, tiny.path).source == "median of 2 earlier runs of other experiments"


def test_a_total_says_what_it_leaves_out(tiny, capsys):
    tiny.edit(lambda config: config["experiments"]["spill"].update(it_es={}))
    for manifest in tiny.path.glob("results/*/*/seed1/completions.manifest.json"):
        manifest.write_text("{}")
    text = printed(capsys, tiny)
    assert "GPU-hours: at least 2.00, 1 job unknown" in text


BENCHMARK = {
    "train": {
        "work": [{"product": ["train.steps", "train.batch_size"]}],
        "figures": [
            {
                "quantity": "gpu_seconds",
                "when": {"base_model": ["big"], "train.rank": [32]},
                "fixed_seconds": 10,
                "units_per_work": 5,
                "units_per_second": 100,
                "source": "measured on one such GPU",
            }
        ],
    }
}


def planned(spec, rule="train"):
    return audit.PlannedJob(rule, None, None, None, None, {}, [], ["x"], spec, [], False, {"gpu": 1})


def test_a_benchmark_figure_is_used_with_its_source_where_it_applies():
    spec = {"parent": {"base": {"name": "big"}}, "train": {"steps": 20, "batch_size": 16, "rank": 32}}
    found = estimates.estimate(planned(spec), BENCHMARK)
    assert found.gpu_seconds == 10 + 20 * 16 * 5 / 100
    assert found.source == "measured on one such GPU"
    assert found.cpu_seconds is None


@pytest.mark.parametrize("change", [{"rank": 8}, {"steps": None}])
def test_a_benchmark_figure_is_not_stretched_to_other_settings(change):
    spec = {
        "parent": {"base": {"name": "big"}},
        "train": {"steps": 20, "batch_size": 16, "rank": 32} | change,
    }
    assert estimates.estimate(planned(spec), BENCHMARK).gpu_seconds is None


def test_stacking_adapters_has_a_figure_of_its_own():
    figures = estimates.read_benchmarks(ROOT / "benchmarks/estimates.yaml")
    spec = {"trained": {"parent": {"base": {"name": "Qwen/Qwen2.5-7B-Instruct"}}, "train": {"rank": 32}}, "applied": {}}
    job = dataclasses.replace(planned(spec, "stack"), resources={})
    found = estimates.estimate(job, figures)
    assert (found.cpu_seconds, found.gpu_seconds) == (6, 0) and "measured on one core" in found.source


def test_calls_and_dollars_are_so_much_for_each_piece_of_work():
    figures = [
        {"quantity": "api_calls", "when": {}, "each": 1, "source": "one a text"},
        {"quantity": "cost_dollars", "when": {"judge.model": ["small"]}, "each": 0.5, "source": "price list"},
        {"quantity": "cost_dollars", "when": {"judge.model": ["small", "large"]}, "each": 9, "source": "guess"},
    ]
    benchmark = {"labels": {"work": [{"product": ["samples"]}], "figures": figures}}
    job = audit.PlannedJob(
        "labels", None, None, None, None, {}, [], ["x"], {"samples": 4, "judge": {"model": "small"}}, [], False,
        {"api_slots": 1},
    )  # fmt: skip
    found = estimates.estimate(job, benchmark)
    assert (found.api_calls, found.cost_dollars, found.gpu_seconds) == (4, 2.0, 0.0)
    assert found.source == "one a text; price list"


def test_costs_of_earlier_runs_scale_with_the_work(tiny):
    tiny.edit(lambda config: config["experiments"]["spill"]["fr_it"].update(steps=30))
    job = next(job for job in tiny.plan() if job.rule == "train")
    assert estimates.estimate(job, BENCHMARK, tiny.path).gpu_seconds == 3 * 7200


def test_work_is_summed_over_suites_and_multiplied_by_checkpoints():
    formula = {"over": "suites", "product": ["languages", "samples"], "times": ["checkpoints"]}
    suites = {"a": {"languages": ["en", "fr"], "samples": 3}, "b": {"languages": ["en"], "samples": 4}}
    assert estimates.work({"work": [formula]}, {"suites": suites, "checkpoints": ["pct50", "final"]}) == 20
    suites["b"]["languages"] = "all"
    assert estimates.work({"work": [formula]}, {"suites": suites, "checkpoints": ["final"]}) is None


def test_a_config_error_is_one_sentence_on_stderr_and_exit_code_1(tiny, capsys):
    tiny.edit(lambda config: config.update(typo=1))
    assert program.main(["--directory", str(tiny.path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "config.yaml: typo: unknown key 'typo'; did you mean 'train'?\n"


def test_a_profile_and_overlays_are_obeyed(tiny, capsys):
    (tiny.path / "profiles/small").mkdir(parents=True)
    (tiny.path / "overlay.yaml").write_text("train: {learning_rate: 0.5}\n")
    (tiny.path / "profiles/small/profile.yaml").write_text("configfile: overlay.yaml\n")
    (tiny.path / "more.yaml").write_text("train: {steps: 7}\n")
    flags = ["--directory", str(tiny.path), "--configfile", "overlay.yaml", "more.yaml", "--", "results/matrix.png"]
    assert program.main(flags) == 0  # as `make audit CONFIGS=... TARGETS=...` calls it
    told = capsys.readouterr().out
    assert "train.learning_rate: 0.001 -> 0.5" in told and "train.steps: 10 -> 7" in told
    for options in ({"profile": "profiles/small"}, {"configfiles": ["overlay.yaml"]}):
        jobs = audit.planned_jobs(directory=tiny.path, **options)
        assert "train.learning_rate: 0.001 -> 0.5" in why(jobs, "train")


def stamps(folder: Path) -> dict[Path, int]:
    """Time stamps of all files but Snakemake's own scratch, where every dry run keeps a cache."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".snakemake" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in files}


def test_the_audit_changes_no_file(tiny):
    before = stamps(tiny.path)
    tiny.edit(lambda config: config["experiments"]["spill"].update(it_es={}))
    tiny.plan()
    after = stamps(tiny.path)
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == {
        tiny.path / "config.yaml"
    }


def test_no_line_is_wider_than_100_columns(untouched, capsys):
    untouched.edit(
        lambda config: config["experiments"]["spill"].update({f"condition_number_{i}": {} for i in range(30)})
    )
    assert max(map(len, printed(capsys, untouched).splitlines())) <= audit_text.WIDTH


@pytest.mark.parametrize(
    "nested, plain",
    [
        ("train.learning_rate", "train.learning_rate"),
        ("completions.model.trained.train.learning_rate", "train.learning_rate"),
        ("model.trained.data.data.rows", "data.rows"),
        ("completions.suites.directives.samples", "suites.directives.samples"),
        ("completions.model.trained.parent.base.name", "model.name"),
        ("parent.trained.train.epochs", "the parent's train.epochs"),
    ],
)
def test_a_setting_keeps_its_name_in_the_spec_of_a_later_stage(nested, plain):
    assert causes.plain_key(nested) == plain
