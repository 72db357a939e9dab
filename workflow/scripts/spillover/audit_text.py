"""The audit as people read it (aligned tables, at most 100 columns) and as programs read it (one JSON object)."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from spillover.audit import PlannedJob
from spillover.causes import Cause
from spillover.estimates import QUANTITIES, UNKNOWN, Estimate, Total, total
from spillover.provenance import jsonable

WIDTH = 100
SHARED = "everything else"
HEADINGS = {
    "gpu_seconds": "GPU-hours",
    "cpu_seconds": "CPU-hours",
    "api_calls": "API calls",
    "cost_dollars": "money",
}
Following = Mapping[tuple[str, str], tuple[Sequence[PlannedJob], Sequence[Estimate]]]
"""(experiment, phase) -> the jobs that its decision may schedule, with their estimates."""
MORE_MAY_FOLLOW = "decides at run time what comes next: more may follow"


def as_text(jobs: Sequence[PlannedJob], estimates: Sequence[Estimate], following: Following | None = None) -> str:
    """Return the whole audit as text: a table per experiment, then the cost per rule and in total."""
    if not jobs:
        return "Nothing to do: everything asked for is present and up to date."
    blocks = [f"{_count(len(jobs), 'job')} would run."]
    if any(job.checkpoint for job in jobs):
        blocks[0] += " More may follow: some jobs decide at run time what comes next."
    by_experiment: dict[str, list[PlannedJob]] = {}
    for job in jobs:
        by_experiment.setdefault(job.experiment or SHARED, []).append(job)
    order = sorted(by_experiment, key=lambda name: (name == SHARED, name))
    blocks += [_experiment(name, by_experiment[name]) for name in order]
    blocks.append(_costs(jobs, estimates))
    if following:
        blocks.append(_following(following))
    return "\n\n".join(blocks)


def as_json(
    jobs: Sequence[PlannedJob], estimates: Sequence[Estimate], following: Following | None = None
) -> dict[str, Any]:
    """Return the whole audit as plain data: every job with its causes and estimate, and the totals."""
    return jsonable(
        {
            "jobs": [
                {
                    "experiment": job.experiment,
                    "run": job.run,
                    "rule": job.rule,
                    "wildcards": job.wildcards,
                    "outputs": job.outputs,
                    "why": job.causes,
                    "more_may_follow": job.checkpoint,
                    "estimate": estimate,
                }
                for job, estimate in zip(jobs, estimates, strict=True)
            ],
            "may_follow": [
                {"experiment": experiment, "phase": phase, "jobs": len(costs), "runs": _trainings(phase_jobs)}
                | {quantity: total(costs, quantity) for quantity in QUANTITIES}
                for (experiment, phase), (phase_jobs, costs) in (following or {}).items()
            ],
            "totals": {quantity: total(estimates, quantity) for quantity in QUANTITIES},
            "more_may_follow": any(job.checkpoint for job in jobs),
        }
    )


def _trainings(jobs: Sequence[PlannedJob]) -> int:
    return sum(job.rule in ("train", "train_full") for job in jobs)


def _following(following: Following) -> str:
    """One row a phase that a decision may schedule: its jobs, trainings and cost."""
    rows = []
    for (experiment, phase), (jobs, costs) in following.items():
        cells = [_cell(quantity, total(costs, quantity)) for quantity in QUANTITIES]
        rows.append([experiment, phase, str(len(jobs)), str(_trainings(jobs)), *cells])
    header = ["experiment", "phase", "jobs", "trainings", *(HEADINGS[q] for q in QUANTITIES)]
    note = "  A phase runs where no recipe of those before it passed, or where run_all_phases asks for all."
    return "\n".join(["May follow", _table(header, rows), note])


def _experiment(name: str, jobs: Sequence[PlannedJob]) -> str:
    """One row for all runs that do the same for the same reasons, one for all such jobs that belong to no run."""
    of_run: dict[str, list[PlannedJob]] = {}
    shared: dict[tuple[str, str], list[PlannedJob]] = {}
    for job in jobs:
        if job.run:
            of_run.setdefault(job.run, []).append(job)
        else:
            shared.setdefault((_step(job), _why(job.causes)), []).append(job)
    rows: dict[tuple[str, str], list[str]] = {}
    for run, its_jobs in of_run.items():
        key = _steps(its_jobs), _why([cause for job in its_jobs for cause in job.causes])
        rows.setdefault(key, []).append(run)
    table = [[_runs(runs), steps, why] for (steps, why), runs in rows.items()]
    table += [["", step + _which(its_jobs), why] for (step, why), its_jobs in shared.items()]
    note = f"\n  * {MORE_MAY_FOLLOW}" if any(job.checkpoint for job in jobs) else ""
    return f"{name}: {_count(len(jobs), 'job')}\n{_table(['run', 'steps', 'why'], table, (0.36, 0.27))}{note}"


def _step(job: PlannedJob) -> str:
    return job.rule.replace("_", " ") + (" *" if job.checkpoint else "")


def _steps(jobs: Sequence[PlannedJob]) -> str:
    """The rules of one run in their order, with a count where a rule has several jobs."""
    counts = Counter(map(_step, jobs))
    return ", ".join(step + (f" x{number}" if number > 1 else "") for step, number in counts.items())


def _which(jobs: Sequence[PlannedJob]) -> str:
    """What tells jobs of one rule apart, as ` (de, en)`; nothing if it is only the experiment."""
    values = [value for job in jobs for key, value in job.wildcards.items() if key != "experiment"]
    return f" ({_listed(values)})" if values else ""


def _why(causes: Sequence[Cause]) -> str:
    """Root causes once each; what merely follows from other planned jobs is said only when there is nothing else."""
    roots = [cause for cause in causes if cause.kind not in ("follows", "missing")]
    if any(cause.kind == "new_run" for cause in roots):
        roots = [cause for cause in roots if cause.kind == "new_run"]
    roots += [cause for cause in causes if cause.kind == "missing" and not any(r.kind == "new_run" for r in roots)]
    lists: dict[str, list[str]] = {}
    for cause in roots or causes:
        mark = {"inputs": ": ", "follows": "follows from "}.get(cause.kind)
        head, separator, name = cause.text.partition(mark) if mark else (cause.text, "", "")
        lists.setdefault(head + separator, []).append(name)
    shown = []
    for head, names in lists.items():
        distinct = list(dict.fromkeys(names))
        many = _many(distinct) if head == "follows from " and len(distinct) > 2 else None
        shown.append(f"{head}{many or _listed(distinct)}")
    if len(shown) > 6:
        shown = [*shown[:6], f"and {len(shown) - 6} more reasons"]
    return "\n".join(shown)


def _many(names: Sequence[str]) -> str:
    """For files one phrase without names, so that runs that differ in them alone, as in a language, share a row."""
    return f"{len(names)} other runs above" if all("/" in name for name in names) else "other jobs of this plan"


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _runs(runs: Sequence[str]) -> str:
    """`fr_it seed42`, or for several runs their names and seeds, each once."""
    if len(runs) == 1:
        return runs[0].replace("/", " ")
    names = list(dict.fromkeys(run.split("/")[0] for run in runs))
    seeds = list(dict.fromkeys(run.split("/")[1] for run in runs if "/" in run))
    return f"{_listed(names)}; {_listed(seeds)} ({len(runs)} runs)"


def _costs(jobs: Sequence[PlannedJob], estimates: Sequence[Estimate]) -> str:
    by_step: dict[str, list[Estimate]] = {}
    for job, estimate in zip(jobs, estimates, strict=True):
        by_step.setdefault(job.rule.replace("_", " "), []).append(estimate)
    sources: list[str] = []
    rows = []
    for step, items in by_step.items():
        for source in dict.fromkeys(item.source for item in items):
            if source not in sources and source != UNKNOWN:
                sources.append(source)
        marks = [f"[{sources.index(s) + 1}]" for s in dict.fromkeys(item.source for item in items) if s != UNKNOWN]
        cells = [_cell(quantity, total(items, quantity)) for quantity in QUANTITIES]
        rows.append([step, str(len(items)), *cells, " ".join(marks) or "no record"])
    rows.append(["total", str(len(jobs)), *(_cell(q, total(estimates, q)) for q in QUANTITIES), ""])
    header = ["step", "jobs", *(HEADINGS[q] for q in QUANTITIES), "from"]
    lines = ["Estimated cost", _table(header, rows)]
    for number, source in enumerate(sources, 1):
        lines += textwrap.wrap(f"[{number}] {source}", WIDTH, initial_indent="  ", subsequent_indent="      ")
    for quantity in QUANTITIES:
        sums = total(estimates, quantity)
        if sums.unknown == sums.jobs:
            lines.append(f"  {HEADINGS[quantity]}: unknown for every job")
        elif sums.unknown:
            known = f"at least {_amount(quantity, sums.known)}" if sums.known else "0 where it is known"
            lines.append(f"  {HEADINGS[quantity]}: {known}, {_count(sums.unknown, 'job')} unknown")
    return "\n".join(lines)


def _cell(quantity: str, sums: Total) -> str:
    if sums.unknown and not sums.known:
        return UNKNOWN
    return (">= " if sums.unknown else "") + _amount(quantity, sums.known)


def _amount(quantity: str, value: float) -> str:
    if quantity == "api_calls":
        return f"{value:,.0f}"
    if not value:
        return "0"
    if quantity == "cost_dollars":
        return f"${value:,.2f}"
    hours = value / 3600
    if hours < 0.001:
        return "<0.001"
    return f"{hours:,.3f}" if hours < 0.1 else f"{hours:,.2f}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], shares: Sequence[float] = ()) -> str:
    """Left-aligned columns, indented by two. With `shares`, column i takes at most that share of the width, the last
    column the rest, and longer cells wrap."""
    longest = [max(len(line) for row in [header, *rows] for line in row[i].split("\n")) for i in range(len(header))]
    room = WIDTH - 2 - 2 * (len(header) - 1)
    widths = [min(size, int(share * room)) for size, share in zip(longest, shares, strict=False)]
    widths = [*widths, room - sum(widths)] if shares else longest
    lines = []
    for row in [header, *rows]:
        cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            lines.append(
                "  " + "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
            )
    return "\n".join(lines)


def _wrapped(cell: str, width: int) -> list[str]:
    lines = [part for line in cell.split("\n") for part in textwrap.wrap(line, width, break_on_hyphens=False)]
    return lines or [""]
