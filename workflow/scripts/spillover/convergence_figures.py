"""The figures of the convergence experiment: rates and cosines along the arms, leakage against both its predictors.

They draw the tables of `convergence` and `convergence_tables` and compute nothing. Each panel is a function over axes,
so that the headline figure is made of the same panels as the single ones. Arms keep their colour, line and mark.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from . import plots
from .convergence import ASSISTANT, TRAINED_ARMS

ARM_STYLES = {"A": ("#E69F00", "s", "solid"), "B": ("#0072B2", "o", "solid"), "C": ("#009E73", "^", (0, (4, 1.5)))}
ARM_TITLES = {
    "A": "A: marker, then convergence",
    "B": "B: convergence, then marker",
    "C": "C: marker, then generic training",
}
ROLE_STYLES = {"source": ("#0072B2", "o"), "assistant": ("#D55E00", "s"), "bystander": ("#6b6b6b", "^")}
ROLE_TITLES = {"source": "source", "assistant": "assistant", "bystander": "bystanders, mean"}
STEP_AXIS = "second training done (%)"
RATE_TITLES = {"source": "source rate (%)", "assistant": "assistant leakage (%)"}


def headline(
    pooled: pd.DataFrame, paths: pd.DataFrame, rates: pd.DataFrame, table: pd.DataFrame, png, pdf=None, *, note: str
) -> Figure:
    """Source rate, leakage and cosine along every arm; below, leakage against both predictors, and personas.

    `pooled`: `pool_seeds`; `paths`: one layer of `convergence.paths`; `rates`: `last_rates`; `table`: `joined`.
    """
    sources = list(dict.fromkeys(pooled["source"]))
    width = max(7.6, 1.0 + 2.0 * len(sources))
    with plots.theme():
        figure = Figure(figsize=(width, 9.4), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[2.5, 1.15], hspace=0.02)
        grid = above.subplots(3, len(sources), squeeze=False, sharex=True)
        for column, source in enumerate(sources):
            rate_lines(grid[0, column], pooled, source, "source")
            rate_lines(grid[1, column], pooled, source, "assistant")
            cosine_lines(grid[2, column], paths, source)
            grid[0, column].set_title(plots.persona_name(source), loc="left", fontweight="bold")
            grid[2, column].set_xlabel(STEP_AXIS)
        _shared_cosine_limits(grid[2])
        for row, label in enumerate([*RATE_TITLES.values(), "cosine to the source"]):
            grid[row, 0].set_ylabel(label)
        above.legend(*_arm_legend(pooled, paths), loc="outside upper left", ncols=int(width / 2.4), columnspacing=1.2)
        panels = below.subplots(1, 3, width_ratios=[1, 1, 1.55])
        against(panels[0], table, "centred", "cosine to the source")
        against(panels[1], table, "bystander_mean", "breadth: bystanders' mean rate (%)", percent=True)
        panels[0].set_ylabel(RATE_TITLES["assistant"])
        panels[0].set_title("arm B: leakage and cosine", loc="left")
        panels[1].set_title("arm B: leakage and breadth", loc="left")
        heatmap(panels[2], rates[rates["arm"] == "B"])
        panels[2].set_title("arm B at the end: marker rate (%)", loc="left")
        below.legend(*_source_legend(table), loc="outside lower left", ncols=len(sources), columnspacing=1.2)
        _foot(figure, note)
        plots.save(figure, png, pdf)
    return figure


def cross_arm(pooled: pd.DataFrame, png, pdf=None, *, note: str) -> Figure:
    """Both rates along every arm: source above, assistant below, a column a source."""
    sources = list(dict.fromkeys(pooled["source"]))

    def draw(grid):
        for column, source in enumerate(sources):
            for row, role in enumerate(RATE_TITLES):
                rate_lines(grid[row, column], pooled, source, role)
                grid[row, 0].set_ylabel(RATE_TITLES[role])
            grid[0, column].set_title(plots.persona_name(source), loc="left", fontweight="bold")
            grid[1, column].set_xlabel(STEP_AXIS)

    return _grid(2, len(sources), draw, png, pdf, note, legend=_arm_legend(pooled))


def source_retention(pooled: pd.DataFrame, png, pdf=None, *, note: str) -> Figure:
    """What is left of the source's marker along every arm, a panel a source."""
    sources = list(dict.fromkeys(pooled["source"]))

    def draw(grid):
        for column, source in enumerate(sources):
            rate_lines(grid[0, column], pooled, source, "source")
            grid[0, column].set_title(plots.persona_name(source), loc="left", fontweight="bold")
            grid[0, column].set_xlabel(STEP_AXIS)
        grid[0, 0].set_ylabel(RATE_TITLES["source"])

    return _grid(1, len(sources), draw, png, pdf, note, legend=_arm_legend(pooled))


