"""Why a planned job runs, in a researcher's words: changed settings, changed code, new runs, missing files.

It reads Snakemake's reason and the manifest of the last execution. It knows the layout of a run folder
(`{experiment}/{name}/seed{seed}`) and of the specs that `plan` writes, and nothing of what the experiments are about.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spillover import provenance

RUN_FOLDER = re.compile(r"^(?P<root>.*?/)?(?P<experiment>[^/]+)/(?P<name>[^/]+)/seed(?P<seed>\d+)/")
RUN_IN_SPEC = re.compile(r"runs\.([^/]+/[^/]+/seed\d+)(?:\.|$)")
MANIFEST = ".manifest.json"
UNSET = "unset"


@dataclass(frozen=True)
class Cause:
    """One reason of one job. `kind`: new_run, missing, setting, code, data, inputs, command, environment, forced or
    follows (its inputs come from another planned job). Settings carry key, old and new value."""

    kind: str
    text: str
    key: str | None = None
    old: Any = None
    new: Any = None


def why(
    reason: str, run: str | None, inputs: list[str], outputs: list[str], manifest: str | None, spec: Any
) -> list[Cause]:
    """Return the causes of one planned job, the telling ones first, each text once.

    `reason` is Snakemake's; `manifest` is the job's own, as its last execution left it; `spec` is the planned one.
    Paths are relative to the working directory.
    """
    first: dict[str, Cause] = {}
    for cause in _causes(reason, run, inputs, outputs, manifest, spec):
        first.setdefault(cause.text, cause)
    return list(first.values())


def locate(path: str) -> tuple[str | None, str | None, str | None]:
    """Return (results root, experiment, run as `name/seedN`) of a path; all None for a file that belongs to no run."""
    if match := RUN_FOLDER.match(path):
        return match["root"] or "", match["experiment"], f"{match['name']}/seed{match['seed']}"
    return None, None, None


def run_folder(path: str) -> Path:
    """The folder of the run that a path belongs to."""
    return Path(RUN_FOLDER.match(path)[0])


def bare(path: str) -> str:
    """A path without the note that Snakemake may add to it, as in `x.json (update)`."""
    return re.sub(r" \((?:pipe|service|nodelocal|update|before update|cached|access: [^)]*)\)$", "", str(path))


def _causes(
    reason: str, run: str | None, inputs: list[str], outputs: list[str], manifest: str | None, spec: Any
) -> Iterator[Cause]:
    """Turn Snakemake's reason into causes, the telling ones first, and complete them from the job's old manifest.

    Snakemake names the first reason it meets and, for a job below another planned one, none of its own (it skips the
    comparison, dag.py `update_needrun`); the manifest tells the rest.
    """
    files, params, recorded = reason.partition("Params have changed since last execution:")
    old = _old_manifest(manifest)
    listed = {
        name: [bare(path) for path in paths.split(", ")]
        for name, paths in re.findall(
            r"(Missing output files|Incomplete output files|Updated input files|Input files updated by another job):"
            r" (.*?)(?=; |$)",
            files,
        )
    }
    if "Forced execution" in files:
        yield Cause("forced", "forced")
    before = old["spec"] if old and "spec" in old else _recorded_spec(recorded, spec)
    changed = list(_changed_settings(before, spec))
    yield from changed
    if params and not changed:
        yield Cause("setting", "its settings changed; no record of the old ones is left")
    yield from map(_changed_file, dict.fromkeys([*listed.get("Updated input files", ()), *_changed_code(old, inputs)]))
    joined = list(_changed_runs(old, inputs))
    yield from joined
    if "Set of input files has changed" in files and not joined:
        yield Cause("inputs", "other input files than last time")
    if "Code has changed" in files:
        yield Cause("command", "the command in its rule changed")
    if "Software environment definition has changed" in reason:
        yield Cause("environment", "its software environment changed")
    if paths := listed.get("Incomplete output files"):
        yield Cause("missing", f"an earlier attempt was interrupted: {_names(paths)}")
    if paths := listed.get("Missing output files"):
        if not any(Path(output).exists() for output in outputs):
            new_run = run is not None and not any(run_folder(outputs[0]).rglob(f"*{MANIFEST}"))
            yield Cause("new_run", "new run") if new_run else Cause("missing", "not made yet")
        else:
            yield Cause("missing", f"missing: {_names(paths)}")
    if paths := listed.get("Input files updated by another job"):
        yield Cause("follows", f"follows from {_names(paths)}")


def _names(paths: Sequence[str], most: int = 3) -> str:
    names = sorted({Path(path).name for path in paths})  # Snakemake lists them in another order each time
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _old_manifest(manifest: str | None) -> dict[str, Any] | None:
    if manifest is None or not Path(manifest).is_file():
        return None
    try:
        return provenance.read_manifest(manifest)
    except ValueError:
        return None


def _changed_settings(before: Any, spec: Any) -> Iterator[Cause]:
    if before is None or spec is None:
        return
    for key, was, now in changed_keys(before, spec):
        if match := RUN_IN_SPEC.match(key):  # the spec of a closing analysis holds those of all the runs it reads
            if match[0] == key and UNSET in (was, now):
                yield Cause("inputs", f"run {'added' if was == UNSET else 'removed'}: {match[1]}")
            else:
                yield Cause("follows", f"follows from {match[1]}", key, was, now)
        else:
            yield Cause("setting", f"{plain_key(key)}: {_shown(was)} -> {_shown(now)}", key, was, now)


def plain_key(key: str) -> str:
    """Name a setting as its owner wrote it, wherever it stands in the nested spec of a later stage.

    `completions.model.trained.train.learning_rate` is the run's own `train.learning_rate`; `parent.trained.x` is the
    `x` of its parent; the base model at the bottom of any lineage is `model`.
    """
    key = re.sub(r"^(?:[a-z_]+\.)*?(?:model|parent)\.base\.", "model.", key)
    key = re.sub(r"^(?:completions\.)?(?:model\.trained\.)?", "", key)
    key = re.sub(r"^data\.data\.", "data.", key)
    return re.sub(r"^parent\.trained\.", "the parent's ", key).replace("parent.trained.", "parent's ")


def _recorded_spec(text: str, spec: Any) -> Any:
    """The old spec out of `before: '<json>','<other>' now: ...`, Snakemake's record of the parameters that changed."""
    match = re.search(r"before: (.*) now: ", text, re.DOTALL)
    found = []
    with contextlib.suppress(ValueError, SyntaxError):
        for parameter in ast.literal_eval(f"[{match[1]}]") if match else ():
            with contextlib.suppress(ValueError, TypeError):
                found.append(json.loads(parameter))
    found = [old for old in found if isinstance(old, dict) and isinstance(spec, dict) and old.keys() & spec.keys()]
    return max(found, key=lambda old: len(old.keys() & spec.keys()), default=None)


