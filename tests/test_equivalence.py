"""Equivalence, corrected rates and matrix tests against golden values and other implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from spillover import equivalence, judge_error, matrix_tests, statistics


def test_31_against_31_of_80_is_not_equal_within_ten_points():
    result = equivalence.equivalence(31, 80, 31, 80, 0.10)
    assert result.p == pytest.approx(0.0964, abs=5e-4) and result.method == "score"


def test_more_rows_of_the_same_rates_are_equal():
    rows = equivalence.rows_for_equivalence(31 / 80, 0.10)
    assert rows == 407
    k = round(31 / 80 * rows)
    assert equivalence.equivalence(k, rows, k, rows, 0.10).p < 0.05


@pytest.mark.parametrize("k", [0, 80])
def test_equal_extremes_have_a_defined_result(k):
    result = equivalence.equivalence(k, 80, k, 80, 0.10)
    assert result.p < 1e-6 and result.method == "agresti-caffo"
    few = equivalence.equivalence(0, 5, 0, 5, 0.10)
    assert few.p > 0.05, "five rows without a hit show nothing"


def test_equivalence_refuses_a_margin_in_percent():
    with pytest.raises(ValueError, match="share between 0 and 1"):
        equivalence.equivalence(1, 10, 1, 10, 10)
    assert math.isnan(equivalence.equivalence(0, 0, 1, 10, 0.1).p)


def test_a_rate_near_zero_is_below_the_margin_only_with_enough_rows():
    assert equivalence.below(1, 480, 0.05)
    assert equivalence.below(0, 59, 0.05) and not equivalence.below(0, 58, 0.05), "the rule of three, exactly"
    assert not equivalence.below(0, 0, 0.05)


@pytest.mark.parametrize(("rate", "rows", "half"), [(0.2, 40, 0.121), (0.5, 80, 0.107), (0.5, 320, 0.054)])
def test_rows_for_a_width_agree_with_the_table_of_widths(rate, rows, half):
    assert equivalence.rows_for_width(rate, half + 0.0006) <= rows
    assert equivalence.rows_for_width(rate, half - 0.004) > rows * 0.98
    assert equivalence.rows_for_width(rate, half, design_effect=2) == pytest.approx(
        2 * equivalence.rows_for_width(rate, half), abs=1
    )


def test_rows_for_a_difference_reach_the_power_they_promise():
    rows = equivalence.rows_for_difference(0.39, 0.25)
    rng = np.random.default_rng(0)
    first, second = rng.binomial(rows, 0.39, 4000) / rows, rng.binomial(rows, 0.25, 4000) / rows
    pooled = (first + second) / 2
    z = np.abs(first - second) / np.sqrt(2 * pooled * (1 - pooled) / rows)
    assert (z > stats.norm.ppf(0.975)).mean() == pytest.approx(0.8, abs=0.025)
    assert equivalence.rows_for_difference(0.3, 0.3) is None


def test_rows_for_a_limit_reach_the_power_they_promise():
    rows = equivalence.rows_for_limit(0.3, 0.5)
    rng = np.random.default_rng(0)
    ends = [statistics.wilson(int(k), rows) for k in rng.binomial(rows, 0.3, 2000)]
    assert np.mean([not low <= 0.5 <= high for low, high in ends]) == pytest.approx(0.8, abs=0.05)


def test_rows_for_a_limit_of_a_rate_of_zero_agree_with_the_exact_bound():
    rows = equivalence.rows_for_limit(0, 0.05)
    exact = next(n for n in range(1, 200) if statistics.clopper_pearson(0, n)[1] < 0.05)
    assert abs(rows - exact) <= 1


@pytest.mark.parametrize(("first", "second", "limit"), [(0.6, 0.55, -0.1), (0.3, 0.2, 0.25), (0.9, 0.9, 0.1)])
def test_rows_for_a_gap_reach_the_power_they_promise(first, second, limit):
    rows = equivalence.rows_for_gap(first, second, limit)
    rng = np.random.default_rng(0)
    draws = zip(rng.binomial(rows, first, 2000), rng.binomial(rows, second, 2000), strict=True)
    ends = [statistics.newcombe(int(a), rows, int(b), rows) for a, b in draws]
    assert np.mean([not low <= limit <= high for low, high in ends]) == pytest.approx(0.8, abs=0.05)


def test_no_number_of_rows_settles_a_rate_on_its_limit():
    assert equivalence.rows_for_limit(0.5, 0.5) is None and equivalence.rows_for_limit(math.nan, 0.5) is None
    assert equivalence.rows_for_gap(0.3, 0.2, 0.1) is None and equivalence.rows_for_gap(math.nan, 0.2, 0.1) is None
    assert equivalence.rows_for_agreement(0.1, 0.3, 0.1) is None
    assert equivalence.rows_for_agreement(24 / 80, 16 / 80, 0.1) is None, "on the margin, but for binary fractions"
    assert equivalence.rows_for_gap(0.3996, 0.3, 0.1) is None, "so near that no study is large enough"
    assert equivalence.rows_for_gap(0, 0, 0.1) < 60, "two rates of 0 leave their intervals some width"


def test_rates_that_differ_need_more_rows_to_be_shown_equal_than_equal_ones():
    assert equivalence.rows_for_agreement(0.3, 0.3, 0.1) == equivalence.rows_for_equivalence(0.3, 0.1)
    assert equivalence.rows_for_agreement(0.3, 0.35, 0.1) > 2 * equivalence.rows_for_equivalence(0.3, 0.1)


def test_a_claim_is_decided_by_all_of_its_comparisons_or_by_one_that_refutes_it():
    assert equivalence.fewest_deciding([10, 30]) == 30
    assert equivalence.fewest_deciding([10, None]) is None
    assert equivalence.fewest_deciding([10, None], [500, 200]) == 200
    assert equivalence.fewest_deciding([], []) is None


def test_rogan_gladen_golden_value_and_coverage():
    assert judge_error.rogan_gladen(30, 100, 90, 100, 85, 100).rate == pytest.approx(0.20)
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        k = rng.binomial(400, 0.2 * 0.9 + 0.8 * 0.15)
        corrected = judge_error.rogan_gladen(k, 400, rng.binomial(200, 0.9), 200, rng.binomial(200, 0.85), 200)
        covered += corrected.low <= 0.2 <= corrected.high
    assert 0.92 <= covered / 600 <= 0.98


def test_rogan_gladen_clips_and_refuses():
    clipped = judge_error.rogan_gladen(1, 100, 95, 100, 90, 100)
    assert clipped.clipped and clipped.rate == 0.0
    assert math.isnan(judge_error.rogan_gladen(30, 100, 50, 100, 50, 100).rate), "a coin corrects nothing"


def test_benjamini_hochberg_golden_and_against_statsmodels():
    assert statistics.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    p = np.random.default_rng(2).random(30)
    assert statistics.benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])
    assert math.isnan(statistics.benjamini_hochberg([0.01, math.nan])[1])


def test_mantel_by_hand_and_its_least_p():
    first = np.array([[0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0]], float)
    rho = {}
    off = ~np.eye(4, dtype=bool)
    for order in itertools.permutations(range(4)):
        rho[order] = stats.spearmanr(first[off], first[np.ix_(order, order)][off]).statistic
    found = matrix_tests.mantel(first, first)
    assert found.statistic == pytest.approx(1.0)
    assert found.p == pytest.approx(np.mean([abs(r) >= 1 - 1e-9 for r in rho.values()])) == found.min_p
    other = np.random.default_rng(3).random((4, 4))
    drawn = matrix_tests.mantel(first, other)
    values = [stats.spearmanr(first[off], other[np.ix_(o, o)][off]).statistic for o in rho]
    assert drawn.p == pytest.approx(np.mean(np.abs(values) >= abs(values[0]) - 1e-9))


def test_mantel_of_many_items_draws_and_keeps_its_level():
    rng = np.random.default_rng(4)
    first, noise = rng.random((12, 12)), rng.random((12, 12))
    assert matrix_tests.mantel(first, first).p == pytest.approx(1 / 20_001)
    assert matrix_tests.mantel(first, noise).p > 0.01
    assert math.isnan(matrix_tests.mantel(np.ones((5, 5)), noise[:5, :5]).p)
