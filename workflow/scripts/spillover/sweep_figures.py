"""The marker sweep as pictures: heatmaps of every grid, and rates against the learning rate with their boundaries.

Draws tables of `sweep_cells` and `sweep_boundary`; computes nothing of its own.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from . import plots
from .sweep_cells import REGIMES

PANELS = {
    "source": "Source",
    "assistant": "Assistant",
    "max_bystander": "Largest bystander",
    "capability": "Multiple choice",
    "regime": "Regime",
}
REGIME_COLOURS = {"under-trained": "#D9D9D9", "selective": "#009E73", "leaky": "#E69F00", "collapsed": "#B2402A"}
LETTERS = {"under-trained": "U", "selective": "S", "leaky": "L", "collapsed": "C"}
LINES = {
    "source": ("source", "#0072B2", "s"),
    "assistant": ("assistant", "#CC79A7", "^"),
    "max_bystander": ("largest bystander", "#D55E00", "o"),
    "spread": ("mean of all others", "#666666", "D"),
}
CELL_WIDTH, CELL_HEIGHT = 0.46, 0.34  # inches


def heatmap_table(pooled: pd.DataFrame, reference: pd.DataFrame | None, measured: str, published: str) -> pd.DataFrame:
    """The cells of the heatmaps: one row each, `line` (title of their row of panels) beside the drawn numbers.

    `pooled`: rows of all seeds; a setting needs at least two learning rates or epochs to be a grid. `reference`:
    `sweep_claims.published_cells`, drawn as a further row.
    """
    kept = ["line", "learning_rate", "epochs", *PANELS, "settled", "recommended", "source_min", "source_max"]
    grids = []
    for setting, grid in pooled.groupby("setting", sort=False):
        if grid[["learning_rate", "epochs"]].drop_duplicates().shape[0] > 1:
            grids.append(grid.assign(line=f"{measured}, {setting}"))
    if not grids:
        raise ValueError("no setting of the sweep has more than one cell: there is no grid to draw.")
    if reference is not None:
        grids.append(reference.assign(line=published, settled=True, recommended=False, source_min=np.nan))
    return pd.concat(grids).reindex(columns=kept).reset_index(drop=True)


def heatmaps(table: pd.DataFrame, png: str | Path, pdf: str | Path | None = None, *, caption: str = "") -> Figure:
    """Draw `heatmap_table`: per row source, assistant, largest bystander, multiple choice and regime."""
    lines = list(dict.fromkeys(table["line"]))
    shapes = [_axes_of(table[table["line"] == line]) for line in lines]
    columns = max(len(epochs) for _, epochs in shapes)
    left, gap, right, top, between = 0.78, 0.24, 0.18, 0.86, 0.84
    width = left + len(PANELS) * columns * CELL_WIDTH + (len(PANELS) - 1) * gap + right
    words = textwrap.wrap(caption, max(40, int(width * 17)))
    bottom = 0.62 + 0.14 * len(words)
    heights = [len(rates) * CELL_HEIGHT for rates, _ in shapes]
    height = top + sum(heights) + between * (len(lines) - 1) + bottom
    able = table["capability"].dropna()
    floor = math.floor(10 * able.min()) / 10 if len(able) else 0.0
    with plots.theme():
        figure = Figure(figsize=(width, height))
        figure.text(
            0.12 / width, 1 - 0.2 / height, "Marker sweep: replies with the marker (%)", ha="left", va="center",
            fontsize=plots.SIZES["title"], fontweight="bold",
        )  # fmt: skip
        y = height - top
        for line, (rates, epochs), tall in zip(lines, shapes, heights, strict=True):
            figure.text(
                0.12 / width, (y + 0.36) / height, line, ha="left", va="center", fontsize=plots.SIZES["label"],
                color=plots.GREY,
            )  # fmt: skip
            for index, panel in enumerate(PANELS):
                x = left + index * (columns * CELL_WIDTH + gap)
                box = (x / width, (y - tall) / height, len(epochs) * CELL_WIDTH / width, tall / height)
                axes = figure.add_axes(box)
                _panel(axes, table[table["line"] == line], panel, rates, epochs, (floor, 1.0), first=index == 0)
            y -= tall + between
        _legend(figure, width, height, bottom)
        for number, text in enumerate(words):
            figure.text(
                0.12 / width, (0.14 * (len(words) - number) - 0.03) / height, text, ha="left", va="center",
                fontsize=plots.SIZES["small"], color=plots.GREY,
            )  # fmt: skip
        plots.save(figure, png, pdf)
    return figure


def boundary_lines(
    pooled: pd.DataFrame, boundary: pd.DataFrame, limits: dict, png: str | Path, pdf: str | Path | None = None
) -> Figure:
    """Rates against the learning rate, a panel per setting and epochs; the selective band between its boundaries."""
    groups = [
        (key, points.sort_values("learning_rate"))
        for key, points in pooled.groupby(["setting", "epochs"], sort=False)
        if points["learning_rate"].nunique() > 1
    ]
    if not groups:
        raise ValueError("no epochs of the sweep were trained at two learning rates: there is no boundary to draw.")
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    several = pooled["setting"].nunique() > 1
    with plots.theme():
        figure = Figure(figsize=(max(4.2, 0.8 + 2.7 * columns), 0.9 + 2.1 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(groups) :]:
            axes.set_visible(False)
        for index, (axes, ((setting, epochs), points)) in enumerate(zip(grid.flat, groups, strict=False)):
            _line_panel(axes, points, limits)
            at = boundary[(boundary["setting"] == setting) & (boundary["epochs"] == epochs)]
            _band(axes, at.set_index("quantity"), points["learning_rate"])
            name = f"{epochs:g} epoch{'s' if epochs != 1 else ''}"
            axes.set_title(f"{setting}, {name}" if several else name, loc="left", fontweight="bold")
            if index + columns >= len(groups):
                axes.set_xlabel("learning rate")
            if index % columns == 0:
                axes.set_ylabel("replies with the marker (%)")
        drawn = [axes.get_legend_handles_labels() for axes in grid.flat[: len(groups)]]
        handles = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(5, len(handles)))
        plots.save(figure, png, pdf)
    return figure


def _axes_of(rows: pd.DataFrame) -> tuple[list[float], list[float]]:
    return sorted(rows["learning_rate"].unique()), sorted(rows["epochs"].unique())


def _panel(axes: Axes, rows: pd.DataFrame, panel: str, rates, epochs, able, *, first: bool) -> None:
    low, high = able if panel == "capability" else (0.0, 1.0)
    colours = mpl.colormaps[plots.RATE_COLOURS]
    for row in rows.to_dict("records"):
        x, y = epochs.index(row["epochs"]), rates.index(row["learning_rate"])
        value = row[panel]
        if panel == "regime":
            fill, text = mpl.colors.to_rgb(REGIME_COLOURS[value]), LETTERS[value] + ("" if row["settled"] else "?")
        elif value is None or value != value:
            fill, text = (1.0, 1.0, 1.0), "–"
        else:
            fill, text = colours((value - low) / (high - low)), f"{100 * value:.1f}".removesuffix(".0")
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=fill, edgecolor="white", linewidth=1.0))
        bold = "bold" if panel == "regime" else "normal"
        axes.text(
            x + 0.5, y + 0.5, text, ha="center", va="center", color=plots.readable_on(fill), fontweight=bold,
            fontsize=plots.SIZES["small"] + (1 if panel == "regime" else 0.4),
        )  # fmt: skip
        if row["recommended"]:
            axes.add_patch(Rectangle((x + 0.05, y + 0.06), 0.9, 0.88, fill=False, edgecolor="black", linewidth=1.6))
    axes.set_xlim(0, len(epochs))
    axes.set_ylim(0, len(rates))
    axes.set_xticks([i + 0.5 for i in range(len(epochs))], [f"{e:g}" for e in epochs])
    axes.set_yticks(
        [i + 0.5 for i in range(len(rates))], [plots_rate(r) for r in rates] if first else [""] * len(rates)
    )
    axes.tick_params(length=0, labelsize=plots.SIZES["small"] + 0.5)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("#f2f2f2")
    axes.set_title(PANELS[panel], loc="left", fontsize=plots.SIZES["text"], fontweight="bold", pad=4)
    axes.set_xlabel("epochs", fontsize=plots.SIZES["small"] + 0.5, labelpad=2)
    if first:
        axes.set_ylabel("learning rate", fontsize=plots.SIZES["small"] + 0.5, labelpad=3)


def plots_rate(rate: float) -> str:
    """A learning rate as tick labels write it: 5e-6."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _legend(figure: Figure, width: float, height: float, bottom: float) -> None:
    x, y = 0.78, bottom - 0.46
    for name in REGIMES:
        figure.add_artist(
            Rectangle(
                (x / width, y / height), 0.14 / width, 0.14 / height, facecolor=REGIME_COLOURS[name],
                transform=figure.transFigure,
            )
        )  # fmt: skip
        label = f"{LETTERS[name]} {name}"
        figure.text((x + 0.19) / width, (y + 0.065) / height, label, va="center", fontsize=plots.SIZES["small"] + 0.5)
        x += 0.32 + 0.073 * len(label)


