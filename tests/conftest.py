"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

from tests.s3_server import S3Server

# A busy machine is slow at times, so examples have no deadline: hangs are pytest-timeout's business. The suite tries
# the same examples each time; `pytest --hypothesis-profile search` looks for new ones.
settings.register_profile("repexp", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=10_000)
settings.load_profile("repexp")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random Llama of about 30 k parameters with a character tokenizer (`tests/tiny_model.py`)."""
    from tests.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server on loopback (`tests/s3_server.py`), and credentials in the environment."""
    with pytest.MonkeyPatch.context() as environment, S3Server() as server:
        environment.setenv("AWS_ACCESS_KEY_ID", "tester")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "of-the-tests")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server


@pytest.fixture
def sandboxed() -> None:
    """For tests of the real sandbox."""
    from tasks.programs.sandbox import why_unavailable

    reason = why_unavailable()
    if reason is not None:
        pytest.skip(reason)
