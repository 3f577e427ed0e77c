"""The elliptical bonus as a `bonus.base.Bonus`: `bonus.scoring.score_step`, its state and its numbers for the log.
Legend: G groups of the step, K responses per group."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bonus import state as memory
from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from bonus.kinds import KINDS
from bonus.prompt_memory import nbytes
from bonus.scoring import StepBonus, carries_no_signal, score_step
from bonus.state import BonusState

WARNING = "no_signal_warning"


@dataclass(frozen=True, kw_only=True, eq=False)
class EllipticalState:
    """What earlier steps left behind."""

    remembered: BonusState
    warned: bool  # Whether the run was told that the bonus carries no signal. It is told once.


class EllipticalBonus:
    """The leverage of a response's feature against its group and against what the memory holds (arXiv:2510.11686)."""

    needs = KINDS["elliptical"]
    estimator: Callable[[Tensor], Tensor] | None = None
    """From leverages to raw bonuses, in place of what `bonus.estimator` names."""

    def __init__(self, config: BonusConfig) -> None:
        self._config = config

    def init_state(self) -> EllipticalState:
        return EllipticalState(remembered=memory.init_state(self._config.dim), warned=False)

    def score(self, step: StepRows, state: EllipticalState) -> tuple[Scores, EllipticalState]:
        assert step.features_GKD is not None, "the elliptical bonus needs features"
        scored, remembered = score_step(
            step.features_GKD,
            step.correct_GK,
            step.valid_GK,
            state.remembered,
            self._config,
            lengths_GK=step.lengths_GK,
            keys_G=step.keys_G,
            lags_GK=step.lags_GK,
            ended_GK=step.ended_GK,
            estimator=self.estimator,
        )
        metrics = _metrics_of(scored)
        if self._config.memory == "prompt":
            prompts = remembered.prompts
            metrics |= {"remembered_prompts": float(len(prompts.stats)), "remembered_mib": nbytes(prompts) / 2**20}
            metrics["evicted_prompts"] = float(prompts.num_evicted)
        has_no_signal = carries_no_signal(scored.diagnostics)
        if has_no_signal and not state.warned:
            metrics[WARNING] = 1.0
        scores = Scores(bonus_GK=scored.bonus_GK, metrics=metrics, detail=_detail_of(scored))
        return scores, EllipticalState(remembered=remembered, warned=state.warned or has_no_signal)

    def state_dict(self, state: EllipticalState) -> dict[str, Any]:
        return {**memory.state_dict(state.remembered), "warned": state.warned}

    def from_state_dict(self, saved: Mapping[str, Any]) -> EllipticalState:
        """Raises ValueError for a state of another D, with missing or unknown parts, or that is not valid."""
        remembered = memory.from_state_dict({name: value for name, value in saved.items() if name != "warned"})
        if (dim := remembered.prompts.dim) != self._config.dim:
            raise ValueError(f"the saved state has D = {dim}, but bonus.dim = {self._config.dim}")
        return EllipticalState(remembered=remembered, warned=saved["warned"])


def _metrics_of(scored: StepBonus) -> dict[str, float]:
    """Return the step's diagnostics by name; those without a value (no group has two responses) are left out."""
    diagnostics = scored.diagnostics
    named = {name.removeprefix("bonus_"): getattr(diagnostics, name) for name in diagnostics.__dataclass_fields__}
    return {"ridge": scored.ridge, **{name: float(value) for name, value in named.items() if value is not None}}


def _detail_of(scored: StepBonus) -> dict[str, Tensor]:
    groups, shape_GK = scored.groups, scored.leverage_GK.shape
    of_group = {
        "group_spread": groups.spread_G,
        "group_saturation_distance": groups.distance_to_saturation_G,
        "group_effective_rank": groups.effective_rank_G,
        "group_length_correlation": groups.length_correlation_G,
    }
    return {"leverage": scored.leverage_GK, **{name: values_G[:, None].expand(shape_GK) for name, values_G in of_group.items()}}
