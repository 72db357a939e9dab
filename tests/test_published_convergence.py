"""The published convergence figures of two sources, through the project's own statistics."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import statsmodels.formula.api as smf
import yaml
from scipy import stats
from statsmodels.stats.anova import anova_lm

from spillover import block_tests, convergence, convergence_tables, statistics

pytestmark = pytest.mark.published

STEPS = ("20", "40", "60", "80", "100")


@pytest.fixture(scope="module")
def figures(request):
    path = request.getfixturevalue("published") / "convergence/figures.json"
    if not path.is_file():
        pytest.skip("the published convergence figures are not in the folder of published results")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def printed(root):
    return yaml.safe_load((root / "resources/published/convergence.yaml").read_text())


def series(figures, source, name, arm="arm_b"):
    return [figures[arm][source][step][name] for step in STEPS]


@pytest.mark.parametrize(
    ("source", "layer", "rho", "exact_p", "t_approximation"),
    [
        ("villain", "cos_L15", -0.30, 0.683, 0.624),
        ("comedian", "cos_L15", -0.87, 0.100, 0.054),
        ("villain", "cos_L20", -0.90, 0.083, 0.037),
        ("comedian", "cos_L20", -0.90, 0.083, 0.037),
    ],
)
def test_the_correlations_are_those_printed_and_none_is_significant_exactly(
    figures, source, layer, rho, exact_p, t_approximation
):
    cosine, leak = series(figures, source, layer), series(figures, source, "asst")
    found = block_tests.spearman_test(cosine, leak, seed=0)
    assert round(found.statistic, 2) == rho
    assert found.p == pytest.approx(exact_p, abs=5e-4)
    assert found.p >= 0.05 and found.min_p >= 2 / 120
    assert stats.spearmanr(cosine, leak).pvalue == pytest.approx(t_approximation, abs=5e-4)


def test_the_table_of_correlations_that_ships_is_that_of_the_file(figures, printed):
    for source in ("villain", "comedian"):
        leak = series(figures, source, "asst")
        rhos = [block_tests.spearman(series(figures, source, layer), leak) for layer in ("cos_L15", "cos_L20")]
        assert [round(rho, 2) for rho in rhos] == printed["arm_b"][source]["rho"]


def test_the_trajectories_are_those_printed(figures, printed):
    for source in ("villain", "comedian"):
        cosine, leak = series(figures, source, "cos_L15"), series(figures, source, "asst")
        assert [cosine[0], cosine[-1]] == printed["arm_b"][source]["cosine"]
        assert [round(100 * leak[0], 1), round(100 * leak[-1], 1)] == printed["arm_b"][source]["assistant"]
        assert cosine[-1] > cosine[0] and leak[-1] < leak[0]


def test_the_arms_at_the_end_and_the_bystander_means_are_those_printed(figures, printed):
    for source in ("villain", "comedian"):
        at = printed["at_100"][source]
        for arm in "ABC":
            last = figures[f"arm_{arm.lower()}"][source]["100"]
            assert round(100 * last["src"], 1) == at[arm]["source"]
            assert round(100 * last["asst"], 1) == at[arm]["assistant"]
        rates = figures["arm_b_100pct_full"][source]
        others = [rate for persona, rate in rates.items() if persona not in (source, "assistant")]
        assert len(others) == 9
        assert round(100 * sum(others) / 9, 1) == at["B"]["bystanders"]


def test_the_marker_adapters_of_both_sources_are_narrow(figures):
    for source in ("villain", "comedian"):
        quality = figures["ORIGINAL_ADAPTER_QUALITY"][source]
        row = {"source_rate": quality["source_rate"], "assistant_rate": 0.0, "bystander_max": quality["max_bystander"]}
        assert convergence_tables.pattern(row, convergence_tables.Limits()) == quality["pattern"] == "narrow"


@pytest.mark.parametrize("name", ["cos_L15", "cos_L20", "asst", "src"])
def test_icc_of_every_named_series_agrees_with_the_analysis_of_variance(figures, name):
    """ICC(1) from the mean squares of statsmodels' one-way ANOVA, for the two sources of the file.

    The write-up's 0.949 is over four sources (of the layer-15 cosine) and cannot be recomputed from these two.
    """
    groups = {source: series(figures, source, name) for source in ("villain", "comedian")}
    frame = pd.DataFrame([(s, v) for s, values in groups.items() for v in values], columns=["source", "value"])
    table = anova_lm(smf.ols("value ~ C(source)", frame).fit())
    between, within = table["mean_sq"]
    expected = (between - within) / (between + 4 * within)
    assert statistics.icc_oneway(list(groups.values())) == pytest.approx(expected)


def test_two_sources_of_whole_trajectories_show_nothing(figures):
    """All ten checkpoints as if independent give a small p; permuting the two trajectories cannot."""
    cosine = [series(figures, source, "cos_L15") for source in ("villain", "comedian")]
    leak = [series(figures, source, "asst") for source in ("villain", "comedian")]
    found = block_tests.block_permutation(cosine, leak)
    assert found.min_p >= 0.5
    assert convergence.naive_p(found.statistic, 10) < found.p
