"""LoRA adapters on disk: their effective scale, their update of each weight, merging with a fidelity report, stacking.

The layout is PEFT's own (`adapter_model.safetensors` + `adapter_config.json`). Nothing here loads a model: merging
works on tensors, one weight at a time. Stacking writes several adapters of one model as a single one: [B1 B2] [A1; A2]
is B1 A1 + B2 A2, so the rank is the sum of theirs and nothing is rounded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

LOW_FIDELITY = 0.95
ROWS_AT_ONCE = 2048  # of a weight, in float64: a copy of a whole one would not fit beside a model that fills a GPU
SCALE_TOLERANCE = 1e-9  # relative; a stacked adapter's alpha is recomputed from its rank, in double precision

Factors = tuple[torch.Tensor, torch.Tensor]
"""A (rank, in) and B (out, rank) of one module; its update is scale x B @ A."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's `adapter_config.json` and {module: (A, B)}."""

    config: dict
    factors: dict[str, Factors]

    @property
    def scale(self) -> float:
        return effective_scale(self.config)

    def updates(self) -> dict[str, torch.Tensor]:
        """{module: its update (out, in)} in float32."""
        return {m: self.scale * (b.float() @ a.float()) for m, (a, b) in self.factors.items()}


def read_config(folder: str | Path) -> dict:
    """`adapter_config.json`. Raises FileNotFoundError saying what its loss would do (a 5.7 times weaker update).

    ValueError for ranks or alphas of single modules: one scale must hold for the whole adapter.
    """
    path = Path(folder, "adapter_config.json")
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: without it the adapter's scale is unknown, so it cannot be used")
    config = json.loads(path.read_text())
    if uneven := [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]:
        raise ValueError(f"{path}: {uneven[0]} gives single modules a scale of their own, which is not supported")
    return config


def read(folder: str | Path) -> Adapter:
    """An adapter as it is stored. Raises ValueError when configuration and weights do not belong together."""
    config = read_config(folder)
    with safe_open(Path(folder, "adapter_model.safetensors"), "pt") as f:
        return of(config, {key: f.get_tensor(key) for key in f.keys()}, folder)


def of(config: dict, tensors: dict[str, torch.Tensor], where: str | Path) -> Adapter:
    """The adapter of tensors under PEFT's saved names; `where` says in errors whose they are."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        sides.setdefault(module_name(key), {})["A" if ".lora_A." in key else "B"] = tensor
    for module, pair in sides.items():
        if set(pair) != {"A", "B"}:
            raise ValueError(f"{where}: {module} has only one of its two LoRA factors")
        if pair["A"].shape[0] != config["r"] or pair["B"].shape[1] != config["r"]:
            raise ValueError(
                f"{where}: adapter_config.json says rank {config['r']}, but {module} has rank {pair['A'].shape[0]}: "
                "this configuration belongs to another adapter, and its scale would be wrong"
            )
    return Adapter(config, {m: (pair["A"], pair["B"]) for m, pair in sides.items()})


def trained_with(spec: dict) -> dict:
    """The training settings behind a model's own update, out of the specification of the model.

    A transplanted adapter was trained elsewhere, and a steered model has its parent's.
    """
    trained = spec["trained"]
    while "train" not in trained:
        trained = trained["adapter"] if "adapter" in trained else trained["parent"]["trained"]
    return trained["train"]


def check_scale(adapter: Adapter, train: dict, folder: str | Path) -> None:
    """Raise ValueError unless the adapter's effective scale is the one its run's training settings ask for."""
    asked = effective_scale({"r": train["rank"], "lora_alpha": train["alpha"], "use_rslora": train["rslora"]})
    if not math.isclose(adapter.scale, asked, rel_tol=SCALE_TOLERANCE):
        raise ValueError(
            f"{folder}/adapter_config.json gives the update a scale of {adapter.scale:.4g}, but its run was trained "
            f"with {asked:.4g} (train.rank, alpha, rslora): this configuration does not belong to the weights"
        )


def effective_scale(config: dict) -> float:
    """The factor on B @ A: alpha / sqrt(r) with rank-stabilised LoRA (arXiv 2312.03732), else alpha / r."""
    rank = config["r"]
    return config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)


def module_name(key: str) -> str:
    """`base_model.model.model.layers.0.mlp.up_proj.lora_A.weight` -> `model.layers.0.mlp.up_proj`."""
    return re.sub(r"^base_model\.model\.|\.lora_[AB](\.default)?\.weight$", "", key)


def changed_modules(folder: str | Path) -> set[str]:
    """The modules that an adapter has factors for, by its file's names alone."""
    with safe_open(Path(folder, "adapter_model.safetensors"), "pt") as f:
        return {module_name(key) for key in f.keys()}


