"""A method by name or by import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from buffers.extensions import ExtensionError, Known, is_path, load

MODULE = """
def double(x): return 2 * x
class Scale:
    def __init__(self, factor=1): 
        if factor < 0: raise ValueError("factor must not be negative")
        self.factor = factor
    def __call__(self, x): return self.factor * x
    def score(self): ...
constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "somebodys.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("x = 1\ny = undefined\n")
    (tmp_path / "needy.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "unfinished.py").write_text("x = 1\ndef score(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "somebodys"
    for name in ("somebodys", "broken", "needy"):
        sys.modules.pop(name, None)


def test_a_known_name_and_an_import_path_are_accepted():
    known = Known("clip", "gspo")
    assert known("clip") == "clip"
    assert known("my_package.losses:soft") == "my_package.losses:soft"
    assert is_path("a:b") and is_path("a.b:C")
    assert not is_path("clip") and not is_path("a.b:") and not is_path("a b:c") and not is_path("a:b.c")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clpi", "did you mean 'clip'?"),
        ("nothing", "Known: clip, gspo"),
        ("a/b.py:c", "package.module:name"),
        (":c", "package.module:name"),
    ],
)
def test_another_name_is_refused_with_what_there_is(name, message):
    with pytest.raises(ValueError, match=r"Known|package") as refusal:
        Known("clip", "gspo")(name)
    assert message in str(refusal.value)


def test_a_function_is_returned_and_a_class_is_made_with_its_options(module):
    assert load("somebodys:double", key="k", arguments=("x",))(4) == 8
    assert load("somebodys:Scale", {"factor": 3}, key="k", methods=("score",), arguments=("x",))(4) == 12
    assert load("somebodys:Scale", key="k").factor == 1


@pytest.mark.parametrize(
    ("path", "options", "needs", "message"),
    [
        ("nowhere:x", None, {}, "there is no module nowhere"),
        ("somebodis:double", None, {}, "among the installed packages; did you mean 'somebodys'?"),
        ("buffers.samplars:x", None, {}, "did you mean 'samplers'?"),
        ("somebodys.inner:x", None, {}, "somebodys"),
        ("broken:x", None, {}, "importing broken failed with NameError: name 'undefined' is not defined"),
        ("unfinished:x", None, {}, "unfinished.py, line 2)"),
        ("needy:x", None, {}, "needy needs the module a_module_that_is_not_there"),
        ("somebodys:doubel", None, {}, "did you mean 'double'?"),
        ("somebodys:Scale", {"fctor": 1}, {}, "unexpected keyword argument 'fctor'"),
        ("somebodys:Scale", {"factor": -1}, {}, "factor must not be negative"),
        ("somebodys:double", {"factor": 1}, {}, "options are for a class"),
        ("somebodys:Scale", None, {"methods": ("score", "init_state")}, "Scale has no init_state; it needs score, init_state"),
        ("somebodys:double", None, {"arguments": ("x", "config")}, "called with (x, config), but too many positional arguments"),
        ("somebodys:constant", None, {"arguments": ("x",)}, "int cannot be called"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_the_key(module, path, options, needs, message):
    with pytest.raises(ExtensionError) as refusal:
        load(path, options, key="learner.loss.surrogate", **needs)
    text = str(refusal.value)
    assert message in text and text.startswith("learner.loss.surrogate") and "\n" not in text