def changed_keys(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, old, new) wherever two specs differ; a key that one of them lacks counts as "unset"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from changed_keys(old.get(key, UNSET), new.get(key, UNSET), f"{prefix}.{key}" if prefix else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (was, now) in enumerate(zip(old, new, strict=True)):
            yield from changed_keys(was, now, f"{prefix}.{index}")
    elif old != new:
        yield prefix, old, new


def _shown(value: Any, most: int = 40) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _changed_file(path: str) -> Cause:
    """Words for an input whose content changed on disk."""
    if path.startswith("workflow/scripts/"):
        name = path.removeprefix("workflow/scripts/")
        return Cause("code", f"{'library module' if '/' in name else 'program'} {name} changed")
    return Cause("data", f"{path} changed")


def _changed_code(old: dict[str, Any] | None, inputs: list[str]) -> Iterator[str]:
    """Source files among a job's inputs that differ from those that made its last outputs."""
    digests = (old or {}).get("code", {}).get("files", {})
    for path in inputs:
        if path in digests and Path(path).is_file() and provenance.file_digest(path) != digests[path]:
            yield path


def _changed_runs(old: dict[str, Any] | None, inputs: list[str]) -> Iterator[Cause]:
    """Which runs joined or left an aggregate since its manifest was written."""
    before = {_owner(record["path"]) for record in (old or {}).get("inputs", ())} - {None}
    now = {_owner(path) for path in inputs} - {None}
    if before:
        for verb, names in (("added", now - before), ("removed", before - now)):
            yield from (Cause("inputs", f"run {verb}: {name}") for name in sorted(names))


def _owner(path: str) -> str | None:
    _, experiment, run = locate(path)
    return f"{experiment}/{run}" if experiment else None
