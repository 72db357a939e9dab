"""Mistakes and shortages that only a person can mend. It knows nothing else of the project."""

from __future__ import annotations


class UserError(SystemExit):
    """One sentence for the user. Where nothing catches it, it ends the program with that sentence and no traceback."""
