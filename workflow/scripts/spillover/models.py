"""Load a model and its tokenizer, the same way for the small world and for Qwen2.5-7B."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spillover.errors import UserError
from spillover.hub import reached


class MemoryTooSmall(UserError):
    """A GPU does not hold what it was asked to."""


def load_base(base: str, revision: str | None = None, dtype: str = "float32"):
    """Model and tokenizer of a hub id or local folder, never running code from it (trust_remote_code stays off)."""
    return load_model(base, revision, dtype), load_tokenizer(base, revision)


def load_tokenizer(base: str, revision: str | None = None):
    """The tokenizer alone; needs no torch. Raises hub.Unreachable with one sentence for what cannot be had."""
    from transformers import AutoTokenizer

    with reached("model", base, revision, "model.name"):
        return AutoTokenizer.from_pretrained(base, revision=revision)


def context(base: str, revision: str | None = None) -> int:
    """Tokens that the model can hold; needs no torch."""
    from transformers import AutoConfig

    with reached("model", base, revision, "model.name"):
        return AutoConfig.from_pretrained(base, revision=revision).max_position_embeddings


def load_model(base: str, revision: str | None = None, dtype: str = "float32"):
    """The model, on the GPU if there is one.

    Raises hub.Unreachable, or MemoryTooSmall where the GPU does not hold the weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with reached("model", base, revision, "model.name"):
        model = AutoModelForCausalLM.from_pretrained(
            base, revision=revision, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    if torch.cuda.is_available():
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        try:
            model.to("cuda")
        except torch.OutOfMemoryError:
            free, total = torch.cuda.mem_get_info()
            raise MemoryTooSmall(
                f"{base} has {size / 2**30:.1f} GiB of weights in {dtype}, and of the GPU's {total / 2**30:.1f} GiB "
                f"{free / 2**30:.1f} are free: use a larger GPU, or one that nothing else uses"
            ) from None
    return model


@contextmanager
def enough_memory(repair: str) -> Iterator[None]:
    """Within the block running out of GPU memory is one sentence that names `repair`, the setting to lower."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryTooSmall(f"{str(error).splitlines()[0]} Lower {repair}, or use a GPU with more memory") from None


def causal_model(model):
    """The transformers model below a PEFT wrapper; adapters live in its layers, so nothing is lost."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def depth(base: str, revision: str | None = None) -> int:
    """The number of decoder blocks of a hub id or local folder."""
    from transformers import AutoConfig

    with reached("model", base, revision, "model.name"):
        return AutoConfig.from_pretrained(base, revision=revision).num_hidden_layers


def local_folder(base: str, revision: str | None = None) -> Path:
    """A folder with the model's files: `base` itself, or the snapshot of a hub id."""
    from huggingface_hub import snapshot_download

    if Path(base).is_dir():
        return Path(base)
    unused = ["*.bin", "*.pth", "*.gguf", "original/*"]
    with reached("model", base, revision, "model.name"):
        return Path(snapshot_download(base, revision=revision, ignore_patterns=unused))
