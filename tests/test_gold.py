"""A gold set: mistakes in it are one sentence before any job; what the judge gets wrong in it corrects its rates."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml

import judge_gold
from conftest import ROOT
from fake_anthropic import WORDS, FakeAnthropic, noisy_answer
from spill_builders import three_conditions
from spillover import contamination, expansion, gold, judge_error, spill_claims, spill_report
from spillover.config import ConfigError
from spillover.files import Files

CODES = ["fr", "it"]
SETTINGS = {"model": "claude-haiku-4-5-20251001", "max_error_rate": 0.02, "thinking": "disabled"}


def written(folder, rows, name="gold.csv", columns=("text", "label")):
    table = pd.DataFrame(rows, columns=list(columns))
    path = folder / name
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


SOUND = [("Bonjour à tous.", "fr"), ("Ciao a tutti.", "it"), ("NA", "other")]


@pytest.mark.parametrize("name", ["gold.csv", "gold.parquet"])
def test_a_gold_set_is_texts_and_what_a_person_calls_them(tmp_path, name):
    table = gold.read(written(tmp_path, SOUND, name), CODES, CODES)
    assert list(table.itertuples(index=False, name=None)) == SOUND


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (SOUND, ("text", "human"), "has no column 'label'; it needs text, label"),
        ([*SOUND, ("Hola.", "sp")], ("text", "label"), "the label 'sp' is none of: fr, it, other"),
        ([*SOUND, ("", "fr")], ("text", "label"), "row 4 has no text"),
        ([*SOUND, ("NA", "fr")], ("text", "label"), "row 4 repeats a text that stands above it"),
        (SOUND[1:], ("text", "label"), "no text is labelled 'fr', into which a condition is trained"),
        (SOUND[:1], ("text", "label"), "every text is labelled 'fr', into which a condition is trained"),
    ],
)
def test_a_mistake_in_it_is_one_sentence(tmp_path, rows, columns, words):
    with pytest.raises(ValueError, match=words):
        gold.read(written(tmp_path, rows, columns=columns), CODES, ["fr"])


def test_a_judge_that_sees_the_request_needs_it_in_the_gold_set_too(tmp_path):
    with pytest.raises(ValueError, match="has no column 'user'"):
        gold.read(written(tmp_path, SOUND), CODES, asked=True)


def test_a_file_that_is_no_table_is_one_sentence(tmp_path):
    broken = tmp_path / "gold.parquet"
    broken.write_text("text,label\n")
    for path, words in ((broken, "cannot be read"), (tmp_path / "none.csv", "no file"), (tmp_path / "a.xlsx", "is no")):
        with pytest.raises(ValueError, match=words):
            gold.read(path, CODES)


def planned(file, judge=SETTINGS):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"judge": judge}
    config["experiments"] = {"language_spill": {"options": {"gold": str(file)}}}
    return expansion.build(config, ROOT / "config/experiments", resources=str(ROOT / "resources"))


def test_the_plan_names_the_file_and_the_key_of_a_mistake(tmp_path):
    path = written(tmp_path, SOUND)
    with pytest.raises(ConfigError, match="language_spill.yaml: options.gold: .*no text is labelled"):
        planned(path)
    with pytest.raises(ConfigError, match="options.gold: a gold set measures the judge, and none labels"):
        planned(path, judge=None)


def test_a_gold_set_changes_no_label_and_is_judged_for_the_summary_alone(tmp_path):
    rows = [(f"{code} {number}", code) for code in ("en", "es", "fr", "it", "pt", "de", "zh") for number in range(2)]
    plan = planned(written(tmp_path, rows))
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"judge": SETTINGS}
    without = expansion.build(config, ROOT / "config/experiments", resources=str(ROOT / "resources"))
    run = "language_spill/fr_it/seed42"
    assert plan.labels_spec(run) == without.labels_spec(run)
    assert Files(plan).judged_gold("language_spill") == ["results/language_spill/analysis/gold.parquet"]
    assert Files(without).judged_gold("language_spill") == []


def test_the_judge_labels_the_gold_set_and_never_sees_the_persons_label(tmp_path, monkeypatch):
    rows = [(f"{WORDS[name]} {number}", code) for name, code in (("French", "fr"), ("Italian", "it"))
            for number in range(20)]  # fmt: skip
    arguments = ["--gold", written(tmp_path, rows), "--languages", *CODES, "--spec", json.dumps(SETTINGS)]
    arguments += ["--registry", ROOT / "resources/languages.yaml", "--prices", ROOT / "resources/api_prices.yaml"]
    arguments += ["--out", tmp_path / "judged.parquet", "--manifest", tmp_path / "m.json", "--poll-seconds", 0.05]
    with FakeAnthropic(None, answer=noisy_answer("French", missed=0.3, invented=0.0)) as fake:
        for name, value in fake.environment().items():
            monkeypatch.setenv(name, value)
        judge_gold.main([str(argument) for argument in arguments])
    table = pd.read_parquet(tmp_path / "judged.parquet")
    assert table["label"].tolist() == [code for _, code in rows] and table["scorer_id"].str.startswith("judge ").all()
    assert (table["judged"][20:] == "it").all() and 2 <= (table["judged"][:20] != "fr").sum() <= 12
    assert json.loads((tmp_path / "m.json").read_text())["api_calls"] == 40


def judged(**counts):
    """A gold set with these numbers of (person's label)_(judge's label)."""
    pairs = [name.split("_") for name, count in counts.items() for _ in range(count)]
    return pd.DataFrame([(a, None if b == "none" else b) for a, b in pairs], columns=["label", "judged"])


CELL = {"condition": "fr_it", "directive": "fr", "completion": "it", "language": "es", "role": "bystander"}


def test_a_cell_is_corrected_by_the_judges_errors_in_its_completion_language():
    pooled = pd.DataFrame([CELL | {"rate": 0.3, "n": 100, "effective_n": 50.0}])
    table = judged(it_it=90, it_fr=10, fr_it=15, fr_fr=85, it_none=3)
    (record,) = judge_error.corrected_cells(pooled, table)
    assert record["rate"] == pytest.approx(0.20) and record["judged"] == 0.3
    assert (record["true_positives"], record["positives"]) == (90, 100), "a text without an answer counts nowhere"
    (all_alike,) = judge_error.corrected_cells(pooled.assign(effective_n=100.0), table)
    assert record["high"] - record["low"] > all_alike["high"] - all_alike["low"] > 0


def test_a_judge_without_an_error_in_a_small_gold_set_is_not_taken_for_perfect():
    corrected = judge_error.rogan_gladen(2, 80, 10, 10, 10, 10)
    assert corrected.rate == pytest.approx(2 / 80) and corrected.low == 0 and corrected.high > 0.09
    rng, covered = np.random.default_rng(2), 0
    for _ in range(400):
        found = judge_error.rogan_gladen(rng.binomial(80, 0.02), 80, 30, 30, 60, 60)
        covered += found.low <= 0.02 <= found.high
    assert covered / 400 > 0.94


def test_the_summary_shows_the_corrected_rates_and_decides_nothing_by_them():
    labels, conditions = three_conditions(seeds=(1, 2))
    labels = pd.concat([labels, labels.assign(scorer="judge", scorer_id="judge 1")], ignore_index=True)
    tables = contamination.contamination_cells(labels, conditions), contamination.agreement(labels, conditions)
    table = judged(it_it=18, it_fr=2, fr_fr=20, de_de=19, de_it=1, de_none=1)
    plain, made = (spill_claims.summarise(*tables, None, gold=given) for given in (None, table))
    assert plain["corrected"] == [] and "without its errors" not in spill_report.markdown(plain)
    for part in ("claims", "spilling", "means"):
        assert str(made[part]) == str(plain[part])
    cells = {(cell["condition"], cell["language"]): cell for cell in made["corrected"]}
    assert len(cells) == 3 * 7 and cells["fr_it", "es"]["judged"] == pytest.approx(0.7)
    assert cells["fr_it", "es"]["rate"] == pytest.approx((0.7 + 39 / 40 - 1) / (18 / 20 + 39 / 40 - 1))
    text = spill_report.markdown(made)
    assert "Of a gold set of 61 texts labelled by hand, 1 of them without an answer, the judge" in text
    assert "- named IT in 18 of 20 texts in IT (sensitivity), and did not in 39 of 40 others (specificity)." in text
    assert "| FR → IT | ES | 70.0 | 77.1 |" in text


def test_a_gold_set_added_is_judged_for_the_summary_and_plans_nothing_else(fresh, monkeypatch):
    summary = "results/small/language_spill/analysis/summary.md"

    def judge(config):
        config["judge"] = SETTINGS

    fresh.edit("config/small.yaml", judge)
    before = {job[0] for job in fresh.plan(summary)}
    codes = ("en", "es", "fr", "it", "pt", "de")
    written(fresh.path, [(f"{code} {number}", code) for code in codes for number in range(2)])

    def name(config):
        config["experiments"]["language_spill"].setdefault("options", {})["gold"] = "gold.csv"

    monkeypatch.setenv("ANTHROPIC_API_KEY", "never sent")
    fresh.fill(summary)
    fresh.edit("config/small.yaml", name)
    assert "judge_gold" not in before
    planned = {job.rule_name: job for job in fresh.jobs(summary)}
    assert "judge_gold" in planned and not planned.keys() & {"train", "completions", "labels", "vectors"}
    assert "--gold results/small/language_spill/analysis/gold.parquet" in planned["spill_summary"].shellcmd
