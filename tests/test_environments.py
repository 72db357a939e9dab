"""The software environments agree with each other and with what is installed."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from conftest import ROOT
from test_code_inputs import code_inputs

ENVIRONMENTS = sorted((ROOT / "workflow/envs").glob("*.yaml"))
RULE_FILES = sorted((ROOT / "workflow/rules").glob("*.smk"))
# import name -> distribution, where they differ
DISTRIBUTIONS = {
    "yaml": "PyYAML",
    "lingua": "lingua-language-detector",
    "sklearn": "scikit-learn",
    "markdown_it": "markdown-it-py",
}
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.]+)")


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines) -> dict[str, str]:
    """{canonical name: version}; every line must be an exact pin."""
    matches = {line: PIN.fullmatch(line) for line in lines}
    assert None not in matches.values(), f"not an exact pin: {[line for line, m in matches.items() if not m]}"
    return {canonical(match["name"]): match["version"] for match in matches.values()}


def requirements(name: str = "requirements.txt") -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return pins(line for line in lines if not line.startswith("#"))


def pip_pins(path) -> dict[str, str]:
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    return pins(next(item["pip"] for item in dependencies if isinstance(item, dict)))


def rules() -> dict[str, str]:
    """{rule name: its text} over all rule files."""
    found = {}
    for path in RULE_FILES:
        parts = re.split(r"^(?:rule|checkpoint) (\w+):$", path.read_text(), flags=re.MULTILINE)
        found |= dict(zip(parts[1::2], parts[2::2], strict=True))
    return found


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-vllm.txt"])
def test_every_requirement_is_one_exact_pin_without_a_local_version(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert len(requirements(name)) == len(lines)  # `pins` refuses ranges, options and torch==2.13.0+cpu of `pip freeze`


def test_what_is_installed_is_what_requirements_pin():
    installed = {}
    for name in requirements():
        installed[name] = metadata.version(name).split("+")[0]
    assert installed == requirements()


def test_what_a_pinned_package_needs_is_pinned_and_fits():
    """A list that is closed installs the same packages for everyone, today and later."""
    pinned = requirements()
    for name in pinned:
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                version = pinned.get(canonical(needed.name)) or own_of_python(needed.name)
                assert version, f"{name} needs {needed}, which is not pinned"
                assert needed.specifier.contains(version, prereleases=True), f"{name} needs {needed}, not {version}"


def own_of_python(name: str) -> str | None:
    """The version of what comes with a virtual environment instead of the list."""
    return metadata.version(name) if canonical(name) in {"pip", "setuptools"} else None


def test_every_dependency_of_the_project_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {canonical(name) for name in project["dependencies"]} <= requirements().keys()


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_an_environment_is_closed_to_other_channels_and_of_a_supported_python(path):
    environment = yaml.safe_load(path.read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert environment["dependencies"][:2] == ["python =3.11", "pip"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.13"


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_the_pins_of_an_environment_equal_requirements(path):
    own = pip_pins(path)
    if path.stem == "vllm":
        own_lock = requirements("requirements-vllm.txt")
        assert own == {name: own_lock.get(name) for name in own}
        assert own.pop("vllm")  # the one package that cannot live with the rest
    assert own == {name: requirements().get(name) for name in own}


def test_the_vllm_environment_has_the_numpy_that_vllm_can_live_with():
    assert Version(requirements("requirements-vllm.txt")["numpy"]) < Version("2.4")


def test_make_builds_the_vllm_environment_once_and_anew_when_its_list_changes(tmp_path):
    """With a package of our own in place of vLLM's gigabytes, and no index to ask."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    requirements_file = tmp_path / "requirements-vllm.txt"

    def make() -> subprocess.CompletedProcess:
        environment = os.environ | {"PIP_NO_INDEX": "1", "PYTHON": sys.executable}
        return subprocess.run(["make", "env-vllm"], cwd=tmp_path, env=environment, capture_output=True, text=True)

    requirements_file.write_text(f"{wheel(tmp_path, 'newcomer', '1.0')}\n")
    assert "Installing the packages of requirements-vllm.txt into .venv-vllm" in make().stdout
    python = tmp_path / ".venv-vllm/bin/python"
    assert subprocess.run([python, "-c", "import newcomer"]).returncode == 0
    assert make().stdout == ""

    requirements_file.write_text("absent==1.0\n")
    failed = make()
    assert failed.returncode != 0 and "the whole log is .venv-vllm/install.log" in failed.stderr
    assert make().returncode != 0, "a failed installation is not taken for a finished one"


def wheel(folder: Path, name: str, version: str) -> Path:
    """A package with one empty module."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_every_rule_that_computes_names_an_existing_environment():
    assert rules(), "no rules found under workflow/rules"
    existing = {path.name for path in ENVIRONMENTS}
    for name, text in rules().items():
        if re.search(r"^    (shell|script):", text, flags=re.MULTILINE):
            named = re.findall(r'"\.\./envs/([\w-]+\.yaml)"', text)
            assert named, f"rule {name} names no environment"
            assert set(named) <= existing, f"rule {name}: {named}"


def test_every_environment_is_used_by_a_rule_or_as_the_interpreter_of_one():
    used = {name for text in rules().values() for name in re.findall(r"\.\./envs/([\w-]+)\.yaml", text)}
    # vLLM is chosen by configuration: a profile points {resources.python} at its interpreter
    assert {path.stem for path in ENVIRONMENTS} - used <= {"vllm"}


def test_the_environment_of_a_rule_holds_what_its_program_imports():
    for name, text in rules().items():
        program = re.search(r"workflow/scripts/(\w+)\.py", text)
        environment = re.search(r"\.\./envs/([\w-]+)\.yaml", text)
        if program and environment:
            missing = (
                imported_distributions(program[1]) - pip_pins(ROOT / f"workflow/envs/{environment[1]}.yaml").keys()
            )
            if environment[1] == "vllm":
                missing -= {"numpy"}  # vllm brings the one it can live with
            assert not missing, f"rule {name}: {environment[1]}.yaml lacks {sorted(missing)}"


def imported_distributions(program: str) -> set[str]:
    """Canonical names of the packages that a program and its library modules import, lazily or not."""
    modules = [f"spillover/{module}" for module in code_inputs()[program]]
    found = set()
    for source in [program, *modules]:
        for node in ast.walk(ast.parse((ROOT / f"workflow/scripts/{source}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return {canonical(DISTRIBUTIONS.get(name, name)) for name in found - sys.stdlib_module_names - {"spillover"}}


def test_no_rule_has_retries_or_a_run_block():
    for name, text in rules().items():
        assert not re.search(r"^    (retries|run):", text, flags=re.MULTILINE), f"rule {name}"
