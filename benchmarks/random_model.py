"""Write a base model of random weights as a folder, for benchmarks: speed does not depend on what the weights are.

python benchmarks/random_model.py --shape '{"hidden_size": 3584, ...}' --dtype bfloat16 --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def copy_tokenizer(folder: Path) -> None:
    """The small world's tokenizer, whose tokens are among the first of every vocabulary here."""
    for name in TOKENIZER:
        shutil.copy(ROOT / "resources/small_world/base" / name, folder / name)


def build(shape: dict, device, dtype):
    """A Qwen2 model of this shape (seed 0) on a torch.device, in a torch.dtype."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**shape, tie_word_embeddings=False)
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def write(folder: Path, shape: dict, dtype: str):
    """Write such a model and the tokenizer; returns it, on the GPU if there is one."""
    import torch

    model = build(shape, torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, dtype))
    model.save_pretrained(folder)
    copy_tokenizer(folder)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=json.loads, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write(args.out, args.shape, args.dtype)