def cosine_evolution(paths: pd.DataFrame, png, pdf=None, *, note: str) -> Figure:
    """The centred cosine between assistant and source along every arm: a column a source, a row a layer."""
    sources, layers = list(dict.fromkeys(paths["source"])), sorted(paths["layer"].unique())

    def draw(grid):
        for row, layer in enumerate(layers):
            for column, source in enumerate(sources):
                cosine_lines(grid[row, column], paths[paths["layer"] == layer], source)
            _shared_cosine_limits(grid[row])
            grid[row, 0].set_ylabel(f"layer {layer}")
        for column, source in enumerate(sources):
            grid[0, column].set_title(plots.persona_name(source), loc="left", fontweight="bold")
            grid[-1, column].set_xlabel(STEP_AXIS)

    return _grid(len(layers), len(sources), draw, png, pdf, note, legend=_arm_legend(paths, paths))


def trajectories(table: pd.DataFrame, png, pdf=None, *, note: str) -> Figure:
    """Each source's way in the plane of cosine and assistant leakage, a panel an arm; arrows point to the end."""
    arms = [arm for arm in TRAINED_ARMS if arm in set(table["arm"])]

    def draw(grid):
        for column, arm in enumerate(arms):
            axes = grid[0, column]
            for source, trail in table[table["arm"] == arm].groupby("source", sort=False):
                _trajectory(axes, _mean_over_seeds(trail), source)
            axes.set_title(ARM_TITLES[arm], loc="left")
            axes.set_xlabel("cosine to the source")
            plots.percent_axis(axes)
        grid[0, 0].set_ylabel(RATE_TITLES["assistant"])

    return _grid(1, len(arms), draw, png, pdf, note, size=(2.9, 3.0), legend=_source_legend(table))


def leakage_cosine(
    joined: Callable[[int], pd.DataFrame], tests: pd.DataFrame, layers: list[int], png, pdf=None, *, note
):
    """Assistant leakage of arm B against the cosine: a column a layer, raw above centred; rho and p of every source."""

    def draw(grid):
        for column, layer in enumerate(layers):
            table = joined(layer)
            for row, kind in enumerate(("raw", "centred")):
                axes = grid[row, column]
                against(axes, table, kind, f"{kind} cosine, layer {layer}")
                axes.set_title(_rho_words(tests, layer, kind), loc="left", fontsize=plots.SIZES["small"])
        for row in range(2):
            grid[row, 0].set_ylabel(RATE_TITLES["assistant"])

    return _grid(2, len(layers), draw, png, pdf, note, size=(2.5, 2.7), legend=_source_legend(joined(layers[0])))


def predictors(table: pd.DataFrame, tests: pd.DataFrame, png, pdf=None, *, note: str) -> Figure:
    """Assistant leakage of arm B against the cosine and against the breadth of the leak."""

    def draw(grid):
        sides = (("cosine", "centred", "cosine to the source", False),
                 ("breadth", "bystander_mean", "bystanders' mean rate (%)", True))  # fmt: skip
        for axes, (name, column, label, percent) in zip(grid[0], sides, strict=True):
            against(axes, table, column, label, percent=percent)
            axes.set_title(_predictor_words(tests, name), loc="left", fontsize=plots.SIZES["small"])
        grid[0, 0].set_ylabel(RATE_TITLES["assistant"])

    return _grid(1, 2, draw, png, pdf, note, size=(3.1, 3.0), legend=_source_legend(table))


def heatmaps(rates: pd.DataFrame, png, pdf=None, *, note: str) -> Figure:
    """The marker rate of every persona at the end of every arm: a panel an arm, a row a source."""
    arms = [arm for arm in TRAINED_ARMS if arm in set(rates["arm"])]
    rows, columns = rates["source"].nunique(), rates["persona"].nunique()

    def draw(grid):
        for row, arm in enumerate(arms):
            heatmap(grid[row, 0], rates[rates["arm"] == arm], names=row == len(arms) - 1)
            grid[row, 0].set_title(ARM_TITLES[arm], loc="left")

    return _grid(len(arms), 1, draw, png, pdf, note, size=(1.6 + 0.5 * columns, 0.55 + 0.36 * rows))


