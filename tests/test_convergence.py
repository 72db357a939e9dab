"""The convergence analysis on models whose rates and geometry the tests write down."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml

import convergence_builders as builders
from spillover import centroid_cosines, convergence, convergence_claims, convergence_report, convergence_tables

METHOD = "last_prompt_token"


@pytest.fixture(scope="module")
def published_figures(root):
    return yaml.safe_load((root / "resources/published/convergence.yaml").read_text())


def hits_where(leak_at_start, leak_at_end, breadth=2, source=160):
    """Arm B's assistant leaks from one count to another along its checkpoints; A loses the marker, C keeps it."""

    def hits(record, step, persona):
        if record["group"] == "base":
            return 0
        if record["group"] == "arm_a":
            return 0
        if persona == record["fields"]["source"]:
            return source
        if record["group"] == "arm_b" and persona == "assistant":
            return leak_at_start + (leak_at_end - leak_at_start) * (step - 20) / 80
        if record["group"] == "steered" and persona == "assistant":
            return 60 * record["steer"]["coefficient"]
        return breadth

    return hits


def nearness(record, step):
    return {"arm_a": 0.5, "arm_b": 0.5, "arm_b_convergence": 0.5}.get(record["group"], 0) * (step or 0) / 100


def analysed(
    hits, published_figures, sources=("villain", "comedian"), near=nearness, seeds=(42,), coefficients=(), without=()
):
    records = builders.records(sources, seeds=seeds, coefficients=coefficients)
    records = [record for record in records if record["group"] not in without]
    rates, cosines = builders.rates(records, hits), builders.cosines(records, near)
    models = convergence.models(records)
    points = convergence.points(models, rates, "marker")
    paths = convergence.paths(models, cosines, records)
    table = convergence.joined(points, paths, 15, METHOD)
    tests = pd.concat(
        [
            convergence.within_source(table).assign(test="within"),
            convergence.between_sources(table, 100.0).assign(test="between"),
            convergence.pooled(table).assign(test="pooled"),
            convergence.clustering(table, ("assistant_rate",)).assign(test="clustering"),
            convergence.predictors(table).assign(test="predictors"),
        ]
    ).assign(layer=15)
    summary = convergence_claims.summarise(
        points, paths, tests, rates, records,
        scorer="marker", layers=[15, 20], method=METHOD, published=published_figures,
    )  # fmt: skip
    return points, paths, tests, summary


def verdicts(summary):
    return {claim["claim"]: claim["verdict"] for claim in summary["claims"]}


def test_every_arm_starts_at_the_model_that_only_has_the_marker():
    models = convergence.models(builders.records(coefficients=(1.0,)))
    start = models[models["step"] == 0]
    assert set(start["arm"]) == {"A", "B", "C", "steered"}
    assert set(start.loc[start["source"] == "villain", "run"]) == {"convergence/marker_villain"}


def test_checkpoints_become_percent_and_coefficients_steps():
    models = convergence.models(builders.records(["villain"], coefficients=(0.5, 1.0)))
    of = {arm: sorted(trail["step"]) for arm, trail in models.groupby("arm")}
    assert of == {arm: [0, 20, 40, 60, 80, 100] for arm in "ABC"} | {"steered": [0, 0.5, 1.0]}
    assert convergence.percent("final") == 100.0


def test_a_checkpoint_at_a_step_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="'step25' gives no percentage; name checkpoints as pct20"):
        convergence.percent("step25")


def test_two_models_at_one_point_are_refused():
    records = builders.records(["villain"])
    twin = next(r for r in records if r["group"] == "arm_a") | {"run": "convergence/a_villain_again"}
    with pytest.raises(ValueError, match="select one value of the axis in which they differ"):
        convergence.models([*records, twin])


def test_source_assistant_and_bystanders_are_never_confused():
    """Exchange two personas' replies: their roles' rates are exchanged with them, everything else stays."""
    records = builders.records(["villain"], steps=(100,))
    counts = {"villain": 150, "assistant": 40, "librarian": 9}

    def hits(swap):
        names = {a: b for a, b in [*swap, *[(b, a) for a, b in swap]]}
        return lambda record, step, persona: counts.get(names.get(persona, persona), 3)

    def marker_point(swap):
        points = convergence.points(convergence.models(records), builders.rates(records, hits(swap)), "marker")
        return points.iloc[0][["source_hits", "assistant_hits", "bystander_max", "max_bystander"]].tolist()

    assert marker_point([]) == [150, 40, 9 / 200, "librarian"]
    assert marker_point([("villain", "assistant")]) == [40, 150, 9 / 200, "librarian"]
    assert marker_point([("villain", "librarian")]) == [9, 40, 150 / 200, "librarian"]
    assert marker_point([("assistant", "librarian")]) == [150, 9, 40 / 200, "librarian"]


