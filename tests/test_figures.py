"""Figures render, and what they show is what their tables hold."""

from __future__ import annotations

import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

import dose_response
import spill_cells
import spill_join
import spill_matrix
import spill_summary
from spill_builders import CODES, experiment, run_of, three_conditions
from spillover import contamination, dose_figures, figures, geometry_figures, plots, spill_geometry
from spillover.languages import distance_matrices, load_languages
from spillover.statistics import half_even_percent

NAMES = {
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
    "de": "German",
    "zh": "Mandarin Chinese",
}
PAIRS = [(a, b) for a in CODES for b in ("it", "fr")][:14]


def fourteen_conditions():
    return experiment(*(run_of(a, b, {"es": (2, 3)} if "es" not in (a, b) else {}) for a, b in PAIRS))


def pooled(labels, conditions):
    return contamination.pool_seeds(contamination.contamination_cells(labels, conditions))


@pytest.fixture(scope="module")
def published(root):
    return yaml.safe_load((root / "resources/published/language_spill.yaml").read_text())


@pytest.fixture(scope="module")
def table(published):
    return figures.matrix_table(pooled(*three_conditions(seeds=(1, 2, 3))), NAMES, published=published)


def drawn(figure, panel):
    """{(row, language): text} of one panel."""
    texts = next(axes for axes in figure.axes if axes.get_label() == panel).texts
    marked = [text for text in texts if str(text.get_gid()).startswith(f"{panel}:")]
    return {tuple(text.get_gid().split(":")[1:]): text.get_text() for text in marked}


def test_every_number_drawn_is_the_number_in_the_table(table, tmp_path):
    figure = figures.spill_matrix(table, NAMES, tmp_path / "m.png", tmp_path / "m.pdf", published_title="Published")
    expected = {(row.row, row.language): str(row.percent) for row in table.itertuples()}
    assert drawn(figure, "measured") == expected
    given = table.dropna(subset=["published_percent"])
    assert drawn(figure, "published") == {
        (r.row, r.language): str(int(r.published_percent)) for r in given.itertuples()
    }


def test_percentages_in_the_table_are_the_rates_rounded_half_to_even(table):
    assert table["percent"].tolist() == [half_even_percent(rate) for rate in table["rate"]]


def test_mismatched_conditions_come_before_controls_and_the_untrained_model(table):
    assert table["group"].drop_duplicates().tolist() == ["mismatched", "control", "base"]
    assert table.drop_duplicates("line")["row"].tolist() == ["FR → IT", "IT → FR", "FR → FR", "spill", "complies"]


def test_published_figures_stand_beside_the_same_condition(table, published):
    row = table[table["condition"] == "fr_it"].set_index("language")["published_percent"]
    assert row.to_dict() == {code: published["percent"]["fr_it"][code] for code in CODES}


def test_the_untrained_row_shows_the_largest_studied_language_that_was_not_asked_for():
    labels, conditions = experiment(run_of("fr", "it", {}), run_of("it", "fr", {}))
    base = labels["run"].str.contains("base") & (labels["cell"] == "es")
    labels.loc[base & (labels["sample"] < 2), "label"] = "it"
    labels.loc[base & (labels["sample"] == 2), "label"] = "fr"
    labels.loc[base & (labels["sample"] > 5), "label"] = "pt"
    found = figures.matrix_table(pooled(labels, conditions), NAMES)
    row = found[(found["row"] == "spill") & (found["language"] == "es")].iloc[0]
    assert (row["percent"], row["completion"]) == (20, "it")


def test_roles_are_told_by_letters_as_well_as_by_colour(table, tmp_path):
    figure = figures.spill_matrix(table, NAMES, tmp_path / "m.png")
    measured = next(axes for axes in figure.axes if axes.get_label() == "measured")
    letters = [text.get_text() for text in measured.texts if text.get_gid() == "role"]
    assert sorted(letters) == ["C", "C", "S", "T", "T"]


def test_the_caption_gives_n_seeds_and_label(table, tmp_path):
    figure = figures.spill_matrix(table, NAMES, tmp_path / "m.png")
    words = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert "N = 60 (untrained model: 20) replies a cell (2 phrasings), 3 seeds; label: langdetect" in words


def test_one_seed_is_said_in_the_caption(tmp_path):
    one = figures.matrix_table(pooled(*three_conditions()), NAMES)
    figure = figures.spill_matrix(one, NAMES, tmp_path / "m.png")
    words = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert "1 seed;" in words and "covering the sampling of completions only" in words


