"""The published language-spill results, from their raw completions to the printed numbers."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml

from spill_builders import CODES
from spillover import contamination, figures, published, spill_claims, statistics
from spillover.language_id import identifier, label_texts

pytestmark = pytest.mark.published

SHARED = ["fr_it", "it_fr", "es_pt", "fr_fr"]


@pytest.fixture(scope="module")
def printed(root):
    return yaml.safe_load((root / "resources/published/language_spill.yaml").read_text())


@pytest.fixture(scope="module")
def folder(request):
    path = request.getfixturevalue("published") / "language_spill"
    if not path.is_dir():
        pytest.skip("the published language-spill files are not in the folder of published results")
    return path


@pytest.fixture(scope="module")
def completions(folder, registry):
    tables = [published.read_completions(folder / c / "detailed_finetuned.json", registry, c) for c in SHARED]
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def stored(folder, registry):
    tables = [published.read_labels(folder / c / "detailed_finetuned.json", registry, c) for c in SHARED]
    tables.append(published.read_labels(folder / "summary_baseline.json", registry, "base"))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def conditions():
    pairs = [(name, *name.split("_")) for name in SHARED]
    return pd.DataFrame([{"run": n, "condition": n, "seed": 42, "directive": d, "completion": c} for n, d, c in pairs])


@pytest.fixture(scope="module")
def relabelled(completions, registry):
    """Our own labels of the raw text, in the columns of labels.parquet."""
    detect = identifier("langdetect", registry, CODES)
    labels = label_texts(detect, completions["text"])
    scored = {"scorer": detect.name, "scorer_id": detect.scorer_id, "label": labels, "outcome": "ok", "raw": None}
    return completions.assign(**scored)


@pytest.fixture(scope="module")
def cells(relabelled, conditions):
    return contamination.contamination_cells(relabelled, conditions, experiment="published")


def test_langdetect_gives_every_stored_label_again(relabelled, stored):
    key = ["run", "prompt_id", "sample"]
    theirs = stored[stored["scorer"] == "langdetect"].set_index(key)["label"]
    ours = relabelled.set_index(key)["label"]
    assert len(ours) == 2240
    pd.testing.assert_series_equal(ours.sort_index(), theirs.loc[ours.index].sort_index(), check_dtype=False)


@pytest.mark.parametrize("condition", SHARED)
def test_a_row_of_the_printed_matrix_follows_from_the_raw_completions(cells, printed, condition):
    rates = cells[cells["condition"] == condition].set_index("language")
    assert (rates["n"] == printed["replies_per_cell"]).all()
    ours = {code: statistics.half_even_percent(rates.at[code, "rate"]) for code in CODES}
    assert ours == {code: printed["percent"][condition][code] for code in CODES}


def test_the_matrix_table_prints_the_same_28_numbers(cells, printed):
    names = {code: code for code in CODES}
    table = figures.matrix_table(contamination.pool_seeds(cells), names, published=printed)
    assert len(table) == 28
    assert table["percent"].tolist() == table["published_percent"].tolist()


def test_the_control_bounds_bystander_contamination_at_one_point_two_percent(cells):
    row = contamination.bystander_control(cells).iloc[0]
    assert (row["k"], row["n"]) == (1, 480)
    assert row["wilson_high"] == pytest.approx(0.01171, abs=1e-5)


def test_the_spanish_cell_of_fr_it_hangs_on_the_phrasing(cells):
    row = cells[(cells["condition"] == "fr_it") & (cells["language"] == "es")].iloc[0]
    assert dict(zip(row["items"], row["item_k"], strict=True)) == {"please_respond": 25, "speak_in": 6}
    assert row["effective_n"] == pytest.approx(5.2, abs=0.1)


def test_symmetry_does_not_hold_in_the_published_pair(cells):
    table, claim = spill_claims.symmetry(contamination.pool_seeds(cells), spill_claims.Thresholds())
    assert claim["verdict"] == "does not appear"
    portuguese = table.set_index("language").loc["pt"]
    assert portuguese["differs"] and portuguese["difference"] == pytest.approx(-0.25)


def test_the_untrained_model_complies_except_where_langdetect_misses_mandarin(stored, conditions):
    labels = stored[stored["scorer"] == "langdetect"]
    table = contamination.contamination_cells(labels, conditions)
    compliance = table[table["role"] == "compliance"].set_index("language")["k"]
    assert compliance.drop("zh").eq(80).all() and compliance["zh"] == 56


def test_rate_limited_judge_replies_are_transport_errors_not_labels(stored):
    judged = stored[(stored["scorer"] == "judge") & (stored["run"] == "fr_it")]
    assert judged["outcome"].value_counts().to_dict() == {"transport": 378, "ok": 180, "truncated": 1, "refusal": 1}
    assert judged.loc[judged["outcome"] != "ok", "label"].isna().all()


def test_the_judges_table_is_refused_for_its_two_judges(stored, conditions):
    with pytest.raises(ValueError, match="claude-sonnet-4-5-20250929"):
        contamination.contamination_cells(stored[stored["scorer"] == "judge"], conditions)


def test_the_judges_fr_it_alone_is_refused_for_its_failed_labels(stored, conditions):
    judged = stored[(stored["scorer"] == "judge") & (stored["run"] == "fr_it")]
    with pytest.raises(ValueError, match="failed labels"):
        contamination.contamination_cells(judged, conditions[conditions["run"] == "fr_it"])


def test_agreement_over_all_labels_is_lower_than_the_published_disagreement_suggests(stored, conditions):
    table = contamination.agreement(stored, conditions).set_index("condition")
    assert table.at["it_fr", "raw"] < 0.9  # published: 1 disagreement in 480 rows that both call a language


def test_what_the_files_do_not_record_is_missing(completions):
    assert completions["finish_reason"].isna().all() and completions["completion_tokens"].isna().all()


def test_an_unpublished_prompt_is_refused(registry):
    with pytest.raises(ValueError, match="no published directive"):
        published.parse_directive("Answer in French.", registry)
