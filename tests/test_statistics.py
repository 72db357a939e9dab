"""Statistics against golden values, against statsmodels, and against their own definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import inter_rater, multitest, proportion

from spillover import statistics as s


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(31, 80, 0.28825, 0.49706), (0, 80, 0, 0.04582), (1, 80, 0.00221, 0.06747), (1, 480, 0.00037, 0.01171)],
)
def test_wilson_golden_values(k, n, low, high):
    assert s.wilson(k, n) == pytest.approx((low, high), abs=1e-5)


def test_clopper_pearson_bounds_none_of_eighty_at_four_and_a_half_percent():
    assert s.clopper_pearson(0, 80) == pytest.approx((0, 0.04506), abs=6e-6)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 17), (40, 80), (80, 80)])
def test_proportion_intervals_agree_with_statsmodels(k, n):
    assert s.wilson(k, n) == pytest.approx(proportion.proportion_confint(k, n, method="wilson"), abs=1e-9)
    assert s.clopper_pearson(k, n) == pytest.approx(proportion.proportion_confint(k, n, method="beta"), abs=1e-9)


def test_an_empty_cell_has_no_interval():
    assert all(math.isnan(end) for end in s.wilson(0, 0))


def test_more_successes_than_rows_is_refused():
    with pytest.raises(ValueError, match="k=5, n=4"):
        s.wilson(5, 4)


def test_sidak_bounds_the_largest_of_nine_silent_cells():
    assert s.sidak_upper(0, 200, 9) == pytest.approx(0.0255, abs=5e-5)
    assert s.sidak_upper(5, 5, 9) == 1.0


def test_newcombe_golden_values():
    assert s.newcombe(31, 80, 20, 80) == pytest.approx((-0.0069, 0.2743), abs=5e-5)
    low, high = s.newcombe(31, 80, 31, 80)
    assert high == pytest.approx(-low) and high == pytest.approx(0.15, abs=0.005)


def test_newcombe_agrees_with_statsmodels():
    theirs = proportion.confint_proportions_2indep(21, 80, 1, 80, method="newcomb")
    assert s.newcombe(21, 80, 1, 80) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(
    ("rate", "percent"), [(0.925, 92), (0.025, 2), (0.825, 82), (0.975, 98), (0.285, 28), (0.295, 30), (1.0, 100)]
)
def test_percentages_round_halves_to_even(rate, percent):
    assert s.half_even_percent(rate) == percent


def test_a_stable_seed_depends_on_the_parts_and_on_their_order():
    assert s.stable_seed("fr_it", "es") == s.stable_seed("fr_it", "es") == 2196980643365519621
    assert s.stable_seed("es", "fr_it") != s.stable_seed("fr_it", "es")


def test_the_cluster_bootstrap_is_wider_when_clusters_disagree():
    apart = s.cluster_bootstrap([[1] * 35 + [0] * 5, [0] * 40], seed=0)
    alike = s.cluster_bootstrap([[1] * 18 + [0] * 22, [1] * 17 + [0] * 23], seed=0)
    assert apart[1] - apart[0] > 2 * (alike[1] - alike[0])


def test_the_cluster_bootstrap_repeats_with_its_seed():
    clusters = [[1, 0, 0, 1, 1] * 7, [0, 0, 1, 0, 0] * 7]
    assert s.cluster_bootstrap(clusters, seed=3) == s.cluster_bootstrap(clusters, seed=3)
    draws = [s.nested_bootstrap(np.array([[[21, 7]]]), np.array([[[35, 35]]]), seed).tolist() for seed in (3, 4)]
    assert draws[0] != draws[1]


def test_with_many_equal_clusters_the_bootstrap_matches_the_normal_interval():
    rng = np.random.default_rng(0)
    clusters = rng.binomial(1, 0.4, size=(200, 1)).tolist()
    low, high = s.cluster_bootstrap(clusters, seed=0, resamples=4000)
    rate = np.mean(clusters)
    half = 1.96 * math.sqrt(rate * (1 - rate) / 200)
    # clusters of one row are resampled once, so the spread is the binomial one
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_an_absent_cluster_does_not_count_as_a_cluster_of_failures():
    padded = s.nested_bootstrap(np.array([[[0, 5]]]), np.array([[[0, 5]]]), seed=0, resamples=50)
    assert (padded == 1).all()


def test_one_draw_of_seeds_serves_all_strata():
    # two models, one spilling everywhere and one nowhere: every resample's mean is a multiple of one half
    successes = np.array([[[10], [0]], [[10], [0]], [[10], [0]]])
    draws = s.nested_bootstrap(successes, np.full_like(successes, 10), seed=0, resamples=400)
    assert set(np.round(draws, 6)) == {0.0, 0.5, 1.0}


def test_a_cell_without_rows_cannot_be_resampled():
    with pytest.raises(ValueError, match="no rows"):
        s.nested_bootstrap(np.zeros((1, 1, 2), int), np.zeros((1, 1, 2), int), seed=0)


def test_the_phrasings_of_the_published_spanish_cell_are_worth_five_replies():
    groups = [[1] * 6 + [0] * 34, [1] * 25 + [0] * 15]
    icc = s.icc_oneway(groups)
    assert icc == pytest.approx(0.37, abs=0.005)
    assert s.design_effect(icc, 40) == pytest.approx(15.4, abs=0.05)
    assert s.effective_n(80, icc, 40) == pytest.approx(5.2, abs=0.05)


def test_effective_n_of_four_sources_over_five_checkpoints():
    assert s.effective_n(20, 0.949, 5) == pytest.approx(4.170, abs=5e-4)


def test_clustering_never_makes_rows_worth_more_than_they_are():
    assert s.design_effect(-0.2, 10) == 1.0
    assert s.effective_n(20, s.icc_oneway([[1, 1], [1, 1]]), 2) == 20


def expand(table):
    pairs = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_kappa_golden_values():
    found = s.cohen_kappa(*expand([[40, 5], [3, 52]]))
    assert (found.kappa, found.ac1) == (pytest.approx(0.8377, abs=5e-5), pytest.approx(0.8423, abs=5e-5))
    assert (found.kappa_low, found.kappa_high) == (pytest.approx(0.730, abs=5e-4), pytest.approx(0.945, abs=5e-4))
    assert (found.n, found.raw) == (100, 0.92)


def test_kappa_of_several_labels_agrees_with_statsmodels():
    table = [[20, 3, 1], [2, 15, 4], [0, 5, 30]]
    ours, theirs = s.cohen_kappa(*expand(table)), inter_rater.cohens_kappa(np.array(table))
    assert ours.kappa == pytest.approx(theirs.kappa)
    assert (ours.kappa_low, ours.kappa_high) == pytest.approx((theirs.kappa_low, theirs.kappa_upp))


def test_kappa_is_undefined_but_ac1_is_not_when_only_one_label_occurs():
    found = s.cohen_kappa(["fr"] * 10, ["fr"] * 10)
    assert math.isnan(found.kappa) and found.raw == found.ac1 == 1.0


def test_holm_golden_values_and_missing_tests_do_not_count():
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = s.holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02) and math.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.04)


def test_holm_agrees_with_statsmodels():
    p = [0.2, 0.01, 0.04, 0.04, 0.9]
    assert s.holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def order_with(rho, n):
    """Some order of 0..n-1 whose Spearman correlation with 0..n-1 is rho."""
    base = np.arange(n)
    return next(o for o in itertools.permutations(range(n)) if abs(stats.spearmanr(base, o).statistic - rho) < 1e-9)


@pytest.mark.parametrize(("rho", "p"), [(0.9, 0.0833), (1.0, 0.0167), (0.7, 0.2333), (0.4, 0.5167), (-0.9, 0.0833)])
def test_exact_spearman_golden_values_of_five_pairs(rho, p):
    found = s.spearman_exact(range(5), order_with(rho, 5))
    assert found.statistic == pytest.approx(rho)
    assert found.p == pytest.approx(p, abs=5e-5)
    assert found.min_p == pytest.approx(0.0167, abs=5e-5)


def test_four_pairs_can_never_reach_five_percent():
    found = s.spearman_exact(range(4), range(4))
    assert found.p == found.min_p == pytest.approx(2 / 24)


def test_ties_raise_the_smallest_attainable_p():
    assert s.spearman_exact([1, 1, 2, 3, 4], [1, 2, 3, 4, 5]).min_p > 2 / 120


def test_exact_spearman_agrees_with_scipys_permutation_test():
    x, y = [0.1, 0.5, 0.2, 0.9, 0.4, 0.4], [1, 3, 3, 8, 2, 5]
    theirs = stats.permutation_test(
        (x,), lambda a: stats.spearmanr(a, y).statistic, permutation_type="pairings", n_resamples=np.inf
    )
    assert s.spearman_exact(x, y).p == pytest.approx(theirs.pvalue)


def test_a_constant_side_has_no_correlation():
    found = s.spearman_exact([1, 2, 3], [0, 0, 0])
    assert math.isnan(found.statistic) and math.isnan(found.p)


def brute_force(strata):
    sums = []
    for orders in itertools.product(*(list(itertools.permutations(x)) for x, _ in strata)):
        sums.append(
            sum(
                stats.pearsonr(stats.rankdata(o), stats.rankdata(y))[0]
                for o, (_, y) in zip(orders, strata, strict=True)
            )
        )
    sums = np.abs(sums)
    return (sums >= sums[0] - 1e-9).mean(), (sums >= sums.max() - 1e-9).mean()


def test_the_stratified_test_equals_full_enumeration():
    strata = [([1, 2, 3, 4], [1, 2, 4, 3]), ([1, 3, 2], [1, 2, 3])]
    found = s.stratified_spearman(strata, seed=0)
    p, least = brute_force(strata)
    assert (found.p, found.min_p) == (pytest.approx(p), pytest.approx(least))
    assert found.method == "exact"


def test_what_was_observed_counts_in_the_stratified_test_whatever_rounding_does_to_sums():
    rng = np.random.default_rng(0)
    orders = np.array(list(itertools.permutations(range(5))))
    for _ in range(40):
        strata = [(rng.integers(0, 4, 5), rng.integers(0, 4, 5)) for _ in range(3)]
        if any(len(set(part)) < 2 for pair in strata for part in pair):
            continue
        sums = np.zeros(1)
        for x, y in strata:
            a, b = stats.rankdata(x) - 3, stats.rankdata(y) - 3
            sums = np.add.outer(sums, a[orders] @ b / np.sqrt((a**2).sum() * (b**2).sum())).ravel()
        p = (np.abs(sums) >= abs(sums[0]) - 1e-7).mean()
        assert s.stratified_spearman(strata, seed=0).p == pytest.approx(p)


def test_the_stratified_test_of_one_stratum_is_the_exact_test():
    x, y = [1, 2, 3, 4, 5], [2, 1, 3, 5, 4]
    assert s.stratified_spearman([(x, y)], seed=0).p == pytest.approx(s.spearman_exact(x, y).p)


def test_strata_without_variation_contribute_nothing():
    strata = [([1, 2, 3, 4, 5], [2, 1, 3, 5, 4]), ([1, 2, 3, 4, 5], [0, 0, 0, 0, 0])]
    found = s.stratified_spearman(strata, seed=0)
    assert found.statistic == pytest.approx(0.8) and found.n == 5


def test_monte_carlo_agrees_with_the_exact_test_and_never_gives_zero(monkeypatch):
    strata = [([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])] * 3
    exact = s.stratified_spearman(strata, seed=0)
    monkeypatch.setattr(s, "EXACT_ATOMS", 1)
    sampled = s.stratified_spearman(strata, seed=0, resamples=50_000)
    assert exact.method == "exact" and sampled.method.startswith("Monte Carlo")
    assert sampled.p == pytest.approx(exact.p, abs=2e-4)
    perfect = s.stratified_spearman([(range(5), range(5))] * 6, seed=0, resamples=99)
    assert perfect.p == perfect.min_p == pytest.approx(1 / 100)


def test_relabelling_finds_an_order_that_holds_in_every_condition():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(6, 2))
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    spill = np.full((3, 6), np.nan)
    for row, target in enumerate((0, 2, 4)):
        others = [i for i in range(6) if i != target]
        spill[row, others] = -distance[others, target]
    found = s.label_permutation(spill, distance, [0, 2, 4])
    assert found.statistic == pytest.approx(-1)
    assert found.p == found.min_p < 0.01


def test_relabelling_under_the_null_is_uniform_enough():
    rng = np.random.default_rng(0)
    p = []
    for _ in range(60):
        distance = rng.random((5, 5))
        spill = rng.random((2, 5))
        spill[0, 0] = spill[1, 1] = np.nan
        p.append(s.label_permutation(spill, distance + distance.T, [0, 1]).p)
    assert 0.35 < np.mean(p) < 0.65
    assert np.mean(np.array(p) < 0.1) < 0.25


def test_relabelling_needs_a_complete_predictor():
    distance = np.full((3, 3), np.nan)
    assert math.isnan(s.label_permutation(np.zeros((1, 3)), distance, [0]).p)


def test_relabelling_of_nine_languages_is_refused():
    with pytest.raises(ValueError, match="9 languages are more than 8"):
        s.label_permutation(np.zeros((1, 9)), np.zeros((9, 9)), [0])
