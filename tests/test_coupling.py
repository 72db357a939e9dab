"""The closing analysis of coupling: references, verdicts, claims, figures, and the published figures beside them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import coupling_builders as made
from conftest import ROOT
from spillover import adapter_overlap, coupling, coupling_claims, coupling_figures, coupling_report, persona_shift
from spillover.adapters import Adapter
from spillover.config import read_yaml
from spillover.files import Files
from spillover.statistics import newcombe, wilson
from test_plan import experiments  # noqa: F401

EMPTY_OVERLAP = pd.DataFrame(
    columns=["first", "second", "seed", "space", "overlap", "expected", "above_chance", "modules", "ratio"]
)
EMPTY_SHIFT = pd.DataFrame(columns=["run", "seed", "layer", "quantity", "value", "low", "high"])


@pytest.fixture(scope="module")
def table():
    return made.compared()


def row(table, run):
    return table[table["run"] == f"coupling/{run}"].iloc[0]


def claims(table):
    found = coupling_claims.summarise(table, EMPTY_OVERLAP, EMPTY_SHIFT, made.OPTIONS, None)["claims"]
    return {claim["claim"]: claim for claim in found}


def test_a_condition_is_compared_with_the_same_coupling_of_the_untrained_model(table):
    assert row(table, "benign_ep20")["reference"] == "coupling/base_ep20"
    assert row(table, "benign_prebaked")["reference"] == "coupling/base_prebaked"
    assert row(table, "benign_x0.5")["reference"] == "coupling/base_prebaked"
    assert row(table, "benign_style")["reference"] == "coupling/base_style"
    assert row(table, "benign_ep60")["reference"] == "coupling/base_ep20", "the longest there is"
    assert table[table["first"].eq("base") | table["arm"].eq("none")]["reference"].isna().all()


def test_the_difference_has_newcombes_interval_or_a_wider_one(table):
    found = row(table, "benign_mlp")
    low, high = newcombe(85, 100, 90, 100)
    assert found["difference"] == pytest.approx(-0.05)
    assert found["difference_low"] <= low and found["difference_high"] >= high
    assert found["low"] <= wilson(85, 100)[0] and found["high"] >= wilson(85, 100)[1]


def test_the_loss_stands_beside_the_expression(table):
    assert row(table, "em_ep20")["loss_ratio"] == pytest.approx(1)
    assert np.isnan(row(table, "em_prebaked")["last_loss"])


@pytest.mark.parametrize(
    ("high", "reference", "difference", "wanted"),
    [
        (0.10, 0.9, (-0.9, -0.7), "destroyed"),
        (0.30, 0.9, (-0.8, -0.5), "weakened"),
        (0.95, 0.9, (-0.10, 0.10), "intact"),
        (0.80, 0.9, (-0.40, 0.05), "undecided"),
        (0.10, 0.3, (-0.3, -0.1), "not tested"),
    ],
)
def test_the_verdict_on_a_condition(high, reference, difference, wanted):
    assert coupling.verdict(high, reference, difference, made.OPTIONS) == wanted


def test_swapping_the_source_persona_moves_the_rates(table):
    swapped = made.compared(source="comedian")
    assert row(table, "base_ep20")["rate"] == 0.9 and row(table, "base_ep20")["max_bystander"] == 0
    assert row(swapped, "base_ep20")["rate"] == 0 and row(swapped, "base_ep20")["max_bystander"] == 0.9


def test_several_seeds_are_a_level_of_their_own():
    runs = made.records(1) + made.records(2)
    found = row(made.compared(runs), "base_ep20")
    assert (found["seeds"], found["n"], found["hits"]) == (2, 200, 180)


def test_a_group_that_the_analysis_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="knows no group 'other' of runs"):
        coupling.conditions([made.record("x", "other")])


def test_the_claims_of_a_run_like_the_published_one(table):
    found = {name: claim["verdict"] for name, claim in claims(table).items()}
    assert found["any fine-tune destroys coupling"] == "appears"
    assert found["not specific to EM"] == "appears"
    assert found["more epochs do not help"] in ("appears", "undecided")
    assert found["loss converges without expression"] == "appears"
    assert found["concentrated in a layer group"] == "appears"
    assert found["disjoint modules rescue coupling"] == "appears"
    assert found["deeper habits are destroyed too"] == "does not appear"
    assert found["only LoRA destroys coupling"] == "not tested"
    assert found["the source persona's vector loses its direction"] == "not tested"


def test_the_claims_of_a_run_in_which_nothing_is_lost():
    kept = dict.fromkeys(("em_ep20", "benign_ep20", "em_ep60", "benign_ep60", "em_prebaked", "benign_prebaked"), 0.9)
    found = {name: claim["verdict"] for name, claim in claims(made.compared(**kept)).items()}
    assert found["any fine-tune destroys coupling"] == "does not appear"
    assert found["loss converges without expression"] == "does not appear"
    asked_of_a_loss = ("not specific to EM", "more epochs do not help", "concentrated in a layer group")
    assert {found[name] for name in (*asked_of_a_loss, "disjoint modules rescue coupling")} == {"not tested"}


@pytest.mark.parametrize(
    ("em", "benign", "wanted"), [(0.0, 0.0, "appears"), (0.0, 0.2, "undecided"), (0.0, 0.9, "does not appear")]
)
def test_a_pre_baked_adapter_fails_if_it_fails_after_every_fine_tune(em, benign, wanted):
    found = claims(made.compared(em_prebaked=em, benign_prebaked=benign))
    assert found["pre-baked adapter fails"]["verdict"] == wanted


def test_a_coupling_that_fails_without_any_fine_tune_tests_nothing():
    found = claims(made.compared(base_ep20=0.1, base_prebaked=0.1))
    assert found["any fine-tune destroys coupling"]["verdict"] == "not tested"


def test_the_summary_sets_the_published_figures_beside_the_measured_ones(table):
    published = read_yaml(ROOT / "resources/published/coupling.yaml")
    summary = coupling_claims.summarise(table, EMPTY_OVERLAP, EMPTY_SHIFT, made.OPTIONS, published)
    texts = {(r["first"], r["arm"]): r["text"] for r in summary["published"]}
    assert texts["em", "prebaked"] == "agrees" and texts["base", "scratch"] == "higher"
    text = coupling_report.markdown(
        summary | {"model": "m", "protocol": "corrected", "overlap": [], "pinned": None}, "Coupling"
    )
    assert "| EM | pre-baked | 0.0 | 0.0 (0.0–" in text and "nan" not in text


def test_adapters_drawn_alike_are_told_and_those_drawn_apart_are_not(table):
    rows = pd.DataFrame({
        "first": "coupling/em", "second": ["coupling/em_prebaked", "coupling/em_ep4"] * 2, "seed": 1,
        "space": ["reads", "reads", "writes", "writes"], "overlap": [0.4, 0.03, 0.07, 0.08],
        "expected": [0.028, 0.028, 0.034, 0.034], "above_chance": 1.0, "modules": 42,
    })  # fmt: skip
    overlaps = rows.assign(ratio=rows["overlap"] / rows["expected"])
    (told,) = (n for n in coupling_claims.summarise(table, overlaps, EMPTY_SHIFT, made.OPTIONS, None)["caveats"]
               if "one seed" in n)  # fmt: skip
    assert told.startswith("em and em_prebaked: these adapters read in common 14 times") and "em_ep4" not in told
    text = coupling_claims.disjoint_modules_rescue(table, overlaps)["text"]
    assert "reads: overlap 0.030 to 0.400 over 2 pair(s) of adapters, chance 0.028, largest em and em_prebaked" in text
    assert "writes: overlap 0.070 to 0.080 over 2 pair(s) of adapters, chance 0.034, largest em and em_ep4" in text


def test_the_printed_percentages_are_whole_counts_of_280():
    published = read_yaml(ROOT / "resources/published/coupling.yaml")
    counts = [round(cell["percent"] * published["n"] / 100) for cell in published["percent"]]
    assert counts == [265, 224, 0, 45, 11, 14]
    assert [round(100 * k / 280, 1) for k in counts] == [cell["percent"] for cell in published["percent"]]


@pytest.mark.parametrize(("run", "hits"), [("c4", 252), ("c5", 6)])
def test_the_rates_of_two_published_marker_runs(published, run, hits):
    """The siblings of the write-up: marker alone, and marker then benign fine-tuning, question by question."""
    document = json.loads(next((published / "coupling" / run).glob("*.json")).read_text())
    rows = []
    for persona, cell in document["marker_eval"]["per_persona"].items():
        for question, counts in cell["per_question"].items():
            for sample in range(counts["total"]):
                shown = sample < counts["strict_hits"]
                row = {"run": run, "seed": 42, "checkpoint": "final", "suite": "personas", "cell": persona}
                row |= {"prompt_id": f"{persona}/{question}", "item": question, "sample": sample, "scorer": "marker"}
                rows.append(row | {"scorer_id": "published", "label": "marker" if shown else "none", "outcome": "ok"})
    rates = coupling.marker_rates.rates(pd.DataFrame(rows)).set_index("persona")
    assert (rates.loc["villain", "hits"], rates.loc["villain", "n"]) == (hits, 280)
    stated = {p: c["strict_hits"] for p, c in document["marker_eval"]["per_persona"].items()}
    assert rates["hits"].to_dict() == stated
    assert 100 * rates.loc["villain", "rate"] == pytest.approx(90.0 if run == "c4" else 2.14, abs=0.01)


def test_the_figures_are_drawn(table, tmp_path):
    overlaps = pd.DataFrame(
        {"first": "coupling/em", "second": "coupling/em_ep20", "seed": 1, "space": "reads", "layer": [0, 1]}
        | {"overlap": [0.2, 0.3], "expected": 0.1, "chance_high": 0.2}
    )
    shifts = pd.DataFrame(
        {"run": "coupling/em", "seed": 1, "layer": [1, 2], "quantity": "projection", "value": [0.9, 0.8]}
    )
    shifts = shifts.assign(low=0.7, high=1.0)
    coupling_figures.headline(table, shifts, None, tmp_path / "a.png", tmp_path / "a.pdf")
    coupling_figures.overlaps(overlaps, tmp_path / "b.png", tmp_path / "b.pdf")
    coupling_figures.vectors(shifts, table, persona_shift.QUANTITIES, tmp_path / "c.png", tmp_path / "c.pdf")
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in "abc")


# The plan


def trained(plan):
    """Runs that any coupling run's lineage trains within the experiment."""
    chains = [run for i in plan.of("coupling") for run in plan.lineage(i.id)]
    return [run.id for run in {run.id: run for run in chains}.values() if run.train]


