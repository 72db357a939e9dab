"""What made a file: every artefact of a run is written atomically and described by a manifest beside it.

A manifest answers, months later and on another machine, which settings, code, packages and hardware made these
files, how long it took and what it cost. The dry-run audit reads manifests for its estimates and for the old values
of changed settings. The module knows nothing of experiments or models, and never imports torch or numpy itself: it
only reports what the calling program has already loaded. Environment variables, host names and user names are left
out on purpose, so a manifest can be published.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from spillover.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1]
ROOT = SCRIPTS.parents[1]

# import name -> distribution name, for the packages whose version can change a result
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "trl": "trl",
    "vllm": "vllm",
    "flash_attn": "flash-attn",
    "lm_eval": "lm_eval",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "statsmodels": "statsmodels",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "matplotlib": "matplotlib",
    "langdetect": "langdetect",
    "lingua": "lingua-language-detector",
    "anthropic": "anthropic",
    "openai": "openai",
}
API_CLIENTS = ("anthropic", "openai")


@contextmanager
def atomic_path(out: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `out`; it becomes `out` when the block ends well and is removed when it does not.

    The suffix is kept, because matplotlib and others choose the format by it. A reader therefore never sees half a
    file, and a job that was killed leaves no output that looks finished. A full disk is a UserError naming `out`.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.tmp{out.suffix}")
    with writing(out, temporary):
        yield temporary
        os.replace(temporary, out)


@contextmanager
def writing(out: str | Path, temporary: Path) -> Iterator[None]:
    """Within the block `temporary`, a file or folder, is written for `out`; it is removed when the block fails.

    A full disk is one sentence naming `out`.
    """
    try:
        yield
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if _is_full(error):
            raise UserError(
                f"{out}: no room to write it ({error}): free some on that disk or raise the quota, and run the same "
                "command again; nothing half-written was left"
            ) from None
        raise


def _is_full(error: BaseException) -> bool:
    """A full disk or quota: of Python's own writers, or of safetensors, whose error has only a text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


class Clock:
    """Wall and processor time since it was made; `started` is the UTC time then."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self._wall = time.perf_counter()
        self._cpu = _cpu_seconds()

    @property
    def seconds(self) -> float:
        """Wall seconds since the clock was started."""
        return time.perf_counter() - self._wall

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds since the clock was started: this process and the children it has waited for."""
        return _cpu_seconds() - self._cpu


def start_clock() -> Clock:
    """Start timing; pass the clock, or its `seconds`, to `write_manifest`."""
    return Clock()


