"""Settings of the exploration bonus and of the selection among candidates. Imports neither torch nor numpy."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bonus.base import Need, load_bonus
from bonus.kinds import (
    KEEP_FEATURES,
    KINDS,
    READS,
    BonusTerm,
    CoinFlipConfig,
    CosineConfig,
    KindName,
    OutcomeUcbConfig,
    RndConfig,
    SurpriseConfig,
    require_options_have_a_class,
)

FeatureSource = Literal["encoder", "policy"]
Memory = Literal["none", "prompt", "run"]
LeverageEstimator = Literal["leverage", "leave_one_out"]
CutOff = Literal["keep", "least"]
BonusNormalise = Literal["none", "std", "zscore"]
Gate = Literal["always", "group_has_correct", "group_not_all_correct", "group_mixed", "correct_only"]


class BonusConfig(BaseModel):
    """Which bonus each response gets besides its reward, and what it is made of.

    `dim`, `source` and `redraw_projection` hold for every bonus that needs features, and `options` for a class of your
    own. Every other key names the kinds that read it, and is refused where none of them is used."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    enabled: bool = True
    """False starts neither the bonus nor what it needs: the reward is the task's alone."""

    kind: KindName = "elliptical"
    """Which bonus. From features: "elliptical" (the paper's), "logdet", "cosine", "coin_flip" and "rnd". From final
    answers: "outcome_ucb" and "outcome_batch". From log-probs: "surprise". The controls: "copies", which looks at
    tokens, and "random", which is noise. Or the import path of a class of your own ("mypackage.module:MyBonus", see
    `bonus/base.py`). `docs/exploration.md` describes them. Encoders are started only for a bonus that needs
    features."""

    options: dict[str, Any] = {}
    """The table that a class of your own is made with. A known kind takes none."""

    terms: tuple[BonusTerm, ...] = ()
    """Several bonuses at once, in place of `kind` and `options`: [{ kind = "elliptical", weight = 0.01 }, ...]. The
    bonus is the sum of weight times bonus. A term has the keys `kind`, `weight` (1 if left out) and `options`. Each is
    logged under its own name, and the other keys of this section hold for the terms that read them."""

    dim: Annotated[int, Field(ge=1)] = 32
    """D, the size of projected features. The authors train with 32 (MATH, GSM8K) and 128 (AIME). A saved state of
    another D is refused."""

    source: FeatureSource = "encoder"
    """Whose hidden states are the features. "encoder" is a frozen copy of the initial policy (the authors' choice).
    "policy" is the current policy itself, read from the rollout engine. It costs no second forward pass, but every
    update moves the space, so it is refused with a memory."""

    ridge: Annotated[float, Field(gt=0)] | Literal["auto"] = 0.01
    """elliptical, logdet, coin_flip: lam in Sigma = lam*I + P + X'X; "auto" is the running mean energy of centered
    features. The authors take 0.01. Real features have energy 150 to 200. So with memory = "none" the leverages of
    distinct responses sit at 1 - 1/K and differ by 1e-4, and those of copies are lower by far. Set "auto" with
    combine = "advantage", where the bonus enters as it is."""

    memory: Memory = "none"
    """elliptical, logdet: what P remembers. "none" scores each group alone (the authors' training setting). "prompt"
    scores against all responses to the same prompt so far (their persistent branch). "run" keeps the directions that
    earlier steps explored on any prompt, so its bonuses shrink over the run."""

    prompt_memory_mib: Annotated[int, Field(ge=1)] = 256
    """elliptical, logdet: bound of what memory="prompt" keeps. A prompt takes 8 (D^2 + D) bytes, so this holds about
    31,000 prompts at D=32 and 2,000 at D=128. Beyond it the least recently used prompts are forgotten and counted.
    Prompts of the step that is scored stay, even if they alone exceed the bound."""

    forgetting: Annotated[float, Field(gt=0, le=1)] = 0.99
    """elliptical, logdet: gamma, the factor on the past per absorbed step: 0.99 remembers about 100 steps. At 1 with
    memory="run" nothing is forgotten and the bonus dies out as 1/t. The energy behind ridge="auto" is forgotten at the
    same rate under every memory; memory="prompt" forgets nothing else."""

    estimator: LeverageEstimator = "leverage"
    """elliptical: "leverage" is bounded by 1 - 1/K. "leave_one_out" = leverage / (1 - leverage) scores a response
    against the others alone, reaches K - 1, and orders the responses in the same way."""

    normalise: BonusNormalise = "none"
    """elliptical, logdet, cosine, coin_flip, copies, random. Within a group: "std" divides by the standard
    deviation, "zscore" also subtracts the mean. In a saturated group (see `ridge`) "std" divides by 1e-4: the
    bonuses become thousands, and beta must answer for it."""

    gate: Gate = "group_has_correct"
    """elliptical, logdet, cosine, coin_flip, copies, random: which responses keep their bonus, applied after
    `normalise`; the others get 0. The first four choose whole groups, "correct_only" chooses single responses. An
    empty response counts as not correct."""

    staleness_discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """elliptical, logdet, cosine, coin_flip, copies, random. A response whose oldest token was sampled `lag`
    versions ago keeps discount^lag of its bonus, after `normalise` and `gate`: what was new to an older policy may
    no longer be new. 1 is off."""

    cut_off: CutOff = "least"
    """elliptical, logdet, cosine, coin_flip, copies, random: what a response gets that ran into the token limit.
    "keep": its bonus, as in the paper. "least": the least bonus of its group's responses that ended, so that going
    on after the answer is not worth it. It is applied before `normalise`."""

    redraw_projection: bool = False
    """True draws a fresh projection every step, as the authors do. Features of different steps then live in different
    spaces, so it is refused with a memory, and with a bonus that always has one (rnd, coin_flip)."""

    cosine: CosineConfig = CosineConfig()
    """The bonus "cosine": how unlike the others of its group a response is."""

    outcome_ucb: OutcomeUcbConfig = OutcomeUcbConfig()
    """The bonus "outcome_ucb": how rarely a problem got this final answer so far."""

    rnd: RndConfig = RndConfig()
    """The bonus "rnd": how badly a small network predicts a fixed random one on the response's feature."""

    coin_flip: CoinFlipConfig = CoinFlipConfig()
    """The bonus "coin_flip": an estimate of N^-1/2, where N counts the responses with features like this one."""

    surprise: SurpriseConfig = SurpriseConfig()
    """The bonus "surprise": how unlikely the policy finds its own response, at most a share of the reward."""

    @property
    def parts(self) -> tuple[BonusTerm, ...]:
        """The bonuses that are used: the terms, or the one of `kind` and `options`."""
        return self.terms or (BonusTerm(kind=self.kind, options=self.options),)

    @property
    def label(self) -> str:
        """What a message or a saved state calls the bonus: its kind, or those of the terms."""
        return " + ".join(part.kind for part in self.parts)

    def prefix_of(self, part: BonusTerm) -> str:
        """Return what the names of this part's metrics begin with."""
        return f"bonus/{part.name}" if self.terms else "bonus"

    @cached_property
    def needs(self) -> frozenset[Need]:
        """What must be computed for the bonus; nothing where it is off. A class of your own is imported to say so,
        once. Raises ExtensionError where that fails."""
        parts = self.parts if self.enabled else ()
        needs = (KINDS[part.kind] if part.kind in KINDS else frozenset(load_bonus(part.kind, part.options).needs) for part in parts)
        return frozenset().union(*needs)

    @property
    def feature_source(self) -> FeatureSource | None:
        """Whose hidden states are computed, or None where the bonus needs no features. Raises as `needs`."""
        return self.source if Need.FEATURES in self.needs else None

    @property
    def needs_answers(self) -> bool:
        """Whether final answers are read where responses are judged. Raises as `needs`."""
        return Need.ANSWERS in self.needs

    @model_validator(mode="after")
    def _options_have_a_class(self) -> Self:
        require_options_have_a_class(self.kind, self.options)
        return self

    @model_validator(mode="after")
    def _terms_stand_in_place_of_a_kind(self) -> Self:
        names = [part.name for part in self.parts]
        if self.terms and (self.kind, self.options) != ("elliptical", {}):
            raise ValueError("bonus.kind and bonus.options have no effect beside bonus.terms: write them into a term, or leave them out")
        if len(set(names)) < len(names):
            raise ValueError(f"bonus.terms has {names}: each kind may stand there once, as its keys and its metrics have one name")
        return self

    @model_validator(mode="after")
    def _every_key_is_read(self) -> Self:
        read = {key for part in self.parts for key in READS.get(part.kind, ())}
        for key in sorted({key for keys in READS.values() for key in keys} - read):
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                readers = ", ".join(f'"{kind}"' for kind, keys in READS.items() if key in keys)
                named = f"bonus.{key}" if isinstance(value, BaseModel) else f"bonus.{key} = {value!r}"
                used = f'bonus.kind = "{self.kind}"' if not self.terms else f"bonus.terms of {self.label}"
                raise ValueError(f"{named} has no effect with {used}: it is for {readers} alone")
        return self

    @model_validator(mode="after")
    def _memory_needs_one_space(self) -> Self:
        if self.memory != "none" and self.redraw_projection:
            raise ValueError(
                f"redraw_projection=True contradicts memory={self.memory!r}: a covariance kept over steps needs one projection; "
                "set redraw_projection=False or memory='none'"
            )
        if self.memory != "none" and self.source == "policy":
            raise ValueError(
                f"source='policy' contradicts memory={self.memory!r}: a policy's hidden states move with every update, so those of "
                "different steps cannot be compared; set source='encoder' or memory='none'"
            )
        for part in self.parts:
            if part.kind in KEEP_FEATURES and (self.redraw_projection or self.source == "policy"):
                key = "redraw_projection = true" if self.redraw_projection else 'source = "policy"'
                raise ValueError(f'bonus.{key} contradicts "{part.kind}", which compares features of different steps: leave it out')
        return self


