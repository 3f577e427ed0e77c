"""A checkout to submit from, and a cluster to submit to, of which only the answers are made up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs import submit as command
from jobs.cluster.remote import Cluster
from tests.jobs.runs_fixture import FakeClient

ADDRESS = "http://head:8265"


def make_tree(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a checkout (not of git) the current directory: it has things that belong to a job and things that do not."""
    for name in (
        "jobs/train.py",
        "jobs/__pycache__/train.pyc",
        "configs/mine.toml",
        "data/big.bin",
        "runs/a/status.json",
        ".venv/bin/repexp",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("steps = 3\n")
    (root / "jobs/data").mkdir()
    (root / "jobs/data/kept.py").write_text("")
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "executable", str(root / ".venv/bin/python"))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return root


def connected(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """Every address leads to this cluster."""
    client = FakeClient()
    monkeypatch.setattr(command, "connect", lambda address: Cluster(client, address))
    return client


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a submission is refused with."""
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line