def test_the_breadth_is_the_mean_of_the_bystanders_alone():
    records = builders.records(["villain"], steps=(100,))
    rates = builders.rates(records, lambda record, step, persona: 100 if persona in ("villain", "assistant") else 10)
    points = convergence.points(convergence.models(records), rates, "marker")
    assert (points["bystander_mean"] == 0.05).all() and (points["bystanders"] == 4).all()


def test_a_model_without_rates_is_named():
    records = builders.records(["villain"], steps=(100,))
    rates = builders.rates(records, lambda *_: 1)
    rates = rates[rates["run"] != "convergence/c_villain"]
    with pytest.raises(ValueError, match="no marker rates of convergence/c_villain, seed 42 at pct100"):
        convergence.points(convergence.models(records), rates, "marker")


def test_cosines_of_centroids_by_hand():
    centroids = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]])
    raw = centroid_cosines.cosines(centroids, centred=False)
    assert raw[0, 1] == pytest.approx(0) and raw[0, 2] == pytest.approx(math.sqrt(0.5))
    d = centroids[:, 0] - centroids[:, 0].mean(0)
    expected = d[0] @ d[1] / np.linalg.norm(d[0]) / np.linalg.norm(d[1])
    assert centroid_cosines.cosines(centroids, centred=True)[0, 1] == pytest.approx(expected)


def test_a_persona_at_the_mean_has_no_centred_cosine():
    vectors = np.array([[[1.0, 0.0]], [[-1.0, 0.0]], [[0.0, 0.0]]]) + 5
    assert math.isnan(centroid_cosines.cosines(vectors, centred=True)[0, 2])


def test_the_interval_over_questions_covers_equal_questions_without_width_and_unequal_ones_with():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 1, 8))
    same = centroid_cosines.table(np.repeat(centres, 6, axis=1), ["a", "b", "c"], seed=1)
    spread = centroid_cosines.table(centres + 0.5 * rng.normal(size=(3, 6, 8)), ["a", "b", "c"], seed=1)
    assert (same["raw_high"] - same["raw_low"]).max() < 1e-9
    assert (spread["centred_low"] < spread["centred"]).all() and (spread["centred"] < spread["centred_high"]).all()


def test_vectors_are_read_for_one_checkpoint_and_for_several(tmp_path):
    from safetensors.numpy import save_file

    prompts = np.ones((2, 3, 4), np.float32)
    metadata = {"cells": json.dumps(["villain", "assistant"]), "prompts": json.dumps(["q1", "q2", "q3"])}
    save_file({f"{METHOD}/layer3/prompts": prompts}, tmp_path / "one", metadata=metadata)
    several = {f"{c}/{METHOD}/layer3/prompts": prompts * i for i, c in enumerate(("pct20", "pct100"), 1)}
    save_file(several, tmp_path / "two", metadata=metadata)
    assert list(centroid_cosines.read(tmp_path / "one", ["final"]).arrays) == [("final", METHOD, 3)]
    both = centroid_cosines.read(tmp_path / "two", ["pct20", "pct100"]).arrays
    assert both["pct100", METHOD, 3].max() == 2


def test_a_steered_assistant_is_set_among_the_personas_of_the_model_that_was_steered():
    """A push that moves every persona alike leaves the centred geometry as it is; a push of the assistant alone not."""
    rng = np.random.default_rng(1)
    cells, base = ["villain", "librarian", "assistant"], rng.normal(size=(3, 4, 8))
    push = base[0].mean(0) - base[2].mean(0)
    moved = base + push
    assert centroid_cosines.cosines(moved, centred=True) == pytest.approx(centroid_cosines.cosines(base, centred=True))
    mixed = centroid_cosines.with_cell(base, cells, "assistant", moved)
    assert centroid_cosines.cosines(mixed, centred=True)[0, 2] == pytest.approx(1.0)


def test_arm_b_has_its_cosine_before_the_marker_too_from_the_untrained_model_on(published_figures):
    _, paths, _, _ = analysed(hits_where(40, 40), published_figures)
    before = paths[(paths["stage"] == "before marker") & (paths["layer"] == 15) & (paths["source"] == "villain")]
    assert before["step"].tolist() == [0, 20, 40, 60, 80, 100]
    assert before["run"].iloc[0] == "convergence/base"
    assert before["centred"].is_monotonic_increasing


