"""The reference vectors, made with explicit matrix inverses: at REPEXP_VECTORS, or where the checkout has them beside
it."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

VECTORS = Path(os.environ.get("REPEXP_VECTORS") or Path(__file__).parents[2].parent / "shared" / "vectors" / "repexp.npz")


@pytest.fixture(scope="session")
def vectors() -> Mapping[str, np.ndarray]:
    path = VECTORS / "repexp.npz" if VECTORS.is_dir() else VECTORS
    if not path.exists():
        pytest.skip(f"no reference vectors at {path}")
    with np.load(path) as arrays:
        return dict(arrays)
