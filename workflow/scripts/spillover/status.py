"""How far the experiments are: done, running, failed, waiting, the time left and the money spent.

Nothing is kept for it. Snakemake's plan says what is done, its markers under .snakemake what runs now, logs what
failed, benchmark files how long such jobs take, and manifests what was paid.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from spillover import provenance
from spillover.audit import PlannedJob, planned_jobs

DONE, RUNNING, FAILED, WAITING = "done", "running", "failed", "waiting"
TAIL_LINES, MOST_KINDS = 5, 4
SHARED = "shared by experiments"
CARD = "dataset_card"
"""The rule that describes a run's data for a reader; a run is done without it."""


@dataclass(frozen=True)
class JobState:
    """One job of the plan: its state, the seconds it should take (None: nothing is known) and the end of its log."""

    job: PlannedJob
    state: str
    seconds: float | None
    tail: list[str]


@dataclass(frozen=True)
class Progress:
    """An experiment: runs by state, all jobs, the dollars its manifests know of (`unknown`: jobs that do not say)."""

    name: str
    runs: dict[str, str]
    jobs: list[JobState]
    dollars: float
    unknown: int

    def count(self, state: str) -> int:
        return sum(found == state for found in self.runs.values())

    def of(self, state: str) -> list[JobState]:
        return [job for job in self.jobs if job.state == state]


def progress(targets: Sequence[str] = (), *, directory: str | Path = ".", **options) -> list[Progress]:
    """One record per experiment, and one for the jobs that they share. Options as `audit.planned_jobs`.

    A job is running if Snakemake holds the folder's lock and has marked the job's outputs as begun, and failed if it
    has a log but left no outputs: a job that was stopped counts too, until it is run again. Raises AuditError.
    """
    directory = Path(directory)
    everything = planned_jobs(targets, directory=directory, forceall=True, **options)
    left = {job.outputs[0] for job in planned_jobs(targets, directory=directory, **options)}
    begun = begun_outputs(directory)
    lengths = durations(everything, directory)
    states = [_state(job, job.outputs[0] in left, begun, lengths, directory) for job in everything]
    names = dict.fromkeys(state.job.experiment or SHARED for state in states)
    return [_experiment(name, [s for s in states if (s.job.experiment or SHARED) == name], directory) for name in names]


def begun_outputs(directory: Path) -> set[str]:
    """Outputs of jobs that Snakemake has started and not finished; empty if no Snakemake works in the folder.

    It keeps a file per such output, whose path below .snakemake/incomplete is the output's name in URL-safe base64, cut
    into folders that begin with @ where it is long.
    """
    if not any((directory / ".snakemake/locks").glob("*")):
        return set()
    folder = directory / ".snakemake/incomplete"
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            packed = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
            try:
                found.add(base64.urlsafe_b64decode(packed).decode())
            except ValueError:
                continue  # not one of these markers
    return found


def durations(jobs: Sequence[PlannedJob], directory: Path) -> dict[tuple[str, str | None], float]:
    """Median seconds of the benchmark files that exist, by (rule, experiment) and by (rule, None) over all of them."""
    known: dict[tuple[str, str | None], list[float]] = {}
    for job in jobs:
        if (seconds := _benchmark(directory, job.benchmark)) is not None:
            for key in {(job.rule, job.experiment), (job.rule, None)}:
                known.setdefault(key, []).append(seconds)
    return {key: median(values) for key, values in known.items()}


def left_seconds(jobs: Sequence[JobState]) -> tuple[float, int]:
    """Seconds of work in the jobs that are not done, one after the other, and how many of them have no figure."""
    waiting = [job for job in jobs if job.state != DONE]
    return sum(job.seconds or 0 for job in waiting), sum(job.seconds is None for job in waiting)


def as_text(found: Sequence[Progress]) -> str:
    """The status for people: a paragraph an experiment, then what is left in all."""
    jobs = [job for item in found for job in item.jobs]
    return "\n\n".join([*map(_paragraph, found), _whole(jobs)])


def as_json(found: Sequence[Progress]) -> list[dict]:
    return [
        {
            "experiment": item.name,
            "runs": item.runs,
            "jobs": {state: len(item.of(state)) for state in (DONE, RUNNING, FAILED, WAITING)},
            "failed": [{"job": _named(j.job), "log": j.job.logs, "tail": j.tail} for j in item.of(FAILED)],
            "seconds_left": left_seconds(item.jobs)[0],
            "jobs_without_figure": left_seconds(item.jobs)[1],
            "dollars": item.dollars,
            "jobs_without_cost": item.unknown,
        }
        for item in found
    ]


