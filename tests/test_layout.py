"""The layout of the repository: which folders are packages, and which modules must stay light to import.

The direction of imports is checked by import-linter (`make lint`).
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.__main__ import PACKAGES as HIDEABLE
from jobs.machine.checks import PYTHONS

REPOSITORY = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
ROOMS = sorted(PYPROJECT["tool"]["setuptools"]["packages"])
PACKAGES = [name for name in ROOMS if "." not in name]
OWNERS_OF_CONFIG = ("actors", "bonus", "buffers", "jobs", "learners", "tasks")
NOT_INSTALLED = {"benchmarks", "tests"}  # run from a clone only
HEAVY = ("ray", "torch", "transformers", "vllm")


def imports_of(module: str) -> set[str]:
    """The top-level names that a fresh interpreter holds after importing `module`."""
    code = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_packages_of_pyproject_are_the_folders_with_an_init():
    folders = {path.parent.relative_to(REPOSITORY) for name in PACKAGES for path in (REPOSITORY / name).rglob("__init__.py")}
    assert sorted(".".join(folder.parts) for folder in folders) == ROOMS


def test_folders_with_python_files_are_packages():
    """A folder without `__init__.py` loses to any installed package of its name. Folders that git does not track are
    somebody's own (CONTRIBUTING.md)."""
    listed = subprocess.run(["git", "ls-files", "*/*.py"], cwd=REPOSITORY, capture_output=True, text=True)
    tracked = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    with_code = {path.parent.name for path in REPOSITORY.glob("*/*.py") if not tracked or path.parent.name in tracked}
    assert sorted(with_code - NOT_INSTALLED) == PACKAGES
    rooms = {path.parent.relative_to(REPOSITORY) for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")}
    assert sorted(".".join(room.parts) for room in rooms) == ROOMS


def test_tools_check_every_package():
    assert sorted(PYPROJECT["tool"]["importlinter"]["root_packages"]) == PACKAGES
    assert sorted(HIDEABLE) == PACKAGES
    assert sorted(PYPROJECT["tool"]["mypy"]["files"]) == sorted([*PACKAGES, "tests/typed_calls.py"])


def test_the_supported_versions_of_python_are_the_same_everywhere():
    versions = [f"{major}.{minor}" for major, minor in PYTHONS]
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.findall(r"^PYTHONS := (.*)$", makefile, re.MULTILINE) == [" ".join(reversed(versions))]
    assert f"Python {' '.join(reversed(versions))}." in (REPOSITORY / "requirements/cpu.lock").read_text().partition("\n")[0]
    prefix = "Programming Language :: Python :: "
    classified = [name.removeprefix(prefix) for name in PYPROJECT["project"]["classifiers"] if name.startswith(prefix)]
    assert classified == versions
    newest = PYTHONS[-1]
    assert PYPROJECT["project"]["requires-python"] == f">={versions[0]},<{newest[0]}.{newest[1] + 1}"
    oldest = (PYPROJECT["tool"]["ruff"]["target-version"], PYPROJECT["tool"]["mypy"]["python_version"])
    assert oldest == (f"py{versions[0].replace('.', '')}", versions[0])


@pytest.mark.parametrize("owner", OWNERS_OF_CONFIG)
def test_config_imports_neither_torch_nor_ray_nor_vllm(owner):
    if not (REPOSITORY / owner / "config.py").is_file():
        pytest.skip(f"{owner}/config.py is not written yet")
    assert not imports_of(f"{owner}.config").intersection(HEAVY)


def test_rollout_worker_imports_neither_ray_nor_vllm():
    """vLLM takes seven seconds to import: only a worker that starts an engine pays for it."""
    assert not imports_of("actors.rollout").intersection({"ray", "vllm"})


def test_doctor_imports_the_standard_library_only():
    allowed = set(sys.stdlib_module_names) | {"__main__", "jobs", "learners"}  # of these, only what needs no more than that
    startup = imports_of("sys")  # what the interpreter's own site hooks bring in
    assert imports_of("jobs.doctor") <= allowed | startup


def test_actors_are_called_through_handles_only():
    """Whose calls cannot be made without a deadline and a name for what is waited for: mypy sees to that."""
    where_ray_comes_in = {"jobs/processes/build.py", "jobs/processes/ray_handle.py"}
    files = [file for folder in PACKAGES for file in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > 50
    calls = re.compile(r"\.remote\(|\bray\.(get|wait)\(")
    found = {str(file.relative_to(REPOSITORY)) for file in files if calls.search(file.read_text())}
    assert found == where_ray_comes_in


def names_of(tree: ast.Module) -> set[str]:
    """The names that a module binds, at its top and in the branches there."""
    found: set[str] = set()
    open_nodes: list[ast.AST] = list(tree.body)
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        open_nodes.extend(ast.iter_child_nodes(node))
    return found


def test_every_name_that_is_imported_from_the_repository_exists():
    """mypy sees to the packages; this sees to tests, benchmarks and examples, whose imports may stand in functions."""
    owners = {*PACKAGES, *NOT_INSTALLED}
    files = [file for folder in (*owners, "docs") for file in (REPOSITORY / folder).rglob("*.py")]
    trees = {file: ast.parse(file.read_text()) for file in files}
    modules = {".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    names = {module: names_of(trees[file]) for module, file in modules.items()}
    checked, missing = 0, []
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level or (node.module or "").partition(".")[0] not in owners:
                continue
            for alias in node.names:
                checked += 1
                known = names.get(node.module or "", set())
                if alias.name not in known and f"{node.module}.{alias.name}" not in modules and "__getattr__" not in known:
                    missing.append(f"{file.relative_to(REPOSITORY)}:{node.lineno}: {node.module}.{alias.name}")
    assert checked > 5000
    assert missing == []
