"""A whole run whose checkpoints are on a real S3 server, which is lost for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.components_fixture import LocalRun, small_config
from tests.s3_server import S3Server

pytestmark = [pytest.mark.whole, pytest.mark.timeout(300)]


def test_a_run_continues_without_its_server_and_resumes_from_it(s3_server: S3Server, tmp_path: Path, tiny_model: str) -> None:
    storage = s3_server.uri(s3_server.new_bucket(), "runs/tiny")

    def start(steps: int) -> LocalRun:
        return LocalRun(small_config(tiny_model, tmp_path, steps=steps, checkpoint={"every": 1, "storage": storage}))

    def stepped(step: int) -> None:
        if run.warnings:
            s3_server.find()
            run.trainer.stop()
        elif step == 2:
            s3_server.lose_after(0)

    run = start(1000)
    run.on_report = stepped
    last = run.train()
    assert "could not be written" in run.warnings[0] and "the checkpoints before it are untouched" in run.warnings[0]
    assert run.checkpoints.latest() == last > 2
    resumed = start(last + 2)
    assert (resumed.train(), resumed.reports[0][0]) == (last + 2, last + 1)
