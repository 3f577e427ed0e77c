"""Fixtures of the chaos tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.config import RunConfig
from tests.chaos.chaos_fixture import quick_config


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> Callable[..., RunConfig]:
    """config(steps=5, learner={...}): a small run in this test's directory in which losses are soon found and made
    good."""
    return lambda **values: quick_config(tiny_model, tmp_path, **values)
