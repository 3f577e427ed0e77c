"""Settings of the exploration bonus. Imports neither torch nor numpy."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FeatureSource = Literal["encoder", "policy"]
Memory = Literal["none", "prompt", "run"]
Estimator = Literal["leverage", "leave_one_out"]
BonusNormalise = Literal["none", "std", "zscore"]
Gate = Literal["always", "group_has_correct", "group_not_all_correct", "group_mixed", "correct_only"]


class BonusConfig(BaseModel):
    """What the encoder actor computes for each response besides its reward (`bonus.scoring.score_step`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    enabled: bool = True
    """False: no encoder is started and the reward is the extrinsic one alone. Read where the system is wired, not by
    `score_step`."""

    dim: Annotated[int, Field(ge=1)] = 32
    """D, the size of projected features. The authors train with 32 (MATH, GSM8K) and 128 (AIME). A saved state of
    another D is refused."""

    source: FeatureSource = "encoder"
    """Whose hidden states are the features: "encoder" is a frozen copy of the initial policy (the authors' choice);
    "policy" is the current policy itself, taken from the rollout engine, which costs no second forward pass but moves
    the space with every update, so it is refused with a memory."""

    ridge: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """lam in Sigma = lam*I + P + X'X; "auto" is the running mean energy of centered features. The authors' 0.01
    surprises with memory="none": real features have energy 100 to 160, so every leverage sits at 1 - 1/K and differs by
    1e-4 within a group."""

    memory: Memory = "none"
    """What P remembers: "none" scores each group alone (the authors' training setting); "prompt" scores against all
    responses to the same prompt so far (their persistent branch); "run" keeps the directions explored by earlier steps
    on any prompt, so its bonuses shrink over the run."""

    prompt_memory_mib: Annotated[int, Field(ge=1)] = 256
    """With memory="prompt", what may be kept: 8 (D^2 + D) bytes a prompt, so about 31 000 prompts at D=32 and 2 000 at
    D=128. Beyond it the least recently used prompts are forgotten, and counted; those of the step being scored never
    are, even if they alone exceed it."""

    forgetting: Annotated[float, Field(gt=0, le=1)] = 0.99
    """gamma, the factor on the past per absorbed step: 0.99 remembers about 100 steps. At 1 with memory="run" nothing
    is forgotten and the bonus dies out as 1/t. The energy behind ridge="auto" is forgotten at the same rate, whatever
    the memory; memory="prompt" forgets nothing else."""

    estimator: Estimator = "leverage"
    """"leverage" is bounded by 1 - 1/K; "leave_one_out" = leverage / (1 - leverage) scores a response against the
    others alone, reaches K - 1, and orders the responses in the same way."""

    normalise: BonusNormalise = "none"
    """Within a group: "std" divides by the standard deviation, "zscore" also subtracts the mean. In a saturated group
    (see `ridge`) "std" divides by 1e-4: the bonuses become thousands, and beta must answer for it."""

    gate: Gate = "group_has_correct"
    """Which bonuses are kept, applied after `normalise`; the others are 0. The first four choose whole groups,
    "correct_only" single responses. An empty response counts as not correct."""

    staleness_discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A response whose oldest token was sampled `lag` versions ago keeps discount^lag of its bonus, after `normalise`
    and `gate`: what was new to an older policy may be new no more. 1 is off."""

    redraw_projection: bool = False
    """True draws a fresh projection every step, as the authors do. Features of different steps then live in different
    spaces, so it is refused with a memory."""

    @model_validator(mode="after")
    def _memory_needs_one_space(self) -> Self:
        if self.memory == "none":
            return self
        if self.redraw_projection:
            raise ValueError(
                f"redraw_projection=True contradicts memory={self.memory!r}: a covariance kept over steps needs one projection; "
                "set redraw_projection=False or memory='none'"
            )
        if self.source == "policy":
            raise ValueError(
                f"source='policy' contradicts memory={self.memory!r}: a policy's hidden states move with every update, so those of "
                "different steps cannot be compared; set source='encoder' or memory='none'"
            )
        return self


class SelectionConfig(BaseModel):
    """In which order the candidates of a pool are verified (`bonus.orders`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    dim: Annotated[int, Field(ge=1)] = 512
    """D, the size of projected features. The authors select with 512."""

    ridge: Annotated[float, Field(gt=0)] | Literal["auto"] = 1.0
    """lam of the selection; "auto" is the mean energy of the features used, after centering or scaling. Far below the
    features' energy every new direction counts the same; far above it the longest features come first, however
    alike."""

    center: Literal["none", "pool"] = "none"
    """"none" takes the features as they are (the authors' choice): they share a large mean, and the first pick is
    simply the longest. "pool" subtracts the pool's mean. Read by the order repexp only: quality, kmeans and
    determinantal have a choice of their own."""

    quality: Literal["none", "logprob"] = "none"
    """What weighs novelty: "none" is the authors' selection; "logprob" multiplies by the answer's likelihood, without
    which a weak model's incoherent answers come first."""

    quality_exponent: Annotated[float, Field(ge=0)] = 1.0
    """a in exp(a * (l - l_max)), l the mean log-prob of a token. 0 leaves novelty alone (of centered unit-length
    features)."""

    max_clusters: Annotated[int, Field(ge=1)] = 16
    """Of the order kmeans, which puts one candidate of each cluster first: set it to the number of candidates that will
    be verified."""

    seed: int = 0
    """Of the orders random and kmeans."""

    @property
    def order(self) -> Literal["repexp", "quality"]:
        """Name of the order that this config stands for, in `bonus.orders.ORDERS`."""
        return "repexp" if self.quality == "none" else "quality"


ORDER_NAMES = (
    *("repexp", "quality", "random", "likeliest", "unlikeliest", "longest"),
    *("kmeans", "determinantal", "distinct_answers"),
)
"""The names of `bonus.orders.ORDERS`, for readers that do without torch."""
