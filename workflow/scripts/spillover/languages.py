"""The language registry and the distances between its languages.

Reads resources/languages.yaml: codes, the names used in directives, the names the identifiers use, family paths, and
the declared distance tables with their sources. It knows nothing of models, completions or figures. A distance that
its source does not give is nan, never a guess.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

OTHER = "other"  # the label of a text in no registry language, or in none


@dataclass(frozen=True)
class Language:
    """One language: how directives and identifiers name it, and its four-level family path (coarse to fine)."""

    code: str
    name: str
    iso639_3: str
    langdetect: tuple[str, ...]
    lingua: str
    judge: str | None
    script: str
    family: tuple[str, ...]


@dataclass(frozen=True)
class Distance:
    """A declared distance: its title, its kind (tree, distance, similarity, measured), source and pairs."""

    name: str
    title: str
    kind: str
    source: str
    pairs: Mapping[frozenset[str], float | None]


@dataclass(frozen=True)
class Registry:
    """All languages by code, in the order of the file, and the declared distances by name."""

    languages: Mapping[str, Language]
    distances: Mapping[str, Distance]

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(self.languages)

    def __getitem__(self, code: str) -> Language:
        """The language of that code. Raises ValueError naming the known codes and the closest one."""
        if code not in self.languages:
            raise ValueError(unknown(code, self.codes, "language"))
        return self.languages[code]

    def subset(self, codes: Iterable[str]) -> tuple[str, ...]:
        """`codes` without repeats, in registry order. Raises ValueError for an unknown one."""
        wanted = {self[code].code for code in codes}
        return tuple(code for code in self.codes if code in wanted)

    def code_of_name(self, name: str) -> str:
        """The code of a name as written in directives ("Mandarin Chinese" -> "zh")."""
        names = {language.name: code for code, language in self.languages.items()}
        if name not in names:
            raise ValueError(unknown(name, tuple(names), "language name"))
        return names[name]


def unknown(value: str, known: Iterable[str], what: str) -> str:
    """The sentence for a value that is not among the known ones."""
    known = list(known)
    value_text = str(value)
    close = [
        (difflib.SequenceMatcher(None, value_text, name).ratio(), name[:1] == value_text[:1], name) for name in known
    ]
    best = max(close, key=lambda match: match[:2], default=(0.0, False, ""))  # among equals, the same first letter
    hint = f"; did you mean {best[2]!r}?" if best[0] >= 0.3 else "."
    return f"{value!r} is no known {what}{hint} Known: {', '.join(known)}."


def load_languages(path: str | Path) -> Registry:
    """Read the registry. Raises ValueError with file and key for a malformed entry."""
    with open(path, encoding="utf-8") as file:
        document = yaml.safe_load(file)
    languages = {}
    for code, entry in document["languages"].items():
        try:
            fields = {**entry, "langdetect": tuple(entry["langdetect"]), "family": tuple(entry["family"])}
            languages[code] = Language(code=code, **fields)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: languages.{code}: {error}") from None
    levels = {len(language.family) for language in languages.values()}
    if len(levels) != 1:
        raise ValueError(f"{path}: every `family` needs the same number of levels, found {sorted(levels)}.")
    distances = {}
    for name, entry in document.get("distances", {}).items():
        pairs = _read_pairs(entry.get("pairs") or {}, languages, f"{path}: distances.{name}.pairs")
        distances[name] = Distance(name, entry["title"], entry["kind"], entry["source"], pairs)
    return Registry(languages, distances)


def distance_matrix(
    registry: Registry, name: str, codes: Iterable[str], parallel: Mapping[str, list[str]] | None = None
) -> pd.DataFrame:
    """The distance `name` between `codes`: a symmetric frame (codes, codes), 0 on the diagonal, nan where not given.

    `parallel` maps each code to its texts, aligned by position; only a measured distance reads it.
    """
    codes = list(codes)
    for code in codes:
        registry[code]
    if name not in registry.distances:
        raise ValueError(unknown(name, registry.distances, "language distance"))
    distance = registry.distances[name]
    if distance.kind == "measured":
        return char_ngram_distance({code: (parallel or {}).get(code, []) for code in codes})
    matrix = np.full((len(codes), len(codes)), np.nan)
    for i, a in enumerate(codes):
        for j, b in enumerate(codes):
            if a == b:
                matrix[i, j] = 0.0
            elif distance.kind == "tree":
                matrix[i, j] = family_distance(registry[a], registry[b])
            elif (given := distance.pairs.get(frozenset((a, b)))) is not None:
                matrix[i, j] = given if distance.kind == "distance" else 1 - given
    return pd.DataFrame(matrix, index=codes, columns=codes)


def distance_matrices(
    registry: Registry, codes: Iterable[str], parallel: Mapping[str, list[str]] | None = None
) -> dict[str, pd.DataFrame]:
    """Every declared distance between `codes`; a measured one only when `parallel` texts are given."""
    codes = list(codes)
    wanted = [name for name, distance in registry.distances.items() if parallel or distance.kind != "measured"]
    return {name: distance_matrix(registry, name, codes, parallel) for name in wanted}


def family_distance(a: Language, b: Language) -> int:
    """Levels from a language up to the last node it shares with another: 0 itself, 1 same finest group, 5 nothing."""
    if a.code == b.code:
        return 0
    shared = 0
    for node_a, node_b in zip(a.family, b.family, strict=True):
        if node_a != node_b:
            break
        shared += 1
    return len(a.family) - shared + 1


def char_ngram_distance(texts: Mapping[str, list[str]], size: int = 3) -> pd.DataFrame:
    """1 - Jaccard overlap of the sets of character n-grams of parallel texts, for every pair of languages.

    `texts[code]` are one language's versions of the same replies, aligned by position; only positions that all
    languages have are used, so that no language's set is larger because it has more text. A language without
    texts gets nan. Case is folded and runs of white space become one space: layout is not language.
    """
    given = {code: rows for code, rows in texts.items() if rows}
    rows = min((len(replies) for replies in given.values()), default=0)
    grams = {code: set().union(*(_ngrams(text, size) for text in given[code][:rows])) for code in given}
    codes = list(texts)
    matrix = np.full((len(codes), len(codes)), np.nan)
    for i, a in enumerate(codes):
        for j, b in enumerate(codes):
            if a == b:
                matrix[i, j] = 0.0
            elif a in grams and b in grams and (union := grams[a] | grams[b]):
                matrix[i, j] = 1 - len(grams[a] & grams[b]) / len(union)
    return pd.DataFrame(matrix, index=codes, columns=codes)


def parallel_texts(table: pd.DataFrame) -> dict[str, list[str]]:
    """Aligned texts by language from columns language, id, text; only ids that every language has."""
    wide = table.pivot(index="id", columns="language", values="text").dropna().sort_index()
    return {code: wide[code].tolist() for code in wide.columns}


def _ngrams(text: str, size: int) -> set[str]:
    folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return {folded[i : i + size] for i in range(len(folded) - size + 1)}


def _read_pairs(pairs: dict, languages: dict, where: str) -> dict[frozenset[str], float | None]:
    result: dict[frozenset[str], float | None] = {}
    for key, value in pairs.items():
        codes = key.split("-")
        for code in codes:
            if code not in languages:
                raise ValueError(f"{where}.{key}: {unknown(code, languages, 'language')}")
        pair = frozenset(codes)
        if len(codes) != 2 or len(pair) != 2:
            raise ValueError(f"{where}.{key}: write a pair of two different codes, such as es-pt.")
        if pair in result:
            raise ValueError(f"{where}.{key}: this pair is given twice.")
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{where}.{key}: {value} lies outside 0 to 1.")
        result[pair] = value
    return result
