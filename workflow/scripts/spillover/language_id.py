"""Language identification: text in, a registry code or "other" out.

Two identifiers, each the same on every machine and in every process:

* `langdetect` follows the published rule: first 500 characters, fewer than 5 characters or no answer -> other, both
  Chinese labels -> zh, a label outside the known languages -> other. It is weak on Mandarin (56 of 80 Mandarin replies
  of an untrained 7B model, against 73 by a judge), hence
* `lingua`, restricted to the known languages, as a second opinion. It always answers with one of them when it answers
  at all, so text in no known language shows only as None -> other.

The module knows nothing of completions, files or experiments.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version

from .languages import OTHER, Registry, unknown

PUBLISHED_CHARACTERS = 500
SHORTEST = 5  # characters; the published rule calls anything shorter "other"


@dataclass(frozen=True)
class Identifier:
    """A callable text -> label, with the description that goes into every row it labels."""

    name: str
    scorer_id: str
    label: Callable[[str], str]

    def __call__(self, text: str) -> str:
        return self.label(text)


def identifier(name: str, registry: Registry, codes: Iterable[str]) -> Identifier:
    """The identifier called `name`, knowing the languages `codes`. Raises ValueError for an unknown name or code."""
    if name not in IDENTIFIERS:
        raise ValueError(unknown(name, IDENTIFIERS, "language identifier"))
    return IDENTIFIERS[name](registry, registry.subset(codes))


def label_texts(identify: Identifier, texts: Iterable[str]) -> list[str]:
    """One label per text; equal texts are identified once."""
    seen: dict[str, str] = {}
    labels = []
    for text in texts:
        if text not in seen:
            seen[text] = identify(text)
        labels.append(seen[text])
    return labels


def _langdetect(registry: Registry, codes: tuple[str, ...]) -> Identifier:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    from langdetect.lang_detect_exception import LangDetectException

    # A factory of our own rather than the library's global one: its profiles load in sorted order (the library takes
    # the file system's) and its seed cannot be changed by other code. Unseeded, the answer is random.
    factory = DetectorFactory()
    profiles = []
    for filename in sorted(os.listdir(PROFILES_DIRECTORY)):
        if not filename.startswith("."):
            with open(os.path.join(PROFILES_DIRECTORY, filename), encoding="utf-8") as file:
                profiles.append(file.read())
    factory.load_json_profile(profiles)
    factory.set_seed(0)
    known = {label: code for code in codes for label in registry[code].langdetect}

    def label(text: str) -> str:
        if len(text.strip()) < SHORTEST:
            return OTHER
        detector = factory.create()
        detector.append(text[:PUBLISHED_CHARACTERS])
        try:
            return known.get(detector.detect(), OTHER)
        except LangDetectException:  # no letters at all
            return OTHER

    described = f"langdetect {version('langdetect')}, seed 0, first {PUBLISHED_CHARACTERS} characters"
    return Identifier("langdetect", f"{described}, languages {' '.join(codes)}", label)


def _lingua(registry: Registry, codes: tuple[str, ...]) -> Identifier:
    from lingua import Language, LanguageDetectorBuilder

    if len(codes) < 2:
        raise ValueError(f"lingua chooses between languages and needs at least two, got: {' '.join(codes) or 'none'}.")
    known = {getattr(Language, registry[code].lingua): code for code in codes}
    detector = LanguageDetectorBuilder.from_languages(*known).build()

    def label(text: str) -> str:
        # Confidences differ in their last digits from process to process (lingua sums over hash sets), so they are
        # rounded before the two best are compared; a tie is no answer, as in lingua itself.
        scores = sorted(
            (
                (round(item.value, 6), known[item.language])
                for item in detector.compute_language_confidence_values(text)
            ),
            reverse=True,
        )
        return OTHER if scores[0][0] == scores[1][0] else scores[0][1]

    described = f"lingua {version('lingua-language-detector')}, high accuracy"
    return Identifier("lingua", f"{described}, languages {' '.join(codes)}", label)


IDENTIFIERS: dict[str, Callable[[Registry, tuple[str, ...]], Identifier]] = {
    "langdetect": _langdetect,
    "lingua": _lingua,
}
