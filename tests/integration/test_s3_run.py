"""A run whose checkpoints are on an S3 server, which is lost for a while. Server, Ray and the tiny model are real."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from learners.checkpoint import CheckpointManager
from tests.integration.processes import Training, tiny_settings, wait_until
from tests.s3_server import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_a_run_continues_without_its_server_and_resumes_from_it(s3_server: S3Server, tmp_path: Path, tiny_model: str) -> None:
    config, run_dir = tmp_path / "tiny.toml", tmp_path / "run"
    config.write_text(f"steps = 100000\n{tiny_settings(tiny_model).replace('wait_timeout_s = 60', 'wait_timeout_s = 300')}")
    storage = s3_server.uri(s3_server.new_bucket(), "runs/tiny")
    settings = ("--set", f'checkpoint.storage="{storage}"', "--set", "checkpoint.every=1")
    checkpoints = CheckpointManager(storage, keep=1)
    with Training(config, run_dir, *settings) as training:
        first = wait_until(checkpoints.latest, timeout_s=200, what="a checkpoint on the server")
        s3_server.lose_after(0)
        wait_until(lambda: "could not be written" in training.output(), timeout_s=200, what="the warning")
        s3_server.find()
        wait_until(lambda: (checkpoints.latest() or 0) > first + 1, timeout_s=200, what="a checkpoint after it")
        training.signal(signal.SIGTERM)
        assert training.exit_code(timeout_s=120) == 128 + signal.SIGTERM, training.output()[-3000:]
    latest = checkpoints.latest()
    assert latest is not None and not (run_dir / "checkpoints").exists()
    with Training(config, run_dir, *settings, "--set", f"steps={latest + 1}") as training:
        assert training.exit_code(timeout_s=200) == 0, training.output()[-3000:]
        assert f"restoring the checkpoint of step {latest}" in training.output()
    assert checkpoints.latest() == latest + 1