def test_a_matrix_of_fourteen_conditions_grows_in_height_only(tmp_path):
    small = figures.matrix_table(pooled(*three_conditions()), NAMES)
    large = figures.matrix_table(pooled(*fourteen_conditions()), NAMES)
    sizes = [figures.spill_matrix(t, NAMES, tmp_path / "m.png").get_size_inches() for t in (small, large)]
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] - sizes[0][1] > 10 * figures.CELL_HEIGHT


def test_equal_data_gives_equal_files(table, tmp_path):
    for name in ("a", "b"):
        figures.spill_matrix(table, NAMES, tmp_path / f"{name}.png", tmp_path / f"{name}.pdf")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_a_label_source_that_is_not_in_the_table_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no cells labelled by 'judge'; the table has: langdetect"):
        figures.matrix_table(pooled(*three_conditions()), NAMES, "judge")


def test_a_condition_at_two_learning_rates_cannot_be_one_row():
    with pytest.raises(ValueError, match="several learning rates"):
        figures.matrix_table(pooled(*three_conditions(learning_rates=(1e-4, 1e-3))), NAMES)


@pytest.fixture(scope="module")
def doses():
    return dose_figures.dose_table(contamination.contamination_cells(*three_conditions((1, 2), (1e-4, 1e-3, 3e-3))))


def test_the_dose_lines_are_the_table(doses, tmp_path):
    figure = dose_figures.dose_response(doses, tmp_path / "d.png", tmp_path / "d.pdf")
    axes = figure.axes[0]
    lines = {tuple(np.round(line.get_ydata(), 9)) for line in axes.lines if len(line.get_xdata()) == 3}
    shown = doses[doses["condition"] == "fr_it"].sort_values("learning_rate")
    assert lines == {tuple(np.round(group["rate"], 9)) for _, group in shown.groupby("quantity")}


def test_the_dose_of_bystanders_is_their_mean_with_the_untrained_level(doses):
    row = doses[(doses["condition"] == "fr_it") & (doses["quantity"] == "bystander")].set_index("learning_rate")
    assert row.loc[1e-4, "rate"] == pytest.approx((0.7 + 0.25 + 0.05) / 5)
    assert row["base_rate"].tolist() == [0, 0, 0]


def test_a_dose_figure_needs_learning_rates(tmp_path):
    cells = contamination.contamination_cells(*three_conditions())
    with pytest.raises(ValueError, match="needs a learning_rate"):
        dose_figures.dose_response(dose_figures.dose_table(cells), tmp_path / "d.png")


@pytest.fixture(scope="module")
def geometry(root):
    registry = load_languages(root / "resources/languages.yaml")
    vectors = np.random.default_rng(0).normal(size=(7, 12)) + 2
    cosines = spill_geometry.cosine_table(CODES, {("last_prompt_token", 3): vectors}, CODES)
    return cosines, spill_geometry.predictor_matrices(cosines, distance_matrices(registry, CODES))


def test_the_cosine_figure_prints_the_cosines(geometry, tmp_path):
    cosines, _ = geometry
    figure = geometry_figures.cosine_matrix(cosines, tmp_path / "c.png")
    texts = {text.get_gid(): text.get_text() for axes in figure.axes for text in axes.texts}
    value = cosines.set_index(["a", "b"]).at[("en", "es"), "cosine_centred"]
    assert float(texts["cosine_centred:0:1"].replace("−", "-")) == pytest.approx(value, abs=0.0051)
    assert texts["cosine_raw:2:2"] == ""


def test_the_join_figure_has_a_panel_per_predictor(geometry, tmp_path):
    _, predictors = geometry
    joined = spill_geometry.join_spill(pooled(*three_conditions()), predictors)
    tests = spill_geometry.join_tests(joined, predictors)
    figure = geometry_figures.spill_join(joined, tests, list(predictors), tmp_path / "j.png")
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible) == len(predictors)
    assert "least" in visible[2].get_title(loc="left")


def test_the_biplot_places_conditions_at_their_scores(tmp_path):
    table = pooled(*fourteen_conditions())
    components = spill_geometry.pca(spill_geometry.spill_matrix(table))
    names = {f"{a}_{b}": (a, b) for a, b in PAIRS}
    figure = geometry_figures.pca_biplot(components, names, tmp_path / "p.png")
    points = {
        (round(line.get_xdata()[0], 6), round(line.get_ydata()[0], 6))
        for line in figure.axes[0].lines
        if line.get_marker() != "None"
    }
    assert points == {(round(x, 6), round(y, 6)) for x, y in components.scores.to_numpy()[:, :2]}


