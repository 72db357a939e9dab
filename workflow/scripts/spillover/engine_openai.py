"""Generate and measure through a server that speaks the OpenAI protocol and serves the base model: vLLM, SGLang, ...

Prompts go as token ids to `/v1/completions`, made by the tokenizer that all engines share, so that the three states of
a system prompt stay apart whatever template the server has; and every default that a server takes from a model's
generation_config is sent explicitly. Adapters are loaded into the server (vLLM's `/v1/load_lora_adapter`, which needs
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 there and a file system shared with it) or are served under the run's id already.
The key comes from the environment only. A fault that passes is waited for; any other ends the job: nothing that is no
reply ever becomes one.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np

from spillover import engines
from spillover.engines import Completion, EngineError
from spillover.measures import Asked, as_own_tokens

KEY = "OPENAI_API_KEY"
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
ATTEMPTS = 8
LONGEST_WAIT = 60.0  # seconds
TIMEOUT = httpx2.Timeout(600.0, connect=20.0)
FIRST_WAIT = 0.5  # seconds, doubled with every attempt


class OpenAI:
    """The engine; see `engines.Engine`. `model` is the name under which the server has the base model."""

    def __init__(self, served: engines.Served, options: engines.Options, tokenizer, model: str):
        self.url, self.model, self.tokenizer = options.url.rstrip("/"), model, tokenizer
        self.stop = tokenizer.convert_tokens_to_ids(engines.END_OF_TURN)
        self.concurrency = options.concurrency
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=self.concurrency)
        self.client = httpx2.Client(headers=headers, timeout=TIMEOUT, limits=limits)
        self.names = {None: model}
        there = [entry["id"] for entry in self._send("GET", "/models")["data"]]
        for checkpoint, folder in served.adapters.items():
            if options.adapters == "named":
                name = served.run if checkpoint == "final" else f"{served.run}@{checkpoint}"
            else:
                name = engines.adapter_name(folder)
                if name not in there:
                    path = str(Path(folder).resolve())
                    self._send("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": path}, plain=True)
                    there.append(name)
            self.names[checkpoint] = name
        for name in self.names.values():
            if name not in there:
                raise EngineError(
                    f"{self.url} serves no model {name!r}, only {', '.join(there) or 'none'}: correct engine.model, or "
                    "serve it under this name"
                )

    def generate(self, works: Sequence[engines.Work], seed: int) -> list[list[Completion]]:
        jobs = []
        for work in works:
            encoded = engines.encode(self.tokenizer, work.prompts)
            for prompt, ids in zip(work.prompts, encoded, strict=True):
                jobs += [(work, prompt, ids, sample) for sample in range(work.samples)]

        def complete(job) -> Completion:
            work, prompt, ids, sample = job
            value = engines.sample_seed(seed, prompt.prompt_id, sample)
            asked = {"temperature": work.temperature, "top_p": work.top_p, "max_tokens": work.max_tokens, "seed": value}
            reply = self._complete(work.checkpoint, ids, asked)
            choice, usage = reply["choices"][0], reply["usage"]
            if choice["finish_reason"] not in ("stop", "length"):
                raise EngineError(f"{self.url} ended the reply to {prompt.prompt_id} with {choice['finish_reason']!r}")
            return Completion(
                prompt=prompt,
                sample=sample,
                sample_seed=value,
                text=choice["text"],
                finish_reason=choice["finish_reason"],
                prompt_tokens=len(ids),
                completion_tokens=usage["completion_tokens"],
            )

        done = iter(self._all(complete, jobs))
        return [[next(done) for _ in range(len(work.prompts) * work.samples)] for work in works]

    def log_probabilities(self, checkpoint: str | None, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Through vLLM's `prompt_logprobs`; a token that is not the sequence's own is asked for as its last."""
        parts = [(index, part) for index, a in enumerate(asked) for part in as_own_tokens(a)]

        def read(item) -> np.ndarray:
            part = item[1]
            settings = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0}
            found = self._complete(checkpoint, part.ids.tolist(), settings)["choices"][0].get("prompt_logprobs")
            if not found or len(found) != len(part.ids):
                raise EngineError(
                    f"{self.url} gives no log-probabilities of a prompt (vLLM's prompt_logprobs), which suites of kind "
                    "choices and loss and the check of adapters need: use another server or engine"
                )
            pairs = zip(part.at.tolist(), part.tokens.tolist(), strict=True)
            return np.array([found[at + 1][str(token)]["logprob"] for at, token in pairs], np.float64)

        values: list[list[np.ndarray]] = [[] for _ in asked]
        for (index, _), found in zip(parts, self._all(read, parts), strict=True):
            values[index].append(found)
        return [np.concatenate(found) for found in values]

    def about(self) -> dict:
        names = {checkpoint: name for checkpoint, name in self.names.items() if checkpoint}
        return {"server": self.url, "model": self.model, "adapters": names}

    def _all(self, call: Callable, jobs: Sequence) -> list:
        """The results in order, `concurrency` calls at a time; the first that fails stops the rest."""
        stop = threading.Event()

        def unless_stopped(job):
            if stop.is_set():
                return None
            try:
                return call(job)
            except BaseException:
                stop.set()  # here and not where results are awaited: until then more would be sent
                raise

        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(unless_stopped, job) for job in jobs]
            try:
                return [future.result() for future in futures]
            except BaseException:
                stop.set()
                raise

    def _complete(self, checkpoint: str | None, ids: list[int], settings: dict) -> dict:
        fixed = {
            "model": self.names[checkpoint], "prompt": ids, "n": 1, "stream": False, "stop_token_ids": [self.stop],
            "ignore_eos": True, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "skip_special_tokens": True,
        }  # fmt: skip
        reply = self._send("POST", "/completions", fixed | settings)
        try:
            choice = reply["choices"][0]
            well = isinstance(choice["text"], str) and isinstance(reply["usage"]["completion_tokens"], int)
        except (KeyError, IndexError, TypeError):
            well = False
        if not well:
            raise EngineError(f"{self.url} sent no completion but: {str(reply)[:200]}")
        return reply

    def _send(self, method: str, path: str, body: dict | None = None, plain: bool = False) -> dict:
        """One exchange, repeated while its failure is a passing one. `plain`: the answer is text of no interest."""
        for attempt in range(ATTEMPTS):
            asked_for = 0.0
            try:
                answer = self.client.request(method, self.url + path, json=body)
                if answer.status_code in PASSING:
                    failure = f"status {answer.status_code}: {answer.text[:200]}"
                    asked_for = _seconds(answer.headers.get("retry-after"))
                else:
                    self._check(answer, path)
                    return {} if plain else answer.json()
            except (httpx2.TransportError, json.JSONDecodeError) as error:
                failure = f"{type(error).__name__}: {error}"
            if attempt + 1 < ATTEMPTS:
                own = FIRST_WAIT * 2**attempt * random.uniform(0.75, 1.25)
                time.sleep(min(LONGEST_WAIT, max(own, asked_for)))
        raise EngineError(
            f"{self.url} failed {ATTEMPTS} times in a row, last with {failure}: is engine.url right and the server up?"
        )

    def _check(self, answer, path: str) -> None:
        if answer.status_code in (401, 403):
            raise EngineError(
                f"{self.url} refuses the key ({answer.status_code}): set {KEY} in the environment of the job to one "
                "that it takes"
            )
        if not answer.is_success:
            raise EngineError(f"{self.url}{path} answers {answer.status_code}: {answer.text[:300]}")


def _seconds(header: str | None) -> float:
    try:
        return float(header or 0)
    except ValueError:
        return 0.0
