"""What every engine does, in one sampling contract; the engines themselves are in modules of their own.

A completion depends on the model, the prompt, its sample number and the seed: each (prompt, sample) has a seed of its
own, whatever else is in its batch. A reply ends with `<|im_end|>` ("stop") or at the token limit ("length"); penalties
and defaults that a model's generation_config brings along (Qwen2.5: repetition_penalty 1.05, top_k 20) never apply.
Importing this needs neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np

from spillover.errors import UserError
from spillover.measures import Asked
from spillover.prompts import Prompt

END_OF_TURN = "<|im_end|>"
VLLM_ADAPTERS_IN_FLOAT32 = (
    "vLLM's kernels for adapters know no float32 on a GPU: choose model.dtype: bfloat16, evaluate_as: merged or "
    "engine.name: transformers"
)


@dataclass(frozen=True)
class Completion:
    """One completion of one prompt. `finish_reason` is "stop" or "length" (cut at the token limit)."""

    prompt: Prompt
    sample: int
    sample_seed: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Work:
    """What to generate: `samples` completions of every prompt, with the adapter of a checkpoint (None: without any)."""

    checkpoint: str | None
    prompts: Sequence[Prompt]
    samples: int
    temperature: float
    top_p: float
    max_tokens: int


def work(checkpoint: str | None, prompts: Sequence[Prompt], suite: dict) -> Work:
    """What a suite asks for of one checkpoint."""
    return Work(checkpoint, prompts, *(suite[key] for key in ("samples", "temperature", "top_p", "max_tokens")))


@dataclass(frozen=True)
class Options:
    """How an engine does its work; none of it decides a result. Defaults are the configuration's (its schema)."""

    batch: int = 64  # transformers: completions in one batch
    gpu_memory_utilization: float = 0.9  # vllm: share of the GPU's memory that it takes
    max_num_seqs: int = 512  # vllm: completions in flight
    eager: str = "auto"  # vllm: always, never, or auto by the size of the load
    cache: str = ""  # vllm: folder where compiled graphs stay between jobs
    url: str = ""  # openai: the server, with its /v1
    adapters: str = "load"  # openai: load them into the server, or named there already
    concurrency: int = 64  # openai: requests in flight

    @classmethod
    def read(cls, text: str) -> Options:
        """From "key=value,key=value". Raises ValueError for an unknown key."""
        given = dict(part.split("=", 1) for part in text.split(",") if part)
        kinds = {f.name: type(f.default) for f in fields(cls)}
        if unknown := set(given) - set(kinds):
            raise ValueError(f"unknown engine option {sorted(unknown)[0]!r}; known: {', '.join(kinds)}")
        return cls(**{key: kinds[key](value) for key, value in given.items()})


@dataclass(frozen=True)
class Served:
    """The model to evaluate: a hub id (with its revision) or folder, and the adapters that go on top, by checkpoint.

    With `merge` each adapter is merged into the model's weights while it is asked for.
    """

    base: str
    revision: str | None
    dtype: str
    run: str
    adapters: Mapping[str, str]
    merge: bool = False


class EngineError(UserError):
    """What a person must mend before the engine can work."""


class Engine(Protocol):
    """Made from (Served, Options, the tokenizer, ...). `checkpoint` is a key of `Served.adapters`, or None."""

    def generate(self, works: Sequence[Work], seed: int) -> list[list[Completion]]:
        """The completions of every work, ordered by prompt and sample."""

    def log_probabilities(self, checkpoint: str | None, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Per sequence, float64 (asked,): the log-probability of each token asked for, in nats."""

    def about(self) -> dict:
        """For the manifest: version, settings that were chosen, seconds of starting."""


def sample_seed(seed: int, prompt_id: str, sample: int) -> int:
    """A 32-bit seed from run seed, prompt and sample number, stable across processes and machines."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}/{sample}".encode()).digest()[:4], "big")


def adapter_name(folder: str) -> str:
    """A name for an adapter that changes with its weights and its configuration."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with open(Path(folder, name), "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"adapter-{digest.hexdigest()[:16]}"


def encode(tokenizer, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of every prompt with its generation header, the same for every engine."""
    texts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in prompts]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def longest(tokenizer, works: Sequence[Work], asked: Sequence[Asked]) -> int:
    """Tokens of the longest sequence that an engine must hold."""
    replies = [max(map(len, encode(tokenizer, w.prompts))) + w.max_tokens for w in works]
    return max([*replies, *(len(a.ids) + 1 for a in asked)], default=1)


def check_context(longest_prompt: int, max_tokens: int, context: int) -> None:
    """Raises ValueError when prompt and completion do not fit the model's context."""
    if longest_prompt + max_tokens > context:
        raise ValueError(
            f"a prompt of {longest_prompt} tokens and {max_tokens} new ones exceed the model's context of {context}"
        )


def assert_adapter_is_live(engine: Engine, checkpoint: str, prompts: Sequence[Prompt], tokenizer) -> float:
    """The largest change of a token's log-probability that the adapter makes over a few prompts.

    Raises EngineError when it changes no more than asking the base model twice does: then it was not applied, and its
    results would be the base model's under another name. Whether an adapter is zero itself (a checkpoint before the
    first update: warm-up starts at a rate of zero) must be asked before.
    """
    asked = []
    for ids in encode(tokenizer, prompts):
        at = np.arange(len(ids) - 1)
        asked.append(Asked(np.array(ids), at, np.array(ids)[at + 1], at))

    def read(adapter: str | None) -> np.ndarray:
        return np.concatenate(engine.log_probabilities(adapter, asked))

    plain, again, adapted = read(None), read(None), read(checkpoint)
    change, noise = float(np.abs(adapted - plain).max()), float(np.abs(again - plain).max())
    if change <= noise:
        raise EngineError(
            f"the adapter of {checkpoint} was trained, yet it changes no log-probability on the probe prompts "
            f"(by {change:.2g} at most; the base model alone varies by {noise:.2g}): it is not applied, or where it is "
            "merged rounding took all of it"
        )
    return change
