"""CONTRIBUTING.md tells the truth: each example is copied from the page, loaded through its seam, and tested."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from buffers.extensions import ExtensionError
from jobs.config import RunConfig, load_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES: dict[str, str] = dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
SETTINGS = sorted(name for name in FILES if name.endswith(".toml"))
SEAMS = {
    "bonus.kind": ("bonus.methods", "bonus"),
    "learner.loss.surrogate": ("learners.methods", "learner"),
    "learner.loss.correction": ("learners.methods", "learner"),
    "learner.advantage.estimator": ("learners.methods", "learner"),
    "replay.sampler": ("buffers.samplers", "replay"),
    "task.name": ("tasks.registry", "task"),
    "rollout.engine": ("actors.engines", "rollout"),
    "trackers": ("jobs.directory.trackers", "trackers", "tracker_options"),
}
"""The key of each seam, the module with its `require_methods`, and the parts of the configuration that it is given."""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with every file of the page, as a reader has them in a clone."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def named_methods(config: RunConfig) -> dict[str, list[str]]:
    """The methods of mylab that a configuration names, by the key of their seam."""
    named = {}
    for key in SEAMS:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)
        names = [value] if isinstance(value, str) else list(value or ())
        named[key] = [name for name in names if name.startswith("mylab.")]
    return {key: names for key, names in named.items() if names}


def load_methods(config: RunConfig) -> str:
    """Load the methods of mylab that a configuration names, as a run does first. Return the key of their seam."""
    (key,) = named_methods(config)
    module, *sections = SEAMS[key]
    importlib.import_module(module).require_methods(*(getattr(config, section) for section in sections))
    return key


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_example_is_loaded_through_its_seam(settings, lab):
    assert load_methods(load_config(str(lab / settings))) in SEAMS


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_misspelt_module_of_each_example_is_refused_in_one_line(settings, lab):
    (lab / settings).write_text(FILES[settings].replace('"mylab.', '"mylab.no_'))
    with pytest.raises(ExtensionError, match=r'"mylab\.no_\w+:\w+": there is no module mylab\.no_') as refusal:
        load_methods(load_config(str(lab / settings)))
    assert len(str(refusal.value).splitlines()) == 1


def test_every_seam_has_an_example(lab):
    assert {key for settings in SETTINGS for key in named_methods(load_config(str(lab / settings)))} == set(SEAMS)


def test_every_seam_is_in_the_table_with_the_file_of_its_known_names():
    rows = re.findall(r"^\| \[.*\]\(#.*\) \| `([\w.]+)` \| `([\w/.]+)` \|", PAGE, re.MULTILINE)
    assert {key for key, _ in rows} == set(SEAMS)
    assert [file for _, file in rows if not (ROOT / file).is_file()] == []


def test_every_example_has_its_file_its_settings_and_its_test():
    folders = {name.partition("/")[0] for name in FILES}
    modules = {name for name in FILES if name.endswith(".py") and not name.startswith("mylab/test_")}
    assert folders == {"mylab"}
    assert {f"mylab/test_{name.removeprefix('mylab/')}" for name in modules} == {name for name in FILES if "/test_" in name}
    assert len(SETTINGS) == len(modules)


def test_the_tests_of_all_examples_pass(lab):
    names = sorted(name for name in FILES if "/test_" in name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(lab), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *names]
    done = subprocess.run(command, cwd=lab, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= len(names)
