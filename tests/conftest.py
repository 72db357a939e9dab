"""What the tests share: the repository, the published results, and a workflow whose jobs are all recorded as done."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from snakemake.api import SnakemakeApi
from snakemake.logging import logger
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

from browsing import chromium, opened  # noqa: F401
from spillover.languages import Registry, load_languages

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("config/small.yaml",)
SMALL_FIGURE = "results/small/spill_matrix.png"
CHECKSUM_LIMIT_BYTES = 10_000_000_000
NOT_COPIED = (".git", ".venv*", ".snakemake", "results", "logs", "__pycache__", ".*_cache", "docs")


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of this checkout."""
    return ROOT


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All languages that the project knows."""
    return load_languages(ROOT / "resources/languages.yaml")


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of published results that are not part of the repository."""
    folder = Path(os.environ.get("SPILLOVER_PUBLISHED", ROOT / "../shared/published")).resolve()
    if not folder.is_dir():
        pytest.skip("the published results are not here; name their folder in SPILLOVER_PUBLISHED")
    return folder


class PlannedJobs(logging.Handler):
    """Collects the jobs that Snakemake announces."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(getattr(record, "event", "")) == "job_info":
            self.records.append(record)


class Workflow:
    """A copy of the repository. Plans are made in it, and jobs can be recorded as done without running."""

    def __init__(self, path: Path, configfiles: Sequence[str] = SMALL):
        self.path = path
        self.configfiles = configfiles

    def edit(self, file: str, change: Callable[[dict], object]) -> None:
        """Apply `change` to the content of a YAML file of the copy."""
        path = self.path / file
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def jobs(self, *targets: str, executor: str = "dryrun", forceall: bool = False) -> list[logging.LogRecord]:
        """Snakemake's records of the planned jobs (rule_name, wildcards, input, output, reason, shellcmd, ...)."""
        seen = PlannedJobs()
        with SnakemakeApi(OutputSettings(dryrun=executor == "dryrun")) as api:
            for handler in logger.handlers:
                handler.setLevel(logging.CRITICAL + 1)
            logger.addHandler(seen)
            # a checkout elsewhere must plan the same: nothing may depend on the folder pytest was started in
            workflow = api.workflow(
                ResourceSettings(cores=1),
                config_settings=ConfigSettings(configfiles=[self.path / file for file in self.configfiles]),
                snakefile=self.path / "Snakefile",
                workdir=self.path,
            )
            settings = DAGSettings(targets=set(targets), forceall=forceall, max_checksum_file_size=CHECKSUM_LIMIT_BYTES)
            workflow.dag(settings).execute_workflow(executor=executor)
        return [record for record in seen.records if record.output]

    def plan(self, *targets: str) -> dict[tuple[str, ...], str]:
        """{(rule, wildcard values...): reason} of what `snakemake -n` would run."""
        return {(job.rule_name, *job.wildcards.values()): job.reason for job in self.jobs(*targets)}

    def fill(self, *targets: str, content: Callable[[str], str] = lambda path: f"made up: {path}\n") -> None:
        """Create every missing output and have Snakemake record it, as if all jobs had run.

        `content` gives the text of a file by its path, for the files that the workflow reads while it plans.
        """
        for job in self.jobs(*targets):
            for output in map(self.path.joinpath, job.output):
                if not output.suffix and output.parent.name == "merged":  # a folder
                    output.mkdir(parents=True, exist_ok=True)
                output.parent.mkdir(parents=True, exist_ok=True)
                if not output.exists():
                    output.write_text(content(str(output.relative_to(self.path))))
        self.jobs(*targets, executor="touch", forceall=True)


def copy_of_the_repository(path: Path) -> Path:
    """The checkout as it is now, without results and environments."""
    shutil.copytree(
        ROOT, path, dirs_exist_ok=True, copy_function=shutil.copy2, ignore=shutil.ignore_patterns(*NOT_COPIED)
    )
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A copy in which the small spill matrix is recorded as made. Shared: copy it before changing anything."""
    path = copy_of_the_repository(tmp_path_factory.mktemp("finished"))
    Workflow(path).fill(SMALL_FIGURE)
    return path


@pytest.fixture
def workflow(finished, tmp_path) -> Workflow:
    """The finished small workflow in a copy of its own; time stamps are kept."""
    shutil.copytree(finished, tmp_path / "workflow", copy_function=shutil.copy2)
    return Workflow(tmp_path / "workflow")


@pytest.fixture
def fresh(tmp_path) -> Workflow:
    """The workflow as after cloning: nothing made yet."""
    return Workflow(copy_of_the_repository(tmp_path / "fresh"))


@pytest.fixture
def model():
    """A random Qwen2 model of two blocks with grouped key and value heads."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)
