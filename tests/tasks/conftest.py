"""GSM8K in its real numbers with made-up problems and, where they are at hand, published data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.gsm8k import NUM_ROWS
from tests.tasks.samples import gsm8k_rows, write_rows


def at_hand(folder: str) -> Path:
    """A folder of published data, in REPEXP_DATA or beside the repository."""
    data = Path(os.environ.get("REPEXP_DATA") or Path(__file__).parents[3] / "shared" / "data") / folder
    if not data.is_dir():
        pytest.skip(f"{folder} is not at hand: set REPEXP_DATA to the directory whose folder {folder} holds it")
    return data


@pytest.fixture(scope="session")
def gsm8k_data() -> Path:
    return at_hand("gsm8k")


@pytest.fixture(scope="session")
def math_data() -> Path:
    return at_hand("math")


@pytest.fixture(scope="session")
def mbpp_data() -> Path:
    """The directory whose folders mbpp and mbppplus hold the two."""
    at_hand("mbpp")
    return at_hand("mbppplus").parent


@pytest.fixture(scope="session")
def gsm8k_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gsm8k")
    for stem in NUM_ROWS:
        write_rows(directory / f"{stem}.parquet", gsm8k_rows(stem))
    return directory
