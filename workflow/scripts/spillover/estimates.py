"""What planned jobs will cost: from manifests of earlier runs, else from committed benchmark figures, else unknown.

There is no default number anywhere: a quantity that nothing is known about stays None, and a sum over jobs says how
many of them it leaves out. Benchmark figures stand in benchmarks/estimates.yaml, each with the sentence that says where
it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from spillover import provenance
from spillover.audit import PlannedJob
from spillover.causes import run_folder

QUANTITIES = ("gpu_seconds", "cpu_seconds", "api_calls", "cost_dollars")
# a rule that does not ask for the resource cannot use the quantity: that is knowledge, not a guess
RESOURCE_OF = {"gpu_seconds": "gpu", "api_calls": "api_slots", "cost_dollars": "api_slots"}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Estimate:
    """Expected cost of one job: GPU and processor seconds, API calls, dollars; None means unknown."""

    gpu_seconds: float | None
    cpu_seconds: float | None
    api_calls: float | None
    cost_dollars: float | None
    source: str


@dataclass(frozen=True)
class Total:
    """A sum over jobs: `known` adds up the jobs that have an estimate, `unknown` counts those that have none."""

    known: float
    unknown: int
    jobs: int


def read_benchmarks(path: str | Path) -> dict[str, Any]:
    """Return the rules of a benchmark file, or nothing if there is no such file."""
    path = Path(path)
    return yaml.safe_load(path.read_text(encoding="utf-8"))["rules"] if path.is_file() else {}


def estimate(job: PlannedJob, benchmarks: Mapping[str, Any], directory: str | Path = ".") -> Estimate:
    """Return what a job will probably cost.

    Looked at in this order: manifests of the same files in runs of the same experiment, then of other
    experiments of the same results folder, the benchmark figures. Where the benchmark file names the rule's amount
    of work and both specs tell it, earlier costs are scaled by it.
    """
    entry = benchmarks.get(job.rule, {})
    found = _from_manifests(job, entry, Path(directory)) or _from_benchmark(job, entry)
    values, source = found or ({}, UNKNOWN)
    for quantity, resource in RESOURCE_OF.items():
        if values.get(quantity) is None and not job.resources.get(resource):
            values[quantity] = 0.0
    return Estimate(**{quantity: values.get(quantity) for quantity in QUANTITIES}, source=source)


def total(estimates: Iterable[Estimate], quantity: str) -> Total:
    """Add up one quantity over jobs, keeping count of those it is unknown for."""
    values = [getattr(item, quantity) for item in estimates]
    known = [value for value in values if value is not None]
    return Total(known=math.fsum(known), unknown=len(values) - len(known), jobs=len(values))


def work(entry: Mapping[str, Any], spec: Any) -> float | None:
    """The amount of work in a spec, by the first of the entry's `work` formulas whose keys the spec all has.

    A formula is a product of keys (a list counts by its length), summed over the items of the mapping `over` and
    multiplied by the keys in `times` if those are given. None if no formula applies: then costs are neither scaled
    nor computed.
    """
    for formula in entry.get("work", ()):
        parts = [spec]
        if "over" in formula:
            items = _value(spec, formula["over"])
            parts = list(items.values()) if isinstance(items, Mapping) else []
        amounts = [_product(part, formula["product"]) for part in parts]
        times = _product(spec, formula.get("times", ()))
        if amounts and times is not None and None not in amounts:
            return math.fsum(amounts) * times
    return None


def _product(spec: Any, keys: Iterable[str]) -> float | None:
    factors = [_factor(_value(spec, key)) for key in keys]
    return None if None in factors else math.prod(factors)


def _factor(value: Any) -> float | None:
    if isinstance(value, list | tuple | dict):
        return float(len(value))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _value(spec: Any, key: str) -> Any:
    for part in key.split("."):
        spec = spec.get(part) if isinstance(spec, Mapping) else None
    return spec


def base_model(spec: Any) -> str | None:
    """The name of the base model at the bottom of a spec's lineage (`plan` writes it under the key `base`)."""
    if not isinstance(spec, Mapping):
        return None
    if isinstance(spec.get("base"), Mapping):
        return spec["base"].get("name")
    return next(
        (name for key in ("completions", "model", "trained", "parent") if (name := base_model(spec.get(key)))),
        None,
    )


def _from_manifests(
    job: PlannedJob, entry: Mapping[str, Any], directory: Path
) -> tuple[dict[str, float | None], str] | None:
    for patterns, words in _places(job):
        paths = [path for pattern in patterns for path in sorted(directory.glob(pattern))]
        manifests = [manifest for path in paths if (manifest := _manifest(path, path.stat().st_mtime_ns))]
        if not manifests:
            continue
        values: dict[str, float | None] = {}
        scaled = False
        for quantity in QUANTITIES:
            known = []
            for manifest in manifests:
                if (value := manifest.get(quantity)) is not None:
                    before, now = work(entry, manifest.get("spec")), work(entry, job.spec)
                    ratio = now / before if before and now else 1.0
                    scaled = scaled or ratio != 1.0
                    known.append(value * ratio)
            values[quantity] = median(known) if known else None
        number = f"median of {len(manifests)} earlier runs" if len(manifests) > 1 else "1 earlier run"
        return values, f"{number} {words}" + (", scaled by the amount of work" if scaled else "")
    return None


def _places(job: PlannedJob) -> list[tuple[list[str], str]]:
    """Where manifests of comparable jobs lie, the best first, with the words for each place."""
    if job.manifest is None:
        return []
    if job.run is None or job.experiment is None:  # an aggregate or the base model: only its own manifest compares
        return [([job.manifest], "of the same files")]
    name = Path(job.manifest).relative_to(run_folder(job.manifest))
    return [
        ([f"{job.root}{job.experiment}/*/seed*/{name}"], f"of {job.experiment}"),
        ([f"{job.root}*/*/seed*/{name}"], "of other experiments"),
    ]


@lru_cache(maxsize=4096)
def _manifest(path: Path, changed_ns: int) -> dict[str, Any] | None:
    try:
        return provenance.read_manifest(path)
    except (ValueError, OSError):
        return None


def _from_benchmark(job: PlannedJob, entry: Mapping[str, Any]) -> tuple[dict[str, float | None], str] | None:
    """Figures of benchmarks/estimates.yaml: the first that applies to each quantity.

    Seconds have a fixed part and the work divided by the measured rate; calls and dollars are so much for `each` piece
    of work.
    """
    values: dict[str, float | None] = {}
    sources: list[str] = []
    amount = work(entry, job.spec)
    for figure in entry.get("figures", ()) if amount is not None else ():
        settings = {**figure["when"]}
        if base_model(job.spec) not in settings.pop("base_model", [base_model(job.spec)]):
            continue
        if figure["quantity"] in values or any(_value(job.spec, key) not in want for key, want in settings.items()):
            continue
        if "each" in figure:
            values[figure["quantity"]] = amount * figure["each"]
        else:
            seconds = figure["fixed_seconds"] + amount * figure["units_per_work"] / figure["units_per_second"]
            values[figure["quantity"]] = seconds
        sources.append(figure["source"])
    return (values, "; ".join(dict.fromkeys(sources))) if values else None