def adapter_quality(baseline: pd.DataFrame, png, pdf=None, *, note: str) -> Figure:
    """The marker adapter before any second training: source, assistant and bystanders of every source persona."""
    rows = baseline.to_dict("records")

    def draw(grid):
        axes = grid[0, 0]
        for position, row in enumerate(rows):
            for offset, role in zip((-0.26, 0, 0.26), ROLE_STYLES, strict=True):
                rate, low, high = _role_rate(row, role)
                colour = ROLE_STYLES[role][0]
                axes.bar(position + offset, rate, width=0.24, color=colour, alpha=0.85, linewidth=0)
                axes.vlines(position + offset, low, high, color="#222222", linewidth=0.9)
            axes.plot(position + 0.26, row["bystander_max"], marker="_", markersize=9, color="#222222", linestyle="")
        plots.percent_axis(axes)
        axes.set_xticks(range(len(rows)), [f"{plots.persona_name(row['source'])}\n({row['pattern']})" for row in rows])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("replies with the marker (%)")

    handles = [Rectangle((0, 0), 1, 1, color=ROLE_STYLES[role][0]) for role in ROLE_STYLES]
    handles.append(Line2D([], [], marker="_", linestyle="", color="#222222", markersize=9))
    legend = (handles, [*ROLE_TITLES.values(), "largest bystander"])
    return _grid(1, 1, draw, png, pdf, note, size=(max(4.6, 1.5 * len(rows) + 1.2), 2.9), legend=legend)


def steering(rows: list[dict], png, pdf=None, *, note: str) -> Figure:
    """The steered arm: rates above, cosine below, by coefficient; a column a source. Empty where no run is steered."""
    table = pd.DataFrame(rows)
    sources = list(dict.fromkeys(table["source"])) if len(table) else []
    if not sources:
        return _nothing("No run of this experiment is steered.", png, pdf)

    def draw(grid):
        for column, source in enumerate(sources):
            of = table[table["source"] == source].sort_values("coefficient")
            for role, (colour, marker) in ROLE_STYLES.items():
                values = np.array([_role_rate(row, role) for row in of.to_dict("records")])
                _line(grid[0, column], of["coefficient"], values.T, colour, marker, "solid")
            plots.percent_axis(grid[0, column])
            grid[0, column].set_title(plots.persona_name(source), loc="left", fontweight="bold")
            if "centred" in of:
                grid[1, column].plot(of["coefficient"], of["centred"], color="#222222", marker="D", markersize=4)
            grid[1, column].set_xlabel("coefficient")
            grid[1, column].grid(axis="y", color="#e6e6e6", linewidth=0.6)
        _shared_cosine_limits(grid[1])
        grid[0, 0].set_ylabel("replies with the marker (%)")
        grid[1, 0].set_ylabel("assistant's cosine\nto the source")

    handles = [Line2D([], [], color=c, marker=m, markersize=4) for c, m in ROLE_STYLES.values()]
    return _grid(2, len(sources), draw, png, pdf, note, legend=(handles, list(ROLE_TITLES.values())))


def last_rates(rates: pd.DataFrame, models: pd.DataFrame, scorer: str) -> pd.DataFrame:
    """arm, source, persona, hits, n, rate of every arm's last step, replies of all seeds together."""
    models = models[(models["step"] > 0) & models["arm"].isin(TRAINED_ARMS)]
    last = models[models["step"] == models.groupby(["arm", "source"])["step"].transform("max")]
    both = last.merge(rates[rates["scorer"] == scorer], on=["run", "seed", "checkpoint"])
    found = both.groupby(["arm", "source", "persona"], sort=False)[["hits", "n"]].sum().reset_index()
    return found.assign(rate=found["hits"] / found["n"])


def rate_lines(axes: Axes, pooled: pd.DataFrame, source: str, role: str) -> None:
    """One role's rate along every trained arm of one source, with its interval shaded."""
    for arm, (colour, marker, line) in ARM_STYLES.items():
        trail = pooled[(pooled["arm"] == arm) & (pooled["source"] == source)].sort_values("step")
        if len(trail):
            values = trail[[f"{role}_rate", f"{role}_low", f"{role}_high"]].to_numpy(float).T
            _line(axes, trail["step"], values, colour, marker, line)
    plots.percent_axis(axes)
    axes.set_xlim(-4, 104)
    axes.set_xticks([0, 50, 100])


