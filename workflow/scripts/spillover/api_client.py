"""The connection to Claude: requests named by their content, patience with temporary faults, and direct calls.

The SDK's own retries are off: every attempt is seen here, so that the journal knows of it and the rate follows what the
service says. The key comes from the environment only and is never printed or stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from spillover import api_outcomes
from spillover.api_outcomes import FatalApiError
from spillover.journal import Journal
from spillover.provenance import canonical_json

KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
LONGEST_WAIT = 600.0  # seconds; the service may ask for more, but a job should be seen to live
CALL = "call-"


@dataclass(frozen=True)
class ApiSettings:
    """How requests travel. None of it decides a result."""

    batch_from: int = 200  # requests of a job from which Message Batches, at half the price, are used
    batch_size: int = 10_000  # requests a batch; the service takes 100,000 or 256 MB
    concurrency: int = 8  # direct calls in flight at most
    poll_seconds: float = 30.0  # between looks at a batch; waits after faults are derived from it
    timeout_seconds: float = 300.0  # for one HTTP exchange
    attempts: int = 5  # times a request without an answer is sent in one run of a job

    @property
    def backoff_seconds(self) -> float:
        return min(1.0, self.poll_seconds / 10)

    @property
    def settle_seconds(self) -> float:
        """After which a batch that the service took must be in its list."""
        return 2 * self.poll_seconds


@dataclass(frozen=True)
class Request:
    """The parameters of one message, and the `max_tokens` of a second try should the answer be cut short."""

    params: dict[str, Any]
    longer: int | None = None

    @cached_property
    def id(self) -> str:
        """The hash of everything that is asked: at most 64 characters of [a-z0-9], as a custom_id must be."""
        return "r" + hashlib.sha256(canonical_json(self.params).encode()).hexdigest()[:40]

    def again(self) -> Request | None:
        """The second try after a truncated answer, or None."""
        return Request({**self.params, "max_tokens": self.longer}) if self.longer else None


class Service:
    """One connection for one model. Raises FatalApiError for what only a person can mend."""

    def __init__(self, model: str, settings: ApiSettings):
        if not any(os.environ.get(name) for name in KEYS):
            raise FatalApiError(
                f"ANTHROPIC_API_KEY is not set, and {model!r} is needed; set it in the environment of the job, "
                "or choose settings that need no key (`judge: null`, the translator `small_world`)."
            )
        import anthropic
        import httpx2

        self.model = model
        self.settings = settings
        self.client = anthropic.Anthropic(max_retries=0, timeout=settings.timeout_seconds)
        # faults between the lines of a streamed result list are not wrapped by the SDK
        self.faults = (anthropic.APIError, httpx2.HTTPError, json.JSONDecodeError)
        self.not_found = anthropic.NotFoundError

    def preflight(self, structured: bool) -> dict[str, Any]:
        """Ask for the model before anything is paid for: key, name, retirement and structured output."""
        info = self.patiently(self.client.models.retrieve, self.model)
        if info.lifecycle == "retired":
            raise FatalApiError(f"The model {self.model!r} is retired; change the model in the configuration.")
        can = info.capabilities.structured_outputs.supported if info.capabilities else True
        if structured and not can:
            raise FatalApiError(f"The model {self.model!r} has no structured output, which a judge needs.")
        if info.lifecycle == "deprecated":
            print(f"note: the model {self.model} is deprecated; it retires at {info.retires_at}", flush=True)
        return {"id": info.id, "lifecycle": info.lifecycle, "retires_at": info.retires_at}

    def is_temporary(self, error: Exception) -> bool:
        return api_outcomes.is_temporary(error)

    def patiently(self, call: Callable, *arguments: Any, **options: Any) -> Any:
        """The result of a request that costs nothing, repeated as long as its failure is temporary."""
        for attempt in range(self.settings.attempts * 2):
            try:
                return call(*arguments, **options)
            except self.faults as error:
                if not self.is_temporary(error):
                    raise self.fatal(error) from None
                last = error
                self.wait(error, attempt)
        raise FatalApiError(
            f"The service failed {attempt + 1} times in a row, last with: {api_outcomes.error_summary(last)}. "
            "Nothing is lost: run the same command again later."
        )

    def fatal(self, error: Exception) -> FatalApiError:
        sentence = api_outcomes.fatal_sentence(error, self.model)
        return FatalApiError(
            sentence or f"The service rejects the request for {self.model!r}: {api_outcomes.error_summary(error)}."
        )

    def wait(self, error: Exception, attempt: int) -> None:
        asked = api_outcomes.retry_after(error)
        own = self.settings.backoff_seconds * 2 ** min(attempt, 6)
        time.sleep(min(max(asked or 0.0, own), LONGEST_WAIT))


class AdaptiveLimit:
    """How many calls may be in flight: halved by a 429, held by faults of the server, otherwise growing by one a round.

    A 429 also stops all new calls for as long as the service asks.
    """

    def __init__(self, most: int, start: int = 4):
        self.most = most
        self.allowed = float(min(start, most))
        self.lowest = self.highest = self.allowed
        self._running = 0
        self._paused_until = self._hold_until = self._last_cut = 0.0
        self._changed = threading.Condition()

    def enter(self) -> float:
        """Wait for a place; returns the time of starting, which `cut` wants back."""
        with self._changed:
            while True:
                now = time.monotonic()
                if self._running < int(self.allowed) and now >= self._paused_until:
                    self._running += 1
                    return now
                self._changed.wait(timeout=max(0.01, self._paused_until - now))

    def leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def grow(self) -> None:
        with self._changed:
            if time.monotonic() >= self._hold_until:
                self.allowed = min(self.most, self.allowed + 1 / self.allowed)
                self.highest = max(self.highest, self.allowed)
                self._changed.notify_all()

    def cut(self, seconds: float, started: float) -> None:
        """Halve, once for all calls of a burst, and start nothing for `seconds`."""
        with self._changed:
            now = time.monotonic()
            if started > self._last_cut:
                self.allowed = max(1.0, self.allowed / 2)
                self.lowest = min(self.lowest, self.allowed)
                self._last_cut = now
            self._paused_until = max(self._paused_until, now + seconds)

    def hold(self, seconds: float) -> None:
        """Let nothing grow for `seconds`: the server is in trouble that fewer calls would not mend."""
        with self._changed:
            self._hold_until = max(self._hold_until, time.monotonic() + seconds)


class Calls:
    """Direct calls, several at a time. A call in flight when the process is killed may be paid for and lost."""

    def __init__(self, service: Service, journal: Journal):
        self.service = service
        self.journal = journal
        self.limit = AdaptiveLimit(service.settings.concurrency)
        self._stop = threading.Event()
        self._answered = threading.Event()
        if journal.state.replies:
            self._answered.set()

    def run(self, requests: Sequence[Request]) -> None:
        """Send every request until it has a reply, or a failure in the journal."""
        with ThreadPoolExecutor(self.service.settings.concurrency) as pool:
            futures = [pool.submit(self._send, request) for request in requests]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _send(self, request: Request) -> None:
        settings = self.service.settings
        faults = limited = 0
        while not self._stop.is_set():
            started = self.limit.enter()
            try:
                if self._stop.is_set():
                    return
                error = self._call(request)
            finally:
                self.limit.leave()
            if error is None:
                self.limit.grow()
                return
            if getattr(error, "status_code", None) == 429:
                limited += 1
                asked = api_outcomes.retry_after(error)
                self.limit.cut(min(asked or settings.backoff_seconds * 2 ** min(limited, 6), LONGEST_WAIT), started)
            else:
                faults += 1
                self.limit.hold(settings.poll_seconds)
                if faults < settings.attempts:
                    self.service.wait(error, faults)
            if faults == settings.attempts or limited == 20 * settings.attempts:
                self.journal.failure(request.id, api_outcomes.error_summary(error))
                return

    def _call(self, request: Request) -> Exception | None:
        """One attempt: None when it is settled, the error when it is worth another."""
        mark = f"{CALL}{uuid.uuid4().hex[:12]}"
        self.journal.sending(mark, [request.id])
        try:
            message = self.service.client.messages.create(**request.params)
        except self.service.faults as error:
            if api_outcomes.was_turned_away(error):
                self.journal.refused(mark)
            else:
                self.journal.lost(mark)
            if self.service.is_temporary(error):
                return error
            # the settings are the same for all texts: if they are wrong, no request has succeeded yet
            if api_outcomes.fatal_sentence(error, self.service.model) or not self._answered.is_set():
                raise self.service.fatal(error) from None
            self.journal.failure(request.id, f"rejected: {api_outcomes.error_summary(error)}")
            return None
        self.journal.reply(request.id, message.model_dump(mode="json", exclude_none=True), mark=mark)
        self._answered.set()
        return None
