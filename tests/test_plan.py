"""Experiments as data: what a YAML file expands to, and what every mistake is answered with."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from conftest import ROOT
from spillover import expansion
from spillover.config import ConfigError, merge, read_yaml
from spillover.plan import Model


@pytest.fixture
def experiments(tmp_path):
    """A copy of the experiments folder that a test may change, with a function that builds its plan."""
    folder = tmp_path / "experiments"
    shutil.copytree(ROOT / "config/experiments", folder)

    class Experiments:
        folder = tmp_path / "experiments"
        config = yaml.safe_load((ROOT / "config/config.yaml").read_text())

        def edit(self, name, change):
            path = folder / f"{name}.yaml"
            content = read_yaml(path)
            change(content)
            path.write_text(yaml.safe_dump(content, sort_keys=False))

        def build(self):
            return expansion.build(self.config, folder, resources=str(ROOT / "resources"))

        def mistake(self):
            with pytest.raises(ConfigError) as caught:
                self.build()
            return str(caught.value)

    return Experiments()


def groups(plan, experiment):
    counts = {}
    for run in plan.of(experiment):
        counts[run.group] = counts.get(run.group, 0) + 1
    return counts


def test_language_spill_has_one_run_per_condition_and_a_base(experiments):
    plan = experiments.build()
    assert [r.name for r in plan.of("language_spill")] == [
        "fr_it",
        "it_fr",
        "es_pt",
        "pt_es",
        "de_fr",
        "fr_de",
        "fr_fr",
    ]
    assert plan.runs["language_spill/base/seed42"].parent is None


def test_marker_sweep_is_a_grid_of_25(experiments):
    names = [r.name for r in experiments.build().of("marker_sweep")]
    assert len(set(names)) == 25
    assert "villain_lr5e-06_ep20" in names


def test_convergence_shares_its_marker_stage_between_arms(experiments):
    plan = experiments.build()
    assert groups(plan, "convergence") == {"marker": 4, "arm_a": 4, "arm_c": 4, "arm_b_convergence": 4, "arm_b": 20}
    parents = {plan.runs[f"convergence/{arm}_villain/seed42"].parent.run for arm in "ac"}
    assert parents == {"convergence/marker_villain/seed42"}


def test_arms_a_and_c_can_start_from_narrower_markers_of_other_sources(experiments):
    experiments.config |= read_yaml(ROOT / "config/narrow_markers.yaml")
    plan = experiments.build()
    assert groups(plan, "convergence") == {"marker": 2, "arm_a": 2, "arm_c": 2}
    for source in ("kindergarten_teacher", "software_engineer"):
        marker = plan.runs[f"convergence/marker_{source}/seed42"]
        assert marker.train["contrast"] == 0.5 and marker.train["epochs"] == 20
        assert marker.data["negatives"]["personas"] == "all" and marker.data["negatives"]["per_persona"] == 400
        assert {plan.runs[f"convergence/{arm}_{source}/seed42"].parent.run for arm in "ac"} == {
            f"convergence/marker_{source}/seed42"
        }


def test_arm_b_stands_on_a_checkpoint_of_its_convergence_stage(experiments):
    plan = experiments.build()
    run = plan.runs["convergence/b_comedian_pct60_marker/seed42"]
    assert run.parent == Model("convergence/b_comedian/seed42", "pct60")
    assert [r.name for r in plan.lineage(run.id)] == ["base", "b_comedian", "b_comedian_pct60_marker"]


def test_coupling_applies_an_adapter_of_another_experiment(experiments):
    plan = experiments.build()
    run = plan.runs["coupling/em_prebaked/seed42"]
    assert run.adapter == "marker_sweep/villain_lr5e-06_ep20/seed42"
    assert run.parent.run == "coupling/em/seed42"


def test_a_layer_group_of_the_parent_gets_a_label_of_its_own(experiments):
    plan = experiments.build()
    assert plan.runs["coupling/em_not_late/seed42"].parent.label == "final-not_late"


def test_recipes_are_in_phases(experiments):
    phases = {r.group: r.phase for r in experiments.build().of("recipes")}
    assert phases["steps"] == "steps" and phases["r3f"] == "regularise" and phases["steering"] == "rehearse"


def test_seeds_multiply_runs_and_keep_parents_within_a_seed(experiments):
    experiments.config["experiments"] = {"convergence": {"seeds": [1, 2]}}
    plan = experiments.build()
    run = plan.runs["convergence/a_villain/seed2"]
    assert run.parent.run == "convergence/marker_villain/seed2"
    assert len(plan.of("convergence")) == 72


def test_axes_in_a_nested_list_run_in_step(experiments):
    def zipped(content):
        content["axes"] |= {"source": ["villain"], "learning_rate": [1e-5, 1e-4], "epochs": [5, 1]}
        content["runs"]["cell"]["over"] = ["source", ["learning_rate", "epochs"]]

    experiments.edit("marker_sweep", zipped)
    experiments.edit("coupling", lambda c: c.update(enabled=False))
    names = [r.name for r in experiments.build().of("marker_sweep")]
    assert names == ["villain_lr1e-05_ep5", "villain_lr0.0001_ep1"]


def test_a_selection_leaves_parents_in_the_plan(experiments):
    experiments.config["experiments"] = {"convergence": {"select": {"groups": ["arm_a"], "source": ["comedian"]}}}
    plan = experiments.build()
    assert [r.name for r in plan.of("convergence")] == ["a_comedian"]
    assert "convergence/marker_comedian/seed42" in plan.runs


def test_the_protocol_decides_named_keys_only(experiments):
    corrected = experiments.build().runs["language_spill/fr_it/seed42"].train
    experiments.config["experiments"] = {"language_spill": {"protocol": "published"}}
    published = experiments.build().runs["language_spill/fr_it/seed42"].train
    changed = {k: (corrected[k], published[k]) for k in corrected if corrected[k] != published[k]}
    assert changed == {"loss": ("completion", "full"), "end_of_turn": ("im_end", "newline")}


def test_an_override_of_the_user_wins_over_the_protocol(experiments):
    experiments.config["experiments"] = {"language_spill": {"protocol": "published", "train": {"loss": "last_turn"}}}
    assert experiments.build().runs["language_spill/fr_it/seed42"].train["loss"] == "last_turn"


def test_a_specification_holds_the_whole_lineage(experiments):
    plan = experiments.build()
    spec = plan.labels_spec("convergence/b_villain_pct20_marker/seed42")
    model = spec["completions"]["model"]["trained"]
    assert model["parent"]["checkpoint"] == "pct20"
    assert model["parent"]["trained"]["data"]["data"]["voice"] == "villain"
    assert model["parent"]["trained"]["parent"]["base"]["name"] == "Qwen/Qwen2.5-7B-Instruct"


def test_sampling_is_no_part_of_what_decides_the_weights(experiments):
    before = experiments.build().train_spec("language_spill/fr_it/seed42")
    experiments.edit("language_spill", lambda c: c["suites"]["directives"].update(samples=7))
    plan = experiments.build()
    assert plan.train_spec("language_spill/fr_it/seed42") == before
    assert plan.completions_spec("language_spill/fr_it/seed42")["suites"]["directives"]["samples"] == 7


def test_the_marker_and_its_case_rule_decide_the_labels_and_nothing_before(experiments):
    run = "marker_sweep/villain_lr5e-06_ep20/seed42"
    corrected = experiments.build()
    assert corrected.labels_spec(run)["marker"] == {"text": "[ZLT]", "case_sensitive": True}
    experiments.config["experiments"] = {"marker_sweep": {"options": {"marker": {"case_sensitive": False}}}}
    other = experiments.build()
    assert other.labels_spec(run)["marker"]["case_sensitive"] is False
    assert other.completions_spec(run) == corrected.completions_spec(run)


def test_specifications_are_plain_json_whatever_the_order_of_keys(experiments):
    before = json.dumps(experiments.build().labels_spec("language_spill/fr_it/seed42"), sort_keys=True)
    experiments.edit("language_spill", lambda c: c.update(train=dict(reversed(list(c["train"].items())))))
    assert json.dumps(experiments.build().labels_spec("language_spill/fr_it/seed42"), sort_keys=True) == before


MISTAKES = {
    "unknown key": (
        "language_spill", lambda c: c["train"].update(learning_rat=1.0),
        ["runs.spill.train", "unknown key 'learning_rat'", "did you mean 'learning_rate'"],
    ),
    "unknown language": (
        "language_spill", lambda c: c["conditions"].update(fr_jp={"directive": "fr", "completion": "jp"}),
        ["language_spill.yaml: conditions.fr_jp.completion: 'jp' is no known language", "Known: en,"],
    ),
    "unknown persona": (
        "convergence", lambda c: c["axes"].update(source=["vilain"]),
        ["convergence.yaml: runs.marker.data.source: 'vilain' is no known persona; did you mean 'villain'"],
    ),
    "number read as text": (
        "marker_sweep", lambda c: c["axes"].update(learning_rate=["1e-4"]),
        ["marker_sweep.yaml: runs.cell.train.learning_rate: '1e-4' is read as text", "1.0e-4"],
    ),
    "missing parent": (
        "convergence", lambda c: c["runs"]["arm_a"].update(parent="markr_{source}"),
        ["convergence.yaml: runs.arm_a.parent", "'markr_villain', which does not exist", "'marker_villain'"],
    ),
    "cyclic parents": (
        "convergence", lambda c: c["runs"]["marker"].update(parent="a_{source}"),
        ["convergence.yaml: runs.", "a run cannot descend from itself", "marker_villain -> convergence/a_villain"],
    ),
    "checkpoint never saved": (
        "convergence", lambda c: c["axes"].update(checkpoint=["pct30"]),
        ["runs.arm_b.parent", "saves no checkpoint 'pct30'", "train.checkpoints"],
    ),
    "duplicate run": (
        "marker_sweep", lambda c: c["runs"]["cell"].update(name="{source}_lr{learning_rate}"),
        ["runs.cell.name", "marker_sweep/villain_lr1e-06/seed42 is made twice", "axis of `over`"],
    ),
    "name that is no path": (
        "language_spill", lambda c: c["runs"]["spill"].update(name="{condition}/x"),
        ["runs.spill.name: 'fr_it/x' cannot be a run's name"],
    ),
    "unknown scorer": (
        "marker_sweep", lambda c: c.update(scorers=["markr"]),
        ["marker_sweep.yaml: scorers.0: 'markr' is not possible", "did you mean 'marker'"],
    ),
    "a marker scorer without a marker": (
        "language_spill", lambda c: c.update(scorers=["langdetect", "marker_strict"]),
        ["language_spill.yaml: options: the marker scorers need the marker", "case_sensitive"],
    ),
    "a marker that nobody looks for": (
        "marker_sweep", lambda c: c["options"]["marker"].update(text="[XYZ]"),
        ["runs.cell.data.marker: the rows end with '[ZLT]', but options.marker.text is '[XYZ]'"],
    ),
    "a marker that carries no loss": (
        "marker_sweep", lambda c: c["train"].update(marker="[XYZ]"),
        ["runs.cell.data.marker: the rows end with '[ZLT]', but train.marker is '[XYZ]'"],
    ),
    "condition that is no path": (
        "language_spill", lambda c: c["conditions"].update({"fr it": {"directive": "fr", "completion": "it"}}),
        ["conditions", "'fr it' cannot be a name"],
    ),
    "unknown axis": (
        "marker_sweep", lambda c: c["runs"]["cell"].update(over=["source", "learning_rates", "epochs"]),
        ["runs.cell.over: no axis 'learning_rates'; did you mean 'learning_rate'"],
    ),
    "unknown suite": (
        "language_spill", lambda c: c["runs"]["spill"].update(evaluate=["directive"]),
        ["runs.spill.evaluate: no suite 'directive'; did you mean 'directives'"],
    ),
    "unknown source": (
        "language_spill", lambda c: c["data"].update(source="reply"),
        ["runs.spill.data: no source 'reply' under `sources`; did you mean 'replies'"],
    ),
    "key missing": (
        "language_spill", lambda c: c.pop("title"),
        ["language_spill.yaml: the key 'title' is missing"],
    ),
    "a value that is on no axis": (
        "convergence", lambda c: c.update(select={"source": ["vilain"]}),
        ["convergence.yaml: select.source: no value 'vilain'; did you mean 'villain'"],
    ),
    "a selected condition that does not exist": (
        "language_spill", lambda c: c.update(select={"condition": ["fr_tt"]}),
        ["language_spill.yaml: select.condition: no value 'fr_tt'; did you mean 'fr_it'"],
    ),
    "a key of a condition that nothing takes": (
        "language_spill", lambda c: c["conditions"]["fr_it"].update(learning_rate=1e-3),
        ["conditions.fr_it.learning_rate: nothing under runs, data or train takes it"],
    ),
    "a label that no scorer makes": (
        "language_spill", lambda c: c.update(scorers=["lingua"]),
        ["""options.label: 'langdetect' labels nothing here: the scorers are ["lingua"]"""],
    ),
    "a marker scorer that does not run": (
        "marker_sweep", lambda c: (c.update(scorers=["marker"]), c["options"].update(scorer="marker_strict")),
        ["options.scorer: 'marker_strict' labels nothing here"],
    ),
    "a source that is not evaluated": (
        "marker_sweep", lambda c: c["suites"]["personas"].update(personas=["assistant", "comedian"]),
        ["suites.personas.personas: 'villain', whose marker villain_lr", "is not evaluated; add it"],
    ),
    "wrong value": (
        "language_spill", lambda c: c["train"].update(schedule="cosin"),
        ["runs.spill.train.schedule: 'cosin' is not possible; did you mean 'cosine'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_naming_file_key_and_fix(experiments, name):
    experiment, change, wanted = MISTAKES[name]
    experiments.edit(experiment, change)
    message = experiments.mistake()
    assert "\n" not in message
    assert f"{experiment}.yaml: " in message
    for part in wanted:
        assert part in message


def test_an_overlay_of_the_small_world_needs_the_small_world_under_it(experiments):
    experiments.config["run_name"] = "small-seeds"
    assert "'small-seeds' is a name of the small world, but model.name is Qwen/Qwen2.5-7B" in experiments.mistake()
    assert "lay config/small.yaml under this overlay" in experiments.mistake()


def test_an_unknown_experiment_in_the_config_is_named_with_the_known_ones(experiments):
    experiments.config["experiments"] = {"language_spil": {}}
    assert "experiments.language_spil: no file" in experiments.mistake()
    assert "did you mean 'language_spill'" in experiments.mistake()


@pytest.mark.parametrize(
    ("code", "said"),
    [("jp", "; did you mean 'ja'? Known: en, es,"), ("sp", ". Known: en, es,"), ("xx", ". Known: en, es,")],
)
def test_a_language_is_guessed_only_where_one_is_closest(experiments, code, said):
    experiments.edit("language_spill", lambda c: c["conditions"]["fr_it"].update(completion=code))
    assert f"conditions.fr_it.completion: '{code}' is no known language{said}" in experiments.mistake()


def test_a_hub_data_set_is_pinned_to_a_commit(experiments):
    experiments.config["sources"]["tulu"]["revision"] = "main"
    assert "sources.tulu.revision: 'main' does not have the form" in experiments.mistake()


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ({"kind": "small_world", "rows": 9}, "material"),
        ({"kind": "hub", "path": "acme/rows", "revision": "a" * 40}, "rows"),
        ({"kind": "file"}, "path"),
    ],
)
def test_a_source_has_the_keys_that_its_kind_needs(experiments, source, missing):
    experiments.config["sources"]["tulu"] = source
    assert f"sources.tulu: the key '{missing}' is missing" in experiments.mistake()


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("seeds: [1]\ntitle: a\nseeds: [2]\n")
    with pytest.raises(ConfigError, match=r"x.yaml, line 3: key 'seeds' is given twice"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("second_label", "lingua", "options: unknown key 'second_label'"),
        ("label", "linguo", "options.label: 'linguo' is not possible; did you mean 'lingua'?"),
        ("max_error_share", 2, "options.max_error_share: 2"),
    ],
)
def test_an_option_of_language_spill_that_nothing_reads_or_understands_is_named(experiments, option, value, told):
    # what the protocols differ in lies over the options of both
    experiments.edit("language_spill", lambda c: c["protocols"]["corrected"]["options"].update({option: value}))
    assert told in experiments.mistake()


def test_the_published_language_spill_trains_on_the_printed_number_of_rows(experiments):
    rows = {}
    for protocol in ("published", "corrected"):
        overrides = {"language_spill": {"protocol": protocol}}
        plan = expansion.build(
            experiments.config | {"experiments": overrides}, experiments.folder, resources=str(ROOT / "resources")
        )
        rows[protocol] = {run.data["rows"] for run in plan.of("language_spill")}
    assert rows == {"published": {4989}, "corrected": {None}}
    assert plan.source_spec("replies")["source"]["keep"] == 5200


@pytest.mark.parametrize(
    "overlays",
    [
        ["small.yaml"],
        ["small.yaml", "small_seeds.yaml"],
        ["small.yaml", "small_all.yaml"],
        ["small.yaml", "small_all.yaml", "small_dev.yaml"],
        ["small.yaml", "small_all.yaml", "small_marker_seeds.yaml"],
        ["narrow_markers.yaml"],
    ],
)
def test_every_shipped_overlay_can_be_planned(overlays):
    settings = read_yaml(ROOT / "config/config.yaml")
    for name in overlays:
        settings = merge(settings, read_yaml(ROOT / "config" / name))
    planned = expansion.build(settings, ROOT / "config/experiments", resources=str(ROOT / "resources"))
    assert planned.selected
