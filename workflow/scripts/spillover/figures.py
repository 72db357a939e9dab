"""The spill matrix: from pooled rates to the headline figure.

The figure draws the table of `matrix_table`, saved beside it, so that every number in the picture can be read as data.
The module computes no statistic of its own.
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
from matplotlib.patches import Rectangle

from . import plots
from .contamination import BASE
from .statistics import half_even_percent

GROUPS = {
    "mismatched": "Directive and completion language differ",
    "control": "Same-language control",
    "base": "Untrained model",
}
SPILL_ROW, COMPLIANCE_ROW = "spill", "complies"
CELL_WIDTH, CELL_HEIGHT, GAP = 0.62, 0.40, 0.26  # inches
ROLE_WORDS = {
    "trained": "trained: the directive taught to answer in the other language",
    "correct": "correct: the directive that asks for the completion language",
    "control": "the control's own directive",
}


def matrix_table(
    pooled: pd.DataFrame,
    languages: Mapping[str, str],
    label_source: str = "langdetect",
    published: Mapping | None = None,
) -> pd.DataFrame:
    """The cells of the spill matrix in drawing order: one row each, with the percentage as printed.

    `pooled`: rows of `pool_seeds` (one learning rate per condition); `languages`: code -> name, in column order;
    `published`: a mapping with `percent: {condition: {directive, completion, <code>: percent}}`, matched by directive
    and completion language. The untrained model gives two rows: `spill`, for each directive the largest share of any
    one studied completion language other than the one asked for, and `complies`, the share in the language asked for.
    """
    rows = pooled[(pooled["label_source"] == label_source) & pooled["language"].isin(list(languages))]
    if rows.empty:
        known = ", ".join(sorted(pooled["label_source"].unique()))
        raise ValueError(f"no cells labelled by {label_source!r}; the table has: {known}.")
    per_rate = rows.groupby("condition")["learning_rate"].nunique()
    if (per_rate > 1).any():
        raise ValueError(f"{per_rate.idxmax()} has several learning rates; choose one for the matrix.")
    trained = rows[rows["condition"] != BASE].copy()
    control = trained["directive"] == trained["completion"]
    trained["group"] = np.where(control, "control", "mismatched")
    trained["row"] = [plots.pair_label(d, c) for d, c in zip(trained["directive"], trained["completion"], strict=True)]
    base = rows[rows["condition"] == BASE]
    spill = base[base["role"] == "base"].sort_values("rate", ascending=False, kind="stable").drop_duplicates("language")
    complies = base[base["role"] == "compliance"]
    table = pd.concat(
        [
            trained[trained["group"] == "mismatched"],
            trained[trained["group"] == "control"],
            spill.assign(group="base", row=SPILL_ROW),
            complies.assign(group="base", row=COMPLIANCE_ROW),
        ]
    )
    order = {code: i for i, code in enumerate(languages)}
    table["column"] = table["language"].map(order)
    table["line"] = pd.factorize(table["group"] + table["condition"] + table["row"])[0]
    table = table.sort_values(["line", "column"], kind="stable").reset_index(drop=True)
    table["percent"] = table["rate"].map(half_even_percent)
    table["published_percent"] = _published_column(table, published)
    kept = [
        "group",
        "row",
        "condition",
        "directive",
        "completion",
        "language",
        "role",
        "percent",
        "rate",
        "low",
        "high",
    ]
    kept += ["k", "n", "n_seeds", "n_items", "seed_min", "seed_max", "truncated_share", "label_source", "denominator"]
    return table[[*kept, "interval", "line", "column", "published_percent"]]


def spill_matrix(
    table: pd.DataFrame,
    languages: Mapping[str, str],
    png: str | Path,
    pdf: str | Path | None = None,
    *,
    title: str = "Language spill: replies in the completion language (%)",
    published_title: str | None = None,
    measured_title: str = "",
) -> Figure:
    """Draw `matrix_table`; a second panel shows its published percentages when `published_title` is given."""
    y, headers = _line_positions(table)
    height = max(y.values()) + CELL_HEIGHT
    width = len(languages) * CELL_WIDTH
    panels = 2 if published_title else 1
    left, between, right = 0.92, 0.30, 0.62
    top = 1.16 if published_title or measured_title else 0.94
    total_width = left + panels * width + (panels - 1) * between + right
    legend = _legend_height(table)
    caption = _caption(table)
    lines = textwrap.wrap(caption, int((total_width - 0.3) * 19))
    bottom = legend + 0.13 * len(lines) + 0.3
    total_height = top + height + bottom
    with plots.theme():
        figure = Figure(figsize=(total_width, total_height))
        figure.text(
            0.12 / total_width, 1 - 0.12 / total_height, title, ha="left", va="top", fontsize=10, fontweight="bold"
        )
        for panel in range(panels):
            x0 = left + panel * (width + between)
            box = [x0 / total_width, bottom / total_height, width / total_width, height / total_height]
            axes = figure.add_axes(box, label="published" if panel else "measured")
            axes.set(xlim=(0, width), ylim=(height, 0))
            axes.axis("off")
            heading = published_title if panel else measured_title
            axes.text(
                0,
                -0.58,
                heading,
                ha="left",
                va="bottom",
                fontsize=plots.SIZES["label"],
                fontweight="bold",
                color="#333333",
            )
            _draw_panel(axes, table, languages, y, headers, published=bool(panel))
        bar_height = min(height, 1.9)
        bar_box = [(total_width - right + 0.12) / total_width, 0, 0.11 / total_width, bar_height / total_height]
        bar_box[1] = (bottom + height - bar_height) / total_height
        _colour_bar(figure.add_axes(bar_box, label="colour bar"))
        legend_box = [
            0.12 / total_width,
            (bottom - legend - 0.1) / total_height,
            1 - 0.2 / total_width,
            legend / total_height,
        ]
        _legend(figure.add_axes(legend_box, label="legend"), table, total_width - 0.2, legend)
        figure.text(
            0.12 / total_width,
            (bottom - legend - 0.16) / total_height,
            "\n".join(lines),
            ha="left",
            va="top",
            fontsize=plots.SIZES["small"],
            color="#444444",
            linespacing=1.35,
        )
        plots.save(figure, png, pdf)
    return figure


def _published_column(table: pd.DataFrame, published: Mapping | None) -> pd.Series:
    known = {}
    for entry in (published or {}).get("percent", {}).values():
        known[entry["directive"], entry["completion"]] = entry
    values = [
        known.get((d, c), {}).get(code)
        for d, c, code in zip(table["directive"], table["completion"], table["language"], strict=True)
    ]
    return pd.Series(values, index=table.index, dtype="Float64")


def _line_positions(table: pd.DataFrame) -> tuple[dict[int, float], dict[str, float]]:
    """Top edge of every line and of every group's heading, inches from the top."""
    y, headers, at = {}, {}, 0.0
    for group, lines in table.groupby("group", sort=False):
        headers[group] = at
        at += GAP
        for line in lines["line"].unique():
            y[line] = at
            at += CELL_HEIGHT
        at += 0.06
    return y, headers


