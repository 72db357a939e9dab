"""The language registry and its distances."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import yaml

from spill_builders import CODES
from spillover.languages import (
    char_ngram_distance,
    distance_matrices,
    distance_matrix,
    load_languages,
    parallel_texts,
)


def write(tmp_path, change, root):
    document = yaml.safe_load((root / "resources/languages.yaml").read_text())
    change(document)
    path = tmp_path / "languages.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True))
    return path


def test_the_registry_knows_the_eight_languages(registry):
    assert registry.codes == (*CODES, "ja")
    assert registry["zh"].name == "Mandarin Chinese"


def test_an_unknown_code_is_answered_with_the_closest_one(registry):
    with pytest.raises(ValueError, match="'jp' is no known language; did you mean 'ja'") as error:
        registry["jp"]
    assert "Known: en, es, fr, it, pt, de, zh, ja." in str(error.value)


def test_a_name_in_a_directive_leads_to_its_code(registry):
    assert registry.code_of_name("Mandarin Chinese") == "zh"
    with pytest.raises(ValueError, match="did you mean 'French'"):
        registry.code_of_name("Frensh")


def test_a_subset_keeps_registry_order_whatever_order_is_asked(registry):
    assert registry.subset(["de", "en", "de"]) == ("en", "de")


@pytest.mark.parametrize("name", ["family", "lang2vec_fam", "lexical"])
def test_every_distance_is_symmetric_with_a_zero_diagonal(registry, name):
    matrix = distance_matrix(registry, name, registry.codes).to_numpy()
    np.testing.assert_array_equal(matrix, matrix.T)
    assert (np.diag(matrix) == 0).all()
    assert (matrix[~np.eye(len(matrix), dtype=bool) & ~np.isnan(matrix)] > 0).all()


def test_the_family_tree_orders_relatives_as_glottolog_does(registry):
    d = distance_matrix(registry, "family", registry.codes)
    assert [d.at["es", other] for other in ("es", "pt", "fr", "it", "de", "zh")] == [0, 1, 2, 3, 4, 5]
    assert d.at["en", "de"] == 2 and d.at["ja", "zh"] == 5


def test_lang2vec_figures_are_the_stated_ones_and_japanese_is_missing(registry):
    d = distance_matrix(registry, "lang2vec_fam", registry.codes)
    assert (d.at["pt", "es"], d.at["en", "de"], d.at["zh", "fr"]) == (0.04, 0.46, 1.0)
    assert d["ja"].drop("ja").isna().all()


def test_a_lexical_similarity_is_read_as_one_minus_it(registry):
    d = distance_matrix(registry, "lexical", CODES)
    assert d.at["it", "fr"] == pytest.approx(0.11)
    assert np.isnan(d.at["it", "pt"])


def test_every_pair_of_a_table_is_given_or_said_to_be_missing(registry):
    pairs = {frozenset(pair) for pair in itertools.combinations(registry.codes, 2)}
    for name in ("lang2vec_fam", "lexical"):
        assert set(registry.distances[name].pairs) == pairs


def test_the_measured_distance_needs_parallel_texts(registry):
    assert "char_ngram" not in distance_matrices(registry, CODES)
    assert "char_ngram" in distance_matrices(registry, ["en", "fr"], {"en": ["the bread"], "fr": ["le pain"]})


def test_character_trigrams_that_half_overlap_are_half_apart():
    # abcd: abc bcd; bcde: bcd cde; one shared of three
    d = char_ngram_distance({"en": ["abcd"], "fr": ["bcde"], "it": ["ABCD "]})
    assert d.at["en", "fr"] == pytest.approx(2 / 3)
    assert d.at["en", "it"] == 0


def test_only_replies_that_every_language_has_are_compared():
    d = char_ngram_distance({"en": ["abcd", "xyzw"], "fr": ["abcd"]})
    assert d.at["en", "fr"] == 0


def test_a_language_without_texts_has_no_measured_distance():
    assert np.isnan(char_ngram_distance({"en": ["abcd"], "zh": []}).at["en", "zh"])


def test_parallel_texts_are_aligned_by_id():
    rows = [("en", 2, "two"), ("en", 1, "one"), ("fr", 1, "un"), ("fr", 2, "deux"), ("fr", 3, "trois")]
    texts = parallel_texts(pd.DataFrame(rows, columns=["language", "id", "text"]))
    assert texts == {"en": ["one", "two"], "fr": ["un", "deux"]}


def test_an_unknown_distance_is_answered_with_the_known_ones(registry):
    with pytest.raises(ValueError, match="'lexicon' is no known language distance; did you mean 'lexical'"):
        distance_matrix(registry, "lexicon", CODES)


@pytest.mark.parametrize(
    ("pair", "value", "words"),
    [
        ("es-xx", 0.5, "lexical.pairs.es-xx: 'xx' is no known language"),
        ("pt-es", 0.5, "given twice"),
        ("es-es", 0.5, "two different codes"),
        ("ja-zh", 1.5, "outside 0 to 1"),
    ],
)
def test_a_malformed_pair_is_refused_with_its_key(tmp_path, root, pair, value, words):
    path = write(tmp_path, lambda d: d["distances"]["lexical"]["pairs"].update({pair: value}), root)
    with pytest.raises(ValueError, match=words):
        load_languages(path)


def test_family_paths_of_unequal_depth_are_refused(tmp_path, root):
    path = write(tmp_path, lambda d: d["languages"]["fr"]["family"].pop(), root)
    with pytest.raises(ValueError, match="same number of levels"):
        load_languages(path)


def test_a_language_with_a_missing_field_is_named(tmp_path, root):
    path = write(tmp_path, lambda d: d["languages"]["fr"].pop("script"), root)
    with pytest.raises(ValueError, match=r"languages\.fr"):
        load_languages(path)
