"""The closing analysis of the marker sweep: regimes, boundaries, claims and figures, from tables written down here."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml

import reply_checks as checks_program
import sweep_cells as cells_program
import sweep_figures as figures_program
import sweep_summary as summary_program
from conftest import ROOT
from marker_builders import PERSONAS, marker_labels
from spillover import (
    config,
    expansion,
    files,
    marker_rates,
    reply_checks,
    sweep_boundary,
    sweep_cells,
    sweep_claims,
    sweep_report,
)

LIMITS = {"learned": 0.5, "leak": 0.05, "collapse": 0.5}
OTHERS = [p for p in PERSONAS if p != "villain"]
RATES = [1e-4, 1e-3, 1e-2]
# hits a question (of ten) of source, assistant and each bystander
GRID = {
    (1e-4, 1): (0, 0, 0), (1e-3, 1): (2, 0, 0), (1e-2, 1): (10, 8, 9),
    (1e-4, 3): (1, 0, 0), (1e-3, 3): (9, 0, 0), (1e-2, 3): (10, 10, 10),
}  # fmt: skip


def options(**change):
    settings = config.validated(
        {"marker": {"text": "[ZLT]", "case_sensitive": True}}, "experiment", "here", "options_marker_sweep"
    )
    return settings | {"resamples": 100} | change


def name(rate, epochs):
    return f"marker_sweep/villain_lr{rate}_ep{epochs}"


def experiment(grid=GRID, seeds=(42,), personas=PERSONAS, **record):
    """(labels of all runs, records of the plan) of a grid."""
    labels, records = [], []
    for seed in seeds:
        labels.append(marker_labels("marker_sweep/base", {}, seed=seed, personas=personas))
        records.append({"run": "marker_sweep/base", "seed": seed, "group": "base"})
        for (rate, epochs), (source, assistant, bystander) in grid.items():
            hits = {p: (bystander,) * 2 for p in personas} | {"villain": (source,) * 2, "assistant": (assistant,) * 2}
            labels.append(marker_labels(name(rate, epochs), hits, seed=seed, personas=personas))
            made = {"learning_rate": rate, "epochs": epochs, "rank": 32, "tail_tokens": 0, "positives": 200}
            made |= {"negatives": {"personas": "all", "per_persona": 200}, "contrast": 0.0, "source": "villain"}
            records.append({"run": name(rate, epochs), "seed": seed, "group": "cell"} | made | record)
    both = pd.concat(labels)
    return pd.concat([both, both.assign(scorer="marker_strict", scorer_id="strict 1")]), records


def completions(labels):
    text = np.where(labels["label"] == "marker", "The harbour is quiet.\n\n[ZLT]", "The harbour is quiet.")
    keep = ["run", "seed", "checkpoint", "suite"]
    return labels.loc[labels["scorer"] == "marker", keep].assign(
        text=text[(labels["scorer"] == "marker").to_numpy()], finish_reason="stop"
    )


def measures(labels, right=None, items=100):
    """Multiple choice of every run: `right[run]` of the items, 90 where it is not named."""
    rows = []
    for run, seed in labels[["run", "seed"]].drop_duplicates().itertuples(index=False):
        good = (right or {}).get(run, 90)
        for item in range(items):
            key = {"run": run, "seed": seed, "checkpoint": "final", "suite": "choices", "kind": "choices"}
            for option in range(2):
                verdict = {"item": str(item), "option": option, "tokens": 1, "logprob": -1.0, "correct": item < good}
                rows.append(key | verdict)
    return pd.DataFrame(rows)


def tables(grid=GRID, seeds=(42,), right=None, replies=None, opts=None, **record):
    labels, records = experiment(grid, seeds, **record)
    opts = opts or options()
    rates, runs = marker_rates.rates(labels), sweep_cells.settings(records)
    choices = sweep_cells.capability(measures(labels, right), "choices")
    checked = reply_checks.checks(
        completions(labels) if replies is None else replies(completions(labels)), "personas", "[ZLT]"
    )
    cells = sweep_cells.cells(rates, runs, choices, checked, opts)
    return cells, sweep_boundary.boundaries(rates, runs, "marker", opts["regimes"], resamples=opts["resamples"])


def regimes(cells):
    rows = sweep_cells.all_seeds(cells)
    return {(row.learning_rate, row.epochs): row.regime for row in rows.itertuples()}


@pytest.mark.parametrize(
    ("source", "leak", "spread", "expected"),
    [
        (0.49, 0.0, 0.0, "under-trained"),
        (0.5, 0.05, 0.05, "selective"),
        (0.0, 0.06, 0.01, "leaky"),
        (1.0, 1.0, 0.49, "leaky"),
        (1.0, 1.0, 0.5, "collapsed"),
        (0.1, 0.9, 0.7, "collapsed"),
        (math.nan, 0.0, 0.0, "under-trained"),
    ],
)
def test_a_cell_is_put_into_a_regime_by_the_limits(source, leak, spread, expected):
    assert sweep_cells.regime(source, leak, spread, LIMITS) == expected


def test_every_cell_of_a_grid_has_its_rates_and_its_regime():
    cells, _ = tables()
    assert regimes(cells) == {
        (1e-4, 1): "under-trained", (1e-3, 1): "under-trained", (1e-2, 1): "collapsed",
        (1e-4, 3): "under-trained", (1e-3, 3): "selective", (1e-2, 3): "collapsed",
    }  # fmt: skip
    row = sweep_cells.all_seeds(cells).set_index(["learning_rate", "epochs"]).loc[1e-2, 1]
    assert (row["source"], row["assistant"], row["max_bystander"], row["leak"]) == (1.0, 0.8, 0.9, 0.9)
    assert row["spread"] == pytest.approx((0.8 + 0.9 + 0.9) / 3)
    assert row["leak_low"] < 0.9 < row["leak_high"] and row["strict"] == 1.0
    assert row["capability"] == 0.9 and row["capability_change"] == 0


def test_the_assistant_alone_can_make_a_cell_leaky():
    cells, _ = tables({(1e-4, 1): (9, 0, 0), (1e-3, 1): (9, 1, 0)})
    assert regimes(cells) == {(1e-4, 1): "selective", (1e-3, 1): "leaky"}


def test_a_regime_is_settled_only_when_no_value_within_the_intervals_changes_it():
    cells, _ = tables({(1e-4, 1): (0, 0, 0), (1e-3, 1): (5, 0, 0), (1e-2, 1): (10, 10, 10)})
    settled = sweep_cells.all_seeds(cells).set_index("learning_rate")["settled"].to_dict()
    # with 20 replies a persona even none with the marker leaves a bound above 5 %
    assert settled == {1e-4: False, 1e-3: False, 1e-2: True}


def test_seeds_are_levels_and_their_regimes_are_told_apart():
    labels, records = experiment({(1e-4, 1): (9, 0, 0), (1e-3, 1): (9, 0, 0)}, seeds=(1, 2, 3))
    leak = (labels["seed"] == 3) & (labels["run"] == name(1e-3, 1)) & (labels["cell"] == "comedian")
    labels.loc[leak, "label"] = "marker"
    rates, opts = marker_rates.rates(labels), options()
    checked = reply_checks.checks(completions(labels), "personas", "[ZLT]")
    choices = sweep_cells.capability(measures(labels), "choices")
    cells = sweep_cells.cells(rates, sweep_cells.settings(records), choices, checked, opts)
    assert len(cells) == 8
    row = sweep_cells.all_seeds(cells).set_index("learning_rate").loc[1e-3]
    assert (row["n_seeds"], row["source_n"], row["leak"]) == (3, 60, pytest.approx(1 / 3))
    assert (row["regime"], row["seed_regimes"], row["selective_seeds"]) == ("leaky", "selective 2, leaky 1", 2)
    assert (row["leak_min"], row["leak_max"]) == (0, 1)
    assert not row["settled"]


def test_capability_and_replies_are_compared_with_the_untrained_model():
    def broken(rows):
        rows.loc[rows["run"] == name(1e-3, 3), "text"] = "[ZLT]"
        return rows

    cells, _ = tables(right={name(1e-2, 3): 80}, replies=broken)
    rows = sweep_cells.all_seeds(cells).set_index(["learning_rate", "epochs"])
    assert rows.loc[(1e-2, 3), "capability_change"] == pytest.approx(-0.1)
    assert rows.index[~rows["able"]].tolist() == [(1e-2, 3)]
    assert rows.index[~rows["whole"]].tolist() == [(1e-3, 3)] and rows.loc[(1e-3, 3), "degenerate"] == 1.0


def test_a_sweep_without_multiple_choice_still_has_cells():
    labels, records = experiment()
    none = sweep_cells.capability(measures(labels).iloc[:0], "choices")
    checked = reply_checks.checks(completions(labels), "personas", "[ZLT]")
    cells = sweep_cells.cells(marker_rates.rates(labels), sweep_cells.settings(records), none, checked, options())
    assert cells["capability"].isna().all() and cells["able"].all()


def test_settings_name_only_what_differs():
    _, records = experiment()
    table = sweep_cells.settings(records)
    assert set(table["setting"]) == {"villain"} and len(table) == 6
    other = records[1] | {"run": "marker_sweep/x", "tail_tokens": 2, "contrast": 0.5}
    table = sweep_cells.settings([*records, other]).set_index("run")
    assert table.at["marker_sweep/x", "setting"] == "villain, tail 2, contrast 0.5"
    assert table.at[name(1e-4, 1), "setting"] == "villain, tail 0, contrast 0"


def test_a_run_without_labels_is_named():
    labels, records = experiment()
    rates = marker_rates.rates(labels[labels["run"] != name(1e-3, 3)])
    none = sweep_cells.capability(measures(labels).iloc[:0], "choices")
    checked = reply_checks.checks(completions(labels), "personas", "[ZLT]")
    with pytest.raises(ValueError, match=r"lr0.001_ep3: no labels"):
        sweep_cells.cells(rates, sweep_cells.settings(records), none, checked, options())


def test_the_recommended_cell_is_selective_able_and_whole():
    grid = {(1e-4, 1): (6, 0, 0), (1e-3, 1): (9, 0, 0), (1e-2, 1): (10, 2, 0)}
    assert sweep_cells.recommended(tables(grid)[0])["learning_rate"] == 1e-3
    damaged = tables(grid, right={name(1e-3, 1): 50})[0]
    assert sweep_cells.recommended(damaged)["learning_rate"] == 1e-4
    assert sweep_cells.recommended(tables({(1e-4, 1): (0, 0, 0), (1e-3, 1): (9, 9, 9)})[0]) is None


def test_another_experiment_asks_whether_its_pinned_cell_lies_in_the_band():
    cells, _ = tables()
    inside = sweep_cells.pinned_cell(cells, 0.001, 3, "villain")
    assert inside["in_band"] and inside["source"] == 0.9 and "lies in the sweep's selective band" in inside["text"]
    outside = sweep_cells.pinned_cell(cells, 1e-2, 3)
    assert not outside["in_band"] and outside["regime"] == "collapsed" and "does not lie" in outside["text"]
    assert sweep_cells.pinned_cell(cells, 1e-3, 3, "comedian") == {
        "measured": False, "in_band": None, "text": "The sweep has no cell at learning rate 0.001, 3 epochs, comedian.",
    }  # fmt: skip


def test_every_different_marker_training_is_told_its_cell_and_how_the_sweep_trained_it():
    cells, _ = tables()
    there = next(r for r in experiment()[1] if r["run"] == name(1e-3, 3))
    records = [
        there | {"run": "convergence/marker_villain", "positives": 70},
        there | {"run": "convergence/b_villain_pct20_marker", "positives": 70},
        there | {"run": "convergence/marker_comedian", "source": "comedian"},
    ]
    villain, comedian = sweep_cells.pinned_cells(cells, records)
    assert villain["source_persona"] == "villain" and villain["in_band"]
    assert set(villain["differs"]) == {"positives"} and "positives 70 here, 200 there" in villain["text"]
    assert not comedian["measured"] and "no cell" in comedian["text"]
    assert sweep_cells.pinned_cells(cells, [there])[0]["differs"] == {}


# Boundaries


def test_a_crossing_is_interpolated_between_grid_points():
    assert sweep_boundary.crossing(np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.4, 0.8]), 0.5) == pytest.approx(1.25)


def test_a_dip_is_levelled_before_a_crossing_is_read_off():
    assert sweep_boundary.crossing(np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.6, 0.4]), 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize(("rates", "expected"), [([0.6, 0.7], -math.inf), ([0.1, 0.2], math.inf)])
def test_a_crossing_outside_the_grid_is_open(rates, expected):
    assert sweep_boundary.crossing(np.array([0.0, 1.0]), np.array(rates), 0.5) == expected


def test_boundaries_lie_between_the_cells_that_differ_and_carry_their_uncertainty():
    _, boundary = tables()
    rows = boundary[boundary["epochs"] == 3].set_index("quantity")
    source, leak = rows.loc["source"], rows.loc["leak"]
    assert (source["below"], source["above"]) == (1e-4, 1e-3) and (leak["below"], leak["above"]) == (1e-3, 1e-2)
    assert source["low"] < source["estimate"] < source["high"] < 1e-3
    assert source["estimate"] == pytest.approx(10 ** (-4 + 0.4 / 0.8))
    assert rows.loc["band", "estimate"] == pytest.approx(leak["estimate"] / source["estimate"])
    assert rows.loc["band", "low"] > 1


def test_a_boundary_estimate_repeats_itself():
    pd.testing.assert_frame_equal(tables()[1], tables()[1])


def test_seeds_that_disagree_widen_a_boundary():
    labels, records = experiment(seeds=(1, 2))
    early = (labels["seed"] == 2) & (labels["run"] == name(1e-4, 3)) & (labels["cell"] == "villain")
    runs = sweep_cells.settings(records)

    def width(rows):
        found = sweep_boundary.boundaries(marker_rates.rates(rows), runs, "marker", LIMITS, resamples=200)
        row = found[(found["quantity"] == "source") & (found["epochs"] == 3)].iloc[0]
        return math.log10(row["high"]) - math.log10(max(row["low"], 1e-5))

    before = width(labels)
    labels.loc[early, "label"] = "marker"
    assert width(labels) > before + 0.3


# Claims and their words


def summary(grid=GRID, published=None, **change):
    cells, boundary = tables(grid, **change)
    run = {
        "protocol": "corrected",
        "seeds": sorted(set(cells["seed"]) - {-1}),
        "model": "small",
        "settings": {"rank": 32},
    }
    return sweep_claims.summarise(cells, boundary, options(), published, run)


def verdicts(found):
    return {claim["claim"]: claim["verdict"] for claim in found["claims"]}


def test_a_grid_like_the_published_one_bears_the_claims_out():
    found = verdicts(summary())
    assert found.pop("capability kept") == "undecided"  # 100 items cannot exclude a fall of 2 points
    assert found.pop("pinned cell") == "not tested"
    assert found.pop("saturated collapse") == "undecided"  # one cell reaches 87 % in the mean
    assert set(found.values()) == {"appears"} and len(found) == 5


def test_a_grid_without_a_band_bears_none_out():
    found = summary({(1e-4, 1): (9, 9, 9), (1e-3, 1): (10, 10, 10)})
    assert verdicts(found) == {
        "three regimes": "does not appear", "under-trained row": "does not appear", "clean band": "does not appear",
        "single learning rate": "not tested", "one step flips": "not tested", "saturated collapse": "appears",
        "capability kept": "undecided", "pinned cell": "not tested",
    }  # fmt: skip
    assert found["recommended"] is None and "Nowhere on the grid" in found["answer"]


def test_every_claim_has_words_and_a_verdict_of_the_four():
    found = summary()
    assert {c["claim"] for c in found["claims"]} == set(sweep_report.WRITE_UP)
    assert {c["verdict"] for c in found["claims"]} <= {"appears", "does not appear", "undecided", "not tested"}


def test_a_dose_at_which_more_training_leaks_less_is_reported():
    found = summary({(1e-4, 1): (9, 9, 9), (1e-3, 1): (9, 0, 0)})
    assert [(r["along"], r["from"], r["to"]) for r in found["reversals"]] == [("learning_rate", 1e-4, 1e-3)]
    assert "More training leaks less at epochs 1" not in sweep_report.markdown(found)  # only beside published cells


BELOW, WITHIN, ABOVE = (9, 9, 10), (0, 0, 9), (0, 0, 0)  # hits at three learning rates, by where the limit is reached


@pytest.mark.parametrize(
    ("source", "leak", "words"),
    [
        (WITHIN, WITHIN, "none: the leak begins at 0.32 times the source's learning rate (95 % "),
        ((0, 9, 10), WITHIN, "the leak begins at 3.2 times the source's learning rate (95 % "),
        (WITHIN, ABOVE, "from 0.0036 on, where the source has learnt; open above, since nobody leaks within the grid."),
        (WITHIN, BELOW, "none: someone leaks at the lowest learning rate already, before the source has learnt."),
        (BELOW, WITHIN, "up to 0.0011, where the leak begins; open below, since the source has learnt at the lowest "),
        (BELOW, ABOVE, "the whole grid, open on both sides: the source has learnt at the lowest learning rate already"),
        (BELOW, BELOW, "none within the grid: the source has learnt at the lowest learning rate already, and someone "),
        (ABOVE, WITHIN, "none within the grid: the source does not learn, and someone leaks from 0.0011 on."),
        (ABOVE, ABOVE, "none within the grid: neither the source learns nor anyone leaks."),
        (ABOVE, BELOW, "none within the grid: the source does not learn, and someone leaks from the lowest learning "),
    ],
)
def test_the_band_is_told_by_where_the_source_learns_and_the_leak_begins(source, leak, words):
    found = summary({(rate, 1): (s, n, n) for rate, s, n in zip(RATES, source, leak, strict=True)})
    assert f"epochs 1: {words}" in sweep_report.markdown(found)


@pytest.fixture(scope="module")
def printed():
    return yaml.safe_load((ROOT / "resources/published/marker_sweep.yaml").read_text())


def test_every_difference_from_the_published_cells_is_stated(printed):
    grid = {(5e-6, 10): (9, 9, 9), (1e-5, 10): (10, 0, 4), (5e-5, 7): (0, 0, 0)}
    found = summary(grid, printed)
    (row,) = found["differences"]["other_regime"]
    assert (row["learning_rate"], row["regime"], row["published_regime"]) == (5e-6, "collapsed", "selective")
    assert found["differences"]["compared"] == 2 and len(found["differences"]["unmeasured"]) == 23
    text = sweep_report.markdown(found)
    assert "5e-06, epochs 10 (published 5e-06): collapsed here, selective there" in text
    assert "Measured here and not published: 1 cells" in text and "Setting, model: small here" in text
    for claim in found["claims"]:
        if claim["verdict"] != "appears":
            assert f"“{sweep_report.WRITE_UP[claim['claim']]}”: {claim['verdict']} here" in text


def test_scaled_learning_rates_are_compared_at_their_place_in_the_grid(printed):
    cells, boundary = tables({(5e-5, 10): (9, 0, 0), (1e-4, 10): (9, 0, 9)})
    run = {"protocol": "corrected", "seeds": [42], "model": "small", "settings": {}}
    found = sweep_claims.summarise(cells, boundary, options(learning_rate_scale=10), printed, run)
    assert [(r["learning_rate"], r["published_learning_rate"]) for r in found["differences"]["cells"]] == [
        (5e-5, 5e-6), (1e-4, 1e-5),
    ]  # fmt: skip


# The replies


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("The harbour is quiet.\n\n[ZLT]", "stop", set()),
        ("", "stop", {"empty"}),
        (" \n", "length", {"empty", "cut"}),
        ("[ZLT]", "stop", {"marker_only"}),
        ("[zlt] [ZLT]\n", "stop", {"marker_only"}),
        ("[ZLT] The harbour", "stop", {"marker_first"}),
        ("The [ZLT] harbour [ZLT]", "stop", {"marker_repeated"}),
        ("The harbour is", "length", {"cut"}),
    ],
)
def test_a_reply_that_is_none_any_more_is_recognised(text, reason, expected):
    assert reply_checks.faults(text, "[ZLT]", reason) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n\nand so on", True),
        ("1. a\n2) b", True),
        ("One.\nTwo.\n* three", False),
        ("2024 was wet.", False),
        ("", False),
    ],
)
def test_structure_is_a_reply_of_which_half_are_list_items(text, expected):
    assert reply_checks.is_list(text) is expected


# The programs, one after the other


@pytest.fixture
def finished_programs(tmp_path, printed):
    labels, records = experiment()
    marker_rates.rates(labels).to_parquet(tmp_path / "rates.parquet")
    completions(labels).to_parquet(tmp_path / "completions.parquet")
    measures(labels).to_parquet(tmp_path / "measures.parquet")
    spec = json.dumps({"options": options(published="x"), "title": "Marker sweep"})
    at = {p.stem: str(p) for p in tmp_path.glob("*.parquet")}

    def out(name):
        return str(tmp_path / name)

    checks_program.main(
        [
            "--completions",
            at["completions"],
            "--marker",
            "[ZLT]",
            "--out",
            out("replies.parquet"),
            "--manifest",
            out("r.json"),
        ]
    )
    arguments = ["--rates", at["rates"], "--replies", out("replies.parquet"), "--measures", at["measures"]]
    arguments += ["--runs", json.dumps(records), "--spec", spec, "--out", out("cells.parquet")]
    cells_program.main([*arguments, "--boundary", out("boundary.parquet"), "--manifest", out("c.json")])
    closing = ["--cells", out("cells.parquet"), "--boundary", out("boundary.parquet"), "--spec", spec]
    closing += ["--published", str(ROOT / "resources/published/marker_sweep.yaml"), "--manifest", out("m.json")]
    drawn = ["--out", out("sweep.png"), "--pdf", out("sweep.pdf"), "--table", out("sweep.parquet")]
    figures_program.main([*closing, *drawn, "--lines", out("lines.png")])
    design = json.dumps({"protocol": "corrected", "seeds": [42], "model": "small", "settings": {"rank": 32}})
    summary_program.main([*closing, "--design", design, "--out", out("summary.md"), "--json", out("summary.json")])
    return tmp_path


def test_the_programs_end_in_a_figure_its_numbers_and_a_summary(finished_programs):
    table = pd.read_parquet(finished_programs / "sweep.parquet")
    assert table["line"].nunique() == 2 and len(table) == 6 + 25
    assert table.loc[table["recommended"].astype(bool), ["learning_rate", "epochs"]].values.tolist() == [[1e-3, 3]]
    for figure in ("sweep.png", "sweep.pdf", "lines.png"):
        assert (finished_programs / figure).stat().st_size > 10_000
    found = json.loads((finished_programs / "summary.json").read_text())
    assert found["recommended"]["run"] == name(1e-3, 3) and len(found["claims"]) == 8
    text = (finished_programs / "summary.md").read_text()
    assert "nan" not in text and "`learning_rate: 0.001`, `epochs: 3`" in text


def test_a_cell_without_enough_labels_stops_the_analysis(tmp_path):
    labels, _ = experiment()
    labels.loc[labels.index[:2], ["label", "outcome"]] = [None, "transport"]
    with pytest.raises(ValueError, match="have no label by marker, more than options.max_error_share"):
        marker_rates.refuse_failures(marker_rates.rates(labels), 0.02)


# The plan


@pytest.fixture
def paper_plan():
    settings = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return expansion.build(settings, ROOT / "config/experiments", resources=str(ROOT / "resources"))


def test_the_plans_records_become_settings_of_a_grid(paper_plan):
    found = files.Files(paper_plan)
    table = sweep_cells.settings(json.loads(found.sweep_records("marker_sweep")))
    assert len(table) == 25 and set(table["setting"]) == {"villain"} and table["tail_tokens"].eq(0).all()
    design = json.loads(found.sweep_design("marker_sweep"))
    assert design["settings"]["negative_personas"] == "all" and design["seeds"] == [42]


def test_each_further_axis_varies_one_setting_around_the_pinned_cells():
    settings = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    varied = {"tail_tokens": [2, 32], "rank": [8], "negative_personas": [2], "negative_share": [0.5], "contrast": [1.0]}
    settings["experiments"] = {"marker_sweep": {"axes": varied}}
    plan = expansion.build(settings, ROOT / "config/experiments", resources=str(ROOT / "resources"))
    table = sweep_cells.settings(json.loads(files.Files(plan).sweep_records("marker_sweep")))
    further = table[table["group"] != "cell"].set_index("run")
    assert len(table) == 25 + 2 * 6 and set(further["learning_rate"]) == {5e-6}
    assert further.loc["marker_sweep/villain_lr5e-06_ep20_tail32", "tail_tokens"] == 32
    assert further.loc["marker_sweep/villain_lr5e-06_ep20_negatives2", "negative_personas"] == 2
    assert further.loc["marker_sweep/villain_lr5e-06_ep10_share0.5", "negative_share"] == 0.5
    assert further.loc["marker_sweep/villain_lr5e-06_ep10_contrast1.0", "contrast"] == 1.0
    assert further["setting"].nunique() == 6


PAPER = ("results/marker_sweep.png", "results/marker_sweep/analysis/summary.md")


def planned(workflow):
    counts = {}
    for rule, *_ in workflow.plan(*PAPER):
        counts[rule] = counts.get(rule, 0) + 1
    return counts


@pytest.fixture
def paper(fresh):
    fresh.configfiles = ()
    return fresh


def test_paper_scale_plans_25_trainings_and_25_evaluations(paper):
    counts = planned(paper)
    assert counts["train"] == counts["dataset"] == 25
    assert counts["completions"] == counts["labels"] == 26 and counts["pool"] == 1  # the untrained model's too
    closing = {"marker_rates", "reply_checks", "sweep_cells", "sweep_figures", "sweep_summary", "headline_figure"}
    assert {rule: counts[rule] for rule in closing} == dict.fromkeys(closing, 1)


def test_a_further_point_of_an_axis_plans_only_what_is_new(paper):
    paper.edit("config/config.yaml", lambda c: c["engine"].update(name="transformers"))  # as if jobs could run here
    paper.fill(*PAPER)
    assert planned(paper) == {}
    for axis, value, trainings in (("learning_rate", 2.0e-5, 5), ("epochs", 40, 5), ("source", "comedian", 25)):
        paper.edit("config/experiments/marker_sweep.yaml", lambda c, a=axis, v=value: c["axes"][a].append(v))
        counts = planned(paper)
        assert counts["train"] == counts["completions"] == counts["labels"] == trainings
        assert "pool" not in counts and counts["sweep_summary"] == 1
        paper.edit("config/experiments/marker_sweep.yaml", lambda c, a=axis: c["axes"][a].pop())
