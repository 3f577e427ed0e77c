import math

import pytest
import torch

from bonus.projection import sparse_projection


def test_entries_have_the_density_and_scale_of_the_definition() -> None:
    hidden_size, dim = 2048, 128
    projection_HD = sparse_projection(hidden_size, dim, seed=0)
    density = 1 / math.sqrt(hidden_size)
    nonzero_N = projection_HD[projection_HD != 0]
    num_expected = density * projection_HD.numel()
    assert projection_HD.shape == (hidden_size, dim)
    assert projection_HD.dtype == torch.float64
    assert abs(len(nonzero_N) - num_expected) < 5 * math.sqrt(num_expected)
    assert abs(nonzero_N.sign().sum().item()) < 5 * math.sqrt(num_expected)
    torch.testing.assert_close(nonzero_N.abs(), torch.full_like(nonzero_N, math.sqrt(1 / (density * dim))))


def test_squared_lengths_are_kept_in_expectation() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden_NH = torch.randn(400, 1024, generator=generator, dtype=torch.float64)
    ratio_N = (hidden_NH @ sparse_projection(1024, 512, seed=3)).square().sum(1) / hidden_NH.square().sum(1)
    assert ratio_N.mean().item() == pytest.approx(1.0, abs=0.05)


def test_the_same_seed_gives_the_same_projection_and_another_seed_another() -> None:
    first_HD = sparse_projection(576, 32, seed=7)
    assert torch.equal(first_HD, sparse_projection(576, 32, seed=7))
    assert not torch.equal(first_HD, sparse_projection(576, 32, seed=8))


def test_the_draw_is_the_one_that_earlier_runs_were_given() -> None:
    projection_HD = sparse_projection(576, 32, seed=7)
    places_NX = projection_HD.nonzero()
    assert len(places_NX) == 790
    assert places_NX[:4].tolist() == [[0, 13], [0, 16], [1, 18], [2, 20]]
    assert projection_HD[projection_HD != 0][:4].sign().tolist() == [-1.0, 1.0, -1.0, 1.0]


def test_the_draw_ignores_the_global_generator_and_the_number_of_threads() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first_HD = sparse_projection(2048, 128, seed=7)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert torch.equal(first_HD, sparse_projection(2048, 128, seed=7))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("hidden_size", "dim"), [(0, 4), (4, 0)])
def test_an_empty_projection_is_refused(hidden_size: int, dim: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sparse_projection(hidden_size, dim, seed=0)
