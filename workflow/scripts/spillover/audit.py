"""What Snakemake would run: its plan as plain data, each job with its causes.

Planning goes through Snakemake's own command-line parser and public API, so profiles, overlays and defaults mean here
what they mean in a real run. It executes nothing; why a job runs is told in `causes`, what it costs in `estimates`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spillover.causes import MANIFEST, Cause, bare, locate, why
from spillover.config import merge

# Snakemake compares inputs by content only up to this size and by time stamp beyond; without a profile of the project
# its default of 1 MB would make every touched data set look new
CHECKSUM_LIMIT_BYTES = 10_000_000_000
SNAKEMAKE_CHECKSUM_LIMIT_BYTES = 1_000_000


# checkpoints that others wait for: unlike a phase's decision they add no jobs to the plan
WAITED_FOR = {"translate", "translation_check"}


class AuditError(Exception):
    """The plan cannot be made; the message is for the person who can mend the configuration."""


@dataclass(frozen=True)
class PlannedJob:
    """One job that Snakemake would run. `spec` is the planned one; `manifest` the path of the one it will write."""

    rule: str
    experiment: str | None
    run: str | None
    root: str | None
    manifest: str | None
    wildcards: dict[str, str]
    inputs: list[str]
    outputs: list[str]
    spec: Any
    causes: list[Cause]
    checkpoint: bool
    resources: dict[str, Any] = field(default_factory=dict)
    logs: list[str] = field(default_factory=list)
    benchmark: str | None = None


def planned_jobs(
    targets: Sequence[str] = (),
    *,
    profile: str | None = None,
    configfiles: Sequence[str] = (),
    snakefile: str | None = None,
    directory: str | Path = ".",
    forceall: bool = False,
) -> list[PlannedJob]:
    """Return the jobs that `snakemake` with these options would run now, by experiment and run, a run's in their order.

    `forceall` asks for all jobs behind the targets, done or not.
    Paths are read relative to `directory`. Jobs without outputs (target rules) are left out. Raises AuditError with
    one sentence if the workflow or its configuration is at fault.
    """
    with contextlib.chdir(directory):
        records = _dry_run(targets, profile, configfiles, snakefile, forceall)
        jobs = [_planned_job(record) for record in records if record.output]
    depths = _depths(jobs)
    order = [
        (job.experiment is None, job.experiment or "", _natural(job.run or "~"), depths[index], job.rule, job.outputs)
        for index, job in enumerate(jobs)
    ]
    return [job for _, job in sorted(zip(order, jobs, strict=True), key=lambda pair: pair[0])]


def following_jobs(
    jobs: Sequence[PlannedJob],
    targets: Sequence[str] = (),
    *,
    profile: str | None = None,
    configfiles: Sequence[str] = (),
    snakefile: str | None = None,
    directory: str | Path = ".",
) -> dict[tuple[str, str], list[PlannedJob]]:
    """The jobs that may follow a plan's phase decisions: {(experiment, phase): jobs}, in the order of the phases.

    Found by planning the same with all phases asked for. A job counts in the first phase whose decision needs it.
    """
    searches = {job.experiment for job in jobs if job.checkpoint and "phase" in job.wildcards and job.experiment}
    if not searches:
        return {}
    override = {"experiments": {name: {"options": {"run_all_phases": True}} for name in searches}}
    with contextlib.chdir(directory):
        records = _dry_run(targets, profile, configfiles, snakefile, False, override)
        everything = [_planned_job(record) for record in records if record.output]
    known = {path for job in jobs for path in job.outputs}
    producer = {path: index for index, job in enumerate(everything) for path in job.outputs}
    taken = {index for index, job in enumerate(everything) if known & set(job.outputs)}

    def needed(index: int) -> list[int]:
        if index in taken:
            return []
        taken.add(index)
        before = dict.fromkeys(producer[path] for path in everything[index].inputs if path in producer)
        return [*(i for other in before for i in needed(other)), index]

    decisions = [
        (job.experiment, job.spec["phases"].index(job.wildcards["phase"]), index)
        for index, job in enumerate(everything)
        if job.checkpoint and job.experiment in searches and job.wildcards["phase"] in job.spec["phases"]
    ]
    found = {
        (experiment, everything[index].wildcards["phase"]): [everything[i] for i in needed(index)]
        for experiment, _, index in sorted(decisions)
    }
    return {key: phase_jobs for key, phase_jobs in found.items() if phase_jobs}


def _depths(jobs: Sequence[PlannedJob]) -> list[int]:
    """How many planned jobs stand before each one; Snakemake announces jobs in no fixed order."""
    producer = {path: index for index, job in enumerate(jobs) for path in job.outputs}
    depths: dict[int, int] = {}

    def depth(index: int) -> int:
        if index not in depths:
            before = {producer[path] for path in jobs[index].inputs if path in producer}
            depths[index] = 1 + max(map(depth, before), default=-1)
        return depths[index]

    return [depth(index) for index in range(len(jobs))]


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorting key that puts lr2 before lr10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _dry_run(
    targets: Sequence[str],
    profile: str | None,
    configfiles: Sequence[str],
    snakefile: str | None,
    forceall: bool,
    override: dict[str, Any] | None = None,
) -> list[logging.LogRecord]:
    from snakemake import cli
    from snakemake.api import SnakemakeApi
    from snakemake.logging import logger
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

    arguments = ["--dry-run", *(["--profile", profile] if profile else [])]
    arguments += ["--snakefile", snakefile] if snakefile else []
    arguments += ["--configfile", *configfiles] if configfiles else []
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            _, options = cli.parse_args([*arguments, "--", *targets])
    except SystemExit:
        raise AuditError(messages.getvalue().strip().splitlines()[-1]) from None
    except Exception as error:
        raise AuditError(str(error)) from error

    limit = options.max_checksum_file_size
    limit = CHECKSUM_LIMIT_BYTES if limit == SNAKEMAKE_CHECKSUM_LIMIT_BYTES else limit
    seen = _JobRecords()
    try:
        with SnakemakeApi(OutputSettings(dryrun=True)) as api:
            for handler in logger.handlers:
                handler.setLevel(logging.CRITICAL + 1)  # the plan is ours to print
            logger.addHandler(seen)
            workflow = api.workflow(
                ResourceSettings(
                    cores=options.cores or 1,
                    default_resources=options.default_resources,
                    overwrite_resources=options.set_resources,
                ),
                config_settings=ConfigSettings(
                    config=merge(cli.parse_config(options.config), override or {}),
                    configfiles=options.configfile,
                    replace_workflow_config=options.replace_workflow_config,
                ),
                snakefile=Path(options.snakefile) if options.snakefile else None,
            )
            dag = workflow.dag(
                DAGSettings(
                    targets=options.targets,
                    forceall=forceall,
                    rerun_triggers=options.rerun_triggers,
                    max_checksum_file_size=limit,
                    force_incomplete=True,  # interrupted jobs are planned, as with rerun-incomplete in the profiles
                )
            )
            dag.execute_workflow(executor="dryrun")
    except (Exception, SystemExit) as error:
        raise AuditError(_sentence(error)) from error
    return seen.records


class _JobRecords(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(getattr(record, "event", "")) == "job_info":
            self.records.append(record)


def _sentence(error: BaseException) -> str:
    """The message of a failed plan, without traceback and without Snakemake's line prefixes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines) or type(error).__name__


