"""Sparse random projection of hidden states. Legend: H hidden size, D projected size."""

import math

import torch
from torch import Tensor


def sparse_projection(hidden_size: int, dim: int, *, seed: int) -> Tensor:
    """Return projection_HD, float64 on the CPU: features_ND = hidden_NH @ projection_HD. Very sparse random projection
    (Li, Hastie, Church 2006), as arXiv:2510.11686 uses it: with density s = 1/sqrt(H),

        entry = +sqrt(1/(s*D)) and -sqrt(1/(s*D)) with probability s/2 each, else 0,

    so E ||x R||^2 = ||x||^2. One uniform draw per entry decides both whether it is zero and its sign. The draws come
    from a generator of their own, in serial order: only the arguments count. Raises ValueError for a size below 1."""
    if hidden_size < 1 or dim < 1:
        raise ValueError(f"hidden_size={hidden_size} and dim={dim} must both be at least 1")
    density = 1.0 / math.sqrt(hidden_size)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    uniform_HD = torch.rand(hidden_size, dim, generator=generator, dtype=torch.float64, device="cpu")
    plus_HD, nonzero_HD = uniform_HD < density / 2, uniform_HD < density
    return math.sqrt(1.0 / (density * dim)) * (2.0 * plus_HD.double() - nonzero_HD.double())