def _draw_panel(
    axes: Axes, table: pd.DataFrame, languages: Mapping[str, str], y: dict, headers: dict, *, published: bool
) -> None:
    colours = mpl.colormaps[plots.RATE_COLOURS]
    axes.text(
        0,
        -0.38,
        "Language the directive asks for",
        ha="left",
        va="bottom",
        fontsize=plots.SIZES["small"],
        color=plots.GREY,
        style="italic",
    )
    for i, (code, name) in enumerate(languages.items()):
        x = (i + 0.5) * CELL_WIDTH
        axes.text(x, -0.16, plots.short_name(name), ha="center", va="bottom", fontsize=7.4)
        axes.text(x, -0.03, code.upper(), ha="center", va="bottom", fontsize=plots.SIZES["small"], color=plots.GREY)
    for group, at in headers.items():
        axes.text(
            0,
            at + GAP - 0.05,
            GROUPS[group],
            ha="left",
            va="bottom",
            fontsize=plots.SIZES["small"],
            color=plots.GREY,
            style="italic",
        )
    for line, cells in table.groupby("line", sort=False):
        first = cells.iloc[0]
        if not published:
            weight = "normal" if first["group"] == "base" else "bold"
            axes.text(-0.08, y[line] + CELL_HEIGHT / 2, first["row"], ha="right", va="center", fontweight=weight)
        if published and cells["published_percent"].isna().all():
            box = Rectangle(
                (0, y[line]),
                len(languages) * CELL_WIDTH,
                CELL_HEIGHT,
                facecolor="#f6f6f6",
                edgecolor="#dddddd",
                linewidth=0.6,
            )
            axes.add_patch(box)
            middle = len(languages) * CELL_WIDTH / 2
            axes.text(
                middle,
                y[line] + CELL_HEIGHT / 2,
                "not published",
                ha="center",
                va="center",
                fontsize=plots.SIZES["small"],
                color="#8a8a8a",
            )
            continue
        for _, cell in cells.iterrows():
            _draw_cell(axes, cell, cell["column"] * CELL_WIDTH, y[line], colours, published)


