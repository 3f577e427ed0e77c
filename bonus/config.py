"""Settings of the exploration bonus. Imports neither torch nor numpy."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Memory = Literal["none", "run"]
Estimator = Literal["leverage", "leave_one_out"]
Normalise = Literal["none", "std", "zscore"]
Gate = Literal["always", "group_has_correct", "group_not_all_correct", "group_mixed", "correct_only"]


class BonusConfig(BaseModel):
    """What the encoder actor computes for each response besides its reward (`bonus.scoring.score_step`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    enabled: bool = True
    """False: no encoder is started and the reward is the extrinsic one alone. Read where the system is wired, not by `score_step`."""

    dim: Annotated[int, Field(ge=1)] = 32
    """D, the size of projected features. The authors train with 32 (MATH, GSM8K) and 128 (AIME). A saved state of another D is refused."""

    ridge: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = "auto"
    """lam in Sigma = lam*I + P + X'X; "auto" is the running mean energy of centred features. The authors' 0.01 surprises with
    memory="none": real features have energy 100 to 160, so every leverage sits at 1 - 1/K and differs by 1e-4 within a group."""

    memory: Memory = "none"
    """What P remembers: "none" scores each group alone (the authors' training setting); "run" keeps the directions explored by earlier
    steps, so its bonuses shrink over the run."""

    forgetting: Annotated[float, Field(gt=0, le=1)] = 0.99
    """gamma, the factor on the past per absorbed step: 0.99 remembers about 100 steps. At 1 with memory="run" nothing is forgotten and the
    bonus dies out as 1/t. The energy behind ridge="auto" is forgotten at the same rate, whatever the memory."""

    estimator: Estimator = "leverage"
    """"leverage" is bounded by 1 - 1/K; "leave_one_out" = leverage / (1 - leverage) scores a response against the others alone, reaches
    K - 1, and orders the responses in the same way."""

    normalise: Normalise = "none"
    """Within a group: "std" divides by the standard deviation, "zscore" also subtracts the mean. In a saturated group (see `ridge`) "std"
    divides by 1e-4: the bonuses become thousands, and beta must answer for it."""

    gate: Gate = "group_has_correct"
    """Which bonuses are kept, applied after `normalise`; the others are 0. The first four choose whole groups, "correct_only" single
    responses. An empty response counts as not correct."""

    redraw_projection: bool = False
    """True draws a fresh projection every step, as the authors do. Features of different steps then live in different spaces, so it is
    refused with memory="run"."""

    @model_validator(mode="after")
    def _memory_needs_one_projection(self) -> Self:
        if self.redraw_projection and self.memory == "run":
            raise ValueError(
                "redraw_projection=True contradicts memory='run': a covariance kept over the run needs one projection; "
                "set redraw_projection=False or memory='none'"
            )
        return self
