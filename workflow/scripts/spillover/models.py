"""Load a model and its tokenizer, the same way for the small world and for Qwen2.5-7B."""

from __future__ import annotations

import torch


def load_base(base: str, revision: str | None = None, dtype: str = "float32"):
    """Model and tokenizer of a hub id or local folder, never running code from it (trust_remote_code stays off)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, revision=revision)
    model = AutoModelForCausalLM.from_pretrained(
        base, revision=revision, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, tokenizer


def causal_model(model):
    """The transformers model below a PEFT wrapper; adapters live in its layers, so nothing is lost."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
