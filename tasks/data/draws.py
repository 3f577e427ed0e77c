"""Random numbers that stay what they are: `Random.random` is the one method whose sequence Python promises to keep
between versions."""

from __future__ import annotations

from random import Random

__all__ = ["below", "between"]


def below(rng: Random, bound: int) -> int:
    """A uniform integer in 0..bound-1."""
    return int(rng.random() * bound)


def between(rng: Random, smallest: int, largest: int) -> int:
    """A uniform integer in smallest..largest."""
    return smallest + below(rng, largest - smallest + 1)