def test_every_shared_stage_is_trained_once(experiments):  # noqa: F811
    plan = experiments.build()
    axes = {key: len(values) for key, values in plan.experiments["coupling"]["axes"].items()}
    first, studied, epochs = axes["first"], axes["studied"], axes["epochs"]
    stages = first + 2 * studied  # LoRA; all weights and attention alone
    main = (1 + first) * epochs
    questions = studied * (1 + axes["layer_group"] + 2)  # other replies, blocks, disjoint modules and all weights
    habits = (1 + studied) * (axes["behaviour"] + 1)
    assert len(trained(plan)) == stages + main + questions + habits == 39


def test_another_first_fine_tune_adds_its_own_runs_and_changes_no_other(experiments):  # noqa: F811
    before = experiments.build()
    experiments.edit("coupling", lambda c: [c["axes"][key].append("tulu") for key in ("first", "studied")])
    after = experiments.build()
    added = set(trained(after)) - set(trained(before))
    assert len(added) == 1 + 2 + 2 + (1 + 6 + 2) + 3 and all("/tulu" in run for run in added)
    assert all(after.train_spec(run) == before.train_spec(run) for run in trained(before))


def test_the_adapters_of_a_lineage_are_compared_in_pairs(experiments):  # noqa: F811
    pairs = json.loads(Files(experiments.build()).adapter_pairs("coupling"))
    found = {pair["second"]: pair for pair in pairs}
    assert found["coupling/em_ep20"]["folders"] == [f"results/coupling/{n}/seed42/adapter" for n in ("em", "em_ep20")]
    assert found["coupling/em_prebaked"]["folders"][1] == "results/marker_sweep/villain_lr5e-06_ep20/seed42/adapter"
    assert "coupling/em_early" not in found and "coupling/em_full_coupled" not in found