def jsonable(value: Any) -> Any:
    """Return `value` as plain JSON data: the one place that turns numpy, paths, dataclasses and sets into it.

    NaN and infinities become null, since JSON has no word for them. Raises TypeError for anything unknown, naming
    its type, rather than storing a `repr` that nobody can read back.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(jsonable(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((jsonable(item) for item in value), key=lambda item: (str(type(item)), str(item)))
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors: without importing either
        return jsonable(value.tolist())
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} has no JSON form: {value!r}")


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: keys sorted, no spaces, so equal data gives equal text."""
    return json.dumps(jsonable(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def spec_digest(spec: Any) -> str:
    """Return the sha256 of a spec in canonical form; the order of its keys does not matter."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the sha256 of a file's content, read in chunks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(
    path: str | Path,
    *,
    stage: str,
    spec: Any,
    inputs: Iterable[str | Path],
    outputs: Iterable[str | Path],
    seconds: float | Clock,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the manifest of one artefact group to `path` (JSON, keys sorted) and return it.

    `seconds` is the wall time of the work, as a number or as the Clock that timed it. `extra` may carry anything
    worth keeping; its keys `gpu_seconds`, `tokens`, `api_calls` and `cost_dollars` are the ones that the audit adds
    up. Not given, the first and the last two are 0 where this process could not have used a GPU or an API client,
    and null (unknown) where it could. Raises FileNotFoundError if a listed file does not exist.
    """
    extra = dict(extra or {})
    clock = seconds if isinstance(seconds, Clock) else None
    wall = float(seconds.seconds if clock else seconds)
    started = clock.started if clock else datetime.now(UTC) - timedelta(seconds=wall)
    gpus = _gpus()
    api_known = 0 if not any(name in sys.modules for name in API_CLIENTS) else None
    manifest = {
        "stage": stage,
        "spec": spec,
        "spec_digest": spec_digest(spec),
        "seeds": find_seeds(spec),
        "code": _code(),
        "git": _git(),
        "python": platform.python_version(),
        "packages": _packages(),
        "hardware": {
            "cpu": _cpu_model(),
            "cores": _cores(),
            "memory_mb": _memory_mb(),
            "gpus": gpus,
            "gpu_driver": _gpu_driver() if gpus else None,
        },
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(wall, 3),
        # the whole process, imports included: loading torch and peft is part of what the next run will cost
        "process_seconds": _rounded(_process_seconds()),
        "cpu_seconds": round(_cpu_seconds(), 3),
        "peak_rss_mb": _peak_rss_mb(),
        "gpu_seconds": extra.pop("gpu_seconds", None if gpus else 0.0),
        "tokens": extra.pop("tokens", None),
        "api_calls": extra.pop("api_calls", api_known),
        "cost_dollars": extra.pop("cost_dollars", api_known),
        "inputs": [_file_record(item) for item in inputs],
        "outputs": [_file_record(item) for item in outputs],
        "extra": extra,
    }
    manifest = jsonable(manifest)
    text = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return manifest


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return a manifest as plain data. Raises ValueError, naming the file, if it is no JSON object."""
    try:
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no readable manifest: {error}") from None
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: is no readable manifest: expected a JSON object")
    return manifest


def find_seeds(spec: Any, prefix: str = "") -> dict[str, Any]:
    """Return every value in a spec whose key is `seed`, `seeds` or ends in `_seed`, by its dotted path."""
    found: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        for key, value in spec.items():
            path = f"{prefix}{key}"
            if key in ("seed", "seeds") or str(key).endswith("_seed"):
                found[path] = value
            else:
                found |= find_seeds(value, f"{path}.")
    elif isinstance(spec, list | tuple):
        for index, value in enumerate(spec):
            found |= find_seeds(value, f"{prefix}{index}.")
    return found


def _file_record(path: str | Path) -> dict[str, Any]:
    """Size and content digest of a file; a directory counts as the sorted list of the files below it."""
    path = Path(path)
    shown = path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
    if path.is_dir():
        files = sorted(item for item in path.rglob("*") if item.is_file())
        listing = {item.relative_to(path).as_posix(): file_digest(item) for item in files}
        size, digest = sum(item.stat().st_size for item in files), spec_digest(listing)
    elif path.is_file():
        size, digest = path.stat().st_size, file_digest(path)
    else:
        raise FileNotFoundError(f"{path}: named in a manifest but does not exist")
    return {"path": shown.as_posix(), "bytes": size, "sha256": digest}


def _code() -> dict[str, Any]:
    """Digests of this project's own files that the running process has loaded, and one digest over them."""
    files = {}
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        if source and _is_ours(os.path.dirname(source)) and Path(source).is_file():
            source = Path(source).resolve()
            files[source.relative_to(ROOT).as_posix()] = file_digest(source)
    return {"digest": spec_digest(files), "files": files}


@cache
def _is_ours(folder: str) -> bool:
    # thousands of modules lie in a few hundred folders, and resolving a path takes a system call for each of its parts
    return Path(folder).resolve().is_relative_to(SCRIPTS)


def _git() -> dict[str, Any]:
    """Commit and whether the work tree differs from it; both null outside a git checkout or without git."""
    unknown = {"commit": None, "dirty": None}
    # the optional index refresh would make parallel jobs fight over index.lock
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return unknown  # a copy of the project inside some other repository: that commit says nothing of it
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return unknown


def _packages() -> dict[str, str]:
    versions = {}
    for module, distribution in PACKAGES.items():
        if module in sys.modules:
            try:
                versions[distribution] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
    return versions


def _gpus() -> list[str]:
    """Names of the GPUs that an already imported torch can see."""
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_available():
            return []
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except Exception:  # a half-initialised CUDA must not cost a finished job its manifest
        return []


def _gpu_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        reply = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return reply.strip().splitlines()[0] if reply.strip() else None


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or None


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError):
        return None


def _cpu_seconds() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _process_seconds() -> float | None:
    """Wall seconds since this process was created (Linux: start time in clock ticks after boot, proc(5) field 22)."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None


def _peak_rss_mb() -> float:
    """The largest resident size of this process or of one waited-for child, in MiB."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # bytes on macOS, KiB on Linux


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
