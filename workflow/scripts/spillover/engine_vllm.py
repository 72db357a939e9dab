"""Generate and measure with vLLM's offline engine, on one GPU: one engine for all checkpoints and suites of a run.

Adapters go on by LoRARequest under a name made of their content: vLLM keys its prefix cache by the name, so an equal
name for other weights would mix two models. Or they are merged into the running model's weights, one after the other
(`evaluate_as: merged`), which is faster and rounds them to its precision. vLLM is imported inside, from an environment
of its own (requirements-vllm.txt); written against the sources of 0.26.0 and 0.30.0.

Starting costs more than generating, so it is cut where that was measured (H200, Qwen2.5-7B shape, vLLM 0.26.0, an
adapter of rank 32, random weights; three hosts, the last two in benchmarks/evaluation): compiling and capturing graphs
takes 61 to 69 s, with a warm cache 31 to 33 s, and then gives 22,700 to 23,600 tokens/s; merged, 16 s and 30,000
tokens/s. Eager mode starts in 6 to 12 s, and its speed is the processor's: 12,212 tokens/s on one host (22,567 to
23,300 merged), 7,321 on another.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spillover import engines, models
from spillover.adapters import changed_modules, read_config
from spillover.engine_vllm_worker import MergeAdapters
from spillover.engines import Completion, EngineError
from spillover.measures import Asked, own_tokens
from spillover.merging import stored_bytes

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for `max_lora_rank`."""
SECONDS_SAVED_BY_EAGER = {True: 32.9 - 5.6, False: 17.0 - 12.1}
"""Of starting, with and without an adapter beside the weights, the graphs in the cache."""
TOKENS_PER_SECOND = {True: (7_321, 23_103), False: (23_300, 30_029)}
"""Likewise: eager (with an adapter on the slower of two hosts), compiled."""
MOST_AT_ONCE = 8
"""Adapters in one batch: eight mixed took 19.6 to 21.9 s for what one did in 18.3 to 19.3 s."""
REPLY_SHARE = 0.6
"""Expected length of a reply over its limit; 0.5 (limit 512) to 0.8 (limit 256) in the published runs."""
CAPTURE_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Batch sizes whose graphs are captured; vLLM's own 51 sizes take three times as long for nothing at full load."""


