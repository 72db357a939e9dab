"""JSON among a program's arguments, given as text or in a file.

Linux takes no argument of more than 128 KiB, which the records of many runs exceed. A rule gives them as
`@<(printf %s {params.runs:q})`: printf is part of the shell and starts no program, and the shell's own text Snakemake
puts into a file where it is long.
"""

from __future__ import annotations

import json
from pathlib import Path


def read_json(given: str) -> dict | list:
    """What an argument says: JSON, or @FILE holding it."""
    return json.loads(Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given)
