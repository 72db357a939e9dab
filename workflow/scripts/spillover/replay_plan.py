"""A plan without models: runs whose completions or labels come from files, and all that follows from them.

Only runs that a file is named for stay selected, and experiments without any are left out. It reads no table; what is
in the files is for `replay_tables`.
"""

from __future__ import annotations

from pathlib import Path

from spillover.config import ConfigError, closest
from spillover.plan import BASE, Plan

SUFFIXES = (".parquet", ".jsonl", ".json")


def limited(plan: Plan, where: str) -> Plan:
    """The plan of a replay: `replayed` maps its runs to their files. A plan that asks for no replay stays as it is.

    Raises ConfigError for names of no run, files that are not there or of no known kind, searches in phases, and
    comparisons with a folder that holds no conclusions.
    """
    settings = plan.config["replay"]
    if settings is None:
        return plan
    replayed = dict(_found(plan, settings["from"], f"{where}: replay.from") if settings["from"] else {})
    for name, file in settings["runs"].items():
        at = f"{where}: replay.runs.{name}"
        if not Path(file).is_file():
            raise ConfigError(f"{at}: there is no file {file}")
        if Path(file).suffix not in SUFFIXES:
            raise ConfigError(f"{at}: {file} is of no known kind; known: {', '.join(SUFFIXES)}")
        replayed |= dict.fromkeys(_runs(plan, name, at), file)
    if not replayed:
        raise ConfigError(
            f"{where}: replay: no run to replay; name files under replay.runs, or a folder in replay.from"
        )
    experiments = {name: settings for name, settings in plan.experiments.items() if _trained(plan, replayed, name)}
    for name, own in experiments.items():
        if own["phases"]:
            raise ConfigError(
                f"{where}: replay: {name} is a search in phases, which a replay cannot repeat; leave it out"
            )
    _check_comparison(settings["compare"], experiments, f"{where}: replay.compare")
    runs = {run_id: run for run_id, run in plan.runs.items() if run.experiment in experiments}
    selected = [run_id for run_id in runs if run_id in replayed]
    return Plan(plan.config, experiments, runs, selected, plan.further_personas, replayed)


def _trained(plan: Plan, replayed: dict[str, str], experiment: str) -> bool:
    """Whether a replay has any run of an experiment beside the untrained model."""
    return any(plan.runs[i].experiment == experiment and plan.runs[i].name != BASE for i in replayed)


def _found(plan: Plan, folder: str, at: str):
    """(run, file) of every selected run whose completions lie in a folder of results."""
    if not Path(folder).is_dir():
        raise ConfigError(f"{at}: there is no folder {folder}")
    for run_id in plan.selected:
        path = Path(folder, run_id, "completions.parquet")
        if plan.runs[run_id].evaluate and path.is_file():
            yield run_id, str(path)


def _runs(plan: Plan, name: str, at: str) -> list[str]:
    """`experiment/run` is that run at the experiment's only seed, `experiment/run/seedN` at one of several."""
    if name in plan.runs:
        return [name]
    found = [run_id for run_id in plan.runs if run_id.rsplit("/", 1)[0] == name]
    if len(found) == 1:
        return found
    if found:
        raise ConfigError(f"{at}: there are several seeds; name one, as in {found[0]}")
    known = list(dict.fromkeys(run_id.rsplit("/", 1)[0] for run_id in plan.runs))
    raise ConfigError(f"{at}: no run {name!r} in the plan{closest(name, known)}")


def _check_comparison(folder: str | None, experiments: dict, at: str) -> None:
    for name in experiments if folder else ():
        path = Path(folder, name, "analysis", "summary.json")
        if not path.is_file():
            raise ConfigError(f"{at}: there is no {path}; name a results folder with finished analyses")