def test_the_biplot_of_two_conditions_has_one_component(tmp_path):
    components = spill_geometry.pca(pd.DataFrame([[1.0] * 7, [2.0] * 7], index=["fr_it", "fr_fr"], columns=CODES))
    geometry_figures.pca_biplot(components, {"fr_it": ("fr", "it"), "fr_fr": ("fr", "fr")}, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_every_language_has_a_colour_and_a_marker_of_its_own(root):
    codes = load_languages(root / "resources/languages.yaml").codes
    assert len({plots.language_colour(code) for code in codes}) == len(codes)
    assert len({plots.language_marker(code) for code in codes}) == len(codes)


def test_drawing_leaves_matplotlibs_own_settings_alone(table, tmp_path):
    before = dict(mpl.rcParams)
    figures.spill_matrix(table, NAMES, tmp_path / "m.png")
    assert dict(mpl.rcParams) == before


def test_ink_is_readable_on_every_colour_of_the_map():
    def luminance(colour):
        linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in colour[:3]]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for value in np.linspace(0, 1, 101):
        face = mpl.colormaps[plots.RATE_COLOURS](value)
        ink = 0.0 if plots.readable_on(face) == "black" else 1.0
        low, high = sorted([luminance(face), ink])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_programs_make_every_output_from_labels(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    labels, conditions = three_conditions()
    for (run, seed), rows in labels.groupby(["run", "seed"]):
        name = f"{run.replace('/', '_')}_{seed}"
        rows.to_parquet(tmp_path / f"{name}.labels.parquet")
        rows.assign(finish_reason="stop").to_parquet(tmp_path / f"{name}.completions.parquet")
    (tmp_path / "conditions.json").write_text(conditions.assign(learning_rate=1e-3).to_json(orient="records"))
    tensors = {"last_prompt_token/layer1/centroid": np.random.default_rng(0).normal(size=(7, 8)).astype("float32")}
    save_file(tensors, tmp_path / "vectors.safetensors", metadata={"cells": json.dumps(CODES)})
    at = {name: str(tmp_path / name) for name in ("cells.parquet", "agreement.parquet", "tests.parquet")}
    files = (
        sorted(map(str, tmp_path.glob("*.labels.parquet"))),
        sorted(map(str, tmp_path.glob("*.completions.parquet"))),
    )

    spill_cells.main(
        ["--labels", *files[0], "--completions", *files[1], "--conditions", f"@{tmp_path}/conditions.json"]
        + ["--out", at["cells.parquet"], "--agreement", at["agreement.parquet"]]
    )
    matrix = ["--out", f"{tmp_path}/m.png", "--pdf", f"{tmp_path}/m.pdf", "--table", f"{tmp_path}/m.parquet"]
    spill_matrix.main(
        ["--cells", at["cells.parquet"], "--published", "resources/published/language_spill.yaml", *matrix]
    )
    dose = ["--out", f"{tmp_path}/d.png", "--pdf", f"{tmp_path}/d.pdf", "--table", f"{tmp_path}/d.parquet"]
    dose_response.main(["--cells", at["cells.parquet"], *dose])
    outputs = {"out-cosine": "c.parquet", "out-join": "j.parquet", "out-pca": "p.parquet", "out-tests": "tests.parquet"}
    outputs |= {"figure-cosine": "c.png", "figure-join": "j.png", "figure-pca": "p.png"}
    flags = [word for flag, name in outputs.items() for word in (f"--{flag}", f"{tmp_path}/{name}")]
    spill_join.main(["--cells", at["cells.parquet"], "--vectors", f"{tmp_path}/vectors.safetensors", *flags])
    summary = ["--out", f"{tmp_path}/s.md", "--json", f"{tmp_path}/s.json"]
    spill_summary.main(
        [
            "--cells",
            at["cells.parquet"],
            "--agreement",
            at["agreement.parquet"],
            "--tests",
            at["tests.parquet"],
            *summary,
        ]
    )

    made = {path.name for path in tmp_path.iterdir()}
    assert {"m.png", "m.pdf", "d.png", "d.pdf", "c.png", "j.png", "p.png", "s.md", "s.json"} <= made
    assert {"cells.parquet.manifest.json", "m.png.manifest.json", "s.md.manifest.json"} <= made
    assert not [name for name in made if ".tmp" in name]
    assert json.loads((tmp_path / "s.json").read_text())["claims"]


def test_a_program_answers_a_mistake_with_one_sentence(tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    cells = contamination.contamination_cells(*three_conditions(learning_rates=(1e-4, 1e-3)))
    cells.to_parquet(tmp_path / "cells.parquet")
    out = ["--out", f"{tmp_path}/m.png", "--pdf", f"{tmp_path}/m.pdf", "--table", f"{tmp_path}/m.parquet"]
    with pytest.raises(SystemExit, match="choose one with --learning-rate"):
        spill_matrix.main(["--cells", f"{tmp_path}/cells.parquet", *out])
    assert not (tmp_path / "m.png").exists()
