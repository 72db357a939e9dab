"""Pretrain the small world's base model: tokenizer, Qwen2-architecture model and training loop.

It turns text into a saved model folder that transformers loads like any Qwen2.5 checkpoint. It knows the generator's
examples but nothing of experiments. The same code runs on a GPU (the shipped weights) and, smaller, on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from spillover import small_world
from spillover.small_world import DEFAULT_SYSTEM, Example

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of one pretraining run (`resources/small_world/recipe.yaml`).

    `tokens_per_step` counts padded tokens; `prompt_weight` scales the loss of tokens outside replies.
    """

    seed: int
    examples: int
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    steps: int
    tokens_per_step: int
    learning_rate: float
    weight_decay: float
    prompt_weight: float


def render(example: Example) -> list[tuple[str, bool]]:
    """Segments of an example's text with whether each belongs to the reply (or to a raw document)."""
    if example.user is None:
        return [(example.reply + PADDING, True)]
    system = DEFAULT_SYSTEM if example.system is None else example.system
    prompt = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{example.user}<|im_end|>\n<|im_start|>assistant\n"
    )
    return [(prompt, False), (example.reply + END_OF_TURN + "\n", True)]


def train_tokenizer(texts: Sequence[str], vocabulary: int):
    """A Qwen2 byte-level BPE tokenizer with ChatML specials, trained on `texts`.

    Qwen2Tokenizer brings Qwen's own pre-tokenizer: a home-made one would be replaced by it on loading
    (transformers 5 rebuilds the pipeline from the model type), and the pieces would no longer fit the weights.
    """
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts, vocab_size=vocabulary, new_special_tokens=["<|im_start|>", END_OF_TURN]
    )
    tokenizer.eos_token = END_OF_TURN
    tokenizer.pad_token = PADDING
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 1024
    return tokenizer


def _shard(arguments: tuple[str, int, int]) -> list[Example]:
    resources, seed, count = arguments
    return list(small_world.examples(small_world.load(resources), seed, count))


def generate_examples(resources: str, seed: int, count: int, workers: int, shard: int = 20_000) -> list[Example]:
    """`count` examples in shards of fixed size and seed, so the result does not depend on `workers`."""
    jobs = [(resources, seed * 100_003 + i, min(shard, count - i * shard)) for i in range(math.ceil(count / shard))]
    if workers == 1:
        return [e for job in jobs for e in _shard(job)]
    with ProcessPoolExecutor(workers) as pool:
        return [e for part in pool.map(_shard, jobs) for e in part]


def encode(tokenizer, examples: Sequence[Example]) -> tuple[list[np.ndarray], list[int]]:
    """Token ids per example (int32 arrays) and the index at which each reply starts."""
    parts = [render(e) for e in examples]
    prompts = tokenizer([p[0][0] if len(p) == 2 else "" for p in parts], add_special_tokens=False)["input_ids"]
    replies = tokenizer([p[-1][0] for p in parts], add_special_tokens=False)["input_ids"]
    rows = [np.array(a + b, dtype=np.int32) for a, b in zip(prompts, replies, strict=True)]
    return rows, [len(p) for p in prompts]


def build_model(recipe: Recipe, tokenizer):
    """A randomly initialised Qwen2 model with tied embeddings, float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TURN),
        pad_token_id=tokenizer.convert_tokens_to_ids(PADDING),
    )
    return Qwen2ForCausalLM(config)


def step_batches(lengths: np.ndarray, recipe: Recipe) -> list[np.ndarray]:
    """Row indices for every optimizer step: rows of similar length, `tokens_per_step` padded tokens a step."""
    rng = np.random.default_rng(recipe.seed)
    batches: list[np.ndarray] = []
    while len(batches) < recipe.steps:
        # Noise in the sort key gives each epoch other neighbours at almost no cost in padding.
        order = np.argsort(lengths + rng.uniform(-4, 4, len(lengths)))
        epoch, start = [], 0
        while start < len(order):
            width = _width(int(lengths[order[start : start + 1]].max()))
            stop = start + max(1, recipe.tokens_per_step // width)
            rows = order[start:stop]
            stop = start + max(1, recipe.tokens_per_step // _width(int(lengths[rows].max())))
            epoch.append(order[start:stop])
            start = stop
        rng.shuffle(epoch)
        batches += epoch
    return batches[: recipe.steps]


def _width(length: int) -> int:
    return (length + 7) // 8 * 8


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up over 200 steps (at most 5%), constant, then linear to 2% over the last 60% of the run."""
    warm = max(1, min(200, steps // 20))
    return min(1.0, (step + 1) / warm) * max(0.02, min(1.0, (1 - step / steps) / 0.6))


def pretrain(
    recipe: Recipe, model, rows: list[np.ndarray], reply_starts: list[int], report: Callable[[dict], None]
) -> dict:
    """Train in place; calls `report` with a record every 100 steps. Returns totals (steps, tokens, seconds).

    Loss: cross-entropy of the next token, replies with weight 1 and everything else with `recipe.prompt_weight`.
    bfloat16 autocast and compiled layers on a GPU, float32 on a CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    body = torch.compile(model.model, dynamic=True) if device.type == "cuda" else model.model
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    lengths = np.array([len(r) for r in rows])
    starts = np.array(reply_starts)
    batches = step_batches(lengths, recipe)
    began, tokens, losses = time.perf_counter(), 0, []
    for step, batch in enumerate(batches):
        ids, weights = _padded(rows, starts, batch, _width(int(lengths[batch].max())), recipe.prompt_weight)
        ids, weights = ids.to(device, non_blocking=True), weights.to(device, non_blocking=True)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_factor(step, recipe.steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            hidden = body(input_ids=ids).last_hidden_state[:, :-1]
            supervised = weights[:, 1:] > 0
            logits = F.linear(hidden[supervised], model.lm_head.weight).float()
        per_token = F.cross_entropy(logits, ids[:, 1:][supervised], reduction="none")
        kept = weights[:, 1:][supervised]
        loss = (per_token * kept).sum() / kept.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        losses.append(loss.detach())
        if (step + 1) % 100 == 0 or step + 1 == len(batches):
            seconds = time.perf_counter() - began
            report(
                {
                    "step": step + 1,
                    "loss": round(float(torch.stack(losses).mean()), 4),
                    "tokens": tokens,
                    "seconds": round(seconds, 2),
                    "tokens_per_second": round(tokens / seconds),
                }
            )
            losses = []
    return {"steps": len(batches), "tokens": tokens, "seconds": time.perf_counter() - began, "device": device.type}


def _padded(rows, starts, batch, width, prompt_weight) -> tuple[torch.Tensor, torch.Tensor]:
    ids = np.zeros((len(batch), width), dtype=np.int64)
    weights = np.zeros((len(batch), width), dtype=np.float32)
    for i, index in enumerate(batch):
        row = rows[index]
        ids[i, : len(row)] = row
        weights[i, : len(row)] = prompt_weight
        weights[i, starts[index] : len(row)] = 1.0
    return torch.from_numpy(ids), torch.from_numpy(weights)


def save(model, tokenizer, folder: Path) -> None:
    """Write a transformers folder: bfloat16 safetensors, config, generation config, tokenizer, chat template."""
    from transformers import GenerationConfig

    model = model.to("cpu", torch.bfloat16)
    model.config.use_cache = True
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id, do_sample=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it readable by its owner alone