class SelectionConfig(BaseModel):
    """The order in which the candidates of a pool are verified (`bonus.orders`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    dim: Annotated[int, Field(ge=1)] = 512
    """D, the size of projected features. The authors select with 512."""

    ridge: Annotated[float, Field(gt=0)] | Literal["auto"] = 1.0
    """lam of the selection; "auto" is the mean energy of the features used, after centering or scaling. Far below the
    features' energy every new direction counts the same; far above it the longest features come first, however
    alike."""

    center: Literal["none", "pool"] = "none"
    """"none" takes the features as they are: they share a large mean, and the first pick is simply the longest. "pool"
    subtracts the pool's mean after the projection, as the paper's appendix B.1 does. Only the order repexp reads it:
    quality, kmeans and determinantal have a choice of their own."""

    quality: Literal["none", "logprob"] = "none"
    """What novelty is weighted with. "none" is the authors' selection. "logprob" multiplies by the answer's likelihood,
    without which a weak model's incoherent answers come first."""

    quality_exponent: Annotated[float, Field(ge=0)] = 1.0
    """a in exp(a * (l - l_max)), l the mean log-prob of a token. 0 leaves novelty alone (of centered unit-length
    features)."""

    max_clusters: Annotated[int, Field(ge=1)] = 16
    """Number of clusters of the order kmeans, which puts one candidate of each cluster first. Set it to the number of
    candidates that will be verified."""

    seed: int = 0
    """Seed of the orders random and kmeans."""

    @property
    def order(self) -> Literal["repexp", "quality"]:
        """Return the name in `bonus.orders.ORDERS` that this config stands for."""
        return "repexp" if self.quality == "none" else "quality"


ORDER_NAMES = (
    *("repexp", "quality", "random", "likeliest", "unlikeliest", "longest", "kmeans", "determinantal"),
    *("distinct_answers", "answers_by_novelty", "answers_by_likelihood", "answers_by_votes"),
)
"""The names of `bonus.orders.ORDERS`, for readers that do without torch."""