class Vllm:
    """The engine; see `engines.Engine`. It must know the works and rows beforehand, to choose how to start."""

    def __init__(
        self,
        served: engines.Served,
        options: engines.Options,
        tokenizer,
        works: Sequence[engines.Work],
        asked: Sequence[Asked],
    ):
        began = time.perf_counter()
        if options.cache:
            os.environ.setdefault("VLLM_CACHE_ROOT", str(Path(options.cache).resolve()))
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            import vllm
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise EngineError(
                f"engine.name is vllm, and {sys.executable} cannot import it ({error}): `make env-vllm` builds the "
                "environment that the gpu and slurm profiles use, or choose engine.name: transformers"
            ) from None
        self.vllm, self.tokenizer, self.served = vllm, tokenizer, served
        self.stop = tokenizer.convert_tokens_to_ids(engines.END_OF_TURN)
        self.requests = {
            checkpoint: LoRARequest(lora_name=engines.adapter_name(folder), lora_int_id=number, lora_path=folder)
            for number, (checkpoint, folder) in enumerate(served.adapters.items(), 1)
        }
        self.folder = str(models.local_folder(served.base, served.revision)) if served.merge else ""
        self.merged: str | None = None
        self.merges: dict[str, dict] = {}
        if served.adapters and not served.merge and served.dtype == "float32" and not _on_cpu():
            raise EngineError(engines.VLLM_ADAPTERS_IN_FLOAT32)
        context = models.context(served.base, served.revision)
        longest = engines.longest(tokenizer, works, asked)
        self.chosen = settings(served, options, works, longest, context)
        if served.merge:
            kept = self._kept_share()
            self.chosen["gpu_memory_utilization"] = round(self.chosen["gpu_memory_utilization"] - kept, 4)
        imported = time.perf_counter()
        try:
            self.llm = vllm.LLM(**self.chosen)
        except Exception as error:
            traceback.print_exc()
            beside = f", or evaluate_as: adapter, which needs {kept:.0%} of it less" if served.merge else ""
            raise EngineError(
                f"vLLM did not start with {served.base} ({_first_line(error)}; its reasons are above): if GPU memory "
                "is short, use a larger GPU or one that nothing else uses, or change "
                f"engine.gpu_memory_utilization ({options.gpu_memory_utilization:g}) or engine.max_num_seqs "
                f"({options.max_num_seqs}){beside}"
            ) from None
        self.seconds = {"import": imported - began, "start": time.perf_counter() - imported}

    def generate(self, works: Sequence[engines.Work], seed: int) -> list[list[Completion]]:
        """All works in one call, or all of a checkpoint where its adapter is merged: one fills the other's gaps."""
        if not self.served.merge:
            return self._generate(works, seed)
        done: dict[int, list[Completion]] = {}
        for checkpoint in dict.fromkeys(work.checkpoint for work in works):
            mine = [number for number, work in enumerate(works) if work.checkpoint == checkpoint]
            self._merge(checkpoint)
            done |= dict(zip(mine, self._generate([works[number] for number in mine], seed), strict=True))
        return [done[number] for number in range(len(works))]

    def _generate(self, works: Sequence[engines.Work], seed: int) -> list[list[Completion]]:
        prompts, params, adapters, known = [], [], [], []
        for work in works:
            encoded = engines.encode(self.tokenizer, work.prompts)
            for prompt, ids in zip(work.prompts, encoded, strict=True):
                for sample in range(work.samples):
                    value = engines.sample_seed(seed, prompt.prompt_id, sample)
                    prompts.append({"prompt_token_ids": ids})
                    params.append(self._sampling(work, value))
                    adapters.append(self._adapter(work.checkpoint))
                    known.append((prompt, sample, value, len(ids)))
        outputs = self.llm.generate(prompts, params, lora_request=adapters) if prompts else []
        done = iter([self._completion(output, *about) for output, about in zip(outputs, known, strict=True)])
        return [[next(done) for _ in range(len(work.prompts) * work.samples)] for work in works]

    def log_probabilities(self, checkpoint: str | None, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Through `prompt_logprobs` where the tokens asked for are the sequence's own, else as the next token's."""
        prompts = [{"prompt_token_ids": a.ids.tolist()} for a in asked]
        params = [self._scoring(a) for a in asked]
        if self.served.merge:
            self._merge(checkpoint)
        adapter = self._adapter(checkpoint)
        outputs = self.llm.generate(prompts, params, lora_request=[adapter] * len(prompts)) if prompts else []
        return [_read(output, a) for output, a in zip(outputs, asked, strict=True)]

    def about(self) -> dict:
        shown = {
            k: self.chosen[k] for k in ("enforce_eager", "max_model_len", "max_num_seqs", "gpu_memory_utilization")
        }
        seconds = {f"{key}_seconds": round(value, 1) for key, value in self.seconds.items()}
        names = {checkpoint: request.lora_name for checkpoint, request in self.requests.items()}
        about = {"vllm": self.vllm.__version__, "adapters": names} | shown | seconds
        return about | ({"merges": self.merges} if self.served.merge else {})

    def _adapter(self, checkpoint: str | None):
        return self.requests[checkpoint] if checkpoint and not self.served.merge else None

    def _kept_share(self) -> float:
        """Share of the GPU's memory for the base weights that merging keeps beside the model."""
        from vllm.platforms import current_platform

        if _on_cpu():
            raise EngineError(
                "evaluate_as: merged: vLLM packs its weights on a CPU and cannot merge there; choose engine.name: "
                "transformers"
            )
        changed = set().union(*(changed_modules(folder) for folder in self.served.adapters.values()))
        return stored_bytes(self.folder, changed) / current_platform.get_device_total_memory()

    def _merge(self, checkpoint: str | None) -> None:
        """Put a checkpoint's adapter (None: none) into the weights, unless it is there."""
        if checkpoint == self.merged:
            return
        folder = self.served.adapters[checkpoint] if checkpoint else None
        try:
            (report,) = self.llm.collective_rpc("merge_adapter", args=(self.folder, folder))
        except Exception as error:
            traceback.print_exc()
            short = "out of memory" in str(error).lower()
            repair = "use a larger GPU, lower engine.gpu_memory_utilization or choose evaluate_as: adapter"
            raise EngineError(
                f"vLLM could not merge {folder} into its model ({_first_line(error)}; the reasons are above)"
                + (f": the changed weights are kept beside it; {repair}" if short else "")
            ) from None
        # it holds what the weights before computed
        if not self.llm.reset_prefix_cache():
            raise EngineError("vLLM did not clear its prefix cache after merging an adapter: two models would mix")
        self.merged = checkpoint
        if checkpoint:
            self.merges[checkpoint] = report

    def _sampling(self, work: engines.Work, value: int):
        # With ignore_eos only the end of a turn stops a reply, as for the other engines: a model's generation_config
        # would add <|endoftext|>.
        return self.vllm.SamplingParams(
            temperature=work.temperature, top_p=work.top_p, max_tokens=work.max_tokens, seed=value, ignore_eos=True,
            stop_token_ids=[self.stop], detokenize=False,
        )  # fmt: skip

    def _scoring(self, asked: Asked):
        if own_tokens(asked):
            return self.vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        tokens = asked.tokens.tolist()
        if (asked.at != len(asked.ids) - 1).any():
            raise ValueError("other tokens than a sequence's own can only be asked for at its end")
        return self.vllm.SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=len(tokens), logprob_token_ids=tokens, detokenize=False
        )

    def _completion(self, output, prompt, sample: int, value: int, prompt_tokens: int) -> Completion:
        reply = output.outputs[0]
        if reply.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"{prompt.prompt_id}: vLLM ended a reply with {reply.finish_reason!r}")
        tokens = list(reply.token_ids)
        text = tokens[:-1] if tokens and tokens[-1] == self.stop else tokens
        return Completion(
            prompt=prompt,
            sample=sample,
            sample_seed=value,
            text=self.tokenizer.decode(text, skip_special_tokens=True),
            finish_reason=reply.finish_reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(tokens),
        )


