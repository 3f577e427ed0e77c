from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.config import RunConfig
from jobs.directory.run_dir import POLICY_STEP, RunDirectory


def run_directory(path: Path) -> RunDirectory:
    return RunDirectory(RunConfig(run_dir=str(path / "run")))


def test_policy_of_an_earlier_end_is_told_apart_from_the_latest(tmp_path: Path):
    run = run_directory(tmp_path)
    assert run.policy_step is None
    run.policy.mkdir(parents=True)
    assert run.policy_step is None  # written by someone else, or half
    (run.policy / POLICY_STEP).write_text(json.dumps({"step": 40}))
    assert run.policy_step == 40


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"step": null}'])
def test_a_policy_whose_step_cannot_be_read_counts_as_not_exported(tmp_path: Path, content: str):
    run = run_directory(tmp_path)
    run.policy.mkdir(parents=True)
    (run.policy / POLICY_STEP).write_text(content)
    assert run.policy_step is None


def test_lock_is_free_again_after_the_run(tmp_path: Path):
    for _ in range(2):
        with run_directory(tmp_path) as run:
            assert (run.path / "config.json").is_file()