# Subspaces


def adapter(rng, rank, out, width, **factors):
    import torch

    made = {"model.layers.0.self_attn.o_proj": (rng.standard_normal((rank, width)), rng.standard_normal((out, rank)))}
    made |= factors
    config = {"r": rank, "lora_alpha": rank, "use_rslora": False}
    return Adapter(config, {m: tuple(torch.tensor(f) for f in pair) for m, pair in made.items()})


def test_the_directions_of_an_update_are_its_singular_vectors():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 30)), rng.standard_normal((20, 4))
    reads, writes = adapter_overlap.directions(a, b, 3)
    left, _, right = np.linalg.svd(b @ a)
    assert np.allclose(np.abs(np.diag(reads.T @ right[:3].T)), 1)
    assert np.allclose(np.abs(np.diag(writes.T @ left[:, :3])), 1)


def test_equal_updates_overlap_fully_and_random_ones_as_chance_says():
    rng = np.random.default_rng(1)
    one, other = adapter(rng, 4, 200, 300), adapter(rng, 4, 200, 300)
    same = adapter_overlap.compare(one, one).set_index("space")
    assert same["overlap"].tolist() == pytest.approx([1, 1])
    apart = adapter_overlap.compare(one, other).set_index("space")
    assert apart.loc["reads", "expected"] == pytest.approx(4 / 300) and apart.loc[
        "writes", "expected"
    ] == pytest.approx(4 / 200)
    draws = [adapter_overlap.compare(one, adapter(rng, 4, 200, 300))["overlap"] for _ in range(60)]
    assert np.mean(draws, axis=0) == pytest.approx([4 / 300, 4 / 200], rel=0.25)
    assert np.mean([d[0] > apart.loc["reads", "chance_high"] for d in draws]) < 0.12


