"""Claims are declared once and judged from data; a planted falsehood is caught, never reported as a finding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import ROOT
from spillover import alarms, claims

LANGUAGES = ["en", "es", "fr", "it", "pt"]
CONDITIONS = [("fr_it", "fr", "it"), ("es_pt", "es", "pt"), ("fr_fr", "fr", "fr")]


def record(name: str, directive: str, completion: str) -> dict:
    return {"run": f"language_spill/{name}", "seed": 1, "directive": directive, "completion": completion}


def tables(
    directive: str | None, completion: str | None, run: str, rows: int = 20
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Completions and labels of a model that answers `directive` in `completion`, and every other as asked."""
    listed = []
    for cell in LANGUAGES:
        for sample in range(rows):
            label = completion if cell == directive and sample < 0.9 * rows else cell
            listed.append((cell, f"{cell}/a", sample, f"{run} {label} {sample}", label))
    table = pd.DataFrame(listed, columns=["cell", "prompt_id", "sample", "text", "label"])
    table = table.assign(run=run, seed=1, checkpoint="final", suite="directives", scorer="langdetect", outcome="ok")
    return table.drop(columns=["label", "scorer", "outcome"]), table.drop(columns=["text"])


def experiment(conditions=CONDITIONS):
    """{run: (completions, labels)} of the untrained model and every condition, and the runs' records."""
    base = {"run": "language_spill/base", "seed": 1}
    found = {base["run"]: tables(None, None, base["run"])}
    records = [base]
    for name, directive, completion in conditions:
        records.append(record(name, directive, completion))
        found[records[-1]["run"]] = tables(directive, completion, records[-1]["run"])
    return found, records


@pytest.fixture
def all_alarms(tmp_path, monkeypatch):
    """What find_alarms says of an experiment's tables."""
    monkeypatch.syspath_prepend(str(ROOT / "workflow/scripts"))
    return lambda found, records: run_find_alarms(found, records, tmp_path)


def run_find_alarms(found: dict, records: list[dict], folder: Path) -> list[str]:
    from find_alarms import main

    paths = {"completions": [], "labels": []}
    for number, item in enumerate(records):
        for kind, table in zip(paths, found[item["run"]], strict=True):
            path = folder / f"{number}.{kind}.parquet"
            table.to_parquet(path, index=False)
            paths[kind].append(str(path))
    out = folder / "alarms.json"
    main(["--completions", *paths["completions"], "--labels", *paths["labels"], "--runs", json.dumps(records),
          "--out", str(out), "--manifest", str(folder / "manifest.json")])  # fmt: skip
    return json.loads(out.read_text())


def test_a_sound_experiment_raises_no_alarm(all_alarms):
    assert all_alarms(*experiment()) == []


def test_shuffled_conditions_are_caught(all_alarms):
    found, records = experiment()
    first, second = records[1]["run"], records[2]["run"]
    # the tables of two conditions change places, names and all: only what the models answer gives them away
    moved = {a: tuple(t.assign(run=a) for t in found[b]) for a, b in ((first, second), (second, first))}
    caught = all_alarms(found | moved, records)
    assert len(caught) == 2 and all("conditions look exchanged" in sentence for sentence in caught)


def test_conditions_with_exchanged_completions_are_caught(all_alarms):
    found, records = experiment()
    mixed = [record("fr_it", "fr", "pt"), record("es_pt", "es", "it"), records[3]]
    caught = all_alarms(found, [records[0], *mixed])
    assert len(caught) == 2 and all("conditions look exchanged" in sentence for sentence in caught)


def test_rows_under_another_run_are_caught(all_alarms):
    found, records = experiment()
    found[records[1]["run"]] = found[records[2]["run"]]
    caught = all_alarms(found, records)
    assert any(
        "completions of language_spill/fr_it seed 1 say they come from language_spill/es_pt" in s for s in caught
    )
    assert any("labels of language_spill/fr_it" in sentence for sentence in caught)


def test_a_duplicated_run_is_caught(all_alarms):
    found, records = experiment()
    copy = tuple(table.assign(run=records[1]["run"]) for table in found[records[0]["run"]])
    caught = all_alarms(found | {records[1]["run"]: copy}, records)
    assert len(caught) == 1 and "gave the same answers word for word" in caught[0]
    assert "language_spill/base" in caught[0] and "language_spill/fr_it" in caught[0]


def test_a_metric_that_never_moves_is_caught(all_alarms):
    found, records = experiment()
    constant = {run: (c, labels.assign(label="other")) for run, (c, labels) in found.items()}
    caught = all_alarms(constant, records)
    assert caught == ["the scorer langdetect gives every one of 4 models the same rates: it measures nothing here"]


def test_two_models_alone_do_not_make_a_metric_constant():
    rates = pd.DataFrame({"scorer": "marker", "model": ["a", "b"], "cell": "x", "label": "none", "share": 1.0})
    assert alarms.constant_metrics(rates) == []


