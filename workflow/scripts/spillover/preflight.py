"""What must be there before the first job starts. It knows commands, and nothing of Snakemake or of the experiments."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable, Mapping

from spillover.plan import Plan

VLLM_INTERPRETER = ".venv-vllm/bin/python"
LAUNCHER = "on_gpu.py"
ENGINES = ("transformers",)
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


def unavailable(plan: Plan, rules: Iterable[str], run_ids: Iterable[str]) -> str | None:
    """One sentence about what the jobs about to run need and this version cannot do, else None.

    The plan of such an experiment can be seen (`snakemake -n`, `make audit`); it must not spend hours or money on the
    stages before the one that would stop it.
    """
    engine = plan.config["engine"]["name"]
    if engine not in ENGINES and GENERATING & set(rules):
        return f"engine.name: {engine!r} is planned for but not available in this version; known: {', '.join(ENGINES)}"
    for run in (plan.runs[run_id] for run_id in run_ids):
        if run.train and run.train["regulariser"]:
            return f"{run.id}: train.regulariser is planned for but not available in this version"
    return None


def programs(command: str) -> list[str]:
    """The interpreters in a command: its first word, and what follows the launcher."""
    words = shlex.split(command)
    launched = [words[i + 1] for i, word in enumerate(words[:-1]) if os.path.basename(word) == LAUNCHER]
    return list(dict.fromkeys([*words[:1], *launched]))