def _planned_job(record: logging.LogRecord) -> PlannedJob:
    outputs = [bare(path) for path in record.output]
    inputs = [bare(path) for path in record.input]
    manifest = next((path for path in outputs if path.endswith(MANIFEST)), None)
    root, experiment, run = locate(outputs[0])
    if experiment is None and "experiment" in record.wildcards:
        experiment = record.wildcards["experiment"]
    spec = spec_of_command(record.shellcmd)
    return PlannedJob(
        rule=record.rule_name,
        experiment=experiment,
        run=run,
        root=root,
        manifest=manifest,
        wildcards=dict(record.wildcards),
        inputs=inputs,
        outputs=outputs,
        spec=spec,
        causes=why(record.reason, run, inputs, outputs, manifest, spec),
        checkpoint=record.is_checkpoint and record.rule_name not in WAITED_FOR,
        resources={name: value for name, value in record.resources.items() if not name.startswith("_")},
        logs=[bare(path) for path in record.log or ()],
        benchmark=bare(record.benchmark) if record.benchmark else None,
    )


def spec_of_command(command: str | None) -> Any:
    """Return the data after `--spec` in a planned shell command, or None if there is none that is JSON."""
    try:
        words = shlex.split(command or "")
        return json.loads(words[words.index("--spec") + 1])
    except (ValueError, IndexError):
        return None
