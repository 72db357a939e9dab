"""workflow/code_inputs.yaml names the library modules each program imports; run this file to write it anew.

Rules list these files as inputs, so that a changed module reruns exactly the stages that import it. Snakemake does not
follow imports, and a list kept by hand rots: here it is compared with the imports themselves.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "workflow/scripts"
DECLARED = ROOT / "workflow/code_inputs.yaml"
HEADER = """\
# The library modules that each program imports, directly or through others: its code inputs, compared by content.
# Written by `make code-inputs`; a test keeps it equal to the real imports.

"""


def imported_modules(source: Path, scripts: Path = SCRIPTS) -> set[str]:
    """Names of the spillover modules a file imports, anywhere in it and transitively."""
    found: set[str] = set()
    queue = [source]
    while queue:
        for name in _imports(ast.parse(queue.pop().read_text(encoding="utf-8"))):
            path = scripts / "spillover" / f"{name.replace('.', '/')}.py"
            if name not in found and path.is_file():
                found.add(name)
                queue.append(path)
    return found


def _imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names below the package, for every form of import; names that are no module are for the caller to drop."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("spillover.") for a in node.names if a.name.startswith("spillover."))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level == 0 and base != "spillover" and not base.startswith("spillover."):
                continue
            base = base.removeprefix("spillover").removeprefix(".")
            if base:
                yield base
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


def code_inputs() -> dict[str, list[str]]:
    """{program: its modules} as the sources are now."""
    programs = sorted(SCRIPTS.glob("*.py"))
    return {path.stem: sorted(imported_modules(path)) for path in programs}


def as_yaml(inputs: dict[str, list[str]]) -> str:
    return HEADER + "".join(f"{name}: [{', '.join(modules)}]\n" for name, modules in inputs.items())


def test_declared_code_inputs_equal_the_real_imports():
    declared = yaml.safe_load(DECLARED.read_text(encoding="utf-8"))
    assert declared == code_inputs(), f"make code-inputs writes what it should be:\n\n{as_yaml(code_inputs())}"


def test_imports_are_followed_in_every_form_and_through_other_modules(tmp_path):
    package = tmp_path / "spillover"
    package.mkdir()
    for name in ("a", "b", "c", "d", "e", "never"):
        (package / f"{name}.py").write_text("")
    (package / "c.py").write_text("from . import d\n\ndef late():\n    from .e import thing\n")
    (tmp_path / "program.py").write_text(
        "import json\nimport spillover.a\nfrom spillover import b\nfrom spillover.c import x\n"
    )
    assert imported_modules(tmp_path / "program.py", tmp_path) == {"a", "b", "c", "d", "e"}


def test_the_package_itself_does_nothing():
    """Only so may spillover/__init__.py be left out of the code inputs."""
    body = ast.parse((SCRIPTS / "spillover/__init__.py").read_text()).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr)


def test_no_module_imports_a_program_and_there_is_no_import_cycle():
    graph = {path.stem: _direct(path) for path in (SCRIPTS / "spillover").glob("*.py")}
    for name in graph:
        assert name not in set().union(*(imported_modules(SCRIPTS / f"spillover/{other}.py") for other in graph[name]))


def _direct(path: Path) -> set[str]:
    names = set(_imports(ast.parse(path.read_text(encoding="utf-8"))))
    return {name for name in names if (SCRIPTS / f"spillover/{name}.py").is_file()}


def test_every_program_named_in_a_rule_exists_and_is_declared():
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    programs = set(re.findall(r"workflow/scripts/(\w+)\.py", text)) | set(re.findall(r'\bcode\("(\w+)"\)', text))
    assert programs <= yaml.safe_load(DECLARED.read_text()).keys()


if __name__ == "__main__":
    DECLARED.write_text(as_yaml(code_inputs()), encoding="utf-8")
    print(f"{DECLARED.relative_to(ROOT)}: {len(code_inputs())} programs")
