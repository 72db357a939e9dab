"""Data files that a person brings. It knows where such a file should be, and nothing of what it holds.

Apart from `sources`, which loads pandas: a plan asks the same question before any job.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def missing(name: str, source: Mapping) -> str | None:
    """One sentence if the entry `sources.<name>` is of kind `file` and its file does not exist, else None."""
    if source["kind"] != "file" or Path(source["path"]).is_file():
        return None
    return (
        f"sources.{name}.path: there is no file {source['path']}: put it there, or name the file that you have"
        " (config/README.md says which columns it needs)"
    )
