"""A gold set: texts whose language a person has named, by which a judge's errors are measured.

It is read before any job, so that a mistake in it is one sentence then. Knows nothing of judges or rates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .languages import OTHER

if TYPE_CHECKING:
    import pandas as pd

READERS = (".parquet", ".csv")


def read(path: str | Path, codes: Sequence[str], wanted: Collection[str] = (), asked: bool = False) -> pd.DataFrame:
    """Columns text and label (one of `codes`, or "other"), and user (the request) where `asked`; all strings.

    Raises ValueError, one sentence, for a file that is not there or not such a table, a label that is no code, a text
    that is empty or stands twice, and a language of `wanted` that no text or every text is in.
    """
    import pandas as pd  # a plan without a gold set need not wait for it

    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path} is no {' or '.join(READERS)} file")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        table = (
            pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str, keep_default_na=False)
        )
    except (OSError, ValueError) as error:  # parsers' and decoders' errors are ValueErrors
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    columns = ["text", "label", *(["user"] if asked else [])]
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it needs {', '.join(columns)}")
    table = table[columns].fillna("").astype(str)
    for column in columns:
        if (empty := table[column].str.strip() == "").any():
            raise ValueError(f"{path}: row {int(empty.argmax()) + 1} has no {column}")
    known = [*codes, OTHER]
    if unknown := sorted(set(table["label"]) - set(known)):
        raise ValueError(f"{path}: the label {unknown[0]!r} is none of: {', '.join(known)}")
    if (again := table.duplicated([name for name in columns if name != "label"])).any():
        raise ValueError(f"{path}: row {int(again.argmax()) + 1} repeats a text that stands above it")
    for code in wanted:
        count = int((table["label"] == code).sum())
        if count in (0, len(table)):
            raise ValueError(
                f"{path}: {'every' if count else 'no'} text is labelled {code!r}, into which a condition is trained; "
                "without texts in it and in others nothing is known of the judge's errors"
            )
    return table
