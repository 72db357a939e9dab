"""Load a model and its tokenizer, the same way for the small world and for Qwen2.5-7B."""

from __future__ import annotations

from pathlib import Path

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


def depth(base: str, revision: str | None = None) -> int:
    """The number of decoder blocks of a hub id or local folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(base, revision=revision).num_hidden_layers


def local_folder(base: str, revision: str | None = None) -> Path:
    """A folder with the model's files: `base` itself, or the snapshot of a hub id."""
    from huggingface_hub import snapshot_download

    if Path(base).is_dir():
        return Path(base)
    return Path(snapshot_download(base, revision=revision, ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*"]))