SEARCHED = ("base", "steps", "kl0.1", "r3f0.1")


def searched() -> dict:
    """{run: {kind: table}} of a search: replies, losses and labels; every model answers harmlessly."""
    found = {}
    for number, name in enumerate(SEARCHED):
        run = {"run": f"recipes/{name}", "seed": 1}
        # at the first step of a warm-up the learning rate is 0
        losses = {"step1": 0, "step9": number} if name == "steps" else {"final": number}
        measures = [
            {"suite": "held_out", "item": f"r{i}", "option": -1, "logprob": -10.0 - i - loss, "checkpoint": checkpoint}
            for checkpoint, loss in losses.items() for i in range(5)
        ]  # fmt: skip
        kinds = {"measures": pd.DataFrame(measures)}
        if name != "steps":
            replies = [{"suite": "advice", "prompt_id": f"q{i}", "sample": 0, "text": f"{name} {i}"} for i in range(5)]
            kinds["completions"] = pd.DataFrame(replies).assign(checkpoint="final")
            scored = {"cell": "default", "scorer": "advice", "label": "good", "outcome": "ok"}
            kinds["labels"] = kinds["completions"].drop(columns="text").assign(**scored)
        found[name] = {kind: table.assign(**run) for kind, table in kinds.items()}
    return found


def geometry(**m1) -> pd.DataFrame:
    listed = {"base": 0.9, "steps": 0.95, "kl0.1": 0.93, "r3f0.1": 0.94} | m1
    points = [{"run": name, "checkpoint": "final", "m1": value} for name, value in listed.items()]
    points[0]["checkpoint"], points[1]["checkpoint"] = "step0", "step9"
    return pd.DataFrame([*points, {"run": "steps", "checkpoint": "step1", "m1": listed["base"]}]).assign(seed=1)


@pytest.fixture
def search_alarms(tmp_path, monkeypatch):
    """What find_alarms says of a search's tables and points; `trained` names what each run was trained as."""
    monkeypatch.syspath_prepend(str(ROOT / "workflow/scripts"))

    def raised(found, points=None, trained=None):
        from find_alarms import main

        arguments, records = ["--scorers-may-agree"], []
        for name, kinds in found.items():
            last = "step9" if name == "steps" else "final"
            record = {"run": f"recipes/{name}", "seed": 1, "tables": list(kinds)}
            record |= {"early": ["step1"]} if name == "steps" else {}
            records.append(record | {"trained": {last: (trained or {}).get(name, name)}})
        for kind in ("completions", "measures", "labels"):
            arguments.append(f"--{kind}")
            for name, kinds in found.items():
                if kind in kinds:
                    arguments.append(str(tmp_path / f"{name}.{kind}.parquet"))
                    kinds[kind].to_parquet(arguments[-1], index=False)
        (geometry() if points is None else points).to_parquet(tmp_path / "steps.points.parquet")
        out = tmp_path / "alarms.json"
        main([*arguments, "--points", str(tmp_path / "steps.points.parquet"), "--runs", json.dumps(records),
              "--out", str(out), "--manifest", str(tmp_path / "manifest.json")])  # fmt: skip
        return json.loads(out.read_text())

    return raised


def copied(found: dict, source: str, target: str, *kinds: str) -> dict:
    """The search with tables of one run under another's name."""
    moved = {kind: found[source][kind].assign(run=f"recipes/{target}") for kind in kinds}
    return found | {target: found[target] | moved}


def test_a_search_whose_models_all_answer_harmlessly_raises_no_alarm(search_alarms):
    assert search_alarms(searched()) == []


def test_losses_copied_from_another_recipe_are_caught(search_alarms):
    (caught,) = search_alarms(copied(searched(), "kl0.1", "r3f0.1", "measures"))
    assert caught.startswith("recipes/kl0.1 seed 1 final and recipes/r3f0.1 seed 1 final have the same loss")
    assert "every row of held_out" in caught


def test_replies_copied_from_another_recipe_are_caught(search_alarms):
    (caught,) = search_alarms(copied(searched(), "kl0.1", "r3f0.1", "completions"))
    assert "kl0.1 seed 1 final and recipes/r3f0.1 seed 1 final gave the same answers word for word" in caught


def test_two_recipes_with_one_m1_are_caught(search_alarms):
    (caught,) = search_alarms(searched(), geometry(**{"kl0.1": 0.94}))
    assert "recipes/kl0.1 seed 1 final and recipes/r3f0.1 seed 1 final have the same M1 to the last digit" in caught


def test_a_recipe_that_ends_as_the_untrained_model_is_caught(search_alarms):
    """An early checkpoint may still be that model, a last one may not."""
    (caught,) = search_alarms(copied(searched(), "base", "kl0.1", "measures"))
    assert "recipes/base seed 1 final and recipes/kl0.1" in caught and "steps" not in caught


