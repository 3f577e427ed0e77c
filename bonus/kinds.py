"""The known bonuses: what each needs, which keys of `[bonus]` it reads, and the tables of those that have their own.

Imports neither torch nor numpy. `bonus.methods.BONUSES` makes the bonuses, and `docs/exploration.md` describes them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from bonus.base import Need
from buffers.extensions import Known, is_path

KINDS: Mapping[str, frozenset[Need]] = {
    "elliptical": frozenset({Need.FEATURES}),
    "logdet": frozenset({Need.FEATURES}),
    "cosine": frozenset({Need.FEATURES}),
    "coin_flip": frozenset({Need.FEATURES}),
    "rnd": frozenset({Need.FEATURES}),
    "outcome_ucb": frozenset({Need.ANSWERS}),
    "outcome_batch": frozenset({Need.ANSWERS}),
    "surprise": frozenset({Need.LOGPROBS}),
    "copies": frozenset({Need.RESPONSES}),
    "random": frozenset(),
}
"""The known bonuses and what must be computed for each."""

_SHAPING = {"normalise", "gate", "staleness_discount", "cut_off"}
_GEOMETRY = {"ridge", "memory", "prompt_memory_mib", "forgetting"}
READS: Mapping[str, frozenset[str]] = {
    "elliptical": frozenset(_GEOMETRY | _SHAPING | {"estimator"}),
    "logdet": frozenset(_GEOMETRY | _SHAPING),
    "cosine": frozenset(_SHAPING | {"cosine"}),
    "coin_flip": frozenset(_SHAPING | {"ridge", "coin_flip"}),
    "rnd": frozenset({"rnd"}),
    "outcome_ucb": frozenset({"outcome_ucb"}),
    "outcome_batch": frozenset(),
    "surprise": frozenset({"surprise"}),
    "copies": frozenset(_SHAPING),
    "random": frozenset(_SHAPING),
}
"""The keys of `[bonus]` that only some bonuses read, and who reads them. All other keys are read by every bonus."""

KEEP_FEATURES = frozenset({"rnd", "coin_flip"})
"""The bonuses that always compare features of different steps, so that these must lie in one space."""

KindName = Annotated[str, AfterValidator(Known(*KINDS))]
STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class BonusTerm(BaseModel):
    """One bonus of several: its kind, its weight, and the options of a class of your own."""

    model_config = STRICT

    kind: KindName
    """A known bonus, or the import path of a class of your own, as in `bonus.kind`."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """What its numbers are multiplied with before they are added up."""
    options: dict[str, Any] = {}
    """The table that a class of your own is made with. A known kind takes none."""

    @property
    def name(self) -> str:
        """The name under which the term is logged: its kind, or the name of the class."""
        return self.kind.rpartition(":")[2]

    @model_validator(mode="after")
    def _options_have_a_class(self) -> Self:
        require_options_have_a_class(self.kind, self.options)
        return self


def require_options_have_a_class(kind: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of a known kind."""
    if options and not is_path(kind):
        raise ValueError(f'bonus.options are for a class of your own, and bonus.kind = "{kind}" takes none: leave them out')


class CosineConfig(BaseModel):
    """The bonus "cosine": how unlike the others of its group a response is."""

    model_config = STRICT

    mean_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The weight of the mean similarity to the group's responses of the same class (correct or wrong). The rest is the
    weight of the largest similarity to any response of the group. The authors' code takes 0.5."""


class OutcomeUcbConfig(BaseModel):
    """The bonus "outcome_ucb": how rarely a problem got this final answer so far."""

    model_config = STRICT

    baseline: Literal["none", "mean", "constant"] = "none"
    """What is subtracted from N^-1/2: nothing, the mean over the group, or `constant`. An advantage that compares a
    response with its group's mean cancels each of them, as the known estimator does with every `combine`."""
    constant: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The constant of baseline = "constant". At 0.5 an answer is penalized from its fifth time on."""
    memory_mib: Annotated[int, Field(ge=1)] = 64
    """Bound of the counts. Beyond it the least recently used problems are forgotten and counted. The problems of the
    step that is scored stay."""

    @model_validator(mode="after")
    def _constant_is_read(self) -> Self:
        if self.baseline != "constant" and self.constant != 0.5:
            raise ValueError(f'outcome_ucb.constant = {self.constant} has no effect with outcome_ucb.baseline = "{self.baseline}"')
        return self


class RndConfig(BaseModel):
    """The bonus "rnd": how badly a small network predicts a fixed random one on the response's feature."""

    model_config = STRICT

    width: Annotated[int, Field(ge=1)] = 64
    """Units of the hidden layer of both networks, and their outputs."""
    updates: Annotated[int, Field(ge=1)] = 4
    """Adam updates of the predictor per training step, each on all responses of the step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """The predictor's learning rate."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    """The bonus of step t is multiplied by decay^(t − 1): exploration ends as the run goes on. 1 is off."""


class CoinFlipConfig(BaseModel):
    """The bonus "coin_flip": an estimate of N^-1/2, where N counts the responses with features like this one."""

    model_config = STRICT

    coins: Annotated[int, Field(ge=1)] = 20
    """Coins that are flipped for each response. The estimate of 1/N has a relative error of about sqrt(2 / coins). The
    authors take 20."""
    hidden: Annotated[int, Field(ge=0)] = 0
    """Random hidden units before the regression. 0 is a linear network on the group-centered features, whose bonus is
    on average the elliptical one."""


class SurpriseConfig(BaseModel):
    """The bonus "surprise": how unlikely the policy finds its own response, at most a share of the reward."""

    model_config = STRICT

    scale: Annotated[float, Field(gt=0)] = 1.0
    """What the mean surprise of a response's tokens, in nats, is multiplied with before it is capped."""
    cap: Annotated[float, Field(gt=0)] = 3.0
    """The bonus is at most |reward| / cap. A response of reward 0 gets none."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The bonus of step t is multiplied by decay^(t − 1). 1 is off. The authors find that some decay is needed."""