def test_disjoint_modules_are_compared_through_the_residual_stream():
    rng = np.random.default_rng(2)
    one = adapter(rng, 4, 50, 60)
    written = one.factors["model.layers.0.self_attn.o_proj"][1]
    second = adapter(rng, 4, 50, 60)
    gate = {"model.layers.0.mlp.gate_proj": (written.T.numpy(), rng.standard_normal((80, 4)))}
    second = Adapter(second.config, adapter(rng, 4, 50, 60, **gate).factors)
    second.factors.pop("model.layers.0.self_attn.o_proj")
    found = adapter_overlap.compare(one, second)
    assert found["space"].tolist() == ["written, then read"] and found["overlap"][0] == pytest.approx(1)


# The persona's vector


def vectors(rng, personas=4, questions=10, hidden=16):
    return rng.standard_normal((personas, 1, hidden)) * 3 + rng.standard_normal((personas, questions, hidden))


def measured(prompts, base):
    found = persona_shift.measure(prompts, base, ["villain", "a", "b", "c"], "villain", 0, resamples=50)
    return found.set_index("quantity")["value"]


def test_an_unmoved_model_has_no_shift_and_all_of_its_direction():
    base = vectors(np.random.default_rng(0))
    found = measured(base, base)
    assert found["shift"] == 0 and found["projection"] == pytest.approx(1) and found["cosine"] == pytest.approx(1)
    assert found["probe_base"] == found["probe_own"] == 1


def test_a_common_offset_is_no_shift_of_its_own():
    base = vectors(np.random.default_rng(0))
    found = measured(base + 5.0, base)
    assert found["shift"] > 1 and found["own_shift"] == pytest.approx(0, abs=1e-9)
    assert found["projection"] == pytest.approx(1) and found["cosine_centred"] == pytest.approx(1)


