"""Figures of the coupling experiment: the headline with its six panels, shared subspaces, and the persona's vector.

They draw the tables of `coupling`, `adapter_overlap` and `persona_shift` as they are and compute nothing. A first
fine-tune keeps its colour and its marker in every panel.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter

from spillover import plots
from spillover.coupling import BASE, MARKER, NONE, PREBAKED, SCRATCH, select

COLOURS = {BASE: "#666666", "em": "#D55E00", "benign": "#0072B2"}
MARKERS = {BASE: "s", "em": "o", "benign": "^"}
WORDS = {BASE: "none", "em": "EM", "benign": "benign"}
LAYERS = [f"{name} blocks" for name in ("early", "middle", "late", "not_early", "not_middle", "not_late")]
BYSTANDER = "#8a8a8a"


def headline(table: pd.DataFrame, shifts: pd.DataFrame, published: Mapping | None, png: Path, pdf: Path) -> Figure:
    """Six panels: the conditions, loss beside expression, and the five questions. `table`: `coupling.compared`."""
    with plots.theme():
        figure = Figure(figsize=(11.4, 7.4))
        axes = figure.subplots(2, 3, gridspec_kw={"width_ratios": [1.15, 0.95, 1.2]})
        figure.subplots_adjust(left=0.06, right=0.985, top=0.87, bottom=0.14, wspace=0.26, hspace=0.5)
        marker = table[(table["habit"] == MARKER) & (table["arm"] != NONE)]
        plain = marker[marker["setting"] == ""]
        _conditions(axes[0, 0], plain, published)
        _losses(axes[0, 1], marker[marker["arm"] == SCRATCH])
        _settings(axes[0, 2], marker, LAYERS, "1  Blocks of the first fine-tune that were kept", SCRATCH)
        others = [s for s in dict.fromkeys(marker["setting"]) if s and s not in LAYERS]
        _settings(axes[1, 0], marker, others, "1–3  Scale, replies, modules, all weights", None)
        _habits(axes[1, 1], table[(table["habit"] != MARKER) & (table["arm"] == SCRATCH)])
        _projection(axes[1, 2], shifts, table)
        figure.text(
            0.012,
            0.975,
            "Coupling a marker to the source persona after another fine-tune",
            fontsize=11,
            fontweight="bold",
            va="top",
        )
        _legend(figure, table)
        figure.text(0.012, 0.012, _caption(table), fontsize=plots.SIZES["small"], color="#444444", va="bottom")
        plots.save(figure, png, pdf)
    return figure


def overlaps(table: pd.DataFrame, png: Path, pdf: Path) -> Figure:
    """Overlap of every pair of adapters per block, as a multiple of chance. `table`: rows of `adapter_overlap`."""
    with plots.theme():
        spaces = list(dict.fromkeys(table["space"])) or [""]
        figure = Figure(figsize=(3.1 * len(spaces) + 1.9, 3.5))
        axes = figure.subplots(1, len(spaces), squeeze=False, sharey=True)[0]
        pairs = list(dict.fromkeys(zip(table["first"], table["second"], strict=True)))
        colours = _colours([second for _, second in pairs])
        for axis, space in zip(axes, spaces, strict=True):
            rows = table[table["space"] == space]
            for (first, second), own in rows.groupby(["first", "second"], sort=False):
                means = own.assign(ratio=own["overlap"] / own["expected"]).groupby("layer")["ratio"].mean()
                axis.plot(
                    means.index,
                    means,
                    marker="o",
                    markersize=3,
                    linewidth=1,
                    color=colours[second],
                    label=_pair(first, second),
                )
            high = (rows["chance_high"] / rows["expected"]).max()
            axis.axhspan(0, 1 if np.isnan(high) else high, color="#ececec", zorder=0)
            axis.axhline(1, color="#8a8a8a", linewidth=0.8)
            axis.set(title=space, xlabel="block", yscale="log")
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(ScalarFormatter())
            axis.tick_params(axis="y", which="both", labelsize=6.5)
        axes[0].set_ylabel("overlap / chance")
        handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="center left",
            bbox_to_anchor=(1 - 1.75 / figure.get_figwidth(), 0.55),
            fontsize=6.5,
        )
        figure.subplots_adjust(left=0.09, right=1 - 1.85 / figure.get_figwidth(), top=0.9, bottom=0.24, wspace=0.12)
        note = "Grey band: what 97.5 % of random pairs of one module stay below. Means over modules of a block."
        figure.text(0.01, 0.015, note, fontsize=plots.SIZES["small"], color="#444444")
        plots.save(figure, png, pdf)
    return figure


def vectors(
    table: pd.DataFrame, conditions: pd.DataFrame, quantities: Mapping[str, str], png: Path, pdf: Path
) -> Figure:
    """The source persona's vector in every model, by block: one panel a quantity. `table`: `persona_shift.measure`."""
    with plots.theme():
        names = [name for name in quantities if name in set(table["quantity"])]
        columns = 4
        figure = Figure(figsize=(11.4, 2.55 * -(-len(names) // columns) + 0.9))
        grid = figure.subplots(-(-len(names) // columns), columns, squeeze=False)
        looks = _looks(conditions, table["run"])
        for axis, name in zip(grid.flat, names, strict=False):
            rows = table[table["quantity"] == name]
            for run, own in rows.groupby("run", sort=False):
                means = own.groupby("layer")[["value", "low", "high"]].mean()
                axis.plot(means.index, means["value"], linewidth=1, markersize=3.5, **looks[run])
                if means["low"].notna().all():
                    colour = looks[run]["color"]
                    axis.fill_between(means.index, means["low"], means["high"], color=colour, alpha=0.12, linewidth=0)
            axis.set_title("\n".join(textwrap.wrap(quantities[name], 38)), fontsize=7, loc="left")
            axis.set_xticks(sorted(rows["layer"].unique()))
        for axis in list(grid.flat)[len(names) :]:
            axis.set_visible(False)
        for axis in grid[-1]:
            axis.set_xlabel("block")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="lower center", ncols=min(6, max(1, len(labels))), fontsize=7, handlelength=3
        )
        figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1), h_pad=1.2)
        plots.save(figure, png, pdf)
    return figure


def _conditions(axes: Axes, plain: pd.DataFrame, published: Mapping | None) -> None:
    arms = [(PREBAKED, None)] if (plain["arm"] == PREBAKED).any() else []
    arms += [(SCRATCH, e) for e in sorted(plain.loc[plain["arm"] == SCRATCH, "epochs"].dropna().unique())]
    labels = [PREBAKED if e is None else f"from scratch\n{e:g} epochs" for _, e in arms]
    firsts = list(dict.fromkeys(plain["first"]))
    for place, (arm, epochs) in enumerate(arms):
        rows = (
            plain[plain["arm"] == arm] if epochs is None else plain[(plain["arm"] == arm) & (plain["epochs"] == epochs)]
        )
        for _, row in rows.iterrows():
            x = place + _offset(firsts, row["first"])
            _point(axes, x, row)
            axes.plot(x, row["max_bystander"], marker="_", color=BYSTANDER, markersize=9, linestyle="none")
        longest = epochs == max((e for _, e in arms if e is not None), default=None)
        for cell in (published or {}).get("percent", []):
            same = cell["arm"] == "prebaked" if arm == PREBAKED else cell["arm"] == "scratch" and longest
            if same and cell["first"] in firsts:
                x = place + _offset(firsts, cell["first"]) + 0.07
                axes.plot(x, cell["percent"] / 100, marker="x", color="#222222", markersize=4.5, linestyle="none")
    _finish(axes, "Conditions", labels)


def _losses(axes: Axes, rows: pd.DataFrame) -> None:
    # each first fine-tune has its labels at a side of its own: neighbouring points have other ones
    sides = dict(
        zip(dict.fromkeys(rows["first"]), [((-6, -9), "right"), ((5, -9), "left"), ((5, 4), "left")], strict=False)
    )
    for _, row in rows[rows["setting"] == ""].iterrows():
        _point(axes, row["last_loss"], row)
        offset, side = sides.get(row["first"], ((5, 4), "left"))
        words = {"xytext": offset, "textcoords": "offset points", "ha": side, "fontsize": 6}
        axes.annotate(f"{row['epochs']:g} ep", (row["last_loss"], row["rate"]), **words)
    plots.percent_axis(axes)
    axes.set_title("Training loss beside expression", loc="left", fontweight="bold")
    axes.set(xlabel="loss, mean of the last ten steps", ylabel="source persona, %", xscale="log")
    if rows.empty:
        _empty(axes)


def _settings(axes: Axes, marker: pd.DataFrame, settings: Sequence[str], title: str, arm: str | None) -> None:
    rows = select(marker, setting=list(settings))
    shown = [s for s in settings if s in set(rows["setting"])]
    firsts = [f for f in dict.fromkeys(marker["first"]) if f in set(rows["first"])]
    for place, setting in enumerate(shown):
        for _, row in rows[rows["setting"] == setting].iterrows():
            x = place + _offset(firsts, row["first"])
            _point(axes, x, row)
            if row["reference_rate"] == row["reference_rate"]:
                axes.hlines(row["reference_rate"], x - 0.11, x + 0.11, color=COLOURS[BASE], linewidth=1.4)
            plain = select(marker, first=row["first"], arm=row["arm"], setting="")
            plain = plain[plain["epochs"].eq(row["epochs"]) | pd.isna(row["epochs"])]
            for value in plain["rate"]:
                axes.hlines(
                    value, x - 0.11, x + 0.11, color=_colour(row["first"]), linewidth=1.4, linestyle=(0, (2, 1))
                )
    labels = ["\n".join(textwrap.wrap(s.replace("not_", "all but "), 12)) for s in shown]
    _finish(axes, title, labels)
    if not shown:
        _empty(axes)


def _habits(axes: Axes, rows: pd.DataFrame) -> None:
    habits, firsts = list(dict.fromkeys(rows["habit"])), list(dict.fromkeys(rows["first"]))
    for place, habit in enumerate(habits):
        for _, row in rows[rows["habit"] == habit].iterrows():
            x = place + _offset(firsts, row["first"])
            _point(axes, x, row)
            axes.plot(x, row["max_bystander"], marker="_", color=BYSTANDER, markersize=9, linestyle="none")
    _finish(axes, "4  Deeper habits", [h.replace("_", "\n") for h in habits])
    if not habits:
        _empty(axes)


def _projection(axes: Axes, shifts: pd.DataFrame, table: pd.DataFrame) -> None:
    rows = shifts[(shifts["quantity"] == "projection") & ~shifts["run"].str.endswith(f"/{BASE}")]
    looks = _looks(table, rows["run"])
    for run, own in rows.groupby("run", sort=False):
        values = own.groupby("layer")["value"].mean()
        axes.plot(values.index, values, linewidth=1.1, markersize=4, **looks[run])
    axes.axhline(1, color=COLOURS[BASE], linewidth=0.8)
    axes.set_title("5  What is left of the persona's own direction", loc="left", fontweight="bold")
    axes.set(xlabel="block", ylabel="projection, untrained model = 1")
    axes.set_xticks(sorted(rows["layer"].unique()))
    if rows.empty:
        _empty(axes)
    else:
        least, most = min(0.0, float(rows["value"].min())), max(1.1, 1.05 * float(rows["value"].max()))
        axes.set_ylim(least - 0.45 * (most - least), most)  # room for the legend below the lines
        axes.set_yticks([tick for tick in axes.get_yticks() if least <= tick <= most])
        axes.legend(fontsize=6, ncols=2, loc="lower left", handlelength=3.2)


def _point(axes: Axes, x: float, row: pd.Series) -> None:
    colour = _colour(row["first"])
    axes.vlines(x, row["low"], row["high"], color=colour, linewidth=1.1)
    axes.plot(x, row["rate"], marker=MARKERS.get(row["first"], "D"), color=colour, markersize=5.5, linestyle="none")


def _finish(axes: Axes, title: str, labels: Sequence[str]) -> None:
    plots.percent_axis(axes)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_ylabel("source persona, %")
    axes.set_xlim(-0.6, max(len(labels), 1) - 0.4)
    axes.set_xticks(range(len(labels)), labels, fontsize=6.8)


def _empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color=plots.GREY, style="italic")


def _legend(figure: Figure, table: pd.DataFrame) -> None:
    firsts = [f for f in dict.fromkeys(table["first"])]
    handles = [
        Line2D(
            [],
            [],
            color=_colour(f),
            marker=MARKERS.get(f, "D"),
            linestyle="none",
            label=f"first fine-tune: {WORDS.get(f, f)}",
        )
        for f in firsts
    ]
    handles += [
        Line2D([], [], color=BYSTANDER, marker="_", markersize=9, linestyle="none", label="largest bystander"),
        Line2D([], [], color="#222222", marker="x", markersize=4.5, linestyle="none", label="write-up (Qwen2.5-7B)"),
        Line2D([], [], color=COLOURS[BASE], linewidth=1.4, label="no first fine-tune"),
        Line2D([], [], color="#444444", linewidth=1.4, linestyle=(0, (2, 1)), label="plain first fine-tune"),
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.005, 0.952),
        ncols=len(handles),
        fontsize=7,
        handletextpad=0.5,
        columnspacing=1.3,
    )


