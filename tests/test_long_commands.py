"""Commands that name many runs: the system takes no argument of more than 128 KiB, and Snakemake finds out last."""

from __future__ import annotations

import json
import os
import sys

import pytest
import yaml
from snakemake.shell import shell

from conftest import Workflow
from spillover.arguments import read_json

SEEDS = 7
EXPERIMENTS = ("language_spill", "marker_sweep", "convergence", "coupling", "recipes")
GROWING = {"alarms", "coupling_table", "convergence_figures", "persona_shift", "phase_decision", "report_page"}


@pytest.fixture
def longest(fresh) -> dict[str, str]:
    """{rule: the longest of its commands} at paper scale, every experiment with seven seeds, every phase run."""
    overlay = {"experiments": {name: {"seeds": list(range(101, 101 + SEEDS))} for name in EXPERIMENTS}}
    overlay["experiments"]["recipes"]["options"] = {"run_all_phases": True}
    (fresh.path / "config/seeds.yaml").write_text(yaml.safe_dump(overlay))
    workflow = Workflow(fresh.path, ("config/config.yaml", "config/seeds.yaml"))
    found = {}
    for job in workflow.jobs("results/report.html"):
        found[job.rule_name] = max(found.get(job.rule_name, ""), job.shellcmd or "", key=len)
    return found


def test_the_shell_can_start_every_command_of_seven_seeds(longest, tmp_path, monkeypatch):
    # a python that starts and ends: whether the system takes the arguments is decided before it does anything
    (tmp_path / "python").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert longest.keys() >= GROWING
    for rule, command in longest.items():
        if rule in GROWING:
            assert len(command) > 131_072, f"{rule} no longer shows that a long command starts"
        if command.startswith(("python ", "GPUS=")):
            shell("{started}", started=command.rpartition(" > ")[0])  # the log's folder is not there


def test_records_too_long_for_an_argument_reach_a_program_whole(root, tmp_path):
    records = json.dumps([{"run": "it's {one} %s \\n \u4e2d", "seed": seed} for seed in range(5000)])
    assert len(records) > 131_072
    program, out = tmp_path / "program.py", tmp_path / "out.json"
    program.write_text(
        "import json, sys\nfrom spillover.arguments import read_json\njson.dump(read_json(sys.argv[1]), sys.stdout)\n"
    )
    names = {"scripts": root / "workflow/scripts", "python": sys.executable, "program": program, "out": out}
    shell("PYTHONPATH={scripts} {python} {program} @<(printf %s {records:q}) > {out}", records=records, **names)
    assert json.loads(out.read_text()) == json.loads(records) == read_json(records)