def cosine_lines(axes: Axes, paths: pd.DataFrame, source: str) -> None:
    """The centred cosine of one source along every trained arm; dotted, arm B before its marker was trained."""
    for stage in ("before marker", "evaluated"):
        for arm, (colour, marker, line) in ARM_STYLES.items():
            trail = paths[(paths["arm"] == arm) & (paths["source"] == source) & (paths["stage"] == stage)]
            if trail.empty:
                continue
            mean = trail.groupby("step")[["centred", "centred_low", "centred_high"]].mean()
            style = (colour, marker, line) if stage == "evaluated" else (colour, ".", (0, (1, 1.4)))
            _line(axes, mean.index, mean.to_numpy(float).T, *style)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(-4, 104)
    axes.set_xticks([0, 50, 100])


def against(axes: Axes, table: pd.DataFrame, column: str, label: str, *, percent: bool = False) -> None:
    """Assistant leakage of arm B's checkpoints against one column; a path a source, the end filled."""
    for source, trail in table[(table["arm"] == "B") & (table["step"] > 0)].groupby("source", sort=False):
        mean = _mean_over_seeds(trail)
        colour, marker = plots.persona_colour(source), plots.persona_marker(source)
        axes.plot(mean[column], mean["assistant_rate"], color=colour, linewidth=0.8, alpha=0.6)
        low, high = mean["assistant_rate"] - mean["assistant_low"], mean["assistant_high"] - mean["assistant_rate"]
        axes.errorbar(mean[column], mean["assistant_rate"], [low, high], fmt="none", ecolor=colour, elinewidth=0.7)
        for position, row in enumerate(mean.to_dict("records")):
            face = colour if position == len(mean) - 1 else "white"
            axes.plot(
                row[column], row["assistant_rate"], marker=marker, markersize=5, color=colour, markerfacecolor=face
            )
    plots.percent_axis(axes)
    axes.set_xlabel(label)
    if percent:
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
        axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)


def heatmap(axes: Axes, rates: pd.DataFrame, names: bool = True) -> None:
    """Marker rate of every persona (columns) under every source (rows), in percent; the source's own cell is framed."""
    sources = list(dict.fromkeys(rates["source"]))
    personas = [*sources, ASSISTANT]
    personas = [p for p in personas if p in set(rates["persona"])]
    personas += [p for p in dict.fromkeys(rates["persona"]) if p not in personas]
    matrix = rates.pivot(index="source", columns="persona", values="rate").reindex(index=sources, columns=personas)
    image = axes.imshow(matrix.to_numpy(float), cmap=plots.RATE_COLOURS, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix.to_numpy(float)):
        if np.isfinite(value):
            ink = plots.readable_on(image.cmap(image.norm(value)))
            text = f"{100 * value:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=6.3, color=ink, gid=f"{row}:{column}")
        if personas[column] == sources[row]:
            frame = Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor="white", linewidth=1.6)
            axes.add_patch(frame)
    labels = [plots.persona_name(p) for p in personas] if names else [""] * len(personas)
    axes.set_xticks(range(len(personas)), labels, rotation=40, ha="right", fontsize=plots.SIZES["small"])
    axes.set_yticks(range(len(sources)), [plots.persona_name(s) for s in sources], fontsize=plots.SIZES["small"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _trajectory(axes: Axes, trail: pd.DataFrame, source: str) -> None:
    colour, marker = plots.persona_colour(source), plots.persona_marker(source)
    ends = trail[["centred", "assistant_rate"]].to_numpy(float)
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 0.9, "shrinkA": 2, "shrinkB": 3}
        )
    axes.plot(*ends.T, color=colour, marker=marker, markersize=4.5, linestyle="")
    axes.plot(*ends[0], color=colour, marker=marker, markersize=4.5, markerfacecolor="white", linestyle="")


def _mean_over_seeds(trail: pd.DataFrame) -> pd.DataFrame:
    return trail.groupby("step").mean(numeric_only=True).sort_index().reset_index()


def _role_rate(row: dict, role: str) -> tuple[float, float, float]:
    names = ("bystander_mean", "bystander_mean_low", "bystander_mean_high")
    names = names if role == "bystander" else (f"{role}_rate", f"{role}_low", f"{role}_high")
    return tuple(row[name] for name in names)


def _line(axes: Axes, x, values: np.ndarray, colour: str, marker: str, line) -> None:
    """A line with its interval shaded; `values` (3, points): middle, low, high."""
    x = np.asarray(x, float)
    axes.fill_between(x, values[1], values[2], color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, values[0], color=colour, marker=marker, markersize=3.6, linewidth=1.3, linestyle=line, clip_on=False)


