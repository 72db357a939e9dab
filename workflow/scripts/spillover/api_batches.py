"""Message Batches that survive a kill at any moment: every batch is collected once, and none is paid for twice.

The id of a batch is in the journal before anything is waited for. A kill (or a broken connection) between the service
taking a batch and its id arriving here leaves a sending of unknown fate; then the service's list is searched for a
batch of that time and size whose results carry our names. Names are hashes of the questions, so whatever is found
under one of them is an answer to that very question.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from spillover import api_outcomes
from spillover.api_client import CALL, Request, Service
from spillover.api_outcomes import FatalApiError
from spillover.journal import Journal, Sending
from spillover.provenance import canonical_json

LARGEST_BYTES = 200_000_000  # the service takes 256 MB
CLOCKS_DIFFER = 600.0  # seconds by which this machine's clock and the service's may disagree
REJECTED = "rejected: "


class Batches:
    """Batches of one job, through one connection and one journal."""

    def __init__(self, service: Service, journal: Journal):
        self.service = service
        self.journal = journal
        self.api = service.client.messages.batches
        self.doubtful_calls = 0

    def run(self, requests: Sequence[Request]) -> None:
        """Send the requests and wait until each has a reply or a failure in the journal."""
        for chunk in chunks(requests, self.service.settings.batch_size):
            self._send(chunk)
        self.collect()

    def settle(self) -> None:
        """Find out what became of everything that an earlier process sent and did not see answered."""
        for sent in list(self.journal.state.open.values()):
            if sent.mark.startswith(CALL):
                self.doubtful_calls += 1
                self.journal.lost(sent.mark)
            elif sent.batch is None:
                self._find(sent)
        for sent in self._open():
            self._collect(sent)  # what ended the earlier process may be mended since: what it left is sent again

    def collect(self) -> None:
        """Wait for every open batch and write its results down; raise FatalApiError at what only a person can mend."""
        for sent in self._open():
            if sentence := self._collect(sent):
                raise FatalApiError(sentence)

    def _open(self) -> list[Sending]:
        return [sent for sent in self.journal.state.open.values() if sent.batch]

    def _send(self, chunk: Sequence[Request]) -> None:
        ids = [request.id for request in chunk]
        body = [{"custom_id": request.id, "params": request.params} for request in chunk]
        for attempt in range(2 * self.service.settings.attempts):
            mark = f"batch-{uuid.uuid4().hex[:12]}"
            self.journal.sending(mark, ids)
            try:
                batch = self.api.create(requests=body)
            except self.service.faults as error:
                if api_outcomes.was_turned_away(error):
                    self.journal.refused(mark)
                    if not self.service.is_temporary(error):
                        raise self.service.fatal(error) from None
                elif self._find(self.journal.state.open[mark]):
                    return
                self.service.wait(error, attempt)
                last = error
                continue
            self.journal.batch(mark, batch.id, ids)
            print(f"batch {batch.id}: {len(ids)} requests", flush=True)
            return
        raise FatalApiError(
            f"The service took no batch in {attempt + 1} attempts, last with: {api_outcomes.error_summary(last)}. "
            "Nothing is lost: run the same command again later."
        )

    def _find(self, sent: Sending) -> bool:
        """Search the service's list for a batch whose id never arrived; write the id down, or the loss."""
        time.sleep(max(0.0, sent.at + self.service.settings.settle_seconds - time.time()))
        for batch in self._since(sent.at - CLOCKS_DIFFER):
            counts = batch.request_counts
            size = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if batch.id in self.journal.state.batches or size != len(sent.ids):
                continue
            if not self._wait(batch.id):
                continue
            names = self.service.patiently(lambda b=batch: {line.custom_id for line in self.api.results(b.id)})
            if names == set(sent.ids):
                self.journal.batch(sent.mark, batch.id, sent.ids)
                print(f"batch {batch.id}: found again, {size} requests", flush=True)
                return True
        self.journal.lost(sent.mark)
        return False

    def _since(self, start: float) -> Iterator:
        """Batches of this workspace from the newest back to `start` (seconds since 1970)."""
        page = self.service.patiently(self.api.list, limit=100)
        while True:
            for batch in page.data:
                if batch.created_at.timestamp() < start:
                    return
                yield batch
            if not page.has_next_page():
                return
            page = self.service.patiently(page.get_next_page)

    def _wait(self, batch_id: str) -> bool:
        """Wait until a batch has ended; False if its results are gone (they are kept for 29 days)."""
        shown = None
        while True:
            try:
                batch = self.service.patiently(self._retrieve, batch_id)
            except LookupError:
                return False
            if batch.processing_status == "ended":
                return batch.results_url is not None
            counts = batch.request_counts
            if (state := f"{batch.processing_status}, {counts.processing} in process") != shown:
                print(f"batch {batch_id}: {state}", flush=True)
                shown = state
            time.sleep(self.service.settings.poll_seconds)

    def _retrieve(self, batch_id: str):
        try:
            return self.api.retrieve(batch_id)
        except self.service.not_found:
            raise LookupError(batch_id) from None

    def _collect(self, sent: Sending) -> str | None:
        """Wait for a batch and write its results down; the sentence for a person if only one can mend them, else None.

        A batch rejected whole means wrong settings, not wrong texts, unless they have had a reply before.
        """
        self._wait(sent.batch)
        seen: set[str] = set()
        fatal: list[str] = []
        rejected: list[str] = []
        try:
            for _ in range(self.service.settings.attempts):
                self.service.patiently(self._read, sent, seen, fatal, rejected)
                if seen >= set(sent.ids):
                    break
        except LookupError:
            print(f"batch {sent.batch}: its results are no longer kept", flush=True)
        for missing in set(sent.ids) - seen:
            self.journal.failure(missing, "the batch holds no result for it", sent.batch)
        self.journal.collected(sent.batch)
        if fatal:
            return fatal[0]
        if len(rejected) == len(sent.ids) and not self.journal.state.replies:
            return f"The service rejects every request for {self.service.model!r}: {rejected[0]}."
        return None

    def _read(self, sent: Sending, seen: set[str], fatal: list[str], rejected: list[str]) -> None:
        """Write the results into the journal as they come; read again after a broken connection, nothing is doubled."""
        if not self._wait(sent.batch):
            raise LookupError(sent.batch)
        ours = set(sent.ids)
        for line in self.api.results(sent.batch):
            if line.custom_id not in ours or line.custom_id in seen:
                continue
            result = line.result
            if result.type == "succeeded":
                if line.custom_id not in self.journal.state.replies:
                    message = result.message.model_dump(mode="json", exclude_none=True)
                    self.journal.reply(line.custom_id, message, sent.batch)
            elif result.type == "errored":
                error = result.error.error
                code = (error.to_dict().get("details") or {}).get("error_code")
                words = f"{error.type} {error.message}"
                if sentence := api_outcomes.fatal_words(None, error.type, code, error.message, self.service.model):
                    fatal.append(sentence)
                elif error.type == "invalid_request_error":
                    rejected.append(words)
                    words = REJECTED + words
                self.journal.failure(line.custom_id, words, sent.batch)
            else:
                self.journal.failure(line.custom_id, result.type, sent.batch)
            seen.add(line.custom_id)


def chunks(requests: Sequence[Request], most: int) -> Iterator[list[Request]]:
    """Requests in batches that the service takes: by number and by size in bytes."""
    chunk: list[Request] = []
    size = 0
    for request in requests:
        own = len(canonical_json(request.params).encode()) + 100
        if chunk and (len(chunk) == most or size + own > LARGEST_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(request)
        size += own
    if chunk:
        yield chunk