def is_zero(folder: str | Path) -> bool:
    """Whether an adapter changes nothing: as before its first update, since warm-up starts at a rate of zero."""
    with safe_open(Path(folder, "adapter_model.safetensors"), "pt") as f:
        return not any(f.get_tensor(key).any() for key in f.keys() if ".lora_B." in key)


def layer_index(module: str) -> int | None:
    """The decoder block a module belongs to, or None."""
    found = re.search(r"\.layers\.(\d+)\.", module)
    return int(found[1]) if found else None


def layer_group(name: str, layers: int) -> set[int]:
    """Block indices of `early`, `middle`, `late` (thirds of the depth) or of their complements `not_early`, ..."""
    thirds = {n: set(range(i * layers // 3, (i + 1) * layers // 3)) for i, n in enumerate(("early", "middle", "late"))}
    if name.removeprefix("not_") not in thirds:
        raise ValueError(
            f"unknown layer group {name!r}; known: early, middle, late and not_early, not_middle, not_late"
        )
    return set(range(layers)) - thirds[name[4:]] if name.startswith("not_") else thirds[name]


def wanted(module: str, layers: set[int] | None, modules: set[str] | None) -> bool:
    """Whether a filter on blocks and projections keeps a module."""
    return (layers is None or layer_index(module) in layers) and (
        modules is None or module.rsplit(".", 1)[1] in modules
    )


def keeping(applied: dict, depth: int) -> Callable[[str], bool]:
    """What a model reference applies of an update (`layers`: a group or block indices; `modules`), as a filter."""
    layers, modules = applied.get("layers"), applied.get("modules")
    blocks = layer_group(layers, depth) if isinstance(layers, str) else None if layers is None else set(layers)
    return lambda module: wanted(module, blocks, set(modules) if modules else None)


def stack(under: Adapter, over: Adapter) -> Adapter:
    """One adapter whose update is the sum of both: ranks add up, a module that one of them lacks is filled with zeros.

    The scale stays that of `over`, whose factors are stored as they are; the ratio of the scales goes into the others'
    B. So the last `over.config["r"]` rows of A are always the newest adapter, and the configuration still tells how it
    was trained.
    """
    ratio = under.scale / over.scale
    rank = under.config["r"] + over.config["r"]
    factors = {}
    for module in dict.fromkeys([*under.factors, *over.factors]):
        (a1, b1), (a2, b2) = _both(under, over, module)
        factors[module] = (torch.cat([a1, a2]), torch.cat([b1 if ratio == 1 else b1.float() * ratio, b2], dim=1))
    blocks = [a.config.get("layers_to_transform") for a in (under, over)]
    config = over.config | {
        "r": rank,
        "lora_alpha": over.scale * (math.sqrt(rank) if over.config.get("use_rslora") else rank),
        "target_modules": sorted({*under.config["target_modules"], *over.config["target_modules"]}),
        "layers_to_transform": None if None in blocks else sorted({*blocks[0], *blocks[1]}),
    }
    return Adapter(config, factors)


def part(adapter: Adapter, own_rank: int, keep: Callable[[str], bool], scale: float) -> Adapter:
    """The adapter with only some modules of its newest update, `own_rank` rows, at `scale` times their strength.

    What lies under the newest update stays whole. Left-out modules stay in the file, as zeros.
    """
    older = adapter.config["r"] - own_rank
    factors = {}
    for module, (a, b) in adapter.factors.items():
        strength = torch.ones(b.shape[1])
        strength[older:] = scale if keep(module) else 0.0
        factors[module] = (a, b if strength.eq(1).all() else b.float() * strength)
    return Adapter(adapter.config, factors)


def newest(adapter: Adapter, own_rank: int) -> Adapter:
    """The newest update of an adapter by itself: its last `own_rank` ranks, at the scale they were trained with."""
    factors = {m: (a[-own_rank:], b[:, -own_rank:]) for m, (a, b) in adapter.factors.items()}
    rank = own_rank**0.5 if adapter.config.get("use_rslora") else own_rank
    return Adapter(adapter.config | {"r": own_rank, "lora_alpha": adapter.scale * rank}, factors)


def write(adapter: Adapter, folder: str | Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT and vLLM read them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(adapter), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config, indent=2, sort_keys=True))


def tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The factors under PEFT's saved names."""
    found = {}
    for module, (a, b) in adapter.factors.items():
        for side, tensor in (("A", a), ("B", b)):
            found[f"base_model.model.{module}.lora_{side}.weight"] = tensor.contiguous()
    return found


def merge(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    keep: Callable[[str], bool] = lambda module: True,
    scale: float = 1.0,
) -> dict:
    """Add an adapter to a model folder: float32 arithmetic, one cast to the stored dtype; returns the report.

    Report per module: cosine between applied and intended update and the ratio of their norms (1 and 1 when nothing is
    lost), with their minimum. A cast to bfloat16 loses small updates: cosines of 0.46 to 0.95 at the published sizes.
    Raises ValueError when the adapter names a weight that the model does not have.
    """
    base, out = Path(base), Path(out)
    loaded = read(adapter)
    factor = loaded.scale * scale
    updates = {m: pair for m, pair in loaded.factors.items() if keep(m)}
    found, report = set(), {}
    out.mkdir(parents=True, exist_ok=True)
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, "pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}
            metadata = f.metadata()
        for key, weight in tensors.items():
            module = key.removesuffix(".weight")
            if module in updates:
                merged, intended = updated(weight, *updates[module], factor, f"{adapter}: {module}")
                report[module] = fidelity(weight, merged, intended)
                tensors[key] = merged
                found.add(module)
        save_file(tensors, out / shard.name, metadata=metadata)
    if missing := set(updates) - found:
        raise ValueError(f"{adapter}: the model {base} has no weight for {sorted(missing)[0]} ({len(missing)} in all)")
    for path in base.iterdir():
        if path.suffix != ".safetensors" and path.is_file() and not path.name.endswith((".manifest.json", ".jsonl")):
            (out / path.name).write_bytes(path.read_bytes())
    cosines = [m["cosine"] for m in report.values()]
    return {
        "scale": factor,
        "modules": report,
        "worst_cosine": min(cosines, default=1.0),
        "low_fidelity": sorted(m for m, r in report.items() if r["cosine"] < LOW_FIDELITY),
    }


def updated(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, where: str) -> tuple:
    """A weight with its update (out, in), and the update alone: float32 arithmetic, one cast to the weight's dtype.

    Raises ValueError when the sizes differ; `where` says whose update it is.
    """
    intended = scale * (b.float() @ a.float())
    if intended.shape != weight.shape:
        raise ValueError(f"{where} is of another size than in the model: not the model it is for")
    return (weight.float() + intended).to(weight.dtype), intended


def fidelity(before: torch.Tensor, after: torch.Tensor, intended: torch.Tensor) -> dict[str, float]:
    """Cosine and norm ratio of the update that was applied against the one intended (all (out, in)).

    Sums are in float64: float32 gave cosines 0.01 too large for a weight of the 7B model.
    """
    product = torch.zeros(3, dtype=torch.float64, device=before.device)
    for rows in range(0, len(before), ROWS_AT_ONCE):
        part = slice(rows, rows + ROWS_AT_ONCE)
        applied, meant = after[part].double() - before[part].double(), intended[part].double()
        product += torch.stack([(applied * meant).sum(), applied.square().sum(), meant.square().sum()])
    along, applied_norm, meant_norm = product[0].item(), *product[1:].sqrt().tolist()
    norms = applied_norm * meant_norm
    return {
        "cosine": along / norms if norms > 0 else float(applied_norm == meant_norm),
        "norm_ratio": applied_norm / meant_norm if meant_norm > 0 else 1.0,
    }


def _both(under: Adapter, over: Adapter, module: str) -> list[Factors]:
    """The module's factors in both adapters; zeros of the right shape where one of them lacks it."""
    a, b = under.factors.get(module) or over.factors[module]
    ranks = [(adapter, adapter.config["r"]) for adapter in (under, over)]
    return [
        adapter.factors.get(module) or (a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank))
        for adapter, rank in ranks
    ]
