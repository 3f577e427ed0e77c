"""What the owner of a bonus asks of it: scores that fit the step, and a state that files can hold. Each fault is an
ExtensionError, one line that names the bonus. Legend: G groups of the step, K responses per group."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bonus.base import Bonus, Need, SavesState, Scores, State, StepRows
from buffers.extensions import ExtensionError, place_of

_RESPONSES = (((5, 2), (5, 6, 7), (5,), ()), ((5, 6, 7), (5, 6, 7), (6, 2), (2,)))


def try_out(bonus: Bonus, *, kind: str, dim: int) -> None:
    """Score two made-up steps of two groups of four responses, one of them empty, and save and restore the state.
    Raises ExtensionError: what a bonus cannot do then, it cannot do in a run."""
    generator = torch.Generator().manual_seed(0)
    valid_GK = torch.tensor([[True, True, True, False], [True, True, True, True]])
    lengths_GK = torch.tensor([[2, 3, 1, 0], [3, 3, 2, 1]])
    tokens_GKT = torch.arange(3) < lengths_GK[..., None]
    rewards_GK = torch.tensor([[1.0, 0.0, float("nan"), 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    try:
        state = bonus.init_state()
        for step in (1, 2):
            features_GKD = torch.randn(2, 4, dim, generator=generator, dtype=torch.float64) * valid_GK[..., None]
            rows = StepRows(
                step=step,
                seed=0,
                keys_G=("task/1", "task/2"),
                rewards_GK=rewards_GK,
                correct_GK=rewards_GK == 1.0,
                valid_GK=valid_GK,
                lengths_GK=lengths_GK,
                ended_GK=lengths_GK < 3,
                lags_GK=torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1]]),
                features_GKD=features_GKD if Need.FEATURES in bonus.needs else None,
                answers_GK=(("1", "2", None, None), ("3", "3", "3", "3")) if Need.ANSWERS in bonus.needs else None,
                responses_GK=_RESPONSES if Need.RESPONSES in bonus.needs else None,
                logprobs_GKT=-1.0 * tokens_GKT.double() if Need.LOGPROBS in bonus.needs else None,
            )
            _, state = score_checked(bonus, rows, state, kind=kind)
            tensors, rest = state_to_files(bonus, state, kind=kind)
            state = state_from_files(bonus, tensors, json.loads(json.dumps(rest)))
    except ExtensionError:
        raise
    except Exception as error:  # a seam: the class is somebody else's code
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise _fault(kind, f"a made-up step could not be scored: {reason} ({place_of(error)})") from error


def score_checked(bonus: Bonus, step: StepRows, state: State, *, kind: str) -> tuple[Scores, State]:
    """Return `bonus.score(step, state)`, its tensors in float64 on the CPU. Raises ExtensionError, naming `kind`, for
    an answer that is not (Scores, state), a tensor that is not G x K, and a bonus or a metric that is not finite."""
    answer = bonus.score(step, state)
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Scores)):
        raise _fault(kind, f"score must return (Scores, state), not {type(answer).__name__}")
    scores, next_state = answer
    bonus_GK = _as_rows("bonus_GK", scores.bonus_GK, step, kind)
    broken_NX = (~bonus_GK.isfinite()).nonzero()
    if len(broken_NX):
        group, response = broken_NX[0].tolist()
        raise _fault(kind, f"the bonus of group {group}, response {response} is {bonus_GK[group, response]}")
    detail = {name: _as_rows(f"detail[{name!r}]", values_GK, step, kind) for name, values_GK in scores.detail.items()}
    metrics = {name: float(value) for name, value in scores.metrics.items()}
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise _fault(kind, f"the metric {name!r} is {value}: leave out what a step does not define")
    return replace(scores, bonus_GK=bonus_GK, metrics=metrics, detail=detail), next_state


def _as_rows(name: str, values_GK: Any, step: StepRows, kind: str) -> Tensor:
    shape = step.valid_GK.shape
    if not isinstance(values_GK, Tensor) or values_GK.shape != shape:
        found = f"has shape {tuple(values_GK.shape)}" if isinstance(values_GK, Tensor) else f"is a {type(values_GK).__name__}"
        raise _fault(kind, f"{name} {found}; {shape[0]} groups of {shape[1]} responses need a tensor of shape {tuple(shape)}")
    return values_GK.detach().to("cpu", torch.float64)


def state_to_files(bonus: Bonus, state: State, *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return `state` as tensors for safetensors (copies) and a dict for JSON. Raises ExtensionError for a state
    that would not come back as it is."""
    saved = bonus.state_dict(state) if isinstance(bonus, SavesState) else state
    if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
        raise _fault(kind, f"its state is a {type(saved).__name__}, not a mapping of names to tensors and JSON values; {_REMEDY}")
    tensors = {name: value for name, value in saved.items() if isinstance(value, Tensor)}
    rest = {name: _taken_out(value, name, tensors) for name, value in saved.items() if name not in tensors}
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    for name, value in rest.items():
        if not _survives_json(value):
            raise _fault(kind, f"JSON cannot hold {name!r} of its state as it is, a {type(value).__name__}; {_REMEDY}")
    return tensors, rest


_REMEDY = "give the class state_dict and from_state_dict (bonus.base.SavesState)"


def state_from_files(bonus: Bonus, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> State:
    """Return the state that `state_to_files` was given."""
    places = {value[_TENSOR] for value in _dicts(rest) if value.keys() == {_TENSOR}}
    saved = {name: value for name, value in tensors.items() if name not in places} | _put_back(rest, tensors)
    return bonus.from_state_dict(saved) if isinstance(bonus, SavesState) else saved


_TENSOR = "tensor of this state"
"""The only key of what stands in JSON for a tensor inside a dict or list; its value is the tensor's name."""


def _taken_out(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` for JSON, with every tensor in it moved to `tensors` under the path that leads to it."""
    if isinstance(value, Tensor):
        place = name
        while place in tensors:
            place += "'"
        tensors[place] = value
        return {_TENSOR: place}
    if isinstance(value, dict):
        return {key: _taken_out(inner, f"{name}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list):
        return [_taken_out(inner, f"{name}/{place}", tensors) for place, inner in enumerate(value)]
    return value


def _put_back(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        is_tensor = value.keys() == {_TENSOR}
        return tensors[value[_TENSOR]] if is_tensor else {key: _put_back(inner, tensors) for key, inner in value.items()}
    return [_put_back(inner, tensors) for inner in value] if isinstance(value, list) else value


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(inner)


def _survives_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _fault(kind: str, text: str) -> ExtensionError:
    return ExtensionError(f'bonus.kind = "{kind}": {text}')
