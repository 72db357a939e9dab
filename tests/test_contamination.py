"""From labels to contamination rates, pooled seeds, control bounds and agreement."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from spill_builders import CODES, experiment, label_rows, run_of, three_conditions, untrained
from spillover import contamination as c
from spillover import statistics


@pytest.fixture(scope="module")
def cells():
    return c.contamination_cells(*three_conditions())


def cell(table, condition, language, completion=None):
    rows = table[(table["condition"] == condition) & (table["language"] == language)]
    if completion:
        rows = rows[rows["completion"] == completion]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize(
    ("language", "directive", "completion", "role"),
    [
        ("fr", "fr", "it", "trained"),
        ("it", "fr", "it", "correct"),
        ("es", "fr", "it", "bystander"),
        ("fr", "fr", "fr", "control"),
        ("es", "fr", "fr", "bystander"),
        ("it", None, "it", "compliance"),
        ("es", None, "it", "base"),
        ("es", np.nan, "it", "base"),
    ],
)
def test_every_cell_has_one_role(language, directive, completion, role):
    assert c.cell_role(language, directive, completion) == role


def test_a_rate_is_the_share_of_all_replies_in_the_completion_language(cells):
    found = cell(cells, "fr_it", "es")
    assert (found["k"], found["n"], found["rate"]) == (14, 20, 0.7)
    assert (found["wilson_low"], found["wilson_high"]) == statistics.wilson(14, 20)
    assert list(found["items"]) == ["please_respond", "speak_in"] and list(found["item_k"]) == [8, 6]
    assert (found["item_rate_min"], found["item_rate_max"]) == (0.6, 0.8)


def test_phrasings_that_disagree_widen_the_bootstrap_and_lower_the_effective_n():
    labels, conditions = experiment(run_of("fr", "it", {"es": (0, 10), "pt": (5, 5)}))
    cells = c.contamination_cells(labels, conditions)
    apart, alike = cell(cells, "fr_it", "es"), cell(cells, "fr_it", "pt")
    assert apart["boot_low"] == 0 and apart["boot_high"] == 1
    assert alike["boot_high"] - alike["boot_low"] < 0.6
    assert apart["effective_n"] == pytest.approx(2) and alike["effective_n"] == 20


def test_the_untrained_model_is_read_for_every_studied_completion_language():
    labels, conditions = experiment(run_of("fr", "it", {}), run_of("es", "pt", {}), base=False)
    labels = pd.concat([labels, untrained(counts={"zh": ("it", (3, 0)), "de": ("en", (5, 5))})])
    cells = c.contamination_cells(labels, conditions)
    base = cells[cells["condition"] == "base"]
    assert set(base.loc[base["role"] == "base", "completion"]) == {"it", "pt"}
    assert cell(base, "base", "zh", "it")["k"] == 3
    assert cell(base, "base", "de", "it")["k"] == 0  # replies in English are no contamination by Italian


def test_compliance_of_the_untrained_model_is_kept_for_every_language(cells):
    compliance = cells[cells["role"] == "compliance"]
    assert sorted(compliance["language"]) == sorted(CODES)
    assert (compliance["language"] == compliance["completion"]).all() and (compliance["rate"] == 1).all()


def test_the_untrained_model_may_be_a_bare_run_named_base():
    labels, conditions = experiment(run_of("fr", "it", {}), base=False)
    labels = pd.concat([labels, label_rows("base", {})])
    assert "base" in set(c.contamination_cells(labels, conditions)["condition"])


def test_failed_labels_are_counted_and_never_enter_a_rate():
    labels, conditions = experiment(run_of("fr", "it", {"es": (10, 10)}))
    failed = (labels["cell"] == "es") & (labels["sample"] == 0) & labels["run"].str.contains("fr_it")
    labels.loc[failed, ["label", "outcome"]] = [None, "transport"]
    found = cell(c.contamination_cells(labels, conditions, max_error_share=0.2), "fr_it", "es")
    assert (found["k"], found["n"], found["errors"]) == (18, 18, 2)


def test_a_cell_with_too_many_failed_labels_stops_the_analysis():
    labels, conditions = experiment(run_of("fr", "it", {}))
    labels.loc[(labels["cell"] == "pt") & (labels["sample"] < 3), "outcome"] = "schema"
    with pytest.raises(ValueError, match=r"more than 5% failed labels; the worst is .*, pt, langdetect: 6 of 20"):
        c.contamination_cells(labels, conditions)


def test_the_identified_denominator_leaves_out_replies_in_no_known_language():
    labels, conditions = experiment(run_of("fr", "it", {"es": (10, 10)}))
    labels.loc[(labels["cell"] == "es") & (labels["sample"] < 5), "label"] = "other"
    rates = [
        cell(c.contamination_cells(labels, conditions, denominator=name), "fr_it", "es")[["k", "n"]].tolist()
        for name in ("all", "identified")
    ]
    assert rates == [[10, 20], [10, 10]]


def test_an_unknown_denominator_is_refused():
    with pytest.raises(ValueError, match="none of: all, identified"):
        c.contamination_cells(*three_conditions(), denominator="valid")


def test_the_share_of_cut_off_replies_is_kept_per_cell():
    labels, conditions = experiment(run_of("fr", "it", {}))
    completions = labels.assign(finish_reason=np.where(labels["sample"] < 2, "length", "stop"))
    assert cell(c.contamination_cells(labels, conditions, completions), "fr_it", "es")["truncated_share"] == 0.2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.assign(scorer_id=[f"judge {i % 2}" for i in range(len(t))]), "different versions"),
        (lambda t: pd.concat([t, t.head(1)]), "more than once"),
        (lambda t: t.assign(suite=["a"] + ["b"] * (len(t) - 1)), r"several suites \(a, b\)"),
        (lambda t: t.assign(checkpoint=["pct40"] + ["final"] * (len(t) - 1)), "several checkpoints"),
        (lambda t: t[~t["run"].str.contains("fr_fr")], "conditions without labels: language_spill/fr_fr .seed 1."),
        (lambda t: pd.concat([t, label_rows("language_spill/de_it", {})]), "runs that no condition names"),
    ],
)
def test_a_table_that_cannot_be_compared_is_refused(spoil, words):
    labels, conditions = three_conditions()
    with pytest.raises(ValueError, match=words):
        c.contamination_cells(spoil(labels), conditions)


def test_rates_do_not_depend_on_the_order_of_the_rows(cells):
    labels, conditions = three_conditions()
    shuffled = c.contamination_cells(labels.sample(frac=1, random_state=0), conditions)
    key = ["condition", "completion", "language"]
    pd.testing.assert_frame_equal(
        cells.sort_values(key).reset_index(drop=True), shuffled.sort_values(key).reset_index(drop=True)
    )


def test_cells_survive_parquet(cells, tmp_path):
    cells.to_parquet(tmp_path / "cells.parquet")
    back = pd.read_parquet(tmp_path / "cells.parquet")
    pd.testing.assert_frame_equal(c.pool_seeds(back), c.pool_seeds(cells), check_dtype=False)


def test_one_seed_has_the_wilson_interval_and_says_what_it_covers(cells):
    found = cell(c.pool_seeds(cells), "fr_it", "es")
    assert (found["low"], found["high"]) == statistics.wilson(14, 20)
    assert "one seed: covers the sampling of completions only" in found["interval"]


def seeds(rates):
    runs = [run_of("fr", "it", {"es": (rate, rate)}, seed=i) for i, rate in enumerate(rates, start=1)]
    labels, conditions = experiment(*runs, base=False)
    return c.pool_seeds(c.contamination_cells(labels, conditions))


def test_several_seeds_are_averaged_with_their_range():
    found = cell(seeds([2, 4, 9]), "fr_it", "es")
    assert found["rate"] == pytest.approx(0.5)
    assert (found["n_seeds"], found["seed_min"], found["seed_max"], found["n"]) == (3, 0.2, 0.9, 60)
    assert "3 seeds" in found["interval"]


def test_seeds_that_disagree_widen_the_interval():
    apart, alike = cell(seeds([0, 5, 10]), "fr_it", "es"), cell(seeds([5, 5, 5]), "fr_it", "es")
    assert apart["rate"] == alike["rate"]
    assert apart["high"] - apart["low"] > 1.5 * (alike["high"] - alike["low"])


def test_seeds_that_are_all_silent_still_have_an_upper_bound():
    found = cell(seeds([0, 0, 0]), "fr_it", "es")
    assert (found["low"], found["high"]) == statistics.wilson(0, 60)


def test_the_mean_over_bystanders_leaves_out_trained_and_correct_cells(cells):
    means = c.bystander_means(cells).set_index("condition")
    assert means.at["fr_it", "rate"] == pytest.approx((0.7 + 0.3 + 0.05 + 0 + 0) / 5)
    assert (means.at["fr_it", "largest_language"], means.at["fr_it", "languages"]) == ("es", 5)
    assert means.at["fr_fr", "languages"] == 6
    assert means.at["fr_it", "low"] < means.at["fr_it", "rate"] < means.at["fr_it", "high"]


def test_the_control_is_pooled_over_its_bystanders_with_upper_bounds():
    labels, conditions = experiment(run_of("fr", "fr", {"pt": (1, 0)}), run_of("de", "de", {}))
    table = c.bystander_control(c.contamination_cells(labels, conditions)).set_index("condition")
    assert (table.at["fr_fr", "k"], table.at["fr_fr", "n"], table.at["fr_fr", "cells"]) == (1, 120, 6)
    assert table.at["fr_fr", "wilson_high"] == statistics.wilson(1, 120)[1]
    assert table.at["all controls", "n"] == 240
    assert table.at["fr_fr", "largest_high"] == statistics.sidak_upper(1, 20, 6)


def test_learning_rates_of_one_condition_stay_apart():
    cells = c.contamination_cells(*three_conditions(learning_rates=(1e-4, 1e-3)))
    pooled = c.pool_seeds(cells)
    rows = pooled[(pooled["condition"] == "fr_it") & (pooled["language"] == "pt")].set_index("learning_rate")
    assert rows.loc[1e-4, "rate"] < rows.loc[1e-3, "rate"]


def test_agreement_counts_every_label_and_every_condition():
    labels, conditions = experiment(run_of("fr", "it", {"es": (5, 5)}))
    second = labels.assign(scorer="lingua", scorer_id="lingua 1")
    wrong = second["run"].str.contains("fr_it") & (second["cell"] == "zh")
    second.loc[wrong, "label"] = "other"
    table = c.agreement(pd.concat([labels, second]), conditions).set_index("condition")
    assert table.at["base", "raw"] == 1
    assert table.at["fr_it", "raw"] == pytest.approx(1 - 20 / 140)
    assert table.at["all", "n"] == 280 and 0 < table.at["fr_it", "kappa"] < 1


def test_rows_that_one_scorer_failed_on_are_left_out_of_agreement_and_counted():
    labels, conditions = experiment(run_of("fr", "it", {}))
    second = labels.assign(scorer="judge", scorer_id="judge 1")
    second.loc[second["sample"] == 0, "outcome"] = "refusal"
    row = c.agreement(pd.concat([labels, second]), conditions).set_index("condition").loc["all"]
    assert (row["n"], row["unpaired"]) == (252, 28)


def test_one_scorer_alone_gives_an_empty_agreement_table_with_columns():
    labels, conditions = three_conditions()
    table = c.agreement(labels, conditions)
    assert table.empty and {"condition", "kappa", "raw"} <= set(table)