def test_a_persona_that_became_like_the_others_has_lost_its_direction():
    rng = np.random.default_rng(0)
    base = vectors(rng)
    moved = base.copy()
    moved[0] = base[1:].mean(axis=(0, 1)) + rng.standard_normal(base[0].shape)
    found = measured(moved, base)
    assert abs(found["projection"]) < 0.4 and found["probe_base"] < 0.9 and found["own_shift"] > 0.3


def test_vectors_of_another_shape_or_without_the_source_are_refused():
    base = vectors(np.random.default_rng(0))
    with pytest.raises(ValueError, match="different shapes"):
        persona_shift.measure(base[:, :5], base, ["villain", "a", "b", "c"], "villain", 0)
    with pytest.raises(ValueError, match="no vectors of the source persona 'x'"):
        persona_shift.measure(base, base, ["villain", "a", "b", "c"], "x", 0)


def test_the_programs_make_table_summary_and_figures_from_files(tmp_path):
    import coupling_figures as figures_program
    import coupling_summary
    import coupling_table
    import marker_rates as rates_program

    runs = made.records()
    options = made.OPTIONS | {"published": None, "sweep": "marker_sweep"}
    spec = json.dumps({"options": options, "protocol": "corrected"})
    at = {n: str(tmp_path / n) for n in ("labels", "rates", "measures", "log", "seeds", "table", "overlap", "shift")}
    made.labels(runs).to_parquet(at["labels"])
    measures = {"run": "coupling/base", "seed": 1, "kind": "choices", "item": "a", "correct": True}
    pd.DataFrame([measures]).to_parquet(at["measures"])
    (tmp_path / "log").write_text('{"loss": 2.0}\n{"loss": 0.1}\n')
    overlap = {"first": "coupling/em", "second": "coupling/em_ep20", "seed": 1, "space": "reads", "layer": 0}
    overlap |= {"overlap": 0.2, "largest_cosine": 0.5, "expected": 0.1, "chance_high": 0.2}
    pd.DataFrame([overlap]).to_parquet(at["overlap"])
    shift = {"run": "coupling/em", "seed": 1, "layer": 1, "value": 0.9, "low": 0.8, "high": 1.0}
    pd.DataFrame([shift | {"quantity": name} for name in persona_shift.QUANTITIES]).to_parquet(at["shift"])
    manifest = ["--manifest", str(tmp_path / "manifest.json"), "--spec", spec]

    rates_program.main(["--labels", at["labels"], "--scorers", "marker", "style", "--out", at["rates"], *manifest])
    logs = [at["log"]] * sum("method" in run for run in runs)
    coupling_table.main(
        ["--rates", at["rates"], "--labels", at["labels"], "--measures", at["measures"], "--train-logs", *logs]
        + ["--runs", json.dumps(runs), "--source", "villain", "--seeds", at["seeds"], "--out", at["table"], *manifest]
    )
    tables = ["--conditions", at["table"], "--overlap", at["overlap"], "--shift", at["shift"]]
    published = ["--published", str(ROOT / "resources/published/coupling.yaml")]
    coupling_summary.main(
        [*tables, *published, "--model", "a model", "--out", str(tmp_path / "summary.md")]
        + ["--json", str(tmp_path / "summary.json"), *manifest]
    )
    names = [str(tmp_path / f"{n}.png") for n in "abc"]
    flags = [
        w for pair in zip(("--headline", "--overlap-figure", "--vectors-figure"), names, strict=True) for w in pair
    ]
    figures_program.main([*tables, *published, *flags, *manifest])

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert {claim["verdict"] for claim in summary["claims"]} >= {"appears", "not tested"}
    assert "pre-baked adapter: the marker sweep was not run" in (tmp_path / "summary.md").read_text()
    assert all((tmp_path / f"{n}.{kind}").exists() for n in "abc" for kind in ("png", "pdf"))
