"""Settings of the terms that are added to the surrogate. Imports neither torch nor Ray."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from learners.facts import STRICT

KlEstimator = Literal["k1", "k2", "k3"]


class KlConfig(BaseModel):
    """A penalty on the divergence of the policy from a reference, which is the initial policy."""

    model_config = STRICT

    where: Literal["off", "loss", "reward"] = "off"
    """"loss" (GRPO): coefficient · KL of every token is added to the loss. "reward" (InstructGPT, RLOO): coefficient ·
    KL, summed over a response's tokens, is subtracted from its reward before advantages. Both cost a frozen copy of the
    model and one more forward pass. With LoRA no copy is needed: the reference is the model without its adapters.
    "off": no reference model is loaded."""
    estimator: KlEstimator = "k3"
    """How KL is estimated from one sampled token, with r = log pi − log pi_ref (`learners.loss.kl`): "k1" is r, "k2" is
    r²/2, "k3" is exp(−r) − 1 + r. Use "k1" in the reward only. In the loss its gradient is 0 on average, and it is
    refused."""
    coefficient: float = Field(0.0, ge=0)
    """Weight of the divergence. Typical values are 0.001 to 0.1."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if (self.where == "off") != (self.coefficient == 0):
            given = f'kl.where = "{self.where}" contradicts kl.coefficient = {self.coefficient}'
            raise ValueError(f'{given}: set both, or where = "off" and coefficient = 0')
        if self.where == "off" and self.estimator != "k3":
            raise ValueError(f'kl.estimator = "{self.estimator}" has no effect with kl.where = "off": set where too, or leave it out')
        if self.where == "loss" and self.estimator == "k1":
            raise ValueError(
                'kl.estimator = "k1" with kl.where = "loss" has a gradient of expectation 0 and does nothing but add noise: '
                'set the estimator to "k2", which has the gradient that is meant, or to "k3", or where to "reward"'
            )
        return self


class CovarianceConfig(BaseModel):
    """Restraint on the few tokens that lower the entropy most: those whose log-prob and advantage vary together."""

    model_config = STRICT

    term: Literal["off", "kl_cov", "clip_cov"] = "off"
    """"kl_cov": coefficient · |log pi − log pi_old| is added to the loss of the tokens of highest covariance. It is 0
    at the first optimiser step of a batch, so it needs mini_batches above 1. "clip_cov": tokens drawn at random among
    those whose covariance is within `band` have no part in the surrogate. See `learners.loss.covariance`."""
    share: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """The share of the response tokens of an optimiser step that are restrained, at least one token. "auto" is what
    the authors' code takes: 2e-3 for "kl_cov" and 2e-4 for "clip_cov"."""
    coefficient: float = Field(1.0, gt=0)
    """"kl_cov": weight of the penalty."""
    band: tuple[float, float] = (1.0, 5.0)
    """"clip_cov": tokens are drawn among those whose covariance is between these two."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        read = {"off": set[str](), "kl_cov": {"share", "coefficient"}, "clip_cov": {"share", "band"}}
        for key in ("share", "coefficient", "band"):
            value = getattr(self, key)
            if key not in read[self.term] and value != type(self).model_fields[key].default:
                shown, readers = list(value) if isinstance(value, tuple) else value, [term for term, keys in read.items() if key in keys]
                raise ValueError(
                    f'covariance.{key} = {shown} contradicts covariance.term = "{self.term}": it has an effect with term = '
                    + " or ".join(f'"{term}"' for term in readers)
                )
        if self.band[0] >= self.band[1]:
            raise ValueError(f"covariance.band = {list(self.band)} must be [low, high] with low < high")
        return self

    @property
    def share_in_force(self) -> float:
        """The share of tokens. Raises KeyError where the term is off."""
        return {"kl_cov": 2e-3, "clip_cov": 2e-4}[self.term] if self.share == "auto" else self.share
