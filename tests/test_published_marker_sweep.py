"""The published marker sweep, from its result file to the printed table."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml

from spillover import config, marker_rates, published, sweep_cells, sweep_claims

pytestmark = pytest.mark.published


@pytest.fixture(scope="module")
def printed(root):
    return yaml.safe_load((root / "resources/published/marker_sweep.yaml").read_text())


@pytest.fixture(scope="module")
def options():
    settings = {"marker": {"text": "[ZLT]", "case_sensitive": False}}
    return config.validated(settings, "experiment", "here", "options_marker_sweep")


@pytest.fixture(scope="module")
def cells(request, options):
    path = request.getfixturevalue("published") / "marker_sweep/all_results_compiled.json"
    if not path.is_file():
        pytest.skip("the published marker sweep is not in the folder of published results")
    rates, choices, runs = published.read_marker_sweep(path)
    # the file has neither the untrained model nor the replies
    whole = runs.assign(seed=42, checkpoint="final", replies=2200, degenerate=0, structure=0)
    checks = whole[[*marker_rates.RUN, "replies", "degenerate", "structure"]]
    settings = sweep_cells.settings(runs.to_dict("records"))
    table = sweep_cells.cells(rates, settings, sweep_cells.with_share(choices), checks, options)
    return sweep_cells.all_seeds(table)


def test_all_25_cells_are_there_to_the_printed_digit(cells, printed):
    columns = {"source": 1, "assistant": 1, "max_bystander": 1, "capability": 3}
    assert len(cells) == 25
    ours = {
        (row.learning_rate, row.epochs): tuple(
            f"{getattr(row, name) * (1 if name == 'capability' else 100):.{digits}f}"
            for name, digits in columns.items()
        )
        for row in cells.itertuples()
    }
    theirs = {
        (row["learning_rate"], row["epochs"]): tuple(
            f"{row['bystander' if name == 'max_bystander' else name]:.{digits}f}" for name, digits in columns.items()
        )
        for row in printed["cells"]
    }
    assert ours == theirs


def test_the_rows_that_the_write_up_prints_are_among_them_but_for_one_digit(cells):
    rows = cells.set_index(["learning_rate", "epochs"])
    for (rate, epochs), (source, assistant, bystander, able) in {
        (5e-6, 3): (28.5, 0, 1, 0.881), (5e-6, 10): (64.5, 0, 2, 0.877), (5e-6, 20): (91, 0, 1.5, 0.876),
        (1e-5, 3): (100, 2.5, 53.5, 0.881), (1e-5, 10): (100, 26.5, 95.5, 0.889),
    }.items():  # fmt: skip
        row = rows.loc[(rate, epochs)]
        measured = 100 * row[["source", "assistant", "max_bystander"]].astype(float)
        assert measured.tolist() == pytest.approx([source, assistant, bystander])
        assert round(row["capability"], 3) == able
    assert round(rows.at[(1e-6, 1), "capability"], 3) == 0.876  # the write-up prints 0.875


def band(cells, name):
    return sorted(zip(*cells.loc[cells[f"reading_{name}"], ["learning_rate", "epochs"]].T.values, strict=True))


def test_the_two_readings_of_the_clean_band_select_two_and_five_cells(cells):
    assert band(cells, "code") == [(5e-6, 10), (5e-6, 20)]
    assert band(cells, "write_up") == [(5e-6, 3), (5e-6, 5), (5e-6, 10), (5e-6, 20), (1e-5, 1)]


def test_the_code_reading_is_the_files_own_flag(cells, request):
    path = request.getfixturevalue("published") / "marker_sweep/all_results_compiled.json"
    flags = pd.read_json(path)["success"].tolist()
    assert cells["reading_code"].tolist() == flags


def test_our_regimes_follow_the_write_ups_names(cells):
    regimes = cells.set_index(["learning_rate", "epochs"])["regime"]
    assert set(regimes[1e-6]) == {"under-trained"}
    assert regimes[5e-6].tolist() == ["under-trained"] * 3 + ["selective"] * 2
    assert regimes[1e-5].tolist() == ["under-trained"] + ["leaky"] * 4  # "collapse onset", "broad leakage"
    assert set(regimes[5e-5]) == set(regimes[1e-4]) == {"collapsed"}
    assert sweep_cells.recommended(cells)["epochs"] == 20


def test_the_committed_table_has_the_same_regimes(cells, printed, options):
    ours = cells.set_index(["learning_rate", "epochs"])["regime"].to_dict()
    table = sweep_claims.published_cells(printed, options)
    assert table.set_index(["learning_rate", "epochs"])["regime"].to_dict() == ours
