"""Generate and measure with transformers, on a CPU or one GPU: left-padded batches with a key-value cache.

Each (prompt, sample) draws its own stream of uniform numbers, so that nothing depends on what shares its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList

from spillover import engines, models, scoring, steering
from spillover.engines import Completion
from spillover.measures import Asked
from spillover.merging import Merging
from spillover.prompts import Prompt


class Transformers:
    """The engine; see `engines.Engine`. One adapter at a time lies on the model.

    With a `shift` (size,), all of its work is done with block `layer`'s output shifted by it; `pushed` is what a
    manifest says of that.
    """

    def __init__(
        self,
        served: engines.Served,
        options: engines.Options,
        tokenizer,
        layer: int | None = None,
        shift: torch.Tensor | None = None,
        pushed: dict | None = None,
    ):
        self.served, self.batch, self.tokenizer = served, options.batch, tokenizer
        self.layer, self.shift, self.pushed = layer, shift, pushed or {}
        self.adapted = Adapted(served.base, served.revision, served.dtype, served.merge)

    @property
    def model(self):
        return self.adapted.model

    def generate(self, works: Sequence[engines.Work], seed: int) -> list[list[Completion]]:
        done = []
        for work in works:
            at = f"{work.checkpoint or 'final'} {work.prompts[0].suite}"
            settings = dict(samples=work.samples, temperature=work.temperature, top_p=work.top_p)
            settings |= dict(max_tokens=work.max_tokens, seed=seed, batch_size=self.batch)
            self._use(work.checkpoint)
            with models.enough_memory("resources.generation_batch"), self._steered():
                done.append(
                    generate(
                        self.model, self.tokenizer, work.prompts, **settings,
                        progress=lambda count, total, at=at: print(f"{at}: {count} of {total}", flush=True),
                    )
                )  # fmt: skip
        return done

    def log_probabilities(self, checkpoint: str | None, asked: Sequence[Asked]) -> list[np.ndarray]:
        self._use(checkpoint)
        with models.enough_memory("the suite's max_length"), self._steered():
            return scoring.log_probabilities(self.model, asked)

    def about(self) -> dict:
        about = {"transformers": transformers.__version__, "device": str(self.model.device)}
        if self.served.merge:
            about["merges"] = {
                c: self.adapted.kept[f] for c, f in self.served.adapters.items() if f in self.adapted.kept
            }
        return about | ({"steering": self.pushed} if self.pushed else {})

    def _steered(self):
        if self.shift is None:
            return nullcontext()
        return steering.steered(models.causal_model(self.model), self.layer, self.shift)

    def _use(self, checkpoint: str | None) -> None:
        self.adapted.use(self.served.adapters[checkpoint] if checkpoint else None)


class Adapted:
    """A model in memory with one adapter at a time, beside its weights or merged into them (`merge`).

    `kept` has what rounding left of every adapter that was merged, by its folder (`Merging.weights`).
    """

    def __init__(self, base: str, revision: str | None, dtype: str, merge: bool):
        self.model = models.load_model(base, revision, dtype)
        self.merging = Merging(models.local_folder(base, revision), self.model.device) if merge else None
        self.adapter: str | None = None
        self.kept: dict[str, dict] = {}

    def use(self, adapter: str | None):
        """The model with the adapter of a folder, or without any.

        Raises EngineError for an adapter of another model, models.MemoryTooSmall where merging does not fit the GPU.
        """
        if adapter != self.adapter:
            if self.merging:
                self._merge(adapter)
            else:
                base = self.model.unload() if self.adapter else self.model
                self.model = attach_adapter(base, adapter) if adapter else base
            self.adapter = adapter
        return self.model

    def _merge(self, adapter: str | None) -> None:
        report: dict = {}
        try:
            with torch.no_grad():
                for name, weight in self.merging.weights(adapter, report):
                    self.model.get_parameter(name).copy_(weight)
        except (ValueError, FileNotFoundError) as error:
            raise engines.EngineError(str(error)) from None
        except torch.OutOfMemoryError:
            raise models.MemoryTooSmall(
                "evaluate_as: merged keeps the weights that adapters change a second time, and this GPU does not hold "
                "them: use one with more memory, or evaluate_as: adapter"
            ) from None
        if adapter:
            self.kept[adapter] = report


class SeededSampling(LogitsProcessor):
    """Chooses each row's next token itself, by inverse transform sampling, and leaves only that token possible.

    `uniforms` is (rows, max_tokens) float64 in [0, 1). With temperature 0 the most likely token is taken. As a logits
    processor it works inside `generate(do_sample=False)`, whose own sampler has one random stream for a whole batch.
    """

    def __init__(self, uniforms: torch.Tensor, temperature: float, top_p: float):
        self.uniforms, self.temperature, self.top_p = uniforms, temperature, top_p
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.temperature == 0:
            return scores
        probabilities = torch.softmax(scores.double() / self.temperature, dim=-1)
        if self.top_p < 1:
            # The smallest set of most likely tokens whose probabilities reach top_p (Holtzman et al. 2020).
            ordered, order = probabilities.sort(dim=-1, descending=True)
            beyond = ordered.cumsum(-1) - ordered >= self.top_p
            probabilities = probabilities.masked_fill(beyond.gather(-1, order.argsort(-1)), 0.0)
        cumulative = probabilities.cumsum(-1)
        threshold = self.uniforms[:, self.step : self.step + 1] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, threshold, right=True).clamp(max=scores.shape[-1] - 1)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


def generate(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    seed: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """`samples` completions of every prompt, ordered by prompt and sample.

    Left-padded batches of similar prompt lengths with a key-value cache. Raises ValueError when prompt and completion
    do not fit the model's context.
    """
    model.eval()
    device = next(model.parameters()).device
    encoded = engines.encode(tokenizer, prompts)
    engines.check_context(max(map(len, encoded)), max_tokens, model.config.max_position_embeddings)
    jobs = [(i, s) for i in range(len(prompts)) for s in range(samples)]
    jobs.sort(key=lambda job: len(encoded[job[0]]))
    stop, padding = tokenizer.convert_tokens_to_ids(engines.END_OF_TURN), tokenizer.pad_token_id
    done: dict[tuple[int, int], Completion] = {}
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        width = max(len(encoded[i]) for i, _ in batch)
        ids = torch.full((len(batch), width), padding)
        attention = torch.zeros((len(batch), width), dtype=torch.long)
        for row, (i, _) in enumerate(batch):
            ids[row, width - len(encoded[i]) :] = torch.tensor(encoded[i])
            attention[row, width - len(encoded[i]) :] = 1
        seeds = [engines.sample_seed(seed, prompts[i].prompt_id, s) for i, s in batch]
        uniforms = np.stack([np.random.default_rng(value).random(max_tokens) for value in seeds])
        sampling = SeededSampling(torch.from_numpy(uniforms).to(device), temperature, top_p)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=attention.to(device),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=stop,
                pad_token_id=padding,
                logits_processor=LogitsProcessorList([sampling]),
                # Qwen2.5's generation_config penalises repetition by 1.05, and greedy decoding would follow it
                repetition_penalty=1.0,
            )
        for (i, s), value, row in zip(batch, seeds, out[:, width:].tolist(), strict=True):
            length = row.index(stop) if stop in row else len(row)
            done[i, s] = Completion(
                prompt=prompts[i],
                sample=s,
                sample_seed=value,
                text=tokenizer.decode(row[:length], skip_special_tokens=True),
                finish_reason="stop" if stop in row else "length",
                prompt_tokens=len(encoded[i]),
                completion_tokens=length + (stop in row),
            )
        if progress:
            progress(len(done), len(jobs))
    return [done[job] for job in sorted(done)]


def attach_adapter(model, folder: str):
    """The model with a saved LoRA adapter on top, unmerged. Fails on a missing adapter_config.json."""
    from peft import PeftModel

    from spillover.adapters import read_config

    read_config(folder)
    return PeftModel.from_pretrained(model, folder, is_trainable=False)