def test_leakage_that_falls_as_the_cosine_rises_is_found_as_published(published_figures):
    _, _, tests, summary = analysed(hits_where(90, 10), published_figures)
    assert verdicts(summary)["proximity raises leakage"] == "does not appear"
    assert verdicts(summary)["leakage falls with proximity"] == "appears"
    of_b = tests[(tests["test"] == "within") & (tests["arm"] == "B") & (tests["kind"] == "centred")]
    assert (of_b["rho"] == -1).all() and of_b["p"].tolist() == pytest.approx([2 / 120] * 2)


def test_leakage_that_rises_with_the_cosine_is_found_against_the_write_up(published_figures):
    _, _, _, summary = analysed(hits_where(10, 90), published_figures)
    assert verdicts(summary)["proximity raises leakage"] == "appears"
    assert verdicts(summary)["leakage falls with proximity"] == "does not appear"
    told = " ".join(summary["differences"])
    assert "Arm B of villain, first to last checkpoint: its leakage up here; down in print." in told


def test_a_leak_that_stays_decides_nothing_and_says_what_would(published_figures):
    _, _, _, summary = analysed(hits_where(20, 24), published_figures)
    claim = next(c for c in summary["claims"] if c["claim"] == "proximity raises leakage")
    assert claim["verdict"] == "undecided" and claim["decides_at"] > builders.N


def test_an_assistant_that_never_moves_leaves_the_causal_question_open(published_figures):
    _, _, _, summary = analysed(hits_where(10, 90), published_figures, near=lambda record, step: 0.0)
    assert verdicts(summary)["proximity raises leakage"] == "undecided"
    assert verdicts(summary)["convergence moves the cosine"] == "does not appear"


def test_arms_that_lose_and_keep_the_marker_are_told_apart(published_figures):
    _, _, _, summary = analysed(hits_where(40, 40), published_figures)
    found = verdicts(summary)
    assert found["convergence moves the cosine"] == "appears"
    assert found["arm A destroys the marker"] == "appears"
    assert found["arm C keeps narrow markers"] == "appears"
    relations = {(r["source"], r["role"], r["first"], r["second"]): r["measured"] for r in summary["comparisons"]}
    assert relations["villain", "source", "A", "B"] == "<" and relations["villain", "source", "B", "C"] == "≈"


def test_arm_c_without_the_marker_it_starts_from_is_not_tested(published_figures):
    _, _, _, summary = analysed(hits_where(40, 40), published_figures, without=("marker", "arm_a"))
    claim = next(c for c in summary["claims"] if c["claim"] == "arm C keeps narrow markers")
    assert claim["verdict"] == "not tested" and "not evaluated: villain, comedian" in claim["text"]


@pytest.mark.parametrize(
    ("source", "assistant", "bystanders", "pattern"),
    [(160, 4, 4, "narrow"), (160, 120, 100, "global"), (30, 80, 20, "inverted"), (60, 2, 2, "weak")],
)
def test_the_pattern_of_a_marker_adapter(source, assistant, bystanders, pattern):
    row = {"source_rate": source / 200, "assistant_rate": assistant / 200, "bystander_max": bystanders / 200}
    assert convergence_tables.pattern(row, convergence_tables.Limits()) == pattern


def test_the_untrained_model_and_the_baseline_leak_are_measured(published_figures):
    _, _, _, summary = analysed(hits_where(40, 40, breadth=7), published_figures)
    row = summary["baseline"][0]
    assert (row["untrained"]["hits"], row["untrained"]["n"]) == (0, 200 * len(builders.PERSONAS))
    assert row["assistant_hits"] == 7
    assert "Baseline leak of villain: measured 3.5 % (1.7 to 7.0), printed 0 %." in summary["differences"]


def test_two_sources_rank_nothing_and_six_would(published_figures):
    _, _, tests, summary = analysed(hits_where(90, 10), published_figures)
    claim = next(c for c in summary["claims"] if c["claim"] == "sources rank alike")
    assert claim["verdict"] == "undecided" and "6 sources" in claim["decides_at"]
    assert (tests.loc[tests["test"] == "pooled", "p"].dropna() == 1).all()


