"""One line a job: `[ 3/40] train language_spill/fr_it/seed42  14 s`, and a sign of life from the long ones.

A logger plugin of Snakemake (`snakemake TARGET --logger progress`), found through PYTHONPATH=workflow/plugins. It
changes nothing but what the terminal shows: Snakemake's own full log stays under .snakemake/log.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from dataclasses import dataclass, field
from logging import WARNING, LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase

QUIET_SECONDS = 15  # a job that runs longer shows the last line of its log this often
LOG_TAIL_LINES = 20
NOTHING_TO_DO = "Nothing to be done"
WARNING_TEXT = re.compile(r"\S+\.py:\d+: \w*Warning: |warnings\.warn\(")  # a library's, with its line of source


@dataclass
class Job:
    """A running job: what to call it, since when it runs, and where it logs."""

    name: str
    logs: list[str]
    started: float = field(default_factory=time.monotonic)
    signs: int = 0  # how often its log has been quoted

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def duration(seconds: float) -> str:
    """`14 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def last_line(path: str) -> str:
    """The last thing a log says, Python's warnings apart; of a progress bar, which overwrites itself with \\r, its
    latest state.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line and not WARNING_TEXT.match(line)), "")


class LogHandler(LogHandlerBase):
    """Prints finished jobs, signs of life, warnings and errors; swallows the rest."""

    def __post_init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.total = 0
        self.done = 0
        self.lock_jobs = threading.Lock()
        self.stopped = threading.Event()
        threading.Thread(target=self._signs_of_life, daemon=True).start()

    def emit(self, record: LogRecord) -> None:
        event = str(getattr(record, "event", None) or "")
        action = getattr(self, f"_on_{event}", None)
        if action:
            action(record)
        elif record.levelno >= WARNING:
            self._print(record.getMessage())
        elif NOTHING_TO_DO in str(record.msg):
            self._print("Nothing to do: everything asked for is present and up to date.")

    def _on_run_info(self, record: LogRecord) -> None:
        if self.total:
            return  # a dry run announces its statistics a second time
        self.total = record.stats["total"]
        self._print(f"{self.total} job{'s' if self.total > 1 else ''} to run")

    def _on_job_info(self, record: LogRecord) -> None:
        wildcards = dict(record.wildcards)
        words = [record.rule_name.replace("_", " ")]
        if {"experiment", "name", "seed"} <= wildcards.keys():
            words.append("{experiment}/{name} seed {seed}".format(**wildcards))
            wildcards = {key: value for key, value in wildcards.items() if key not in ("experiment", "name", "seed")}
        name = " ".join([*words, *map(str, wildcards.values())])
        with self.lock_jobs:
            self.jobs[record.jobid] = Job(name, list(record.log))

    def _on_job_finished(self, record: LogRecord) -> None:
        with self.lock_jobs:
            job = self.jobs.pop(record.job_id, None)
        self.done += 1
        if job:
            width = len(str(self.total))
            self._print(f"[{self.done:>{width}}/{self.total}] {job.name:<60} {duration(job.seconds):>9}")

    def _on_progress(self, record: LogRecord) -> None:
        self.done, self.total = record.done, record.total  # a checkpoint may have added jobs

    def _on_job_error(self, record: LogRecord) -> None:
        with self.lock_jobs:
            job = self.jobs.pop(record.jobid, None)
        self._print(f"FAILED {job.name if job else record.rule_name}; its log: {', '.join(record.log) or 'none'}")
        for path in record.log:
            lines = Path(path).read_text(errors="replace").splitlines() if Path(path).is_file() else []
            for line in lines[-LOG_TAIL_LINES:]:
                self._print(f"    {line}")

    def _on_error(self, record: LogRecord) -> None:
        # a failed job is told once, with its log, by the job_error event; of a mistake in the configuration only the
        # sentence matters, not the line of the workflow that noticed it
        if record.exception != "RuleException":
            for line in str(record.msg).splitlines():
                if not re.match(r'\w+(Error|Exception)( in |:$)|  File "', line):
                    self._print(line)

    def _signs_of_life(self) -> None:
        while not self.stopped.wait(1):
            with self.lock_jobs:
                running = list(self.jobs.values())
            for job in running:
                if job.seconds >= QUIET_SECONDS * (job.signs + 1):
                    job.signs += 1
                    said = next((line for path in job.logs if (line := last_line(path))), "")
                    self._print(f"      ... {job.name}, {duration(job.seconds)}: {said[:60]}".rstrip(": "))

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.stopped.set()
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        return True

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return True

    @property
    def has_formatter(self) -> bool:
        return True

    @property
    def needs_rulegraph(self) -> bool:
        return False
