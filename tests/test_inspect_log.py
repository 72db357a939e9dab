"""Logs for `inspect view`: the documented JSON layout, with every reply, prompt and label."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

import export_inspect
from spill_builders import label_rows, replies_to

RUN = "language_spill/fr_it"


@pytest.fixture
def exported(tmp_path):
    labels = label_rows(RUN, {}, per_item=2)
    completions = replies_to(labels)
    completions.loc[0, ["finish_reason", "system"]] = ["length", "You are a pirate."]
    judge = labels.assign(scorer="judge", scorer_id="judge 1", raw="reply")
    judge.loc[1, ["label", "outcome"]] = [None, "refusal"]
    pd.concat([labels, judge]).to_parquet(tmp_path / "labels.parquet")
    pd.concat([completions, completions.assign(checkpoint="pct50")]).to_parquet(tmp_path / "completions.parquet")
    (tmp_path / "made.json").write_text('{"started": "2026-11-21T12:00:00+00:00", "packages": {"torch": "2.13.0"}}')
    arguments = ["--made", str(tmp_path / "made.json"), "--spec", '{"seed": 1}']
    for name, file in (("completions", "completions.parquet"), ("labels", "labels.parquet"), ("out", "log.json")):
        arguments += [f"--{name}", str(tmp_path / file)]
    export_inspect.main([*arguments, "--manifest", str(tmp_path / "manifest.json")])
    return json.loads((tmp_path / "log.json").read_text()), completions


def test_a_prompt_is_a_sample_and_each_of_its_completions_an_epoch(exported):
    log, completions = exported
    assert (log["version"], log["status"], log["eval"]["config"]["epochs"]) == (2, "success", 2)
    assert [s["output"]["completion"] for s in log["samples"]] == completions["text"].tolist()
    assert [(s["id"], s["epoch"]) for s in log["samples"][:3]] == [
        ("directives/en/speak_in", 1), ("directives/en/speak_in", 2), ("directives/en/please_respond", 1)
    ]  # fmt: skip
    assert log["eval"]["dataset"]["samples"] == completions["prompt_id"].nunique()
    assert log["eval"]["model"] == "spillover/fr_it-seed1-final" and log["eval"]["metadata"] == {"seed": 1}


def test_roles_and_stop_reasons_are_those_of_the_reply(exported):
    first, second = exported[0]["samples"][:2]
    assert [m["role"] for m in first["messages"]] == ["system", "user", "assistant"]
    assert [m["role"] for m in second["messages"]] == ["user", "assistant"]
    reasons = [s["output"]["choices"][0]["stop_reason"] for s in (first, second)]
    assert reasons == ["max_tokens", "stop"]


def test_a_failed_label_is_unscored_with_its_reason_and_no_label(exported):
    log, completions = exported
    failed = log["samples"][1]["scores"]["judge"]
    assert math.isnan(failed["value"]) and failed["reason"] == "refusal"
    score = next(s for s in log["results"]["scores"] if s["name"] == "judge")
    assert (score["scored_samples"], score["unscored_samples"]) == (len(completions) - 1, 1)
    assert sum(m["value"] for m in score["metrics"].values()) == pytest.approx(1)


def test_inspect_itself_reads_the_log(exported, tmp_path):
    reader = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed: pip install inspect_ai")
    path = tmp_path / "2000-01-01T00-00-00_x.json"
    path.write_text(json.dumps(exported[0]))
    (info,) = reader.list_eval_logs(str(tmp_path))
    log = reader.read_eval_log(info)
    assert len(log.samples) == len(exported[1]) and math.isnan(log.samples[1].scores["judge"].value)
