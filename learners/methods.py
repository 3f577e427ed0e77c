"""The surrogate, the correction and the advantage estimator that a configuration names.

    require_methods(config.learner)                 # once, before anything starts: raises ExtensionError
    output = surrogate_of(config.learner.loss)(inputs, config.learner.loss)

A method is a known name or an import path (`buffers.extensions`). What an import path names is loaded once a process,
and a class is made once with its options. All users share it, so a method should depend on its arguments only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor

from buffers.extensions import ExtensionError, load
from learners import facts
from learners.advantages import AdvantageInputs, Estimator
from learners.config import AdvantageConfig, LearnerConfig, LossConfig
from learners.estimators import ESTIMATORS
from learners.loss.corrections import CORRECTIONS, Correction
from learners.loss.surrogates import SURROGATES, Surrogate

M = TypeVar("M")

_LOADED: dict[tuple[str, str, str], Any] = {}
"""What import paths have led to, by key, path and options."""


def surrogate_of(config: LossConfig) -> Surrogate:
    """Return the surrogate of `config`. Raises ExtensionError."""
    return _method(SURROGATES, config.surrogate, config.surrogate_options, "learner.loss.surrogate", "inputs", "config")


def correction_of(config: LossConfig) -> Correction:
    """Return the correction of `config`. Raises ExtensionError."""
    arguments = ("difference_N", "response_N", "config")
    return _method(CORRECTIONS, config.correction, config.correction_options, "learner.loss.correction", *arguments)


def estimator_of(config: AdvantageConfig) -> Estimator:
    """Return the advantage estimator of `config`. Raises ExtensionError."""
    return _method(ESTIMATORS, config.estimator, config.estimator_options, "learner.advantage.estimator", "inputs", "config")


def require_methods(config: LearnerConfig) -> None:
    """Load all methods of `config`. Raises ExtensionError if one is unusable or ignores a key that is set."""
    facts.needs_of(estimator_of(config.advantage), f'learner.advantage.estimator = "{config.advantage.estimator}"')
    _require_read(estimator_of(config.advantage), config.advantage, "learner.advantage", "estimator", facts.ESTIMATORS)
    _require_read(surrogate_of(config.loss), config.loss, "learner.loss", "surrogate", facts.SURROGATES)
    _require_read(correction_of(config.loss), config.loss, "learner.loss", "correction", facts.CORRECTIONS)


def estimated_advantages(inputs: AdvantageInputs, config: AdvantageConfig) -> Tensor:
    """Return what the estimator of `config` makes of `inputs`: advantages (G, K), float64. Raises ValueError naming the
    estimator for a result of another shape, or one that is not finite."""
    advantages_GK, shape = estimator_of(config)(inputs, config), tuple(inputs.rewards_GK.shape)
    named = f'learner.advantage.estimator = "{config.estimator}"'
    if not isinstance(advantages_GK, Tensor) or tuple(advantages_GK.shape) != shape:
        found = f"shape {tuple(advantages_GK.shape)}" if isinstance(advantages_GK, Tensor) else f"type {type(advantages_GK).__name__}"
        raise ValueError(f"{named} returned a result of {found}: it must be a tensor of the rewards' shape (G, K) = {shape}")
    if not bool(torch.isfinite(advantages_GK).all()):
        group, response = (~torch.isfinite(advantages_GK)).nonzero()[0].tolist()
        reward, advantage = float(inputs.rewards_GK[group, response]), float(advantages_GK[group, response])
        raise ValueError(
            f"{named} returned {advantage} for response {response} of group {group}, whose reward is {reward}: every advantage must be "
            "finite, and that of a response without a score (reward NaN) is 0"
        )
    return advantages_GK.detach().to(torch.float64)


def _method(known: Mapping[str, M], name: str, options: Mapping[str, Any], key: str, *arguments: str) -> M:
    if name in known:
        return known[name]
    place = (key, name, repr(options))
    if place not in _LOADED:
        _LOADED[place] = load(name, options, key=key, arguments=arguments)
    found: M = _LOADED[place]
    return found


def _require_read(method: Any, section: BaseModel, prefix: str, seam: str, known: Mapping[str, facts.Facts]) -> None:
    """Raise ExtensionError where `method` says with `reads` what it reads, and a key of `section` that is set is
    none of these. The keys of known methods are checked by the configuration itself."""
    reads: Collection[str] | None = getattr(method, "reads", None)
    if reads is None:
        return
    named = f'{prefix}.{seam} = "{getattr(section, seam)}"'
    if isinstance(reads, str) or not isinstance(reads, Collection) or not all(isinstance(key, str) for key in reads):
        raise ExtensionError(f"{named}: its attribute reads must be a set of names of keys, and it is {reads!r}")
    if unknown := sorted(set(reads) - type(section).model_fields.keys()):
        raise ExtensionError(f"{named}: its attribute reads names {', '.join(unknown)}, and [{prefix}] has no such key")
    if (reason := facts.without_effect(section, seam, known, reads)) is not None:
        raise ExtensionError(f"{prefix}.{reason}")
