"""Random integers that stay the same in every Python version.

`Random.random` is the one method whose sequence Python promises to keep, so nothing else is drawn from."""

from random import Random

__all__ = ["below", "between"]


def below(rng: Random, bound: int) -> int:
    """Draw a uniform integer from 0..bound-1."""
    return int(rng.random() * bound)


def between(rng: Random, smallest: int, largest: int) -> int:
    """Draw a uniform integer from smallest..largest."""
    return smallest + below(rng, largest - smallest + 1)
