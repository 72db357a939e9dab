"""What a report must say of any experiment beside its claims: how far to trust the labels, what was spent, how it ran.

Read from completions, labels, merge reports and manifests; it knows nothing of single experiments. A quantity that some
manifest does not know is said to be a lower bound, never taken for zero.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from spillover import provenance
from spillover.browser import FAMILIES, KEY

COSTS = ("seconds", "cpu_seconds", "gpu_seconds", "tokens", "api_calls", "cost_dollars")
POOR_COSINE = 0.95
MODEL = ["run", "seed", "checkpoint"]


def label_caveats(completions: pd.DataFrame, labels: pd.DataFrame) -> list[str]:
    """Sentences on replies cut short, labels that failed, scorers that disagree, and cells without replies."""
    sentences = []
    cut = completions["finish_reason"] == "length"
    known = completions["finish_reason"].notna()
    if known.any():
        share = _percent(int(cut.sum()), int(known.sum()))
        sentences.append(f"{share} replies were cut at the length limit.")
    for name, table in labels.groupby("scorer", sort=False):
        failures = table.loc[table["outcome"] != "ok", "outcome"].value_counts()
        if len(failures):
            kinds = ", ".join(f"{count} {outcome}" for outcome, count in failures.items())
            sentences.append(f"{name}: {_percent(int(failures.sum()), len(table))} labels failed ({kinds}).")
            sentences += _cells_without_label(name, table)
    sentences += [_disagreement(labels, *pair) for pair in comparable(labels["scorer"].unique())]
    sentences += _missing_cells(completions)
    return sentences


def comparable(scorers: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of scorers that answer the same question."""
    return [(a, b) for a, b in itertools.combinations(scorers, 2) if FAMILIES.get(a, a) == FAMILIES.get(b, b)]


def _disagreement(labels: pd.DataFrame, first: str, second: str) -> str:
    usable = labels[labels["outcome"] == "ok"]
    a, b = (usable[usable["scorer"] == name].set_index(KEY)["label"] for name in (first, second))
    both = a.to_frame("a").join(b.to_frame("b"), how="inner")
    differ = int((both["a"] != both["b"]).sum())
    if not len(both):
        return f"{first} and {second} label no reply in common."
    return f"{first} and {second} disagree on {_percent(differ, len(both))} replies that both label."


def _cells_without_label(scorer: str, table: pd.DataFrame) -> list[str]:
    usable = table["outcome"].eq("ok").groupby([table[name] for name in (*MODEL, "cell")]).sum()
    empty = usable[usable == 0].reset_index()
    if empty.empty:
        return []
    named = [f"{_model(row)}, {row.cell}" for row in empty.itertuples()]
    return [f"{scorer}: {len(empty)} of {len(usable)} cells have no label that did not fail: {_first(named)}."]


def _missing_cells(completions: pd.DataFrame) -> list[str]:
    """Models with fewer cells than others have in the same suite, and seeds that a model lacks and another has."""
    models = completions.groupby([*MODEL, "suite"])["cell"].nunique().reset_index()
    short = models[models["cell"] < models.groupby("suite")["cell"].transform("max")]
    sentences = []
    if len(short):
        named = _first([_model(row) for row in short.itertuples()])
        sentences.append(f"{len(short)} of {len(models)} models lack cells that others have: {named}.")
    seeds = set(completions["seed"])
    trained = {
        (run, checkpoint): set(found) for (run, checkpoint), found in models.groupby(["run", "checkpoint"])["seed"]
    }
    lacking = [
        f"{run} {checkpoint} seed {', '.join(map(str, sorted(seeds - found)))}"
        for (run, checkpoint), found in trained.items()
        if seeds - found
    ]
    if lacking:
        sentences.append(f"{len(lacking)} of {len(trained)} models lack a seed that others have: {_first(lacking)}.")
    return sentences


def _model(row) -> str:
    return f"{row.run} seed {row.seed} {row.checkpoint}"


def _first(named: Sequence[str]) -> str:
    return "; ".join(named[:5]) + (" and others" if len(named) > 5 else "")


def merges(folder: Path, manifests: Sequence[dict]) -> list[dict]:
    """What every merge below a folder kept: of parents by their reports, of evaluated models by their manifests.

    Each has `modules` (their number), `worst_cosine` and `low_fidelity` (names).
    """
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("merge_report-*.json"))]
    found = [report | {"modules": len(report["modules"])} for report in reports]
    for manifest in manifests:
        found += manifest.get("extra", {}).get("engine", {}).get("merges", {}).values()
    return found


def merge_caveats(reports: Sequence[dict]) -> list[str]:
    """A sentence on how much of their update merged adapters kept; none where nothing was merged."""
    if not reports:
        return []
    worst = min(report["worst_cosine"] for report in reports)
    poor = sum(len(report["low_fidelity"]) for report in reports)
    total = sum(report["modules"] for report in reports)
    return [
        f"{len(reports)} time{'s' * (len(reports) > 1)} an adapter was merged into its parent: the worst module kept a "
        f"cosine of {worst:.4f} to its intended update; {poor} of {total} modules lie below {POOR_COSINE}."
    ]


def manifests(folder: Path) -> list[dict]:
    """Every readable manifest below a folder."""
    return [provenance.read_manifest(path) for path in sorted(folder.rglob("*.manifest.json"))]


def costs(found: Sequence[dict]) -> list[dict]:
    """What each stage spent, and all of them: sums, with the number of jobs that do not know a quantity.

    One row a stage: stage, jobs, the quantities of COSTS, and `unknown` {quantity: jobs}.
    """
    stages: dict[str, list[dict]] = {}
    for manifest in found:
        stages.setdefault(str(manifest.get("stage")), []).append(manifest)
    rows = [_spent(stage, group) for stage, group in sorted(stages.items())]
    return [*rows, _spent("all", list(found))] if rows else []


def _spent(stage: str, group: Sequence[dict]) -> dict:
    row: dict = {"stage": stage, "jobs": len(group), "unknown": {}}
    for quantity in COSTS:
        known = [manifest[quantity] for manifest in group if manifest.get(quantity) is not None]
        row[quantity] = sum(known)
        # most stages have no tokens to count; for the others "unknown" is worth saying
        if quantity != "tokens" and len(known) < len(group):
            row["unknown"][quantity] = len(group) - len(known)
    return row


def how_it_ran(found: Sequence[dict]) -> dict[str, list[str]]:
    """Distinct commits, packages, hardware and Python versions behind the manifests."""
    commits = {_commit(m.get("git") or {}) for m in found}
    packages = {f"{name} {version}" for m in found for name, version in (m.get("packages") or {}).items()}
    machines = {_machine(m.get("hardware") or {}) for m in found}
    pythons = {m["python"] for m in found if m.get("python")}
    named = {"commits": commits, "packages": packages, "machines": machines, "Python": pythons}
    return {name: sorted(values) for name, values in named.items()}


def _commit(git: dict) -> str:
    commit = git.get("commit")
    return (f"{commit[:12]}" if commit else "no commit known") + (
        " with uncommitted changes" if git.get("dirty") else ""
    )


def _machine(hardware: dict) -> str:
    gpus = hardware.get("gpus") or []
    graphics = f", {len(gpus)} x {gpus[0]}" if gpus else ", no GPU"
    return f"{hardware.get('cpu') or 'unknown processor'}, {hardware.get('cores') or '?'} cores{graphics}"


def _percent(k: int, n: int) -> str:
    share = 100 * k / n
    return f"{k:,} of {n:,} ({share:.1f} %)" if share == 0 or share >= 0.1 else f"{k:,} of {n:,} (under 0.1 %)"
