"""The convergence figures: every panel draws the numbers of its table, and missing arms leave no hole."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

import convergence_builders as builders
from spillover import convergence, convergence_figures, convergence_tables

METHOD = "last_prompt_token"


class Analysed:
    """The tables behind the figures, for two sources whose leak falls as the cosine rises."""

    def __init__(self, coefficients=()):
        self.records = builders.records(coefficients=coefficients)
        self.rates = builders.rates(self.records, self.hits)
        cosines = builders.cosines(self.records, lambda record, step: (step or 0) / 200)
        self.models = convergence.models(self.records)
        self.points = convergence.points(self.models, self.rates, "marker")
        self.paths = convergence.paths(self.models, cosines, self.records)
        self.pooled = convergence_tables.pool_seeds(self.points)
        self.table = convergence.joined(self.points, self.paths, 15, METHOD)
        self.tests = pd.concat(
            [
                convergence.within_source(self.table).assign(test="within", layer=15),
                convergence.predictors(self.table).assign(test="predictors", layer=15),
            ]
        )
        self.ends = convergence_figures.last_rates(self.rates, self.models, "marker")

    @staticmethod
    def hits(record, step, persona):
        if record["group"] == "base":
            return 0
        own = persona == record["fields"]["source"]
        return {"arm_a": 0, "arm_c": 100}.get(record["group"], 160) if own else 60 - (step or 0) / 2


@pytest.fixture(scope="module")
def analysed():
    return Analysed()


def lines(axes):
    return [line.get_ydata() for line in axes.get_lines()]


def test_the_headline_is_a_picture_with_every_panel(analysed, tmp_path):
    png, pdf = tmp_path / "convergence.png", tmp_path / "convergence.pdf"
    layer = analysed.paths[analysed.paths["layer"] == 15]
    figure = convergence_figures.headline(
        analysed.pooled, layer, analysed.ends, analysed.table, png, pdf, note="N = 200."
    )
    assert len(figure.get_axes()) == 3 * 2 + 3
    assert min(Image.open(png).size) > 900 and pdf.stat().st_size > 5000


def test_a_panel_of_rates_draws_each_arm_from_the_shared_start(analysed):
    axes = Figure().subplots()
    convergence_figures.rate_lines(axes, analysed.pooled, "villain", "source")
    drawn = lines(axes)
    assert [line[0] for line in drawn] == [0.8, 0.8, 0.8]
    assert [line[-1] for line in drawn] == [0.0, 0.8, 0.5]


def test_the_heat_map_writes_percent_and_frames_the_source(analysed):
    axes = Figure().subplots()
    convergence_figures.heatmap(axes, analysed.ends[analysed.ends["arm"] == "B"])
    texts = {text.get_gid(): text.get_text() for text in axes.texts}
    assert texts["0:0"] == "80" and texts["1:1"] == "80" and texts["0:2"] == "5"
    assert len(axes.patches) == 2
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names[:3] == ["villain", "comedian", "assistant"]


def test_leakage_is_drawn_against_the_cosine_with_the_last_checkpoint_filled(analysed):
    axes = Figure().subplots()
    convergence_figures.against(axes, analysed.table, "centred", "cosine")
    marks = [line for line in axes.get_lines() if line.get_marker() not in ("None", None)]
    filled = [line for line in marks if line.get_markerfacecolor() != "white"]
    assert len(marks) == 2 * 5 and len(filled) == 2
    assert filled[0].get_ydata()[0] == pytest.approx(10 / 200)


@pytest.mark.parametrize("name", ["cross_arm", "source_retention"])
def test_the_cross_arm_figures_are_written(analysed, tmp_path, name):
    figure = getattr(convergence_figures, name)(analysed.pooled, tmp_path / "f.png", note="N = 200.")
    assert len(figure.get_axes()) == {"cross_arm": 4, "source_retention": 2}[name]


def test_the_cosine_figure_has_a_row_a_layer_and_shows_arm_b_before_its_marker(analysed, tmp_path):
    figure = convergence_figures.cosine_evolution(analysed.paths, tmp_path / "f.png", note="")
    assert len(figure.get_axes()) == 2 * len(builders.LAYERS)
    assert "B before its marker" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_trajectories_predictors_and_leakage_are_written_with_their_tests(analysed, tmp_path):
    convergence_figures.trajectories(analysed.table, tmp_path / "a.png", note="")
    figure = convergence_figures.predictors(analysed.table, analysed.tests, tmp_path / "b.png", note="")
    assert "least" in figure.get_axes()[0].get_title(loc="left")
    figure = convergence_figures.leakage_cosine(
        lambda layer: analysed.table, analysed.tests, [15], tmp_path / "c.png", note=""
    )
    assert "villain -1.00, p 0.02" in figure.get_axes()[0].get_title(loc="left")


def test_adapters_are_shown_with_their_pattern(analysed, tmp_path):
    limits = convergence_tables.Limits()
    rows = convergence_tables.baseline(analysed.pooled, analysed.rates, analysed.records, "marker", limits)
    figure = convergence_figures.adapter_quality(pd.DataFrame(rows), tmp_path / "f.png", note="")
    names = [label.get_text() for label in figure.get_axes()[0].get_xticklabels()]
    assert names == ["villain\n(global)", "comedian\n(global)"]


def test_steering_is_drawn_where_it_was_run_and_said_to_be_missing_elsewhere(analysed, tmp_path):
    steered = Analysed(coefficients=(0.5, 1.0))
    rows = convergence_tables.steering(steered.pooled, steered.paths, 15, METHOD)
    figure = convergence_figures.steering(rows, tmp_path / "a.png", note="")
    assert len(figure.get_axes()) == 4
    assert np.array_equal(figure.get_axes()[0].get_lines()[0].get_xdata(), [0.0, 0.5, 1.0])
    empty = convergence_figures.steering([], tmp_path / "b.png", note="")
    assert "No run of this experiment is steered." in [text.get_text() for text in empty.texts]