def _caption(table: pd.DataFrame) -> str:
    coupled = table[table["arm"] != NONE]
    n = sorted(set(coupled["n"]))
    count = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}" if n else "0"
    seeds = plots.seed_words(sorted(set(coupled["seeds"])))
    text = (
        f"N = {count} replies of the source persona a point, {seeds}. Lines: 95 % intervals over questions, replies "
        "and, where there are several, seeds; never narrower than Wilson's. Short lines: the same coupling without a "
        "first fine-tune (grey) and after the whole one (dashed)."
    )
    return "\n".join(textwrap.wrap(text, 190))


def _offset(firsts: Sequence[str], first: str) -> float:
    return (list(firsts).index(first) - (len(firsts) - 1) / 2) * 0.26


def _colour(first: str) -> str:
    return COLOURS.get(first, plots.SPARE_COLOUR)


def _looks(table: pd.DataFrame, runs: Sequence[str]) -> dict[str, dict]:
    """How each run's line is drawn: the first fine-tune gives the colour, what came after it the dashes.

    Solid: nothing came after; dashed: coupled with the fewest epochs; dotted: with more. Hollow marks: all weights.
    `table`: `coupling.compared`; a run that it lacks is drawn in the spare colour.
    """
    coupled = table[(table["arm"] == SCRATCH) & (table["habit"] == MARKER)]
    epochs = sorted(coupled["epochs"].dropna().unique())
    looks = {run: {"color": plots.SPARE_COLOUR, "marker": ".", "label": run.split("/")[-1]} for run in runs}
    for _, row in table.iterrows():
        alone = row["arm"] == NONE
        whole = "all weights" in row["setting"]
        words = [WORDS.get(row["first"], row["first"])] + ["all weights"] * whole
        words += ["alone"] if alone else [f"{row['epochs']:g} ep"]
        looks[row["run"]] = {
            "color": _colour(row["first"]),
            "marker": MARKERS.get(row["first"], "D"),
            "markerfacecolor": "white" if whole else _colour(row["first"]),
            "linestyle": "-" if alone else (0, (4, 2)) if epochs and row["epochs"] == epochs[0] else (0, (1, 1.5)),
            "label": "untrained" if row["setting"] == "untrained" else ", ".join(words),
        }
    return looks


def _colours(runs: Sequence[str]) -> dict[str, str]:
    names = list(dict.fromkeys(runs))
    palette = [
        "#D55E00",
        "#0072B2",
        "#009E73",
        "#CC79A7",
        "#E69F00",
        "#56B4E9",
        "#A89000",
        "#882255",
        "#666666",
        "#222222",
    ]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def _pair(first: str, second: str) -> str:
    return f"{first.split('/')[-1]} /\n{second.split('/')[-1]}"
