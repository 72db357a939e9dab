"""Personas as data: two files, ids and prompts that occur once, and who depends on the second file."""

from __future__ import annotations

import shutil

import pytest
import yaml

from conftest import ROOT
from spillover import expansion, files, prompts
from spillover.config import ConfigError

RESOURCES = str(ROOT / "resources")
FURTHER = "resources/further_personas.yaml"


def entries(name):
    return yaml.safe_load((ROOT / "resources" / f"{name}.yaml").read_text(encoding="utf-8"))["personas"]


def plan(resources=RESOURCES, **convergence):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["experiments"] = {"convergence": convergence}
    return expansion.build(config, ROOT / "config/experiments", resources=str(resources))


def test_the_banks_are_eleven_twelve_and_everyone():
    counts = {bank: len(prompts.personas(bank, RESOURCES)) for bank in ("evaluation", "all", "everyone")}
    assert counts == {"evaluation": 11, "all": 12, "everyone": 12 + len(entries("further_personas"))}
    assert list(prompts.personas("everyone", RESOURCES))[:12] == list(prompts.personas("all", RESOURCES))


def test_personas_of_both_files_are_found_by_id_in_the_order_asked():
    assert list(prompts.personas(["monk", "villain"], RESOURCES)) == ["monk", "villain"]


def test_every_source_persona_of_the_published_experiments_has_relatives():
    related = [p["related_to"] for p in entries("further_personas")]
    assert all(related.count(s) >= 4 for s in ("villain", "comedian", "kindergarten_teacher", "software_engineer"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "villain"}, "'villain' repeats the id or the prompt of the persona 'villain'"),
        ({"prompt": "You are a helpful assistant."}, "repeats the id or the prompt of the persona 'assistant'"),
        ({"category": None}, "needs a text as its category"),
        ({"related_to": "nobody"}, "related_to: no persona 'nobody' in personas.yaml"),
    ],
)
def test_a_wrong_line_is_refused_before_any_job(tmp_path, change, words):
    shutil.copytree(RESOURCES, tmp_path / "resources", ignore=shutil.ignore_patterns("base"))
    path = tmp_path / FURTHER
    bank = yaml.safe_load(path.read_text())
    bank["personas"][0] |= change
    path.write_text(yaml.safe_dump(bank))
    with pytest.raises(ConfigError, match=words):
        plan(tmp_path / "resources")


def test_only_runs_that_ask_further_personas_depend_on_their_file():
    pool = "convergence/base/seed42", "final", "pool"
    plain = files.Files(plan())
    assert FURTHER not in plain.evaluated_questions("convergence/marker_villain/seed42")
    some = ["villain", "assistant", "monk"]
    asked = files.Files(plan(axes={"source": ["villain"]}, suites={"personas": {"personas": some}}))
    assert FURTHER in asked.evaluated_questions("convergence/marker_villain/seed42")
    assert FURTHER not in asked.pool_questions(*pool)
    widened = {name: {"personas": "everyone"} for name in ("pool", "personas")}
    everyone = files.Files(plan(axes={"source": ["monk"]}, suites=widened))
    assert FURTHER in everyone.pool_questions(*pool)
    assert everyone.dataset_files("convergence/marker_monk/seed42")["personas"] == [FURTHER]
