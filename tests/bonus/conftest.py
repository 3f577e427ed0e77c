"""The reference vectors, made with explicit matrix inverses, where the checkout has them beside it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

VECTORS = Path(__file__).parents[2].parent / "shared" / "vectors" / "repexp.npz"


@pytest.fixture(scope="session")
def vectors() -> Mapping[str, np.ndarray]:
    if not VECTORS.exists():
        pytest.skip(f"no reference vectors at {VECTORS}")
    with np.load(VECTORS) as arrays:
        return dict(arrays)
