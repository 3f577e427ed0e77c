from __future__ import annotations

from typing import Any

import pytest
import torch

from actors.features import Projector
from bonus.config import BonusConfig
from bonus.projection import sparse_projection

HIDDEN, DIM = 40, 8
MEANS_KH = torch.randn(5, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def make_projector(*, seed: int = 3, **bonus: Any) -> Projector:
    return Projector(BonusConfig(dim=DIM, **bonus), hidden_size=HIDDEN, seed=seed)


def test_one_projection_of_the_run_s_seed_serves_every_group() -> None:
    projector = make_projector()
    expected = MEANS_KH @ sparse_projection(HIDDEN, DIM, seed=3)
    for problem_id, version in (("p0", 0), ("p1", 0), ("p0", 7)):
        assert torch.equal(projector(MEANS_KH, problem_id, version), expected)
    assert not torch.equal(make_projector(seed=4)(MEANS_KH, "p0", 0), expected)


def test_a_redrawn_projection_is_that_of_the_problem_and_the_version_it_was_admitted_under() -> None:
    projector = make_projector(redraw_projection=True)
    found = {key: projector(MEANS_KH, *key) for key in (("p0", 0), ("p1", 0), ("p0", 1), ("p1", 1))}
    for key, features_KD in found.items():
        assert features_KD.shape == (5, DIM)
        assert torch.equal(make_projector(redraw_projection=True)(MEANS_KH, *key), features_KD)  # whatever came before
        assert not torch.equal(make_projector(redraw_projection=True, seed=4)(MEANS_KH, *key), features_KD)
        assert not any(torch.equal(features_KD, other) for name, other in found.items() if name != key)


@pytest.mark.parametrize("redraw", [False, True])
def test_a_response_is_projected_independently_of_its_group(redraw: bool) -> None:
    projector = make_projector(redraw_projection=redraw)
    together = projector(MEANS_KH, "p0", 0)
    alone = torch.cat([projector(mean_H[None], "p0", 0) for mean_H in MEANS_KH])
    torch.testing.assert_close(alone, together, rtol=0.0, atol=1e-12)