def _paragraph(item: Progress) -> str:
    runs = f"{item.count(DONE)} of {len(item.runs)} runs done" if item.runs else ""
    others = ", ".join(f"{item.count(state)} {state}" for state in (RUNNING, FAILED, WAITING) if item.count(state))
    jobs = f"{len(item.of(DONE))} of {len(item.jobs)} jobs done"
    money = f"${item.dollars:,.2f} spent" + (f" and {item.unknown} jobs of unknown cost" if item.unknown else "")
    lines = [f"{item.name}: " + "; ".join(part for part in (runs, others, jobs, money) if part)]
    for job in item.of(RUNNING):
        lines.append(f"  running  {_named(job.job)}  {job.tail[-1] if job.tail else ''}".rstrip())
    for job in item.of(FAILED):
        lines.append(f"  FAILED   {_named(job.job)}; its log: {', '.join(job.job.logs)}")
        lines += [f"           {line}" for line in job.tail]
    return "\n".join(lines)


def _whole(jobs: Sequence[JobState]) -> str:
    left = [job for job in jobs if job.state != DONE]
    if not left:
        return "Nothing is left to do."
    seconds, unknown = left_seconds(jobs)
    running = sum(job.state == RUNNING for job in jobs)
    known = [f"about {duration(seconds)} of work"] if unknown < len(left) else []
    known += [f"{unknown} of them of a kind that has never run here"] if unknown else []
    kinds = [f"{_kind(rule)} {count}" for rule, count in Counter(job.job.rule for job in left).most_common()]
    listed = ", ".join([*kinds[:MOST_KINDS], *(["others"] if len(kinds) > MOST_KINDS else [])])
    text = f"{len(left)} jobs are left ({listed}): {', '.join(known)}"
    if running > 1 and seconds:
        text += f"; with {running} at a time, as now, about {duration(seconds / running)}"
    return text + ("." if running else "; nothing is running.")


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _state(job: PlannedJob, is_left: bool, begun: set[str], lengths: dict, directory: Path) -> JobState:
    seconds = lengths.get((job.rule, job.experiment), lengths.get((job.rule, None)))
    # asked first: a job that runs again because an earlier one did is not planned anew where that one's files came out
    # the same
    if begun & set(job.outputs):
        return JobState(job, RUNNING, seconds, _tail(job, directory))
    if not is_left:
        return JobState(job, DONE, seconds, [])
    if not Path(directory, job.manifest or job.outputs[0]).exists() and _ended_badly(job, directory):
        return JobState(job, FAILED, seconds, _tail(job, directory))
    return JobState(job, WAITING, seconds, [])


def _ended_badly(job: PlannedJob, directory: Path) -> bool:
    """Whether a log says something that no success came after (only success writes a benchmark)."""
    logs = [path for log in job.logs if (path := Path(directory, log)).is_file() and path.stat().st_size]
    benchmark = Path(directory, job.benchmark) if job.benchmark else None
    ended = benchmark.stat().st_mtime if benchmark and benchmark.is_file() else 0
    return any(path.stat().st_mtime > ended for path in logs)


def _experiment(name: str, jobs: list[JobState], directory: Path) -> Progress:
    """A run is as far as its least finished job: failed before running before waiting; its card does not count."""
    runs: dict[str, str] = {}
    for state in jobs:
        if state.job.run:
            order = (FAILED, RUNNING, WAITING, DONE)
            own = DONE if state.job.rule == CARD and state.state == WAITING else state.state
            runs[state.job.run] = min(runs.get(state.job.run, DONE), own, key=order.index)
    paid, unknown = 0.0, 0
    for state in jobs:
        path = Path(directory, state.job.manifest) if state.job.manifest else None
        if path and path.is_file():
            cost = provenance.read_manifest(path).get("cost_dollars")
            paid, unknown = paid + (cost or 0), unknown + (cost is None)
    return Progress(name, runs, jobs, paid, unknown)


def _benchmark(directory: Path, path: str | None) -> float | None:
    """Seconds of a benchmark file's last line, None without one."""
    if path is None or not Path(directory, path).is_file():
        return None
    lines = Path(directory, path).read_text(encoding="utf-8").splitlines()
    try:
        return float(json.loads(lines[-1])["s"])
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _tail(job: PlannedJob, directory: Path) -> list[str]:
    """The last lines of a job's logs; of a progress bar, which overwrites itself with \\r, its latest state."""
    lines: list[str] = []
    for log in job.logs:
        path = Path(directory, log)
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            lines += [line.split("\r")[-1].rstrip() for line in text.splitlines() if line.strip()]
    return lines[-TAIL_LINES:]


def _kind(rule: str) -> str:
    return rule.replace("_", " ")


def _named(job: PlannedJob) -> str:
    extra = [v for k, v in job.wildcards.items() if k not in ("experiment", "name", "seed")]
    return " ".join([_kind(job.rule), *([job.run] if job.run else []), *extra])
