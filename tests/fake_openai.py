"""A server on this machine that speaks the part of the OpenAI protocol that the engine uses, with faults on demand.

Its model is a rule: the reply and the log-probabilities follow from the model's name, the prompt and the seed.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeOpenAI:
    """`faults` holds what the next completions answer instead: a status, "drop", "garbage", or a finish reason."""

    def __init__(self, models=("base",), key: str | None = None, prompt_logprobs: bool = True):
        self.models, self.key, self.prompt_logprobs = list(models), key, prompt_logprobs
        self.faults: list = []
        self.requests: list[dict] = []
        self.loaded: list[dict] = []
        self.running = self.most_at_a_time = 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body):
                if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                    return self.send(401, {"error": {"message": "Unauthorized"}})
                if self.path == "/v1/models":
                    return self.send(200, {"data": [{"id": name} for name in fake.models]})
                if self.path == "/v1/load_lora_adapter":
                    fake.loaded.append(body)
                    fake.models.append(body["lora_name"])
                    return self.send(200, "Success: LoRA adapter added")
                with fake.lock:
                    fake.requests.append(body)
                    fault = fake.faults.pop(0) if fake.faults else None
                    fake.running += 1
                    fake.most_at_a_time = max(fake.most_at_a_time, fake.running)
                try:
                    self.complete(body, fault)
                finally:
                    with fake.lock:
                        fake.running -= 1

            def complete(self, body, fault):
                if fault == "drop":
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                if fault == "garbage":
                    return self.send(200, {"object": "text_completion"})
                if isinstance(fault, int):
                    return self.send(fault, {"error": {"message": f"fault {fault}"}}, {"Retry-After": "0.01"})
                self.send(200, fake.completion(body, fault))

            def send(self, status, content, headers=None):
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # as many as an engine opens at once: others would be let in a second later

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def completion(self, body: dict, finish: str | None) -> dict:
        choice = {"index": 0, "text": self.text(body), "finish_reason": finish or "stop"}
        if "prompt_logprobs" in body and self.prompt_logprobs:
            values = [{str(token): {"logprob": self.logprob(body["model"], token)}} for token in body["prompt"][1:]]
            choice["prompt_logprobs"] = [None, *values]
        return {"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 5}}

    @staticmethod
    def text(body: dict) -> str:
        said = json.dumps([body["model"], body["prompt"], body.get("seed")])
        return f"reply {hashlib.sha256(said.encode()).hexdigest()[:8]}"

    @staticmethod
    def logprob(model: str, token: int) -> float:
        return -0.001 * token - (0.5 if model != "base" else 0.0)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
