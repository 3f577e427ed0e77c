"""Random numbers that depend on what they are for and on nothing else: the same after a resume."""

import hashlib
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from bonus.base import StepRows


def generator_for(*parts: object) -> torch.Generator:
    """Return a generator seeded with a hash of `parts`, so that different purposes draw independent numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def drawn_by_group(step: StepRows, purpose: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Call `draw` for each group and stack the results. The generator of a group is seeded with a hash of the purpose,
    the run's seed, the number of the step, the problem, and how often the problem came before in this step."""
    seen: Counter[str] = Counter()
    drawn = []
    for key in step.keys_G:
        drawn.append(draw(generator_for(purpose, step.seed, step.step, seen[key], key)))
        seen[key] += 1
    return torch.stack(drawn)
