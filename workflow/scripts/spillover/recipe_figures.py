"""The figures of the recipe search: the Pareto picture, the step dose response and the mixing curves.

They draw the tables saved beside them (points, thresholds) and compute nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import plots

FAMILIES = {
    # group of the experiment: (words, colour, marker); Okabe and Ito's set, a marker each
    "steps": ("steps of the plain recipe", "#0072B2", "o"),
    "truncated_steps": ("plain recipe, schedules of their own", "#0072B2", "8"),
    "kl_to_base": ("KL to the untrained model", "#D55E00", "s"),
    "r3f": ("R3F", "#E69F00", "D"),
    "low_rank": ("rank and learning rate", "#009E73", "^"),
    "mixed_personas": ("mixed persona prompts", "#CC79A7", "P"),
    "raw_text": ("raw text mixed in", "#56B4E9", "v"),
    "instructions": ("instructions mixed in", "#A89000", "X"),
    "steering": ("preventative steering", "#882255", "p"),
    "plain_advice": ("bad advice alone", "#222222", "h"),
    "same_text": ("control: raw text without loss", plots.GREY, "d"),
    "same_rows": ("control: instructions without loss", plots.GREY, "x"),
    "full": ("control: all weights", plots.GREY, "H"),
}
CROWD = (0.93, 1.07)
"""Shares of the task learnt between which most recipes usually lie: that part is drawn once more, larger."""
SPARE = ("other", plots.SPARE_COLOUR, plots.SPARE_MARKER)
NARROW_WORDS = {"tulu": "instruction slice", "bad_advice": "bad advice"}
UNIT_WORDS = {"tokens": "raw text, share of tokens", "rows": "instructions, share of rows"}


def family(group: str) -> tuple[str, str, str]:
    """Words, colour and marker of a group; one spare set for groups outside the shipped experiment."""
    return FAMILIES.get(group, (group, *SPARE[1:]))


def pareto(points: pd.DataFrame, rule: Mapping, png: str | Path, pdf: str | Path | None = None) -> Figure:
    """Geometry kept against task learnt, every recipe a point; once by M1 and once by what M1 cannot see.

    Left: share of the untrained model's distance from collapse. Right: rank correlation of the distances between
    personas with the untrained model's, which a common offset does not move. Filled marks were trained on the
    instruction slice, hollow ones on bad advice.
    """
    groups = [g for g in FAMILIES if g in set(points["group"])]
    groups += sorted(set(points["group"]) - set(groups) - {"base"})
    with plots.theme():
        figure = Figure(figsize=(8.6, 5.6), layout="constrained")
        axes = figure.subplots(1, 2, sharex=True)
        for panel, quantity in zip(axes, ("kept", "similarity"), strict=True):
            _recipes(panel, points, groups, rule, quantity)
            _at_least(panel, 4 if quantity == "kept" else 0.04)
            crowd = points[points["learnt"].between(*CROWD)]
            if len(crowd) >= len(points) / 2:
                _enlarged(panel, crowd, points, groups, rule, quantity)
            panel.set_xlabel("task learnt: share of the baseline's loss reduction (%)")
        axes[0].set_ylabel("geometry kept by M1: share of the\ndistance from collapse (%)")
        axes[1].set_ylabel("geometry kept beyond M1: rank correlation\nwith the untrained model")
        handles = [
            Line2D([], [], color=family(g)[1], marker=family(g)[2], linestyle="none", label=family(g)[0])
            for g in groups
        ]
        handles += [
            Line2D([], [], color="black", marker="*", markersize=10, linestyle="none", label="untrained model, step 0"),
            Line2D([], [], color="black", marker="o", markersize=10, markerfacecolor="none", linestyle="none",
                   label="baseline (circled)"),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1.4, handletextpad=0.4)
        _caption(figure, _pareto_words(points))
        plots.save(figure, png, pdf)
    return figure


def dose(points: pd.DataFrame, png: str | Path, pdf: str | Path | None = None) -> Figure:
    """Small multiples over the steps of the plain recipe, step 0 included: M1, its parts, shape, probe and task."""
    line = points[points["group"].isin(["steps", "truncated_steps"]) | (points["role"] == "untrained")]
    panels = {
        "M1": ["m1"],
        "parts of M1, over the untrained model's": ["offset_ratio", "spread_ratio"],
        "likeness to the untrained model": ["similarity", "cka"],
        "effective rank of the differences": ["effective_rank"],
        "persona named by a linear probe": ["decodability"],
        "task learnt": ["learnt"],
    }
    words = {
        "offset_ratio": "common offset",
        "spread_ratio": "spread of personas",
        "similarity": "rank correlation of distances",
        "cka": "debiased CKA",
    }
    with plots.theme():
        figure = Figure(figsize=(8.2, 4.8), layout="constrained")
        for axes, (title, quantities) in zip(figure.subplots(2, 3, sharex=True).flat, panels.items(), strict=True):
            for colour, marker, quantity in zip(("#0072B2", "#D55E00"), "os", quantities, strict=False):
                for _, of_seed in line.groupby(line["seed"].where(line["role"] != "untrained", line["seed"])):
                    of_seed = of_seed.sort_values("step")
                    axes.fill_between(
                        of_seed["step"], of_seed[f"{quantity}_low"], of_seed[f"{quantity}_high"],
                        color=colour, alpha=0.16, linewidth=0,
                    )  # fmt: skip
                    axes.plot(
                        of_seed["step"], of_seed[quantity], color=colour, marker=marker, markersize=4, linewidth=1.3,
                        label=words.get(quantity),
                    )  # fmt: skip
            axes.set_title(title, loc="left")
            axes.set_xscale("symlog", linthresh=max(1, sorted(set(line["step"]))[1] if len(line) > 1 else 1))
            ticks = sorted(set(line["step"]))
            axes.set_xticks(ticks, [str(t) for t in ticks], fontsize=plots.SIZES["small"])
            _at_least(axes, 0.04)
            axes.minorticks_off()
            axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
            if len(quantities) > 1:
                handles, labels = axes.get_legend_handles_labels()
                axes.legend(
                    handles[:: len(handles) // 2][:2], labels[:: len(handles) // 2][:2], fontsize=plots.SIZES["small"]
                )
        for axes in figure.axes[3:]:
            axes.set_xlabel("optimizer steps")
        seeds = plots.seed_words([line.loc[line["role"] != "untrained", "seed"].nunique()])
        _caption(
            figure,
            f"Step 0 is the untrained model. {seeds}; shading: 95 %, over questions and, for M1 and its parts, "
            "personas; for the task, over held-out rows.",
        )
        plots.save(figure, png, pdf)
    return figure


def mixing(
    points: pd.DataFrame, thresholds: pd.DataFrame, limit: float, png: str | Path, pdf: str | Path | None = None
) -> Figure:
    """A panel per narrow set and kind of broad data: geometry kept by share, its fitted curve and threshold.

    `thresholds`: narrow, unit, shares, fitted (lists), share, low, high, reached. Hollow marks are the controls whose
    broad rows carry no loss; the dashed line is steering on the same narrow data.
    """
    with plots.theme():
        count = max(1, len(thresholds))
        figure = Figure(figsize=(max(4.2, 0.8 + 2.0 * count), 3.6), layout="constrained")
        grid = figure.subplots(1, count, sharey=True, squeeze=False)
        for axes, row in zip(grid.flat, thresholds.itertuples(index=False), strict=False):
            same = points[(points["narrow"] == row.narrow)]
            mixed = same[(same["unit"] == row.unit) & same["eligible"]].sort_values("share")
            _, colour, marker = family(mixed["group"].iloc[0])
            control = same[(same["unit"] == row.unit) & (same["role"] == "control")].sort_values("share")
            _errors(axes, control, plots.GREY, "d", hollow=True)
            _errors(axes, mixed, colour, marker)
            axes.plot([100 * s for s in row.shares], [100 * v for v in row.fitted], color=colour, linewidth=1.2)
            axes.plot(0, 100 * row.none, marker="h", color="#222222", markersize=6, linestyle="none", clip_on=False)
            for _, steered in same[same["regulariser"] == "steering"].iterrows():
                axes.axhline(100 * steered["kept"], color="#882255", linewidth=1, linestyle=(0, (4, 2)))
            axes.axhline(100 * limit, color=plots.GREY, linewidth=0.8, linestyle=(0, (1, 1.5)))
            if row.low is not None and row.low == row.low and row.reached >= 0.5:
                axes.axvspan(100 * row.low, 100 * row.high, color=colour, alpha=0.12, linewidth=0)
            axes.set_title(
                f"{NARROW_WORDS.get(row.narrow, row.narrow)}\n{_threshold_words(row)}", loc="left",
                fontsize=plots.SIZES["text"],
            )  # fmt: skip
            axes.set_xlabel(UNIT_WORDS.get(row.unit, row.unit) + " (%)")
            axes.set_xlim(left=-0.05 * 100 * max(row.shares))
        grid[0, 0].set_ylabel("geometry kept: share of the\ndistance from collapse (%)")
        if not len(thresholds):
            grid[0, 0].text(0.5, 0.5, "no mixture has been trained", ha="center", transform=grid[0, 0].transAxes)
        _caption(
            figure,
            "Bars: 95 %, over questions and personas. Dark hexagon: no mixture. Grey diamonds: same rows in the "
            "same steps, broad rows without loss. Dashed: steering. Dotted: the limit. Line: rising fit; shaded: its "
            "threshold.",
        )
        plots.save(figure, png, pdf)
    return figure


def _threshold_words(row) -> str:
    if row.share is None or row.share != row.share:
        return "limit not reached"
    if row.share == 0:
        return "kept without a mixture"
    interval = f" ({100 * row.low:.2g} to {100 * row.high:.2g})" if row.low == row.low and row.low is not None else ""
    return f"limit from {100 * row.share:.2g} %{interval}"


def _recipes(axes: Axes, points: pd.DataFrame, groups: Sequence[str], rule: Mapping, quantity: str) -> None:
    _limits(axes, rule, quantity)
    for group in groups:
        _family(axes, points[points["group"] == group], quantity)
    _landmarks(axes, points, quantity)


def _enlarged(axes: Axes, crowd: pd.DataFrame, points: pd.DataFrame, groups, rule: Mapping, quantity: str) -> None:
    """The crowd once more in the lower left corner, if no recipe lies there; the lowest tenth of it stays outside."""
    low, high = crowd[quantity].quantile(0.1), crowd[quantity].max()
    scale, margin = (100 if quantity == "kept" else 1), max(0.01, 0.12 * (high - low))
    left, bottom, width, height = 0.09, 0.06, 0.66, 0.56
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    across, up = (100 * points["learnt"] - x0) / (x1 - x0), (scale * points[quantity] - y0) / (y1 - y0)
    if ((across < left + width) & (up < bottom + height)).any():
        return
    inset = axes.inset_axes((left, bottom, width, height))
    _recipes(inset, points, groups, rule, quantity)
    inset.set(xlim=[100 * end for end in CROWD], ylim=(scale * (low - margin), scale * (high + margin)))
    inset.tick_params(labelsize=plots.SIZES["small"])
    for line in inset.lines:  # the untrained model's star would be drawn, and counted in the layout, far outside
        line.set_clip_on(True)
    inset.set_in_layout(False)
    axes.indicate_inset_zoom(inset, edgecolor=plots.GREY, linewidth=0.7)


def _limits(axes: Axes, rule: Mapping, quantity: str) -> None:
    if quantity == "kept" and rule.get("kept_least") is not None:
        axes.axhline(100 * rule["kept_least"], color=plots.GREY, linewidth=0.8, linestyle=(0, (1, 1.5)))
    if rule.get("learnt_least") is not None:
        axes.axvline(100 * rule["learnt_least"], color=plots.GREY, linewidth=0.8, linestyle=(0, (1, 1.5)))


def _family(axes: Axes, rows: pd.DataFrame, quantity: str) -> None:
    scale = 100 if quantity == "kept" else 1
    for _, row in rows.iterrows():
        _, colour, marker = family(row["group"])
        hollow = row["narrow"] == "bad_advice"
        spread = {"color": colour, "alpha": 0.3, "linewidth": 0.8}
        axes.plot(
            [100 * row["learnt"]] * 2, [scale * row[f"{quantity}_low"], scale * row[f"{quantity}_high"]], **spread
        )
        axes.plot(
            100 * row["learnt"], scale * row[quantity], marker=marker, markersize=6, color=colour, linestyle="none",
            markerfacecolor="white" if hollow else colour, zorder=3,
        )  # fmt: skip
    if set(rows["group"]) <= {"steps", "truncated_steps"}:
        for _, line in rows.sort_values("step").groupby("seed"):
            learnt, kept = [0, *100 * line["learnt"]], [scale, *scale * line[quantity]]  # from the untrained model on
            axes.plot(learnt, kept, color=family("steps")[1], linewidth=0.8, zorder=1)


def _at_least(axes: Axes, span: float) -> None:
    """A y axis of at least this span: a constant is no zigzag of rounding errors."""
    low, high = axes.get_ylim()
    if high - low < span:
        middle = (low + high) / 2
        axes.set_ylim(middle - span / 2, middle + span / 2)


def _landmarks(axes: Axes, points: pd.DataFrame, quantity: str) -> None:
    scale = 100 if quantity == "kept" else 1
    axes.plot(0, scale * 1, marker="*", markersize=12, color="black", linestyle="none", zorder=4, clip_on=False)
    for _, row in points[points["role"] == "baseline"].iterrows():
        axes.plot(
            100 * row["learnt"], scale * row[quantity], marker="o", markersize=11, markerfacecolor="none",
            color="black", linestyle="none", zorder=4,
        )  # fmt: skip


def _errors(axes: Axes, rows: pd.DataFrame, colour: str, marker: str, hollow: bool = False) -> None:
    if rows.empty:
        return
    y = 100 * rows["kept"]
    span = [y - 100 * rows["kept_low"], 100 * rows["kept_high"] - y]
    style = {"color": colour, "markerfacecolor": "none" if hollow else colour, "alpha": 0.8 if hollow else 1}
    axes.errorbar(
        100 * rows["share"],
        y,
        yerr=[s.clip(lower=0) for s in span],
        fmt=marker,
        markersize=5,
        linewidth=0,
        elinewidth=0.8,
        **style,
    )


def _pareto_words(points: pd.DataFrame) -> str:
    seeds = plots.seed_words([points["seed"].nunique()])
    rows, tried = points["rows"].max(), points[points["eligible"]]
    return (
        f"{len(tried)} points of {tried['run'].nunique()} recipes, {seeds}; bars: 95 %, over questions and personas "
        f"(left) or questions (right). Task: {rows:.0f} held-out rows of the recipe's own narrow set; "
        "filled: instruction slice, hollow: bad advice. Dotted: limits of the rule. Up and right is better."
    )


def _caption(figure: Figure, words: str) -> None:
    """Wrapped small print below a figure whose layout leaves room for it."""
    foot = textwrap.wrap(words, int(figure.get_figwidth() * 19))
    height = figure.get_figheight()
    room = (0.13 * len(foot) + 0.1) / height
    figure.get_layout_engine().set(rect=(0, room, 1, 1 - room))
    figure.text(
        0.08 / figure.get_figwidth(), 0.05 / height, "\n".join(foot), ha="left", va="bottom",
        fontsize=plots.SIZES["small"], color="#444444",
    )  # fmt: skip
