"""What the owner of a bonus asks of it: scores that fit the step, and a state that files can hold. Each fault is an
ExtensionError, one line that names the bonus. Legend: G groups of the step, K responses per group."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bonus.base import Bonus, SavesState, Scores, State, StepRows
from buffers.extensions import ExtensionError


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
    """Return `state` as tensors for safetensors (copies) and a flat dict for JSON. Raises ExtensionError for a state
    that would not come back as it is."""
    saved = bonus.state_dict(state) if isinstance(bonus, SavesState) else state
    if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
        raise _fault(kind, f"its state is a {type(saved).__name__}, not a mapping of names to tensors and JSON values; {_REMEDY}")
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in saved.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in saved.items() if name not in tensors}
    for name, value in rest.items():
        if not _survives_json(value):
            raise _fault(kind, f"JSON cannot hold {name!r} of its state as it is, a {type(value).__name__}; {_REMEDY}")
    return tensors, rest


_REMEDY = "give the class state_dict and from_state_dict (bonus.base.SavesState)"


def state_from_files(bonus: Bonus, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> State:
    """Return the state that `state_to_files` was given."""
    saved = {**tensors, **rest}
    return bonus.from_state_dict(saved) if isinstance(bonus, SavesState) else saved


def _survives_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _fault(kind: str, text: str) -> ExtensionError:
    return ExtensionError(f'bonus.kind = "{kind}": {text}')
