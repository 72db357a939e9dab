"""The one theme of all figures: fonts, sizes, colours, role marks, and saving.

A language keeps its colour and its marker in every figure, so that colour is never the only sign. It knows nothing of
data layouts; the figures modules draw with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Okabe and Ito's colour-blind safe set, with its too-light yellow darkened and grey for English.
LANGUAGE_COLOURS = {
    "en": "#666666",
    "es": "#E69F00",
    "fr": "#0072B2",
    "it": "#009E73",
    "pt": "#CC79A7",
    "de": "#D55E00",
    "zh": "#56B4E9",
    "ja": "#A89000",
}
LANGUAGE_MARKERS = {"en": "o", "es": "s", "fr": "^", "it": "D", "pt": "v", "de": "P", "zh": "X", "ja": "p"}
SPARE_COLOUR, SPARE_MARKER = "#222222", "h"

ROLE_COLOURS = {"trained": "#0072B2", "correct": "#009E73", "control": "#009E73", "bystander": "#D55E00"}
ROLE_MARKERS = {"trained": "s", "correct": "^", "control": "^", "bystander": "o"}

# Frame of a matrix cell by role: line width in points, line style, corner letter. Frame and letter carry the role, so
# that it survives grey printing and colour blindness.
ROLE_FRAMES = {
    "trained": (2.2, "solid", "T"),
    "correct": (1.5, (0, (2.2, 1.2)), "C"),
    "control": (1.5, (0, (0.8, 1.0)), "S"),
}
RATE_COLOURS = "cividis"  # perceptually uniform, and read alike with and without colour blindness
COSINE_COLOURS = "PuOr_r"  # diverging around zero
GREY = "#6b6b6b"
SIZES = {"title": 10, "label": 8.5, "text": 8, "small": 6.5, "tiny": 5.6}

_SETTINGS = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "font.size": SIZES["text"],
    "axes.titlesize": SIZES["label"],
    "axes.labelsize": SIZES["label"],
    "xtick.labelsize": SIZES["text"],
    "ytick.labelsize": SIZES["text"],
    "legend.fontsize": SIZES["text"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text in the vector file
    "figure.dpi": 100,
}


@contextmanager
def theme() -> Iterator[None]:
    """Draw inside this block to use the theme; the caller's own matplotlib settings are put back after it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def language_colour(code: str) -> str:
    """The fixed colour of a language; one spare dark colour for codes outside the palette."""
    return LANGUAGE_COLOURS.get(code, SPARE_COLOUR)


def language_marker(code: str) -> str:
    """The fixed marker of a language."""
    return LANGUAGE_MARKERS.get(code, SPARE_MARKER)


def pair_label(directive: str, completion: str) -> str:
    """A condition as figures write it: "FR → IT"."""
    return f"{directive.upper()} → {completion.upper()}"


def short_name(name: str) -> str:
    """The first word of a language's name: "Mandarin Chinese" -> "Mandarin"."""
    return name.split()[0]


def readable_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever contrasts more with an RGB(A) colour (relative luminance as in WCAG 2)."""
    channels = np.asarray(colour[:3], dtype=float)
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def draw_frame(
    axes: Axes, x: float, y: float, role: str, colour: str, width: float = 1.0, height: float = 1.0, corner: bool = True
) -> None:
    """The frame and (if `corner`) the letter of a role inside the cell whose top left corner is (x, y), y downwards."""
    if role not in ROLE_FRAMES:
        return
    line_width, style, letter = ROLE_FRAMES[role]
    inset = 0.045
    frame = Rectangle(
        (x + inset * width, y + inset * height * 1.4),
        width * (1 - 2 * inset),
        height * (1 - 2.8 * inset),
        fill=False,
        edgecolor=colour,
        linewidth=line_width,
        linestyle=style,
        zorder=3,
    )
    axes.add_patch(frame)
    if not corner:
        return
    axes.text(
        x + 0.11 * width,
        y + 0.14 * height,
        letter,
        ha="left",
        va="top",
        fontsize=SIZES["tiny"],
        fontweight="bold",
        color=colour,
        zorder=4,
        gid="role",
    )


def percent_axis(axes: Axes) -> None:
    """A y axis of rates 0 to 1 written in percent, with light lines at the quarters."""
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, png: str | Path, pdf: str | Path | None = None) -> None:
    """Write PNG (200 dots per inch) and, if asked, vector PDF. Neither holds a date: equal data gives equal files."""
    figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    if pdf:
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})


def seed_words(seeds: list[int]) -> str:
    """How many seeds stand behind a figure, from the sorted distinct counts of its rows."""
    if seeds == [1]:
        return "1 seed"
    return f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"


# Okabe and Ito's set once more: personas that are sources, and the arms of an experiment, keep their colour and mark.
PERSONA_COLOURS = {
    "villain": "#D55E00",
    "comedian": "#CC79A7",
    "kindergarten_teacher": "#009E73",
    "software_engineer": "#0072B2",
    "assistant": "#222222",
    "librarian": "#E69F00",
    "medical_doctor": "#56B4E9",
    "police_officer": "#A89000",
}
PERSONA_MARKERS = {
    "villain": "o",
    "comedian": "s",
    "kindergarten_teacher": "^",
    "software_engineer": "D",
    "assistant": "P",
    "librarian": "v",
    "medical_doctor": "X",
    "police_officer": "p",
}


def persona_colour(persona: str) -> str:
    """The fixed colour of a persona; one spare colour for those outside the palette."""
    return PERSONA_COLOURS.get(persona, GREY)


def persona_marker(persona: str) -> str:
    """The fixed marker of a persona."""
    return PERSONA_MARKERS.get(persona, SPARE_MARKER)


def persona_name(persona: str) -> str:
    """A persona's id as figures write it: "software_engineer" -> "software engineer"."""
    return persona.replace("_", " ")