def test_a_leak_that_follows_its_breadth_leaves_nothing_to_the_cosine(published_figures):
    sources = ("villain", "comedian", "librarian", "medical_doctor")
    levels = dict(zip(sources, (10, 40, 70, 100), strict=True))

    def hits(record, step, persona):
        if record["group"] in ("base", "arm_a"):
            return 0
        if persona == record["fields"]["source"]:
            return 180
        level = levels[record["fields"]["source"]] + (step or 0) / 20 * (-1) ** (int(step or 0) // 20)
        return level + 3 * (persona == "assistant")

    _, _, tests, _ = analysed(hits, published_figures, sources)
    of = tests[(tests["test"] == "predictors") & (tests["arm"] == "B") & (tests["kind"] == "centred")]
    pooled = of[of["scope"] == "pooled"].set_index("predictor")
    assert pooled.loc["breadth", "rho"] == pytest.approx(1.0)
    assert pooled.loc["breadth", "p"] == pooled.loc["breadth", "min_p"]
    assert abs(pooled.loc["cosine", "rho"]) < 0.5


def test_steering_is_read_by_coefficient_against_the_unsteered_model(published_figures):
    push = lambda record, step: record["steer"]["coefficient"] if "steer" in record else nearness(record, step)  # noqa: E731
    _, _, _, summary = analysed(hits_where(40, 40), published_figures, near=push, coefficients=(0.5, 1.0))
    assert verdicts(summary)["steering raises leakage"] == "appears"
    rows = {(r["source"], r["coefficient"]): r for r in summary["steering"]}
    assert rows["villain", 1.0]["assistant_hits"] == 60 and rows["villain", 0.0]["assistant_hits"] == 2
    assert rows["villain", 1.0]["centred"] > 0.99
    assert rows["villain", 0.5]["centred"] > rows["villain", 0.0]["centred"]


def test_without_arm_b_its_claims_are_not_tested(published_figures):
    records = [r for r in builders.records() if not r["group"].startswith("arm_b")]
    rates, cosines = builders.rates(records, hits_where(0, 0)), builders.cosines(records, nearness)
    models = convergence.models(records)
    points = convergence.points(models, rates, "marker")
    paths = convergence.paths(models, cosines, records)
    table = convergence.joined(points, paths, 15, METHOD)
    tests = convergence.within_source(table).assign(test="within", layer=15)
    summary = convergence_claims.summarise(
        points, paths, tests, rates, records,
        scorer="marker", layers=[15, 20], method=METHOD, published=published_figures,
    )  # fmt: skip
    assert verdicts(summary)["proximity raises leakage"] == "not tested"
    assert verdicts(summary)["arm A destroys the marker"] == "appears"
    assert convergence_report.markdown(summary).startswith("# Convergence")


def test_the_summary_names_every_verdict_every_difference_and_the_pinned_cell(published_figures):
    _, _, _, summary = analysed(hits_where(90, 10), published_figures)
    text = convergence_report.markdown(summary | {"sweep": [{"text": "The cell lies in the sweep's selective band."}]})
    assert all(f"{claim['statement']}: {claim['verdict']}" in text for claim in summary["claims"])
    assert all(f"- {difference}" in text for difference in summary["differences"])
    assert "selective band" in text and "nan" not in text
    assert "Sources not run here: kindergarten_teacher, software_engineer." in text


def test_several_seeds_are_averaged_before_a_trajectory_is_tested(published_figures):
    _, _, tests, summary = analysed(hits_where(90, 10), published_figures, seeds=(1, 2))
    of_b = tests[(tests["test"] == "within") & (tests["arm"] == "B") & (tests["kind"] == "centred")]
    assert (of_b["n"] == 5).all() and len(of_b) == 2
    last = next(r for r in summary["last"] if r["arm"] == "B" and r["source"] == "villain")
    assert (last["assistant_hits"], last["assistant_n"], last["seeds"]) == (20, 400, 2)


def test_a_push_that_breaks_the_source_too_decides_nothing(published_figures):
    def hits(record, step, persona):
        return (
            0
            if record["group"] in ("base", "arm_a", "steered")
            else 160
            if persona == record["fields"]["source"]
            else 2
        )

    _, _, _, summary = analysed(hits, published_figures, coefficients=(1.0,))
    claim = next(c for c in summary["claims"] if c["claim"] == "steering raises leakage")
    assert claim["verdict"] == "undecided" and "the push breaks the replies" in claim["text"]


@pytest.mark.parametrize(("replies", "verdict"), [(200, "does not appear"), (10, "undecided")])
def test_a_push_without_effect_is_absent_only_where_the_interval_is_narrow(published_figures, replies, verdict):
    """No reply of the assistant holds the marker with or without the push; ten replies cannot tell that from 20 %."""
    row = {"source": "villain", "coefficient": 1.0, "source_rate": 0.9, "source_before": 0.9, "assistant_rate": 0.0}
    row["assistant_before"] = 0.0
    sign, low, high = convergence_tables.relation((0, replies), (0, replies))
    row |= {"relation": sign, "change_low": low, "change_high": high, "bystander_mean": 0.0}
    claim = convergence_claims._steering({"steering": [row]}, convergence_tables.Limits())
    assert claim["verdict"] == verdict
    assert claim.get("decides_at") == (None if verdict == "does not appear" else 38)
