"""A stand-in for Anthropic's API: real HTTP on a free port of 127.0.0.1, so that the real SDK talks to it.

It refuses what the service refuses (no key, unknown or retired models, sampling parameters, prefill, bad schemas,
custom ids), charges for what it answers, keeps batches with their life cycle, and commits the faults it is told to.
`billed` counts every answer by the hash of its parameters: the bill a customer would get. `log` holds every request.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-ant-test-0123456789"
MODELS = {
    "claude-haiku-4-5-20251001": "active",
    "claude-haiku-5-5": "active",
    "claude-sonnet-4-6": "active",
    "claude-sonnet-4-5": "deprecated",
    "claude-3-opus-20240229": "retired",
}
THINKS_UNASKED = {"claude-haiku-5-5"}
SAMPLING = ("temperature", "top_p", "top_k")
WORDS = {
    "English": "the and of with morning",
    "Spanish": "el los una con mañana",
    "French": "le les des avec matin",
    "Italian": "il gli della con mattina",
    "German": "der und die mit morgen",
}
STATUS = {429: "rate_limit_error", 500: "api_error", 503: "api_error", 504: "timeout_error", 529: "overloaded_error"}


def text_of(params: dict) -> str:
    """What the user turn holds between its tags."""
    content = params["messages"][-1]["content"]
    return re.sub(r"</?\w+>", "", content).strip()


def language_rule(text: str, names: list[str]) -> str:
    """The language with most of its common words in the text: enough to know whether labels were mixed up."""
    words = Counter(re.findall(r"\w+", text.lower()))
    score = {name: sum(words[w] for w in WORDS.get(name, "").split()) for name in names}
    best = max(score, key=score.get)
    return best if score[best] else "another language"


def default_answer(params: dict) -> str:
    """An answer that follows the schema if there is one, else the text in capitals."""
    text = text_of(params)
    schema = params.get("output_config", {}).get("format", {}).get("schema")
    if schema is None:
        return text.upper()
    fields = {}
    for name, rule in schema["properties"].items():
        fields[name] = (
            language_rule(text, rule["enum"]) if name == "language" else rule["enum"][0] if "enum" in rule else False
        )
    return json.dumps(fields | ({"coherent": True} if "coherent" in fields else {}))


def noisy_answer(language: str, missed: float, invented: float) -> Callable[[dict], str]:
    """A judge that errs: of texts in `language` it misses the share `missed`, others it takes for it at `invented`.

    Which texts follows from the texts, so that asking again changes nothing.
    """

    def answer(params: dict) -> str:
        fields = json.loads(default_answer(params))
        chance = random.Random(text_of(params)).random()
        others = [name for name in WORDS if name != language]
        if fields["language"] == language and chance < missed:
            fields["language"] = others[int(chance * 1e6) % len(others)]
        elif fields["language"] != language and chance < invented:
            fields["language"] = language
        return json.dumps(fields)

    return answer


@dataclass
class Faults:
    """What goes wrong. Shares are chances; `item` says per request and try what becomes of it (see `FakeAnthropic`)."""

    http_share: float = 0.0
    http_kinds: tuple[str, ...] = ("429", "500", "503", "504", "529", "reset", "slow", "reset_after")
    item: Callable[[dict, int], str] = lambda params, tries: "ok"
    slow_seconds: float = 60.0  # longer than any client of the tests waits: the connection ends without an answer
    script: list[str] = field(default_factory=list)  # kinds for the next requests, before any chance


def message(text: str, stop: str = "end_turn") -> dict:
    """A reply of the API, as far as a judge reads it."""
    return {"stop_reason": stop, "content": [{"type": "text", "text": text}]}


class FakeAnthropic:
    """The server. `with FakeAnthropic() as server:` runs it; `server.url` is its base URL.

    An item's fate is one of: ok, truncated, refusal, schema (an answer that breaks the schema), overloaded, invalid,
    expired, canceled. Outside batches the last two do not exist and overloaded is a 529.
    """

    def __init__(self, faults: Faults | None = None, answer=default_answer, polls: int = 2, bucket=None, seed: int = 0):
        self.faults, self.answer, self.polls = faults or Faults(), answer, polls
        self.random = random.Random(seed)
        self.bucket = bucket  # (places, refilled a second)
        self.places, self.refilled = (bucket[0] if bucket else 0), time.monotonic()
        self.billed: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()
        self.log: list[dict] = []
        self.batches: dict[str, dict] = {}
        self.spent: tuple[int, int, dict] | None = None  # (answers allowed, status afterwards, error)
        self.on_event: Callable[[str], None] = lambda name: None
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.RLock()

    def __enter__(self) -> FakeAnthropic:
        server = self

        class Handler(_Handler):
            fake = server

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request, client_address):
                pass  # a client that was killed in the middle is what these tests are about

        self._http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def environment(self) -> dict[str, str]:
        return {"ANTHROPIC_BASE_URL": self.url, "ANTHROPIC_API_KEY": KEY}

    def bodies(self) -> list[dict]:
        """The parameters of every message that anyone asked for, direct or in a batch."""
        posts = [e["body"] for e in self.log if e["method"] == "POST" and e["body"]]
        return [p for b in posts for p in ([r["params"] for r in b["requests"]] if "requests" in b else [b])]

    # What the service does with one request

    def problem(self, params: dict) -> tuple[int, str, str] | None:
        model = params.get("model")
        if MODELS.get(model, "retired") == "retired":
            return 404, "not_found_error", f"model: {model}"
        for name in SAMPLING:
            if name in params:
                return 400, "invalid_request_error", f"{name}: Extra inputs are not permitted"
        if not params.get("max_tokens") or not params.get("messages"):
            return 400, "invalid_request_error", "max_tokens and messages: Field required"
        if params["messages"][-1]["role"] != "user":
            return 400, "invalid_request_error", "This model does not support assistant message prefill"
        if any(not m["content"] for m in params["messages"]):
            return 400, "invalid_request_error", "messages: text content blocks must be non-empty"
        schema = params.get("output_config", {}).get("format", {}).get("schema")
        if schema and (
            schema.get("additionalProperties") is not False or set(schema["required"]) != set(schema["properties"])
        ):
            return 400, "invalid_request_error", "output_config.format.schema: additionalProperties must be false"
        return None

    def generate(self, params: dict, fate: str) -> dict:
        """The message for a request, which is thereby paid for."""
        text, stop, extra = self.answer(params), "end_turn", {}
        if fate == "schema":
            text = text[: len(text) // 2] if "output_config" in params else " "
        room = 4 * params["max_tokens"]
        if fate == "truncated" or len(text) > room:
            text, stop = text[: min(room, len(text) // 2)], "max_tokens"
        content = [{"type": "text", "text": text}]
        if params["model"] in THINKS_UNASKED and params.get("thinking", {}).get("type") != "disabled":
            content.insert(0, {"type": "thinking", "thinking": "hm", "signature": "x"})
        if fate == "refusal":
            content, stop = [], "refusal"
            extra = {"stop_details": {"type": "refusal", "category": "general_harms", "explanation": None}}
        with self.lock:
            self.billed[name(params)] += 1
        return {
            "id": f"msg_{name(params)[:20]}",
            "type": "message",
            "role": "assistant",
            "model": params["model"],
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": len(json.dumps(params)) // 4, "output_tokens": len(text) // 4 + 1},
            **extra,
        }

    def fate(self, params: dict) -> str:
        with self.lock:
            self.tries[question(params)] += 1
            return self.faults.item(params, self.tries[question(params)])

    def happened(self, moment: str) -> None:
        with self.lock:  # one after the other: a test counts them
            self.on_event(moment)

    def is_spent(self) -> bool:
        return self.spent is not None and sum(self.billed.values()) >= self.spent[0]

    # Batches

    def new_batch(self, requests: list[dict]) -> dict:
        with self.lock:
            now = datetime.now(UTC)
            batch_id = f"msgbatch_{len(self.batches):06d}"
            # worked off and charged at once, whether or not anyone asks for it again; shown after some polls
            results = [self.result(request) for request in requests]
            self.random.shuffle(results)
            self.batches[batch_id] = {"requests": requests, "polls": 0, "created": now, "results": results}
            return self.shown(batch_id)

    def poll(self, batch_id: str) -> dict:
        with self.lock:
            batch = self.batches[batch_id]
            batch["polls"] += 1
            return self.shown(batch_id)

    def end_early(self, batch_id: str, kind: str) -> None:
        """End a batch before its time, uncharged: every item `canceled` by a person or `expired` after 24 hours."""
        with self.lock:
            batch = self.batches[batch_id]
            done = {r["custom_id"] for r in batch["results"] if r["result"]["type"] == "succeeded"}
            self.billed -= Counter(name(r["params"]) for r in batch["requests"] if r["custom_id"] in done)
            batch["results"] = [{"custom_id": r["custom_id"], "result": {"type": kind}} for r in batch["requests"]]
            batch["polls"] = self.polls + 1

    def result(self, request: dict) -> dict:
        params = request["params"]
        fate, problem = self.fate(params), self.problem(params)
        if self.is_spent():
            outcome = {"type": "errored", "error": {"type": "error", "error": self.spent[2]}}
        elif problem or fate in ("overloaded", "invalid"):
            kind = problem[1] if problem else {"invalid": "invalid_request_error"}.get(fate, "overloaded_error")
            error = {"type": kind, "message": problem[2] if problem else fate}
            outcome = {"type": "errored", "error": {"type": "error", "error": error, "request_id": "req_x"}}
        elif fate in ("expired", "canceled"):
            outcome = {"type": fate}
        else:
            outcome = {"type": "succeeded", "message": self.generate(params, fate)}
        return {"custom_id": request["custom_id"], "result": outcome}

    def shown(self, batch_id: str) -> dict:
        batch = self.batches[batch_id]
        ended = batch["polls"] > self.polls
        counts = Counter(r["result"]["type"] for r in batch["results"] if ended)
        counts = {kind: counts[kind] for kind in ("succeeded", "errored", "canceled", "expired")}
        return {
            "id": batch_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {**counts, "processing": 0 if ended else len(batch["requests"])},
            "created_at": batch["created"].isoformat(),
            "expires_at": (batch["created"] + timedelta(hours=24)).isoformat(),
            "ended_at": batch["created"].isoformat() if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{self.url}/v1/messages/batches/{batch_id}/results" if ended else None,
        }

    def take_place(self) -> float | None:
        """None if a place in the bucket was free, else seconds until the next one."""
        if not self.bucket:
            return None
        with self.lock:
            now = time.monotonic()
            self.places = min(self.bucket[0], self.places + (now - self.refilled) * self.bucket[1])
            self.refilled = now
            if self.places >= 1:
                self.places -= 1
                return None
            return (1 - self.places) / self.bucket[1]


def name(params: dict) -> str:
    """The hash of everything asked, max_tokens included: what one payment is for."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()


