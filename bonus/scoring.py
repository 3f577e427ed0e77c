"""The elliptical bonus of one step: scoring and absorbing it as one operation.

    state = init_state(config.dim)                                     # or from_state_dict(checkpoint), see bonus.state
    for each step, in the recorded order:
        scored, state = score_step(features_GKD, correct_GK, valid_GK, state, config, keys_G=keys_G, lags_GK=lags_GK)
        ... beta * scored.bonus_GK ...; log scored.ridge, scored.diagnostics and scored.groups

Legend: G groups of the step, K responses per group, D projected size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bonus.config import BonusConfig
from bonus.covariance import absorb_energy, auto_ridge, update
from bonus.diagnostics import BonusDiagnostics, GroupDiagnostics, ScoredGroups, carries_no_signal, diagnose, diagnose_groups
from bonus.elliptical import center, centered_leverage, gate_mask, leave_one_out
from bonus.prompt_memory import absorb, around_prompts
from bonus.shaping import shaped
from bonus.state import BonusState

__all__ = ["BonusDiagnostics", "GroupDiagnostics", "StepBonus", "carries_no_signal", "score_step"]


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBonus:
    """The bonuses of one step, float64, before beta, and what they were made of."""

    bonus_GK: Tensor
    leverage_GK: Tensor  # the leverage, before estimator, normalisation, gate and staleness discount; 0 for an empty response
    ridge: float
    diagnostics: BonusDiagnostics
    groups: GroupDiagnostics


def score_step(
    features_GKD: Tensor,
    correct_GK: Tensor,
    valid_GK: Tensor,
    state: BonusState,
    config: BonusConfig,
    *,
    lengths_GK: Tensor | None = None,
    keys_G: Sequence[str] | None = None,
    lags_GK: Tensor | None = None,
    ended_GK: Tensor | None = None,
    estimator: Callable[[Tensor], Tensor] | None = None,
) -> tuple[StepBonus, BonusState]:
    """Score the groups of a step and absorb them. Return the bonuses and the next state.

    - memory="none": P = 0, and each group is scored against its own responses (the training of arXiv:2510.11686).
    - memory="run": each group is scored against the P that earlier steps left and its own responses. It does not see
      the other groups of its step.
    - memory="prompt": the step is absorbed first. Then each group is scored against all responses to its prompt
      (`keys_G`), this step's included.

    So the order of groups within a step never matters. With a memory, the order of steps does. The energy behind
    ridge="auto" is that of group-centered features and advances under every memory.

        bonus = staleness_discount^lag * gate(normalise(cut_off(estimator(leverage))))

    and 0 for an empty response. `estimator` replaces that of the config. `lags_GK` counts the versions between a
    response's oldest token and the policy that is trained, and `ended_GK` says which responses ran into no limit
    (None: all of them). `state` is not modified. Features and state share a device. Raises ValueError for wrong shapes,
    a feature not finite, memory="prompt" without `keys_G`, and a staleness_discount below 1 without `lags_GK`."""
    shape_GK = features_GKD.shape[:2]
    if features_GKD.shape[-1] != config.dim:
        raise ValueError(f"features have D={features_GKD.shape[-1]}, the config says dim={config.dim}")
    if correct_GK.shape != shape_GK or correct_GK.dtype != torch.bool:
        raise ValueError(f"correct_GK must be bool {tuple(shape_GK)}, got {correct_GK.dtype} {tuple(correct_GK.shape)}")
    if lengths_GK is not None and lengths_GK.shape != shape_GK:
        raise ValueError(f"lengths_GK must be {tuple(shape_GK)}, got {tuple(lengths_GK.shape)}")
    if config.memory == "prompt" and keys_G is None:
        raise ValueError("memory='prompt' needs keys_G: which prompt each group answers")
    if config.staleness_discount < 1 and lags_GK is None:
        raise ValueError(f"staleness_discount={config.staleness_discount} needs lags_GK: how old each response is")
    if lags_GK is not None and (lags_GK.shape != shape_GK or lags_GK.is_floating_point() or bool((lags_GK < 0).any())):
        raise ValueError(f"lags_GK must be whole numbers >= 0 of shape {tuple(shape_GK)}, got {lags_GK.dtype} {tuple(lags_GK.shape)}")

    centered_GKD = center(features_GKD, valid_GK)
    absorb_step = update if config.memory == "run" else absorb_energy
    covariance = absorb_step(state.covariance, centered_GKD, valid_GK, forgetting=config.forgetting)
    ridge = auto_ridge(covariance) if config.ridge == "auto" else config.ridge
    prompts, seen_G = state.prompts, valid_GK.sum(dim=1)
    prior = state.covariance.second_moment_DD if config.memory == "run" else None
    if config.memory == "prompt" and keys_G is not None:
        prompts = absorb(prompts, keys_G, features_GKD, valid_GK, max_bytes=config.prompt_memory_mib * 2**20)
        centered_GKD, prior, seen_G = around_prompts(prompts, keys_G, features_GKD, valid_GK)
    leverage_GK = centered_leverage(centered_GKD, ridge=ridge, prior=prior)
    if estimator is not None:
        raw_bonus_GK = estimator(leverage_GK)
    else:
        raw_bonus_GK = leverage_GK if config.estimator == "leverage" else leave_one_out(leverage_GK)
    kept_GK = gate_mask(correct_GK, config.gate)
    bonus_GK = shaped(raw_bonus_GK, kept_GK, valid_GK, lags_GK, config, ended_GK)
    scored = ScoredGroups(
        centered_GKD=centered_GKD,
        prior=prior,
        ridge=ridge,
        seen_G=seen_G,
        valid_GK=valid_GK,
        lengths_GK=lengths_GK,
        leverage_GK=leverage_GK,
        raw_bonus_GK=raw_bonus_GK,
        kept_GK=kept_GK,
        bonus_GK=bonus_GK,
    )
    groups = diagnose_groups(scored)
    step = StepBonus(bonus_GK=bonus_GK, leverage_GK=leverage_GK, ridge=ridge, diagnostics=diagnose(scored, groups), groups=groups)
    return step, BonusState(covariance=covariance, prompts=prompts)