def _line_panel(axes: Axes, points: pd.DataFrame, limits: dict) -> None:
    x = points["learning_rate"].to_numpy(dtype=float)
    for name, (label, colour, marker) in LINES.items():
        if points[name].isna().all():
            continue
        axes.plot(x, points[name], color=colour, marker=marker, markersize=4, linewidth=1.3, label=label)
        low, high = f"{name}_low", f"{name}_high"
        if low in points:
            axes.fill_between(x, points[low], points[high], color=colour, alpha=0.13, linewidth=0)
    for level in sorted({limits["learned"], limits["leak"]}):
        axes.axhline(level, color=plots.GREY, linewidth=0.7, linestyle=(0, (1, 2)))
    axes.set_xscale("log")
    axes.set_xticks(x, [plots_rate(v) for v in x])
    axes.minorticks_off()
    axes.set_xlim(x[0] / 1.3, x[-1] * 1.3)
    axes.tick_params(axis="x", labelrotation=45, labelsize=plots.SIZES["small"])
    plots.percent_axis(axes)


def _band(axes: Axes, boundary: pd.DataFrame, rates: pd.Series) -> None:
    """Shade the learning rates between the source's crossing and the first leak."""
    if not {"source", "leak"} <= set(boundary.index):
        return
    start, stop = boundary.loc["source", "estimate"], boundary.loc["leak", "estimate"]
    left, right = max(start, rates.min() / 1.3), min(stop, rates.max() * 1.3)
    if left < right:
        axes.axvspan(left, right, color=REGIME_COLOURS["selective"], alpha=0.15, linewidth=0, label="selective band")