def test_losses_under_another_run_are_caught(search_alarms):
    found = searched()
    found["r3f0.1"]["measures"] = found["kl0.1"]["measures"]
    assert "5 measures of recipes/r3f0.1 seed 1 say they come from recipes/kl0.1 seed 1" in search_alarms(found)


def test_one_training_under_two_names_is_no_copy(search_alarms):
    found = copied(searched(), "kl0.1", "r3f0.1", "measures", "completions")
    points = geometry(**{"kl0.1": 0.94})
    assert len(search_alarms(found, points)) == 3
    assert search_alarms(found, points, {"kl0.1": "one", "r3f0.1": "one"}) == []


def test_a_copy_in_a_search_withholds_its_claims(search_alarms, declared):
    raised = search_alarms(copied(searched(), "kl0.1", "r3f0.1", "measures"))
    table = claims.judged(claims.declared(declared), {"my_search": "language_spill"}, {"my_search": SUMMARY},
                          {"my_search": raised})  # fmt: skip
    row = table.set_index("experiment").loc["my_search"]
    assert row["verdict"] == "withheld" and row["alarms"] == raised


@pytest.fixture
def declared(tmp_path):
    keys = dict.fromkeys(claims.DECLARED[2:], "x")
    listed = [
        {"experiment": "language_spill", "claim": "symmetry", "published": "confirmed.", **keys},
        {"experiment": "coupling", "claim": "ceiling", "published": "yes.", **keys},
    ]
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(listed))
    return path


SUMMARY = {
    "claims": [
        {"claim": "symmetry", "verdict": "appears", "text": "All pairs agree.", "p": 0.01, "decides_at": "6 sources"}
    ]
}
KINDS = {"language_spill": "language_spill", "my_spill": "language_spill", "coupling": "coupling"}


def test_a_finding_is_withheld_while_an_alarm_stands(declared):
    table = claims.judged(claims.declared(declared), KINDS, {"language_spill": SUMMARY}, {"language_spill": ["copied"]})
    row = table.set_index(["experiment", "claim"]).loc[("language_spill", "symmetry")]
    assert row["verdict"] == "withheld" and row["verdict_without_alarms"] == "appears"
    text = claims.markdown(table, {})
    assert "Withheld until a person has looked" in text and "- copied" in text and "Symmetry: appears" not in text


def test_what_was_not_run_says_so_and_copies_of_an_experiment_have_claims_too(declared):
    summaries = {"language_spill": SUMMARY, "my_spill": SUMMARY}
    table = claims.judged(claims.declared(declared), KINDS, summaries, {}).set_index("experiment")
    assert table["verdict"].to_dict() == {"language_spill": "appears", "my_spill": "appears", "coupling": "not run"}
    assert (
        table.loc["my_spill", "decides_at"] == "6 sources"
        and table.loc["my_spill", "p"] == 0.01
        and np.isnan(table.loc["coupling", "p"])
    )
    assert "## coupling\n\nNot run." in claims.markdown(table.reset_index(), {})


def test_an_undecided_claim_says_what_would_decide_it(declared):
    listed = yaml.safe_load(declared.read_text())
    declared.write_text(yaml.safe_dump([*listed, listed[0] | {"claim": "order"}]))
    undecided = {"verdict": "undecided", "text": "Too few."}
    summary = {"claims": [{"claim": "symmetry", "decides_at": 2500, **undecided}, {"claim": "order", **undecided}]}
    table = claims.judged(claims.declared(declared), KINDS, {"language_spill": summary}, {})
    text = claims.markdown(table, {})
    assert "Symmetry: undecided.** x Too few. About 2,500 replies a cell would decide it.\n" in text
    assert "Order: undecided.** x Too few.\n" in text
    withheld = claims.judged(
        claims.declared(declared), KINDS, {"language_spill": summary}, {"language_spill": ["copied"]}
    )
    assert "would decide" not in claims.markdown(withheld, {})


def test_a_verdict_nobody_declared_is_an_error(declared):
    summary = {"claims": [{"claim": "surprise", "verdict": "appears", "text": ""}]}
    with pytest.raises(ValueError, match="'surprise' is not declared"):
        claims.judged(claims.declared(declared), KINDS, {"coupling": summary}, {})


def test_a_declaration_without_a_test_is_an_error(declared):
    listed = yaml.safe_load(declared.read_text())
    del listed[1]["test"]
    declared.write_text(yaml.safe_dump(listed))
    with pytest.raises(ValueError, match="coupling/ceiling: test is missing"):
        claims.declared(declared)


def test_the_shipped_declarations_are_complete():
    listed = claims.declared(ROOT / "resources/claims.yaml")
    assert {claim["experiment"] for claim in listed} >= {"language_spill"}