def question(params: dict) -> str:
    return name({k: v for k, v in params.items() if k != "max_tokens"})


class _Handler(BaseHTTPRequestHandler):
    fake: FakeAnthropic
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve("GET", None)

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        self._serve("POST", json.loads(data) if data else None)

    def _serve(self, method: str, body: dict | None) -> None:
        fake = self.fake
        with fake.lock:
            headers = {k.lower(): v for k, v in self.headers.items() if k.lower() not in ("authorization", "x-api-key")}
            fake.log.append({"method": method, "path": self.path, "body": body, "headers": headers})
            fault = fake.faults.script.pop(0) if fake.faults.script else None
            if fault is None and fake.random.random() < fake.faults.http_share:
                fault = fake.random.choice(fake.faults.http_kinds)
            fake.in_flight += 1
            fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
        try:
            self._route(method, body, fault)
        finally:
            with fake.lock:
                fake.in_flight -= 1

    def _route(self, method: str, body: dict | None, fault: str | None) -> None:
        fake, path = self.fake, self.path.split("?")[0]
        key = (self.headers.get("authorization") or "").removeprefix("Bearer ") or self.headers.get("x-api-key")
        if key != KEY:
            return self._error(401, "authentication_error", "invalid x-api-key")
        if not self.headers.get("anthropic-version"):
            return self._error(400, "invalid_request_error", "anthropic-version: header is required")
        if fault == "slow":
            time.sleep(fake.faults.slow_seconds)
            fault = "reset"
        if fault == "reset":
            return self._reset()
        if fault and fault.isdigit():
            wait = {"retry-after": "0"} if fault == "429" else {}
            return self._error(int(fault), STATUS[int(fault)], "made up", headers=wait)
        self.after = fault  # reset_after, cut_body: the work is done, the answer does not arrive whole
        if path.startswith("/v1/models/"):
            return self._model(path.rsplit("/", 1)[1])
        if path == "/v1/messages" and method == "POST":
            return self._message(body)
        if path == "/v1/messages/batches" and method == "POST":
            return self._create(body["requests"])
        if path == "/v1/messages/batches":
            shown = [fake.shown(i) for i in reversed(list(fake.batches))]
            return self._json({"data": shown, "has_more": False, "first_id": None, "last_id": None})
        if match := re.fullmatch(r"/v1/messages/batches/(\w+?)(/results|/cancel)?", path):
            if match[1] not in fake.batches:
                return self._error(404, "not_found_error", f"batch {match[1]} not found")
            if match[2] == "/cancel":
                fake.end_early(match[1], "canceled")
                return self._json(fake.shown(match[1]))
            if match[2]:
                lines = [json.dumps(line) for line in fake.batches[match[1]]["results"]]
                fake.happened("results")
                return self._send("\n".join(lines).encode() + b"\n", "application/binary")
            fake.happened("poll")
            return self._json(fake.poll(match[1]))
        self._error(404, "not_found_error", path)

    def _model(self, model: str) -> None:
        if model not in MODELS:
            return self._error(404, "not_found_error", f"model: {model}")
        info = {"id": model, "type": "model", "display_name": model, "created_at": "2025-10-01T00:00:00Z"}
        dates = {"deprecated_at": None, "retires_at": "2026-11-30T00:00:00Z" if MODELS[model] == "deprecated" else None}
        self._json(info | dates | {"lifecycle": MODELS[model]})

    def _message(self, params: dict) -> None:
        fake = self.fake
        if (seconds := fake.take_place()) is not None:
            return self._error(429, "rate_limit_error", "slow down", headers={"retry-after": f"{seconds:.3f}"})
        if fake.is_spent():
            return self._send(json.dumps({"type": "error", "error": fake.spent[2]}).encode(), status=fake.spent[1])
        if problem := fake.problem(params):
            return self._error(*problem)
        fate = fake.fate(params)
        if fate == "overloaded":
            return self._error(529, "overloaded_error", "Overloaded")
        if fate == "invalid":
            return self._error(400, "invalid_request_error", "this text is not accepted")
        message = fake.generate(params, fate)
        fake.happened("message")
        self._json(message)

    def _create(self, requests: list[dict]) -> None:
        ids = [r["custom_id"] for r in requests]
        if len(set(ids)) < len(ids) or not all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", i) for i in ids):
            return self._error(400, "invalid_request_error", "custom_id: must be unique, at most 64 characters")
        shown = self.fake.new_batch(requests)
        self.fake.happened("batch")
        self._json(shown)

    def _error(self, status: int, kind: str, message: str, headers: dict | None = None) -> None:
        self.after = None
        body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_x"}
        self._send(json.dumps(body).encode(), status=status, headers=headers)

    def _json(self, value: dict) -> None:
        self._send(json.dumps(value).encode())

    def _send(
        self, data: bytes, kind: str = "application/json", status: int = 200, headers: dict | None = None
    ) -> None:
        after = getattr(self, "after", None)
        if after == "reset_after":
            return self._reset()
        self.send_response(status)
        left = str(int(self.fake.places)) if self.fake.bucket else "999"
        limits = {"anthropic-ratelimit-requests-limit": "1000", "anthropic-ratelimit-requests-remaining": left}
        for header, value in {"request-id": "req_x", **limits, **(headers or {})}.items():
            self.send_header(header, value)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if after == "cut_body":
            self.wfile.write(data[: len(data) // 2])
            return self._reset()
        self.wfile.write(data)

    def _reset(self) -> None:
        """Close the connection so that the client sees a reset, not an orderly end."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