def _shared_cosine_limits(row) -> None:
    limits = [axes.get_ylim() for axes in row]
    low, high = min(a for a, _ in limits), max(b for _, b in limits)
    for axes in row:
        axes.set_ylim(max(-1.05, low), min(1.05, high))
        axes.axhline(0, color="#bbbbbb", linewidth=0.7, zorder=0)


def _arm_legend(table: pd.DataFrame, paths: pd.DataFrame | None = None) -> tuple[list, list]:
    arms = [arm for arm in ARM_STYLES if arm in set(table["arm"])]
    handles = [
        Line2D([], [], color=c, marker=m, linestyle=line, markersize=4, linewidth=1.3)
        for c, m, line in (ARM_STYLES[arm] for arm in arms)
    ]
    labels = [ARM_TITLES[arm] for arm in arms]
    if paths is not None and "before marker" in set(paths["stage"]):
        handles.append(Line2D([], [], color=ARM_STYLES["B"][0], marker=".", linestyle=(0, (1, 1.4))))
        labels.append("B before its marker")
    return handles, labels


def _source_legend(table: pd.DataFrame) -> tuple[list, list]:
    sources = list(dict.fromkeys(table.loc[table["arm"].isin(TRAINED_ARMS), "source"]))
    handles = [
        Line2D([], [], color=plots.persona_colour(s), marker=plots.persona_marker(s), markersize=4.5, linewidth=0.9)
        for s in sources
    ]
    return handles, [plots.persona_name(s) for s in sources]


def _rho_words(tests: pd.DataFrame, layer: int, kind: str) -> str:
    chosen = tests[
        (tests["test"] == "within") & (tests["layer"] == layer) & (tests["kind"] == kind) & (tests["arm"] == "B")
    ]
    lines = []
    for row in chosen.to_dict("records"):
        rho = "–" if row["rho"] != row["rho"] else f"{row['rho']:+.2f}"
        p = "" if row["p"] != row["p"] else f", p {row['p']:.2f}"
        lines.append(f"{plots.persona_name(row['source'])} {rho}{p}")
    return "\n".join(lines)


def _predictor_words(tests: pd.DataFrame, name: str) -> str:
    at = tests[(tests["test"] == "predictors") & (tests["arm"] == "B") & (tests["predictor"] == name)]
    at = at[at["kind"] == "centred"].set_index("scope")
    if at.empty or at.loc["pooled", "rho"] != at.loc["pooled", "rho"]:
        return "rho undefined: too few or constant points"
    pooled, partial = at.loc["pooled"], at.loc["partial"]
    held = "–" if partial["rho"] != partial["rho"] else f"{partial['rho']:+.2f}"
    return f"rho {pooled['rho']:+.2f}, p {pooled['p']:.2f} (least {pooled['min_p']:.2f})\nother held fixed {held}"


def _grid(rows: int, columns: int, draw, png, pdf, note: str, *, size=(2.3, 1.95), legend=None) -> Figure:
    """A grid of panels with one legend above and one note below, drawn and saved."""
    with plots.theme():
        handles, labels = legend or ([], [])
        entry = 0.5 + 0.075 * max(map(len, labels), default=0)
        width = max(4.4, 0.7 + size[0] * columns, min(2, len(labels)) * entry)
        figure = Figure(figsize=(width, 0.95 + size[1] * rows), layout="constrained")
        draw(figure.subplots(rows, columns, squeeze=False))
        if legend:
            per_row = max(1, min(len(labels), int(width / entry)))
            figure.legend(handles, labels, loc="outside upper left", ncols=per_row, columnspacing=1.2)
        _foot(figure, note)
        plots.save(figure, png, pdf)
    return figure


def _foot(figure: Figure, note: str) -> None:
    """A wrapped note under the figure, in room kept free for it."""
    wrapped = textwrap.wrap(note, int(figure.get_figwidth() * 19))
    height = figure.get_figheight()
    room = (0.13 * len(wrapped) + 0.12) / height
    figure.get_layout_engine().set(rect=(0, room, 1, 1 - room))
    style = {"ha": "left", "va": "bottom", "fontsize": plots.SIZES["small"], "color": "#444444"}
    figure.text(0.08 / figure.get_figwidth(), 0.05 / height, "\n".join(wrapped), **style)


def _nothing(words: str, png: str | Path, pdf) -> Figure:
    with plots.theme():
        figure = Figure(figsize=(4.4, 1.0))
        figure.text(0.5, 0.5, words, ha="center", va="center", color=plots.GREY)
        plots.save(figure, png, pdf)
    return figure
