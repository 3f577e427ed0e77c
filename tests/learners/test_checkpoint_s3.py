"""Checkpoints on a real S3 server: what is refused, and what a server that goes away costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from learners.checkpoint import CheckpointError, CheckpointManager
from tests.learners.test_checkpoint import complete, read_back, writer
from tests.s3_server import S3Server

pytestmark = pytest.mark.whole


def one_line(caught: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


def test_the_endpoint_may_come_from_the_environment(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_server.address}")
    complete(CheckpointManager(f"s3://{bucket}/runs/a", keep=1), 3)
    assert read_back(CheckpointManager(s3_server.uri(bucket, "runs/a"), keep=1), 3) == "content 3"


def test_a_bucket_that_is_not_there_is_named(s3_server: S3Server) -> None:
    with pytest.raises(CheckpointError, match="Bucket 'nowhere' not found") as caught:
        CheckpointManager(s3_server.uri("nowhere", "runs/a"), keep=1).require_writable()
    assert "choose another place" in one_line(caught)


def test_keys_that_the_server_does_not_know_are_refused(s3_server: S3Server, bucket: str) -> None:
    manager = CheckpointManager(s3_server.uri(bucket, "runs/a"), keep=1)
    s3_server.take_only_known_keys(True)
    try:
        with pytest.raises(CheckpointError, match=r"HTTP status 403|ACCESS_DENIED|INVALID_ACCESS_KEY_ID") as caught:
            manager.require_writable()
    finally:
        s3_server.take_only_known_keys(False)
    assert "let this process write there, or choose another place" in one_line(caught)


@pytest.mark.parametrize("writes", [1, 4], ids=lambda writes: f"after {writes} writes")
def test_a_server_that_goes_away_costs_the_checkpoint_under_way_only(s3_server: S3Server, bucket: str, writes: int) -> None:
    """Every file is larger than what Arrow keeps in memory, so that the server goes in the middle of an upload."""

    def write(directory: Path) -> None:
        for name in ("weights", "moments"):
            (directory / name).write_bytes(bytes(12 << 20))

    manager = CheckpointManager(s3_server.uri(bucket, "runs/a"), keep=2)
    complete(manager, 1)
    s3_server.lose_after(writes)
    try:
        with pytest.raises(CheckpointError, match="step_000002 could not be written") as caught:
            manager.save(2, "learner", write)
    finally:
        s3_server.find()
    assert "the checkpoints before it are untouched" in one_line(caught)
    assert (manager.steps(), read_back(manager, 1)) == ([1], "content 1")
    files = manager.save(2, "learner", writer("content 2"))
    manager.commit(2, files, {})
    assert (manager.steps(), read_back(manager, 2)) == ([1, 2], "content 2")
