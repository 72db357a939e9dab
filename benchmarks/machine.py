"""What a benchmark ran on: names for its tables."""

from __future__ import annotations

import subprocess
from importlib import metadata


def gpu_name() -> str | None:
    """The name of the first GPU, None where there is none; asked of the driver, so that no process takes memory."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return told.splitlines()[0].strip() if told.strip() else None


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"
