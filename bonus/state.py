"""Everything that the elliptical bonus carries from step to step, as one value.

    state = init_state(config.dim)
    scored, state = score_step(..., state, config)             # bonus.scoring, once a step
    saved = state_dict(state)                                  # tensors, and values that JSON can hold
    state = from_state_dict(saved)                             # the next bonuses are the same, bit for bit

Scoring returns a new state and leaves the old one as it was. Legend: D projected size, P prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bonus import covariance, prompt_memory
from bonus.covariance import CovarianceState
from bonus.prompt_memory import PromptMemory

PARTS = ("covariance", "prompts")


@dataclass(frozen=True, kw_only=True, eq=False)
class BonusState:
    """What earlier steps left behind. A memory that the configuration does not name stays as it is."""

    covariance: CovarianceState  # P of memory="run", and the energy behind ridge="auto", which advances under every memory
    prompts: PromptMemory  # the prompts of memory="prompt"


def init_state(dim: int, *, device: torch.device | str = "cpu") -> BonusState:
    """Return the state before the first step. `device` is that of the features to come."""
    return BonusState(covariance=covariance.init_state(dim, device=device), prompts=prompt_memory.init_memory(dim))


def merge(a: BonusState, b: BonusState) -> BonusState:
    """Add two shards by `bonus.covariance.merge` and `bonus.prompt_memory.merge`."""
    return BonusState(covariance=covariance.merge(a.covariance, b.covariance), prompts=prompt_memory.merge(a.prompts, b.prompts))


def state_dict(state: BonusState) -> dict[str, Any]:
    """Return the state as a flat dict of contiguous tensors (copies), numbers and lists of strings."""
    saved: dict[str, Any] = {f"covariance.{name}": value for name, value in covariance.state_dict(state.covariance).items()}
    return saved | {f"prompts.{name}": value for name, value in prompt_memory.state_dict(state.prompts).items()}


def from_state_dict(saved: Mapping[str, Any]) -> BonusState:
    """Invert `state_dict`. Raises ValueError for other keys or an invalid state, TypeError for another type."""
    unknown = sorted(name for name in saved if name.partition(".")[0] not in PARTS)
    if unknown:
        raise ValueError(f"unknown {unknown}")
    covariance_part, prompts_part = (
        {name.removeprefix(f"{part}."): value for name, value in saved.items() if name.startswith(f"{part}.")} for part in PARTS
    )
    state = BonusState(covariance=covariance.from_state_dict(covariance_part), prompts=prompt_memory.from_state_dict(prompts_part))
    _check_one_dim(state)
    return state


def check_valid(state: BonusState) -> None:
    """Raise ValueError unless both parts are valid and of one D."""
    covariance.check_valid(state.covariance)
    prompt_memory.check_valid(state.prompts)
    _check_one_dim(state)


def _check_one_dim(state: BonusState) -> None:
    dim = state.covariance.second_moment_DD.shape[0]
    if dim != state.prompts.dim:
        raise ValueError(f"the covariance has D={dim}, the prompt memory D={state.prompts.dim}")
