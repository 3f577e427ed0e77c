"""The running covariance behind memory="run" as a value: `(state, centered features) -> state`. Legend: G groups, K
responses, D projected size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

RIDGE_FLOOR = 1e-12  # the least ridge="auto": identical features have energy 0, and a ridge of 0 cannot be factored


@dataclass(frozen=True, kw_only=True, eq=False)
class CovarianceState:
    """What earlier steps left behind, kept as sums: shards can be added, and a checkpoint is exact."""

    second_moment_DD: Tensor  # P, float64: the forgotten sum of x x' over centered features. Only memory="run" absorbs into it.
    steps: int  # number of steps absorbed
    groups: int  # number of groups absorbed; forgetting does not lower it
    energy_sum: float  # forgotten sum of ||x||^2 over the rows counted in `energy_rows`
    energy_rows: float
    """Forgotten count of valid rows in groups of at least two: a response alone has no variation to measure."""


def init_state(dim: int, *, device: torch.device | str = "cpu") -> CovarianceState:
    """Return the state before the first step: P = 0 and every count 0."""
    zeros_DD = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    return CovarianceState(second_moment_DD=zeros_DD, steps=0, groups=0, energy_sum=0.0, energy_rows=0.0)


def update(state: CovarianceState, centered_GKD: Tensor, valid_GK: Tensor, *, forgetting: float) -> CovarianceState:
    """Absorb one step: P <- gamma*P + sum_g X_g' X_g, and its energy as `absorb_energy` does. The paper's training
    resets P per batch and names that as its limit; remembering is ours, and gamma keeps the bonus from dying out as
    1/t. The centered rows of empty responses are 0 and add nothing."""
    absorbed = absorb_energy(state, centered_GKD, valid_GK, forgetting=forgetting)
    rows_ND = centered_GKD.flatten(0, 1)
    return replace(absorbed, second_moment_DD=forgetting * state.second_moment_DD + rows_ND.mT @ rows_ND)


def absorb_energy(state: CovarianceState, centered_GKD: Tensor, valid_GK: Tensor, *, forgetting: float) -> CovarianceState:
    """Advance everything but P: energy_sum <- gamma*energy_sum + sum ||x||^2, and energy_rows likewise. Raises
    ValueError for a forgetting outside (0, 1] and for features of another D."""
    if not 0 < forgetting <= 1:
        raise ValueError(f"forgetting={forgetting} must lie in (0, 1]")
    if centered_GKD.shape[-1] != state.second_moment_DD.shape[0]:
        raise ValueError(f"features have D={centered_GKD.shape[-1]}, the state has D={state.second_moment_DD.shape[0]}")
    count_G = valid_GK.sum(dim=1)
    return replace(
        state,
        steps=state.steps + 1,
        groups=state.groups + centered_GKD.shape[0],
        energy_sum=forgetting * state.energy_sum + float(centered_GKD.square().sum()),
        energy_rows=forgetting * state.energy_rows + int(count_G[count_G > 1].sum()),
    )


def auto_ridge(state: CovarianceState) -> float:
    """Return lam = energy_sum / energy_rows, the running mean energy ||x||^2 of centered features (>= `RIDGE_FLOOR`).
    This choice is ours. Near the energy the leverages of a group spread most: 0.11 on SmolLM2 with groups of 8, against
    1e-4 at the authors' 0.01. The step to be scored is absorbed first, so the first step is no special case."""
    return max(state.energy_sum / state.energy_rows, RIDGE_FLOOR) if state.energy_rows else RIDGE_FLOOR


def merge(a: CovarianceState, b: CovarianceState) -> CovarianceState:
    """Add two shards. Raises ValueError for states of different D. With gamma = 1 the sum equals absorbing both
    histories one after the other; with gamma < 1 each has forgotten alone."""
    if a.second_moment_DD.shape != b.second_moment_DD.shape:
        raise ValueError(f"cannot merge states of D={a.second_moment_DD.shape[0]} and D={b.second_moment_DD.shape[0]}")
    return CovarianceState(**{name: value + vars(b)[name] for name, value in vars(a).items()})


def state_dict(state: CovarianceState) -> dict[str, Tensor | int | float]:
    """Return the state as one tensor (a copy) and four numbers, for a checkpoint."""
    return vars(state) | {"second_moment_DD": state.second_moment_DD.clone()}


def from_state_dict(saved: Mapping[str, Any]) -> CovarianceState:
    """Invert `state_dict`. Raises ValueError for other keys or a state not valid, TypeError where P is not a tensor."""
    names = {field.name for field in fields(CovarianceState)}
    if saved.keys() != names:
        raise ValueError(f"missing {sorted(names - saved.keys())}, unknown {sorted(saved.keys() - names)}")
    if not isinstance(saved["second_moment_DD"], Tensor):
        raise TypeError(f"second_moment_DD must be a tensor, got {type(saved['second_moment_DD']).__name__}")
    state = CovarianceState(**{**saved, "second_moment_DD": saved["second_moment_DD"].clone()})
    check_valid(state)
    return state


def check_valid(state: CovarianceState) -> None:
    """Raise ValueError unless P is square, finite, symmetric and float64, and all numbers are finite and >= 0."""
    moment_DD = state.second_moment_DD
    if moment_DD.dim() != 2 or moment_DD.shape[0] != moment_DD.shape[1] or moment_DD.dtype != torch.float64:
        raise ValueError(f"second_moment_DD must be a square float64 matrix, got {moment_DD.dtype} {tuple(moment_DD.shape)}")
    if not is_finite_and_symmetric(moment_DD):
        raise ValueError("second_moment_DD must be finite and symmetric")
    for name, number in vars(state).items():
        if name != "second_moment_DD" and not 0 <= number < math.inf:
            raise ValueError(f"{name}={number} must be finite and not negative")


def is_finite_and_symmetric(matrix_DD: Tensor) -> bool:
    """Return whether all entries are finite and the matrix is symmetric up to 1e-9 of its largest entry."""
    is_finite = bool(matrix_DD.isfinite().all())
    return is_finite and torch.allclose(matrix_DD, matrix_DD.mT, rtol=1e-9, atol=1e-9 * float(matrix_DD.abs().max()))
