"""Generate completions with transformers, on a CPU or one GPU.

One sampling contract for every engine: a completion depends on the model, the prompt, its sample number and the seed,
and on nothing else that shares its batch. Each (prompt, sample) draws its own stream of uniform numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from spillover.prompts import Prompt


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


def sample_seed(seed: int, prompt_id: str, sample: int) -> int:
    """A 32-bit seed from run seed, prompt and sample number, stable across processes and machines."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}/{sample}".encode()).digest()[:4], "big")


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
    texts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in prompts]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    context = model.config.max_position_embeddings
    if (longest := max(map(len, encoded))) + max_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_tokens} new ones exceed the model's context of {context}"
        )
    jobs = [(i, s) for i in range(len(prompts)) for s in range(samples)]
    jobs.sort(key=lambda job: len(encoded[job[0]]))
    stop, padding = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.pad_token_id
    done: dict[tuple[int, int], Completion] = {}
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        width = max(len(encoded[i]) for i, _ in batch)
        ids = torch.full((len(batch), width), padding)
        attention = torch.zeros((len(batch), width), dtype=torch.long)
        for row, (i, _) in enumerate(batch):
            ids[row, width - len(encoded[i]) :] = torch.tensor(encoded[i])
            attention[row, width - len(encoded[i]) :] = 1
        seeds = [sample_seed(seed, prompts[i].prompt_id, s) for i, s in batch]
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


def assert_adapter_is_live(model, tokenizer, prompts: Sequence[Prompt]) -> float:
    """Largest absolute change of next-token logits that the adapter makes over a few prompts.

    Raises RuntimeError when a trained adapter changes nothing: then it was not applied, and its results would be the
    base model's under another name. An adapter that is zero itself (a checkpoint before the first update: warm-up
    starts at a rate of zero) is the base model, and gives 0.
    """
    model.eval()
    if not any(p.any() for name, p in model.named_parameters() if "lora_B" in name):
        return 0.0
    texts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in prompts]
    change = 0.0
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            ids = ids.to(next(model.parameters()).device)
            adapted = model(input_ids=ids).logits[:, -1].float()
            with model.disable_adapter():
                plain = model(input_ids=ids).logits[:, -1].float()
            change = max(change, float((adapted - plain).abs().max()))
    if change == 0.0:
        raise RuntimeError("the adapter was trained, yet changes no logit on the probe prompts: it is not applied")
    return change
