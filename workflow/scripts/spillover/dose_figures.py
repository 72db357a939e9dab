"""The dose response: how contamination grows with the learning rate, a small panel per condition.

Draws the table of `dose_table`, saved beside the figure; the statistics are `contamination`'s.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import plots
from .contamination import bystander_means, pool_seeds


def dose_table(cells: pd.DataFrame, label_source: str = "langdetect") -> pd.DataFrame:
    """Rates by learning rate: condition, learning_rate, quantity, rate, low, high, n_seeds, n.

    quantity: trained, correct, control (single cells, pooled over seeds) and bystander (mean over the bystander
    languages). Bystander rows carry `base_rate`: the untrained model's mean share of the same completion language
    in the same directives.
    """
    cells = cells[cells["label_source"] == label_source]
    pooled = pool_seeds(cells)
    own = pooled[pooled["role"].isin(["trained", "correct", "control"])].rename(columns={"role": "quantity"})
    means = bystander_means(cells).assign(quantity="bystander")
    base = pooled[pooled["role"] == "base"].set_index(["completion", "language"])["rate"]
    asked = pooled[pooled["role"] == "bystander"].groupby(["condition", "completion"])["language"].unique()
    level = {
        key: float(np.mean([base[key[1], code] for code in codes if (key[1], code) in base.index] or [np.nan]))
        for key, codes in asked.items()
    }
    means["base_rate"] = [level[key] for key in zip(means["condition"], means["completion"], strict=True)]
    kept = ["condition", "learning_rate", "directive", "completion", "quantity", "rate", "low", "high", "n_seeds", "n"]
    table = pd.concat([own[kept], means[[*kept, "base_rate"]]], ignore_index=True)
    order = {name: i for i, name in enumerate(dict.fromkeys(pooled["condition"]))}
    return table.sort_values(
        ["condition", "quantity", "learning_rate"], key=lambda c: c.map(order) if c.name == "condition" else c
    )


def dose_response(
    table: pd.DataFrame, png: str | Path, pdf: str | Path | None = None, *, label_source: str = "langdetect"
) -> Figure:
    """Small multiples of `dose_table`, a condition each: rates against learning rate, with shaded intervals."""
    if table["learning_rate"].isna().any():
        raise ValueError("dose_response: every condition needs a learning_rate.")
    conditions = list(dict.fromkeys(table["condition"]))
    columns = min(4, len(conditions))
    rows = -(-len(conditions) // columns)
    with plots.theme():
        figure = Figure(figsize=(max(3.6, 0.7 + 2.15 * columns), 1.4 + 1.7 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(conditions) :]:
            axes.set_visible(False)
        handles = {}
        for index, (axes, condition) in enumerate(zip(grid.flat, conditions, strict=False)):
            of_condition = table[table["condition"] == condition]
            first = of_condition.iloc[0]
            for quantity, line in of_condition.groupby("quantity", sort=False):
                handles[quantity] = _dose_line(axes, line.sort_values("learning_rate"), quantity)
            level = of_condition["base_rate"].dropna()
            if len(level):
                handles["base"] = axes.axhline(level.iloc[0], color=plots.GREY, linewidth=0.9, linestyle=(0, (1, 1.5)))
            axes.set_title(plots.pair_label(first["directive"], first["completion"]), loc="left", fontweight="bold")
            axes.set_xscale("log")
            ticks = sorted(set(table["learning_rate"]))
            axes.set_xticks(ticks, [_exponent(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_xlim(ticks[0] / 1.35, ticks[-1] * 1.35)
            axes.tick_params(labelbottom=index + columns >= len(conditions))
            if index + columns >= len(conditions):
                axes.set_xlabel("learning rate")
            if index % columns == 0:
                axes.set_ylabel("replies in completion\nlanguage (%)")
            plots.percent_axis(axes)
        words = {
            "trained": "trained directive",
            "correct": "directive of the completion language",
            "bystander": "bystander directives, mean",
            "base": "untrained model, same directives",
        }
        handles.setdefault("correct", handles.get("control"))
        shown = [name for name in words if handles.get(name)]
        above = {
            "loc": "outside upper left",
            "ncols": min(len(shown), columns),
            "columnspacing": 1.2,
            "handlelength": 1.8,
        }
        figure.legend([handles[n] for n in shown], [words[n] for n in shown], **above)
        foot = textwrap.wrap(_dose_caption(table, label_source), int(figure.get_figwidth() * 19))
        height = figure.get_figheight()
        figure.get_layout_engine().set(
            rect=(0, (0.13 * len(foot) + 0.1) / height, 1, 1 - (0.13 * len(foot) + 0.1) / height)
        )
        note = {"ha": "left", "va": "bottom", "fontsize": plots.SIZES["small"], "color": "#444444"}
        figure.text(0.08 / figure.get_figwidth(), 0.05 / height, "\n".join(foot), **note)
        plots.save(figure, png, pdf)
    return figure


def _dose_caption(table: pd.DataFrame, label_source: str) -> str:
    n, seeds = sorted(set(table.loc[table["quantity"] != "bystander", "n"])), sorted(set(table["n_seeds"]))
    count = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    covers = "covering the sampling of completions only" if seeds == [1] else "over seeds, phrasings and completions"
    return (
        f"N = {count} replies a directive, {plots.seed_words(seeds)}; label: {label_source}; shading: 95 %, {covers}."
    )


def _exponent(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _dose_line(axes: Axes, line: pd.DataFrame, quantity: str) -> Line2D:
    colour = plots.ROLE_COLOURS[quantity]
    axes.fill_between(line["learning_rate"], line["low"], line["high"], color=colour, alpha=0.18, linewidth=0)
    if len(line) == 1:
        axes.vlines(line["learning_rate"], line["low"], line["high"], color=colour, linewidth=1)
    style = {"marker": plots.ROLE_MARKERS[quantity], "markersize": 4, "linewidth": 1.4, "clip_on": False}
    if quantity in (
        "correct",
        "control",
    ):  # hollow and larger: it often lies under the trained directive's line at 100 %
        style |= {"markersize": 7, "markerfacecolor": "none"}
    return axes.plot(line["learning_rate"], line["rate"], color=colour, **style)[0]
