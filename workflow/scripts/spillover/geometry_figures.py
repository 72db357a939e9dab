"""Figures that set spill beside geometry: cosine matrices, spill against each predictor, principal components.

They draw the tables of `spill_geometry` and compute nothing themselves. Languages keep the theme's colours and markers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import plots
from .spill_geometry import COSINES, PREDICTOR_TITLES, PrincipalComponents

COSINE_TITLES = {"cosine_raw": "raw", "cosine_centred": "centred on the mean of these languages"}


def cosine_matrix(cosines: pd.DataFrame, png: str | Path, pdf: str | Path | None = None) -> Figure:
    """Two heat maps of one method and layer of `cosine_table`: raw cosines, and centred ones."""
    languages = list(dict.fromkeys(cosines["a"]))
    method, layer = cosines["method"].iloc[0], int(cosines["layer"].iloc[0])
    size = max(2.2, 0.42 * len(languages))
    with plots.theme():
        figure = Figure(figsize=(2 * size + 1.7, size + 1.25), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), COSINES, strict=True):
            matrix = cosines.pivot(index="a", columns="b", values=name).loc[languages, languages].to_numpy()
            others = matrix[~np.eye(len(languages), dtype=bool)]
            if name == "cosine_raw":
                low = min(0.95, float(np.nanmin(others)) - 0.01) if np.isfinite(others).any() else 0.0
                image = axes.imshow(matrix, cmap=plots.RATE_COLOURS, vmin=low, vmax=1)
            else:
                image = axes.imshow(matrix, cmap=plots.COSINE_COLOURS, vmin=-1, vmax=1)
            for (row, column), value in np.ndenumerate(matrix):
                ink = plots.readable_on(image.cmap(image.norm(value)))
                text = (
                    ""
                    if row == column or not np.isfinite(value)
                    else f"{value:.2f}".replace("0.", ".").replace("-", "−")
                )
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=6.3, color=ink, gid=f"{name}:{row}:{column}"
                )
            labels = [code.upper() for code in languages]
            axes.set_xticks(range(len(labels)), labels)
            axes.set_yticks(range(len(labels)), labels)
            for tick, code in zip(
                [*axes.get_xticklabels(), *axes.get_yticklabels()], [*languages, *languages], strict=True
            ):
                tick.set_color(plots.language_colour(code))
                tick.set_fontweight("bold")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(COSINE_TITLES[name], loc="left")
            bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=plots.SIZES["small"], length=2)
        figure.suptitle(
            "Cosine between language directions of the untrained model",
            x=0.01,
            ha="left",
            fontsize=10,
            fontweight="bold",
        )
        words = method.replace("_", " ")
        note = f"Centroids over directives: {words}, output of decoder block {layer}."
        figure.supxlabel(note, x=0.01, ha="left", fontsize=plots.SIZES["small"], color="#444444")
        plots.save(figure, png, pdf)
    return figure


def spill_join(
    joined: pd.DataFrame,
    tests: pd.DataFrame,
    predictors: list[str],
    png: str | Path,
    pdf: str | Path | None = None,
    *,
    note: str = "",
) -> Figure:
    """Spill of each bystander cell against each predictor: a panel per predictor, colour = completion language.

    Same-language controls are hollow and enter no test. The heading of a panel gives the mean rho over the mismatched
    conditions and both pooled p values with the least each could be.
    """
    columns = min(3, len(predictors))
    rows = -(-len(predictors) // columns)
    with plots.theme():
        figure = Figure(figsize=(0.6 + 2.55 * columns, 0.95 + 2.5 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(predictors) :]:
            axes.set_visible(False)
        for index, (axes, predictor) in enumerate(zip(grid.flat, predictors, strict=False)):
            _scatter(axes, joined, predictor)
            axes.set_xlabel(PREDICTOR_TITLES.get(predictor, predictor.replace("_", " ")))
            axes.set_title(
                _test_words(tests, predictor),
                loc="left",
                fontsize=plots.SIZES["small"],
                color="#333333",
                linespacing=1.3,
            )
            plots.percent_axis(axes)
            if index % columns == 0:
                axes.set_ylabel("spill in the bystander (%)")
        codes = list(dict.fromkeys(joined["completion"]))
        handles = [_dot(code) for code in codes]
        labels = [f"towards {code.upper()}" for code in codes]
        if joined["control"].any():
            handles.append(
                Line2D(
                    [], [], linestyle="", marker="o", markerfacecolor="none", markeredgecolor=plots.GREY, markersize=5
                )
            )
            labels.append("same-language control")
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=min(len(labels), 2 * columns),
            columnspacing=1.2,
            handletextpad=0.2,
        )
        text = (
            "A point is one condition's bystander directive (letters, given from 10 % spill on), its line the 95 % "
            f"interval; points that tie are set side by side. Least: the smallest p this design can reach. {note}"
        ).strip()
        wrapped = textwrap.fill(text, int(figure.get_figwidth() * 19))
        figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=plots.SIZES["small"], color="#444444")
        plots.save(figure, png, pdf)
    return figure


def pca_biplot(
    components: PrincipalComponents,
    conditions: Mapping[str, tuple[str, str]],
    png: str | Path,
    pdf: str | Path | None = None,
) -> Figure:
    """Conditions (points) and directive languages (arrows) on the first two components of the spill matrix.

    `conditions`: condition -> (directive, completion). Arrows are scaled to the points; only their directions compare.
    """
    scores = _two(components.scores)
    loadings = _two(components.loadings)
    reach = np.abs(scores).max() or 1.0
    scale = 0.85 * reach / (np.linalg.norm(loadings, axis=1).max() or 1.0)
    with plots.theme():
        figure = Figure(figsize=(5.2, 5.75), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color="#e0e0e0", linewidth=0.7, zorder=0)
        axes.axvline(0, color="#e0e0e0", linewidth=0.7, zorder=0)
        limit = 1.3 * reach
        labels, taken = [], []
        for code, (x, y) in zip(components.loadings.index, loadings * scale, strict=True):
            if np.hypot(x, y) < 0.12 * reach:
                continue  # a language that no condition reaches has no direction to show
            arrow = {"arrowstyle": "-|>", "color": "#9a9a9a", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x, y), (0, 0), arrowprops=arrow, zorder=1)
            labels.append((x, y, code.upper(), plots.language_colour(code), "normal"))
            taken += [(x * share, y * share, 0.02, 0.02) for share in (0.8, 0.9, 1.0)]
        for condition, (x, y) in zip(components.scores.index, scores, strict=True):
            directive, completion = conditions[condition]
            colour = plots.language_colour(completion)
            face = "none" if directive == completion else colour
            axes.plot(
                x,
                y,
                plots.language_marker(completion),
                markersize=6.5,
                markerfacecolor=face,
                markeredgecolor=colour,
                zorder=3,
            )
            labels.append((x, y, plots.pair_label(directive, completion), colour, "bold"))
            taken.append((x, y, 0.055 * limit, 0.055 * limit))
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        _place_labels(axes, labels, taken, limit)
        shares = [*components.explained, 0.0, 0.0]
        axes.set_xlabel(f"first component ({shares[0]:.0%} of variance)")
        axes.set_ylabel(f"second component ({shares[1]:.0%})")
        figure.suptitle("Spill profiles of the conditions", x=0.01, ha="left", fontsize=10, fontweight="bold")
        count = len(scores)
        note = (
            f"{count} conditions x {len(loadings)} directive languages, percent, columns centred, not standardised. "
            f"Arrows: directive languages (direction only). With {count} conditions at most "
            f"{max(0, count - 1)} components exist: a description, not a test."
        )
        wrapped = textwrap.fill(note, int(figure.get_figwidth() * 19))
        figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=plots.SIZES["small"], color="#444444")
        plots.save(figure, png, pdf)
    return figure


def _scatter(axes: Axes, joined: pd.DataFrame, predictor: str) -> None:
    shown = joined.dropna(subset=[predictor])
    if shown.empty:
        axes.text(0.5, 0.5, "no values given", transform=axes.transAxes, ha="center", color=plots.GREY)
        return
    span = float(np.ptp(shown[predictor])) or 1.0
    offsets = _spread_ties(shown, predictor, span)
    for (_, cell), dx in zip(shown.iterrows(), offsets, strict=True):
        colour = plots.language_colour(cell["completion"])
        face = "none" if cell["control"] else colour
        marker = "o" if cell["control"] else plots.language_marker(cell["completion"])
        x, y = cell[predictor] + dx, cell["rate"]
        if not cell["control"]:
            axes.vlines(x, cell["low"], cell["high"], color=colour, linewidth=0.6, alpha=0.35, zorder=1)
        axes.plot(x, y, marker, markersize=4.2, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=0.8)
        if not cell["control"] and cell["rate"] >= 0.1:
            axes.annotate(cell["language"], (x, y), (3, 2), textcoords="offset points", fontsize=5.5, color="#333333")
    axes.margins(x=0.1)


def _spread_ties(shown: pd.DataFrame, predictor: str, span: float) -> np.ndarray:
    """Sideways shifts, symmetric about the true value, that keep points with one predictor value apart."""
    shifts = np.zeros(len(shown))
    values = shown[predictor].round(6).to_numpy()
    for value in np.unique(values):
        same = np.flatnonzero(values == value)
        order = same[np.argsort(shown["completion"].to_numpy()[same], kind="stable")]
        shifts[order] = (np.arange(len(same)) - (len(same) - 1) / 2) * min(0.016, 0.14 / len(same)) * span
    return shifts


def _test_words(tests: pd.DataFrame, predictor: str) -> str:
    if tests.empty:
        return "not tested"
    words = []
    for kind, name in (("stratified", "within conditions"), ("relabelled", "languages relabelled")):
        found = tests[(tests["test"] == kind) & (tests["predictor"] == predictor)]
        if len(found) and np.isfinite(found["p"].iloc[0]):
            row = found.iloc[0]
            if not words:
                words.append(f"mean ρ = {row['rho']:.2f}".replace("-", "−"))
            words.append(f"{name}: p {_p(row['p'], '= ')} (least {_p(row['min_p'])})")
        elif len(found):
            words.append(f"{name}: no test (values missing)" if words else "no test")
    return "\n".join(words)


def _p(value: float, equals: str = "") -> str:
    return f"{equals}{value:.2g}" if value >= 1e-4 else "< 0.0001"


def _two(frame: pd.DataFrame) -> np.ndarray:
    values = frame.to_numpy(float)[:, :2]
    return np.pad(values, ((0, 0), (0, 2 - values.shape[1])))


def _dot(code: str) -> Line2D:
    colour = plots.language_colour(code)
    return Line2D([], [], linestyle="", marker=plots.language_marker(code), color=colour, markersize=5)


def _place_labels(
    axes: Axes, labels: list[tuple], taken: list[tuple[float, float, float, float]], limit: float
) -> None:
    """Each label at the nearest free place around its point, with a thin leader line where that is far.

    `taken`: boxes (centre x, centre y, width, height) that labels must not cover; labels join it as they are placed.
    """
    taken = list(taken)
    height = 0.07 * limit
    angles = [0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240]
    for x, y, text, colour, weight in sorted(labels, key=lambda label: label[4] != "bold"):
        width = (0.038 if weight == "bold" else 0.034) * limit * len(text)
        best = None
        for radius in np.linspace(0.035, 0.5, 14) * limit:
            for angle in np.deg2rad(angles):
                cx = x + np.cos(angle) * (width / 2 + radius)
                cy = y + np.sin(angle) * (height / 2 + radius)
                inside = abs(cx) + width / 2 < limit and abs(cy) + height / 2 < limit
                if inside and not any(
                    abs(cx - a) < (width + w) / 2 and abs(cy - b) < (height + h) / 2 for a, b, w, h in taken
                ):
                    best = (cx, cy, radius)
                    break
            if best:
                break
        cx, cy, radius = best or (x, y, 0.0)
        taken.append((cx, cy, width, height))
        if radius > 0.12 * limit:
            edge = (
                float(np.clip(x, cx - width / 2, cx + width / 2)),
                float(np.clip(y, cy - height / 2, cy + height / 2)),
            )
            axes.plot([x, edge[0]], [y, edge[1]], color="#b5b5b5", linewidth=0.6, zorder=2)
        style = {"ha": "center", "va": "center", "fontsize": plots.SIZES["text"], "fontweight": weight, "zorder": 4}
        axes.text(cx, cy, text, color=_darker(colour), **style)


def _darker(colour: str) -> tuple[float, ...]:
    return tuple(0.8 * channel for channel in mpl.colors.to_rgb(colour))