def settings(
    served: engines.Served,
    options: engines.Options,
    works: Sequence[engines.Work],
    longest_sequence: int,
    context: int,
) -> dict:
    """Keyword arguments of `vllm.LLM`: how to start for this load, in a model of `context` tokens.

    Raises ValueError for a sequence that does not fit, EngineError for an adapter of too high a rank.
    """
    if longest_sequence > context:
        raise ValueError(f"a sequence of {longest_sequence} tokens exceeds the model's context of {context}")
    lora = bool(served.adapters) and not served.merge
    chosen = {
        "model": served.base,
        "revision": served.revision,
        "dtype": served.dtype,
        # token ids go in and come out, made by the one tokenizer that all engines share
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        # rounded, because compiled graphs are cached by it
        "max_model_len": min(context, max(2048, -(-longest_sequence // 1024) * 1024)),
        "max_num_seqs": options.max_num_seqs,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "enforce_eager": options.eager == "always" or (options.eager == "auto" and prefers_eager(works, lora)),
        "seed": 0,
    }
    if not chosen["enforce_eager"]:
        sizes = [size for size in CAPTURE_SIZES if size <= chosen["max_num_seqs"]]
        chosen["compilation_config"] = {"cudagraph_capture_sizes": sizes}
    if served.merge:
        chosen["worker_extension_cls"] = f"{MergeAdapters.__module__}.{MergeAdapters.__qualname__}"
    if lora:
        rank = max(read_config(folder)["r"] for folder in served.adapters.values())
        if rank > RANKS[-1]:
            raise EngineError(
                f"vLLM takes adapters up to rank {RANKS[-1]}, one here has {rank}: choose evaluate_as: merged"
            )
        chosen |= {
            "enable_lora": True,
            "max_loras": min(MOST_AT_ONCE, len(served.adapters)),
            "max_cpu_loras": len(served.adapters),
            "max_lora_rank": next(size for size in RANKS if size >= rank),
        }
    return chosen


def prefers_eager(works: Sequence[engines.Work], lora: bool) -> bool:
    """Whether the load is too small to repay compiled graphs: below 290,000 expected tokens with adapters beside the
    weights, 510,000 without.
    """
    eager, compiled = TOKENS_PER_SECOND[lora]
    tokens = REPLY_SHARE * sum(len(w.prompts) * w.samples * w.max_tokens for w in works)
    return tokens * (1 / eager - 1 / compiled) < SECONDS_SAVED_BY_EAGER[lora]


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _read(output, asked: Asked) -> np.ndarray:
    if own_tokens(asked):
        found = [
            output.prompt_logprobs[i + 1][t] for i, t in zip(asked.at.tolist(), asked.tokens.tolist(), strict=True)
        ]
    else:
        found = [output.outputs[0].logprobs[0][t] for t in asked.tokens.tolist()]
    return np.array([entry.logprob for entry in found], np.float64)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
