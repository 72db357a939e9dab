"""The journal of paid requests: an append-only file that says, after any kill, what was sent and what came back.

One JSON object a line. A line is written before a request leaves and after its answer arrives, so a process that is
killed in between finds out on its next start what it may have paid for. Requests are named by the hash of all they
say: the same question to the same model has the same name in every run, and is asked once.

    sending   mark, ids, at        before a batch or a call leaves
    batch     mark, batch, ids     the service took the batch; written before anything is waited for
    refused   mark                 the service turned it away, so nothing was paid
    lost      mark                 nobody knows of it: the service never took the batch
    reply     id, message, batch   an answer, complete as it came
    failure   id, error, batch     an answer that never came (errored, expired, cancelled, given up)
    collected batch                all results of a batch are in the journal
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spillover.api_outcomes import FatalApiError


@dataclass
class Sending:
    """A request or batch that left this machine and whose fate is not settled."""

    mark: str
    ids: list[str]
    at: float
    batch: str | None = None


@dataclass
class State:
    """What the lines of a journal add up to."""

    replies: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    batched: set[str] = field(default_factory=set)
    open: dict[str, Sending] = field(default_factory=dict)
    batches: set[str] = field(default_factory=set)

    def read(self, line: dict[str, Any]) -> None:
        kind = line["kind"]
        if kind == "sending":
            self.open[line["mark"]] = Sending(line["mark"], line["ids"], line["at"])
        elif kind == "batch":
            sent = self.open.setdefault(line["mark"], Sending(line["mark"], line["ids"], line["at"]))
            sent.batch = line["batch"]
            self.batches.add(line["batch"])
        elif kind in ("refused", "lost"):
            self.open.pop(line["mark"], None)
        elif kind == "collected":
            self.open = {mark: sent for mark, sent in self.open.items() if sent.batch != line["batch"]}
        elif kind == "reply":
            self.replies[line["id"]] = line["message"]
            self.failures.pop(line["id"], None)
            if line["batch"]:
                self.batched.add(line["id"])
            self.open.pop(line.get("mark"), None)
        elif kind == "failure":
            self.failures[line["id"]] = line["error"]
            self.open.pop(line.get("mark"), None)


class Journal:
    """An open journal. One process at a time: a second one is refused, since it would pay for the same requests."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it when the process dies
        except BlockingIOError:
            os.close(self._file)
            raise FatalApiError(f"{self.path}: another process is writing this journal; wait until it ends.") from None
        except OSError:
            pass  # a file system without locks: Snakemake itself keeps two jobs from making the same file
        self._lock = threading.Lock()
        self.state = State()
        self._load()

    def _load(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)  # the writer was killed within a line; what it meant is not known
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                self.state.read(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise FatalApiError(
                    f"{self.path}: line {number} is damaged; remove that line (its request is then asked again)."
                ) from None

    def sending(self, mark: str, ids: Iterable[str]) -> None:
        self._write(kind="sending", mark=mark, ids=list(ids), at=time.time(), sync=True)

    def batch(self, mark: str, batch: str, ids: Iterable[str]) -> None:
        self._write(kind="batch", mark=mark, batch=batch, ids=list(ids), at=time.time(), sync=True)

    def refused(self, mark: str) -> None:
        self._write(kind="refused", mark=mark)

    def lost(self, mark: str) -> None:
        self._write(kind="lost", mark=mark)

    def collected(self, batch: str) -> None:
        self._write(kind="collected", batch=batch, sync=True)

    def reply(self, request_id: str, message: dict[str, Any], batch: str | None = None, mark: str = "") -> None:
        self._write(kind="reply", id=request_id, message=message, batch=batch, mark=mark)

    def failure(self, request_id: str, error: str, batch: str | None = None, mark: str = "") -> None:
        self._write(kind="failure", id=request_id, error=error, batch=batch, mark=mark)

    def _write(self, sync: bool = False, **line: Any) -> None:
        data = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        with self._lock:
            try:
                written = os.write(self._file, data)
                if written < len(data):
                    os.write(self._file, data[written:])
                if sync:
                    os.fsync(self._file)
            except OSError as error:
                raise FatalApiError(
                    f"{self.path}: cannot be written ({error.strerror}); free some space and run again. "
                    "Nothing was sent that the journal does not know of."
                ) from None
            self.state.read(line)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
