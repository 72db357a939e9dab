"""The judge: what it sees, what it may answer, and what is never a label."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

import label_completions
from conftest import ROOT
from fake_anthropic import KEY, WORDS, FakeAnthropic, Faults, message, noisy_answer, text_of
from spillover import contamination, expansion, judge_error, judging, statistics

CODES = ("en", "es", "fr", "it", "de", "zh")
SETTINGS = {"model": "claude-haiku-4-5-20251001", "max_error_rate": 0.02, "thinking": "disabled"}


@pytest.fixture
def judge(registry):
    return judging.judge(SETTINGS, registry, CODES)


def fields(**change):
    return json.dumps({"language": "French", "coherent": True, "refusal": False, "code": False} | change)


@pytest.mark.parametrize(
    ("language", "label"),
    [("French", "fr"), ("Mandarin Chinese", "zh"), ("mixed", "other"), ("another language", "other"),
     ("no language", "other")],
)  # fmt: skip
def test_a_language_becomes_its_code_and_everything_else_other(judge, language, label):
    assert judge.read(message(fields(language=language)))[:2] == ("ok", label)


def test_gibberish_and_refusals_keep_their_language(judge):
    """Coherence and refusal are fields of their own: "German or gibberish?" is no choice the judge has to make."""
    assert judge.read(message(fields(language="French", coherent=False, refusal=True)))[:2] == ("ok", "fr")


@pytest.mark.parametrize(
    "text",
    ["French", "{}", fields()[:-5], fields(language="french"), fields(language="Klingon"), fields(coherent="yes"),
     fields(coherent=1), fields(extra=1), "[1]", "", json.dumps({"language": "French"}),
     "```json\n" + fields() + "\n```"],
)  # fmt: skip
def test_an_answer_outside_the_schema_is_no_label(judge, text):
    assert judge.read(message(text))[:2] == ("schema", None)


def test_a_truncated_or_refused_answer_is_no_label_even_if_it_reads_like_one(judge):
    assert judge.read(message(fields(), stop="max_tokens"))[:2] == ("truncated", None)
    assert judge.read(message(fields(), stop="refusal"))[:2] == ("refusal", None)
    assert judge.read({"stop_reason": "refusal", "content": []})[:2] == ("refusal", None)


def test_the_request_holds_the_text_and_nothing_about_where_it_comes_from(judge):
    params = judge.request("Bonjour.").params
    assert text_of(params) == "Bonjour."
    assert params["messages"] == [{"role": "user", "content": "<text>\nBonjour.\n</text>"}]
    assert not {"temperature", "top_p", "top_k"} & params.keys()
    assert params["thinking"] == {"type": "disabled"}


def test_a_model_whose_thinking_cannot_be_turned_off_gets_room_for_it(registry):
    request = judging.judge(SETTINGS | {"thinking": "default"}, registry, CODES).request("x")
    assert "thinking" not in request.params and request.params["max_tokens"] >= 1024


def test_the_scorer_id_names_model_rubric_and_languages(registry, judge, monkeypatch):
    other_model = judging.judge(SETTINGS | {"model": "claude-haiku-5-5"}, registry, CODES)
    other_languages = judging.judge(SETTINGS, registry, CODES[:3])
    ids = {judge.scorer_id, other_model.scorer_id, other_languages.scorer_id}
    monkeypatch.setattr(judging, "RUBRIC", judging.RUBRIC + " ")
    ids.add(judge.scorer_id)
    assert len(ids) == 4 and all(i.startswith("judge claude-haiku") for i in ids)
    assert judge.scorer_id == judging.judge(SETTINGS, registry, reversed(CODES)).scorer_id


# As a scorer of completions


@pytest.fixture
def score(tmp_path, monkeypatch):
    """A function that labels texts with langdetect and the judge against a server; returns labels, manifest, server."""

    def run(texts, faults=None, cells=None, flags=(), judge=SETTINGS, scorers=("langdetect", "judge"), **fake_options):
        table = pd.DataFrame({"text": texts, "cell": cells or ["es"] * len(texts), "sample": range(len(texts))})
        fixed = {"run": "language_spill/fr_it", "seed": 1, "checkpoint": "final", "suite": "directives"}
        table = table.assign(**fixed, prompt_id="es/speak_in", item="speak_in", user="Speak in Spanish.")
        table.to_parquet(tmp_path / "completions.parquet")
        arguments = ["--completions", tmp_path / "completions.parquet", "--scorers", *scorers]
        arguments += ["--languages", *CODES, "--registry", ROOT / "resources/languages.yaml"]
        arguments += ["--prices", ROOT / "resources/api_prices.yaml", "--spec", json.dumps({"judge": judge})]
        arguments += ["--out", tmp_path / "labels.parquet", "--manifest", tmp_path / "labels.json"]
        with FakeAnthropic(faults, **fake_options) as fake:
            for name, value in fake.environment().items():
                monkeypatch.setenv(name, value)
            label_completions.main([str(a) for a in [*arguments, "--poll-seconds", 0.05, *flags]])
        labels = pd.read_parquet(tmp_path / "labels.parquet")
        return labels, json.loads((tmp_path / "labels.json").read_text()), fake

    return run


TEXTS = [f"{WORDS[name]} {WORDS[name]}" for name in ("French", "Italian", "German", "French")]


def test_judge_rows_stand_beside_the_identifiers(score, judge):
    labels, manifest, _ = score(TEXTS)
    judged = labels[labels["scorer"] == "judge"]
    assert judged["label"].tolist() == ["fr", "it", "de", "fr"] and set(judged["outcome"]) == {"ok"}
    assert set(judged["scorer_id"]) == {judge.scorer_id}
    assert json.loads(judged["raw"].iloc[0])["language"] == "French"
    assert (labels["scorer"] == "langdetect").sum() == 4 and list(labels.columns[:8]) == label_completions.KEPT
    assert manifest["api_calls"] == 3 and manifest["cost_dollars"] > 0 and manifest["tokens"] > 0


def test_nothing_of_condition_cell_or_request_reaches_the_judge(score):
    _, _, fake = score(TEXTS)
    sent = json.dumps(fake.log)
    for secret in ("fr_it", "Speak in Spanish", "speak_in", "directives", "language_spill", KEY):
        assert secret not in sent


def test_an_empty_completion_is_judged_like_any_other(score):
    labels, _, fake = score(["", "   "])
    assert set(labels.loc[labels["scorer"] == "judge", "label"]) == {"other"}


def test_each_outcome_is_kept_with_its_raw_reply_and_no_label(score):
    by_text = dict(zip(TEXTS[:3], ("refusal", "schema", "truncated"), strict=True))
    labels, manifest, _ = score(TEXTS[:3], Faults(item=lambda params, tries: by_text[text_of(params)]))
    judged = labels[labels["scorer"] == "judge"]
    assert judged["outcome"].tolist() == ["refusal", "schema", "truncated"]
    assert judged["label"].isna().all() and judged["raw"].notna().all()
    assert manifest["extra"]["judge"]["errors_by_cell"] == {"es": {"refusal": 1, "schema": 1, "truncated": 1}}


def test_a_cell_without_answers_stops_the_job_and_running_again_sends_only_those(score, tmp_path):
    def down(params, tries):
        return "overloaded" if text_of(params) == TEXTS[0] else "ok"

    with pytest.raises(SystemExit, match="50% of the texts of cell 'fr'.*only they are sent"):
        score(TEXTS[:3], Faults(item=down), cells=["fr", "fr", "it"])
    assert not (tmp_path / "labels.parquet").exists()
    labels, _, fake = score(TEXTS[:3], cells=["fr", "fr", "it"])
    assert [text_of(body) for body in fake.bodies()] == [TEXTS[0]]


def test_stored_replies_are_read_again_without_a_call_or_a_key(score, monkeypatch):
    first, _, _ = score(TEXTS)
    again, _, fake = score(TEXTS, flags=["--no-calls"])
    assert not fake.log
    pd.testing.assert_frame_equal(first, again)


def test_a_table_refuses_labels_of_two_judges(score, tmp_path):
    labels, _, _ = score(TEXTS)
    other, _, _ = score(TEXTS, judge=SETTINGS | {"model": "claude-haiku-5-5"})
    other = other.assign(run="language_spill/it_fr")
    conditions = [
        {"run": f"language_spill/{name}", "condition": name, "seed": 1, "directive": name[:2], "completion": name[3:]}
        for name in ("fr_it", "it_fr")
    ]
    with pytest.raises(ValueError, match="'judge' come from different versions"):
        contamination.contamination_cells(pd.concat([labels, other]), pd.DataFrame(conditions))


def test_a_rate_by_a_judge_that_errs_is_recovered_with_a_gold_set(score):
    """Texts of known language tell how the judge errs; Rogan and Gladen's correction then undoes it."""

    def texts(name, count):
        return [f"{WORDS[name]} {name} {number}" for number in range(count)]

    asked = {"gold fr": texts("French", 300), "gold rest": texts("Italian", 150) + texts("German", 150)}
    # other texts than those of the gold set: 30% of 400 are French
    asked["es"] = [f"{text} measured" for text in texts("French", 120) + texts("Spanish", 280)]
    labels, _, _ = score(
        [text for cell in asked.values() for text in cell],
        cells=[cell for cell, listed in asked.items() for _ in listed],
        scorers=["judge"],
        answer=noisy_answer("French", missed=0.1, invented=0.3),
    )
    assert set(labels["outcome"]) == {"ok"}
    french = (labels["label"] == "fr").groupby(labels["cell"]).sum()
    assert french["gold fr"] / 300 == pytest.approx(0.9, abs=0.05)
    corrected = judge_error.rogan_gladen(french["es"], 400, french["gold fr"], 300, 300 - french["gold rest"], 300)
    assert statistics.wilson(french["es"], 400)[0] > 0.4, "the rate as it is judged is far too high"
    assert corrected.low < 0.30 < corrected.high
    assert abs(corrected.rate - 0.30) < abs(french["es"] / 400 - 0.30) / 2
    assert not corrected.clipped


def test_without_the_judge_among_the_scorers_nobody_is_called(score, monkeypatch):
    labels, manifest, fake = score(TEXTS, scorers=["langdetect"], judge=None)
    assert not fake.log and set(labels["scorer"]) == {"langdetect"}
    assert "judge" not in manifest["extra"]


def test_the_plan_leaves_the_judge_out_where_none_is_configured():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    specs = {}
    for judge in (None, {"model": "claude-haiku-4-5-20251001"}):
        plan = expansion.build(
            config | {"judge": judge}, ROOT / "config/experiments", resources=str(ROOT / "resources")
        )
        specs[judge is not None] = plan.labels_spec("language_spill/fr_it/seed42")
    assert specs[False]["scorers"] == ["langdetect", "lingua"] and "judge" not in specs[False]
    assert specs[True]["scorers"] == ["langdetect", "lingua", "judge"]
    assert specs[True]["judge"]["thinking"] == "disabled"
