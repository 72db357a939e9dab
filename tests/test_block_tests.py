"""Tests over blocks of dependent points, against enumeration by hand, scipy and least squares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from spillover import block_tests as b


def test_rho_agrees_with_scipy_with_and_without_ties():
    rng = np.random.default_rng(0)
    for x, y in [(rng.random(12), rng.random(12)), ([1, 2, 2, 3, 9], [4, 4, 1, 0, 2])]:
        assert b.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_a_constant_side_and_two_pairs_have_no_rho():
    assert math.isnan(b.spearman([1, 1, 1], [1, 2, 3])) and math.isnan(b.spearman([1, 2], [1, 2]))


def test_the_partial_rho_is_the_correlation_of_residual_ranks():
    rng = np.random.default_rng(1)
    z = rng.random(25)
    x, y = z + rng.random(25), z + rng.random(25)
    ranks = [stats.rankdata(values) for values in (x, y, z)]
    design = sm.add_constant(ranks[2])
    residuals = [sm.OLS(values, design).fit().resid for values in ranks[:2]]
    assert b.partial_spearman(x, y, z) == pytest.approx(np.corrcoef(*residuals)[0, 1])


def test_nothing_is_left_to_correlate_when_the_given_variable_is_one_of_both():
    assert math.isnan(b.partial_spearman([1, 2, 3, 4], [2, 1, 4, 3], [1, 2, 3, 4]))


def test_four_ordered_blocks_reach_two_of_twenty_four_and_no_less():
    x = np.arange(20).reshape(4, 5)
    found = b.block_permutation(x, x)
    assert (found.statistic, found.p, found.min_p, found.n) == (1.0, pytest.approx(1 / 24), pytest.approx(1 / 24), 4)
    flat = [[i] * 5 for i in range(4)]  # no order within a block: full agreement and full reversal are equally extreme
    assert b.block_permutation(flat, flat).p == pytest.approx(2 / 24)


def test_two_blocks_can_show_nothing():
    found = b.block_permutation([[1, 1, 1], [5, 5, 5]], [[2, 2, 2], [9, 9, 9]])
    assert (found.statistic, found.p, found.min_p) == (1.0, 1.0, 1.0)


def test_blocks_agree_with_scipys_permutation_of_rows():
    rng = np.random.default_rng(3)
    x, y = rng.random((4, 3)), rng.random((4, 3))

    def statistic(order):
        return stats.spearmanr(x[np.asarray(order).astype(int)].ravel(), y.ravel()).statistic

    theirs = stats.permutation_test((np.arange(4),), statistic, permutation_type="pairings", n_resamples=np.inf)
    extreme = np.abs(theirs.null_distribution) >= abs(statistic(range(4))) - 1e-9
    assert b.block_permutation(x, y).p == pytest.approx(extreme.mean())


def test_a_predictor_that_only_repeats_another_vanishes_once_that_one_is_given():
    rng = np.random.default_rng(4)
    breadth = rng.random((4, 5))
    leak = breadth + 0.01 * rng.random((4, 5))
    cosine = breadth + 0.3 * rng.random((4, 5))
    assert abs(b.block_permutation(cosine, leak, given=breadth).statistic) < b.block_permutation(cosine, leak).statistic


def test_tables_of_different_shape_and_too_many_blocks_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        b.block_permutation([[1, 2]], [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="more than 8"):
        b.block_permutation(np.ones((9, 2)), np.ones((9, 2)))


def test_flipping_signs_by_hand():
    # |mean| over the eight patterns of (3, 1, -1): 1 (twice +-), 5/3 (twice), 1/3 ... six of eight reach 1
    found = b.sign_flip([3, 1, -1])
    assert (found.statistic, found.p, found.min_p, found.n) == (1.0, 0.75, 0.25, 3)
    theirs = stats.permutation_test(([3, 1, -1],), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.p == pytest.approx(theirs.pvalue)


def test_blocks_without_a_value_do_not_count():
    assert b.sign_flip([math.nan, 2.0, 1.0]).n == 2 and math.isnan(b.sign_flip([math.nan]).p)


def test_more_than_nine_pairs_are_drawn_and_agree_with_the_t_approximation():
    rng = np.random.default_rng(5)
    x = rng.random(30)
    y = x + rng.random(30)
    found, theirs = b.spearman_test(x, y + 2 * rng.random(30), seed=1), stats.spearmanr(x, y)
    assert found.method.startswith("Monte Carlo") and found.p >= found.min_p > 0
    assert b.spearman_test(x, y, seed=1).statistic == pytest.approx(theirs.statistic)
    weak = rng.random(30)
    assert b.spearman_test(x, weak, seed=1).p == pytest.approx(stats.spearmanr(x, weak).pvalue, abs=0.02)


def test_up_to_nine_pairs_stay_exact():
    assert b.spearman_test([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], seed=0).p == pytest.approx(0.0833, abs=5e-5)
