"""What must be there before the first job starts. It knows commands, and nothing of Snakemake or of the experiments."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from spillover import own_files
from spillover.engines import VLLM_ADAPTERS_IN_FLOAT32
from spillover.files import Files
from spillover.plan import Plan

VLLM_INTERPRETER = ".venv-vllm/bin/python"
LAUNCHER = "on_gpu.py"
GENERATING = {"completions", "pool"}


def missing_interpreters(commands: Mapping[str, str]) -> str | None:
    """One sentence about the interpreters in `commands` ({rule: how it starts Python}) that do not exist, else None.

    A command is an interpreter, or a launcher and the interpreter that it starts.
    """
    missing: dict[str, list[str]] = {}
    for rule, command in commands.items():
        for program in programs(command):
            if not os.access(program, os.X_OK) if os.sep in program else shutil.which(program) is None:
                missing.setdefault(program, []).append(rule)
    if not missing:
        return None
    program, rules = next(iter(missing.items()))
    repair = f"`make env-vllm` builds {program}, or name" if program == VLLM_INTERPRETER else "name"
    # not --set-resources on the command line: it would replace the profile's whole list
    return (
        f"{program}, with which the profile runs {' and '.join(sorted(rules))}, does not exist: {repair} another "
        "under the profile's set-resources"
    )


def unavailable(plan: Plan, rules: Iterable[str], run_ids: Iterable[str], sources: Iterable[str] = ()) -> str | None:
    """One sentence about what the jobs about to run need and is not there, else None.

    That is a person's own file behind one of the `sources` to be fetched, or what the chosen engine cannot do.

    The plan of such an experiment can be seen (`snakemake -n`, `make audit`); it must not spend hours or money on the
    stages before the one that would stop it.
    """
    for name in sources:
        if told := own_files.missing(name, plan.config["sources"][name]):
            return told
    engine = plan.config["engine"]["name"]
    for run in (plan.runs[run_id] for run_id in run_ids):
        if run.steer and engine != "transformers" and GENERATING & set(rules):
            return f"{run.id}: steer works in engine transformers only, not in {engine}: leave out group {run.group}"
    if engine == "openai" and GENERATING & set(rules):
        return _not_served(plan, run_ids)
    if engine == "vllm" and GENERATING & set(rules) and plan.config["model"]["dtype"] == "float32":
        return _beside_float32(plan, run_ids)
    return None


def _beside_float32(plan: Plan, run_ids: Iterable[str]) -> str | None:
    files = Files(plan)
    for run in (plan.runs[run_id] for run_id in run_ids):
        beside = plan.experiments[run.experiment]["evaluate_as"] == "adapter"
        if beside and run.evaluate and files.evaluated_adapters(run.id):
            return f"{run.id}: {VLLM_ADAPTERS_IN_FLOAT32}"
    return None


def _not_served(plan: Plan, run_ids: Iterable[str]) -> str | None:
    """A server has the untrained model and its adapters, so nothing may stand on a model that the workflow made."""
    if plan.config["model"]["name"] in ("small", "rebuilt") and not plan.config["engine"]["model"]:
        return "engine.model: name the small world's model as the server has it"
    files = Files(plan)
    for run in (plan.runs[run_id] for run_id in run_ids):
        if run.evaluate and run.parent and plan.experiments[run.experiment]["evaluate_as"] == "merged":
            return f"{run.experiment}: evaluate_as: merged: a server applies adapters; choose another engine or adapter"
        if run.evaluate and not files.standing_on(run).is_base:
            return (
                f"{run.id} stands on {files.standing_on(run).run}, which the server of engine.url does not have: "
                "choose engine.name: vllm or transformers for this experiment"
            )
    return None


def missing_vllm(commands: Mapping[str, str]) -> str | None:
    """One sentence where the interpreter that generates has no vLLM, else None. `commands` as above."""
    for rule in sorted(GENERATING & commands.keys()):
        interpreter = programs(commands[rule])[-1]
        look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        if subprocess.run([interpreter, "-c", look], stdin=subprocess.DEVNULL).returncode:
            return (
                f"engine.name is vllm, and {interpreter}, which runs {rule}, has no vLLM: `make env-vllm` builds "
                f"{VLLM_INTERPRETER}, which profiles/gpu and profiles/slurm use, or choose engine.name: transformers"
            )
    return None


def missing_key(outputs: Mapping[str, str]) -> str | None:
    """One sentence if jobs about to run will call Claude and no key is set, else None. `outputs`: {file: its rule}.

    A job beside whose output a journal lies may find every answer in it; whether it does, it says itself.
    """
    if not outputs:
        return None
    # the client takes a while to load: no plan should wait for it, nor a run that calls nobody
    from spillover.api_client import KEYS
    from spillover.api_jobs import JOURNALS

    if any(os.environ.get(name) for name in KEYS):
        return None
    calling = {rule for path, rule in outputs.items() if not any(Path(path).parent.glob(f"{JOURNALS}/*.jsonl"))}
    if not calling:
        return None
    return (
        f"{KEYS[0]} is not set, and {' and '.join(sorted(calling))} will call Claude: set it in the environment, or "
        "choose settings that need no key (`judge: null`, `translator: {name: small_world}`)"
    )


def too_few_gpus(wanted: Mapping[str, int], offered) -> str | None:
    """One sentence where a job of a rule in `wanted` ({rule: GPUs}) needs more than a run offers at a time, else None.

    Snakemake gives such a job what there is, and its processes would share a GPU. `offered` is Snakemake's resource;
    without one (a cluster) the jobs get what they ask for.
    """
    limit = getattr(offered, "value", offered)
    rule, most = max(wanted.items(), key=lambda item: item[1], default=("", 0))
    if limit is None or most <= limit:
        return None
    return (
        f"a job of {rule} needs {most} GPUs (resources.gpu, train.gpus), and this run may use {limit}: say how many "
        f"the box has with --resources gpu={most}, or ask for fewer"
    )


def programs(command: str) -> list[str]:
    """The interpreters in a command: its first word, and what follows the launcher."""
    words = shlex.split(command)
    launched = [words[i + 1] for i, word in enumerate(words[:-1]) if os.path.basename(word) == LAUNCHER]
    return list(dict.fromkeys([*words[:1], *launched]))
