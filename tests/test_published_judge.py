"""The judge of the published protocol: what it is shown, how its free replies are read, where it is used."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

import label_completions
from conftest import ROOT
from fake_anthropic import FakeAnthropic, message
from spillover import expansion, judging, published_judge

CODES = ("en", "es", "fr", "it", "pt", "de", "zh", "ja")
SETTINGS = {"model": "claude-haiku-4-5-20251001", "max_error_rate": 0.02, "thinking": "disabled", "rules": "published"}


@pytest.fixture
def judge(registry):
    return published_judge.judge(SETTINGS, registry, CODES)


def test_it_sees_the_request_and_chooses_among_eleven_labels_in_128_tokens(judge):
    request = judge.request("Speak in Spanish.", "Guten Morgen.")
    assert "Speak in Spanish." in request.params["messages"][0]["content"]
    listed = request.params["system"].split("\n\n")[1].splitlines()
    assert len(listed) == 11 and {"mandarin", "mixed", "other", "refusal", "gibberish"} < set(listed)
    assert request.params["max_tokens"] == 128 and "output_config" not in request.params
    assert request.again() is None, "a reply that was cut short was not asked for again"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"label": "mandarin", "reasoning": "Chinese."}', ("ok", "zh")),
        ('{"label": "gibberish", "reasoning": "No words."}', ("ok", "other")),
        ('Here it is:\n```json\n{"label": "german", "reasoning": "x"}\n```', ("ok", "de")),
        ('{"label": "german", "reasoning": "not to the e', ("schema", None)),
        ('{"label": "japanese"}', ("schema", None)),
        ('{"label": ["german"]}', ("schema", None)),
        ('["german"]', ("schema", None)),
        ("german", ("schema", None)),
    ],
)
def test_a_reply_is_read_as_json_or_from_its_first_brace(judge, text, expected):
    assert judge.read(message(text))[:2] == expected


def test_what_was_one_parse_error_keeps_its_outcome(judge):
    assert judge.read(message('{"label": "german"', stop="max_tokens"))[:2] == ("truncated", None)
    assert judge.read({"stop_reason": "refusal", "content": []})[:2] == ("refusal", None)


def test_its_labels_never_pass_for_those_of_the_blind_judge(judge, registry):
    assert judge.scorer_id != judging.judge(SETTINGS, registry, CODES).scorer_id
    assert judge.scorer_id.startswith("judge claude-haiku-4-5-20251001, published rules")


def test_completions_are_labelled_with_their_requests(tmp_path, monkeypatch):
    """A judge that is led by the request: what asks for Spanish is Spanish, which the blind judge could not say."""
    key = {"run": "language_spill/fr_it", "seed": 1, "checkpoint": "final", "suite": "directives", "item": "speak_in"}
    rows = [
        key | {"prompt_id": f"{c}/speak_in", "cell": c, "sample": 0, "user": user, "text": "der und die mit morgen"}
        for c, user in (("es", "Speak in Spanish."), ("de", "Speak in German."))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "completions.parquet")

    def led(params):
        asked = params["messages"][0]["content"].splitlines()[0]
        return json.dumps({"label": "spanish" if "Spanish" in asked else "german", "reasoning": "as asked"})

    with FakeAnthropic(answer=led) as fake:
        for name, value in fake.environment().items():
            monkeypatch.setenv(name, value)
        label_completions.main([
            "--completions", str(tmp_path / "completions.parquet"), "--scorers", "judge", "--languages", *CODES,
            "--registry", str(ROOT / "resources/languages.yaml"), "--prices", str(ROOT / "resources/api_prices.yaml"),
            "--spec", json.dumps({"judge": SETTINGS}), "--out", str(tmp_path / "labels.parquet"),
            "--manifest", str(tmp_path / "labels.json"), "--poll-seconds", "0.05",
        ])  # fmt: skip
    labels = pd.read_parquet(tmp_path / "labels.parquet")
    assert labels["label"].tolist() == ["es", "de"] and set(labels["scorer"]) == {"judge"}


@pytest.mark.parametrize(("protocol", "rules"), [("published", "published"), ("corrected", None)])
def test_the_protocol_of_language_spill_chooses_the_judge(protocol, rules):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config |= {"judge": {"model": "claude-haiku-4-5-20251001"}}
    config["experiments"] = config.get("experiments", {}) | {"language_spill": {"protocol": protocol}}
    plan = expansion.build(config, ROOT / "config/experiments", resources=str(ROOT / "resources"))
    assert plan.labels_spec("language_spill/fr_it/seed42")["judge"].get("rules") == rules
    assert plan.experiments["language_spill"]["options"]["max_error_share"] == (1.0 if rules else 0.02)