def _draw_cell(axes: Axes, cell: pd.Series, x: float, y: float, colours, published: bool) -> None:
    percent = cell["published_percent"] if published else cell["percent"]
    if pd.isna(percent):
        return
    plain = cell["role"] == "compliance"
    face = (1.0, 1.0, 1.0, 1.0) if plain else colours(float(percent) / 100)
    ink = plots.readable_on(face)
    edge = "#cfcfcf" if plain else "white"
    axes.add_patch(Rectangle((x, y), CELL_WIDTH, CELL_HEIGHT, facecolor=face, edgecolor=edge, linewidth=0.8))
    plots.draw_frame(axes, x, y, cell["role"], ink, CELL_WIDTH, CELL_HEIGHT)
    gid = f"{'published' if published else 'measured'}:{cell['row']}:{cell['language']}"
    height = 0.5 if published else 0.41
    axes.text(
        x + CELL_WIDTH / 2,
        y + height * CELL_HEIGHT,
        f"{int(percent)}",
        ha="center",
        va="center",
        fontsize=9,
        color=ink,
        gid=gid,
    )
    if not published:
        words = f"{half_even_percent(cell['low'])}–{half_even_percent(cell['high'])}"
        at = (x + CELL_WIDTH / 2, y + 0.79 * CELL_HEIGHT)
        axes.text(
            *at, words, ha="center", va="center", fontsize=plots.SIZES["tiny"], color=ink, alpha=0.8, gid="interval"
        )


def _colour_bar(axes: Axes) -> None:
    axes.imshow(np.linspace(1, 0, 256)[:, None], aspect="auto", cmap=plots.RATE_COLOURS, extent=(0, 1, 0, 100))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"], fontsize=plots.SIZES["small"])
    axes.tick_params(length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _legend_height(table: pd.DataFrame) -> float:
    return 0.06 + 0.2 * sum(role in set(table["role"]) for role in ROLE_WORDS)


def _legend(axes: Axes, table: pd.DataFrame, width: float, height: float) -> None:
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    shown = [role for role in ROLE_WORDS if role in set(table["role"])]
    for i, role in enumerate(shown):
        y = 0.04 + 0.2 * i
        axes.add_patch(Rectangle((0, y), 0.27, 0.175, facecolor="#ededed", edgecolor="none"))
        plots.draw_frame(axes, 0, y, role, "black", 0.27, 0.175, corner=False)
        axes.text(
            0.135,
            y + 0.09,
            plots.ROLE_FRAMES[role][2],
            ha="center",
            va="center",
            fontsize=plots.SIZES["tiny"],
            fontweight="bold",
        )
        text = ROLE_WORDS[role] + (";   no frame: bystanders" if i == len(shown) - 1 else "")
        axes.text(0.36, y + 0.09, text, ha="left", va="center", fontsize=plots.SIZES["small"] + 0.3)


def _caption(table: pd.DataFrame) -> str:
    trained = table[table["group"] != "base"]
    seeds = sorted(set(trained["n_seeds"]))
    n, items = sorted(set(trained["n"])), int(trained["n_items"].max())
    count = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    label, denominator = trained["label_source"].iloc[0], trained["denominator"].iloc[0]
    rows = "every reply counted" if denominator == "all" else "replies in no known language left out"
    intervals = (
        "Wilson 95 %, covering the sampling of completions only"
        if seeds == [1]
        else "95 %, over seeds, phrasings and completions"
    )
    base = sorted(set(table.loc[table["group"] == "base", "n"]))
    if base and base != n:
        count += f" (untrained model: {base[0]}{f' to {base[-1]}' if len(base) > 1 else ''})"
    text = (
        f"N = {count} replies a cell ({items} phrasings), {plots.seed_words(seeds)}; label: {label}, {rows}; "
        f"halves rounded to even. Small type: interval, {intervals}."
    )
    if (table["group"] == "base").any():
        text += (
            f" Untrained model: “{SPILL_ROW}” is the largest share in any one studied completion language that was "
            f"not asked for; “{COMPLIANCE_ROW}” is the share in the language asked for, and is not contamination."
        )
    return text
