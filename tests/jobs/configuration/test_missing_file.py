"""What is said of a configuration file that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.compare_config import CompareConfig
from jobs.configuration.files import read_values
from jobs.configuration.user_error import UserError


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("mine/typo.toml", "mine/a.toml, mine/b.toml"),
        ("elsewhere/typo.toml", "configs/quickstart.toml"),
        ("typo.toml", "configs/quickstart.toml"),  # pyproject.toml beside it is no configuration
    ],
)
def test_the_files_beside_it_are_named_or_those_of_the_project(
    path: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ("mine/b.toml", "mine/a.toml", "configs/quickstart.toml", "pyproject.toml"):
        (tmp_path / one).parent.mkdir(exist_ok=True)
        (tmp_path / one).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        read_values(CompareConfig, path)
    assert str(refused.value) == f"config file {path} does not exist (there are: {named})"


def test_without_any_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"none in \./configs"):
        read_values(CompareConfig, "typo.toml")
