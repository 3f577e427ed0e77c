"""What a configuration must know of each known surrogate, correction and advantage estimator. Imports no torch.

The functions themselves are in `learners.loss.surrogates`, `learners.loss.corrections` and `learners.estimators`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bonus.base import Need
from buffers.extensions import ExtensionError

STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of one method. The defaults hold for a method that is named by an import path."""

    reads: Set[str] | None = None
    """The keys of its section that only some methods read, of which it reads these. None: it may read all of them."""
    by_response: bool = True
    """Whether it depends on which tokens belong to one response."""
    has_ratio: bool = True
    """Surrogates: whether a ratio to the anchor corrects the later optimiser steps of a batch."""
    corrects: bool = True
    """Corrections: whether they weigh the tokens of another policy. If not, the anchor is the policy that sampled."""
    bands: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Corrections: the band that mask_band = "auto" stands for, by sequence_ratio."""
    rewards: Literal["any", "at least 0", "0 or 1"] = "any"
    """Estimators: the rewards for which the equation means something."""


SURROGATES: Mapping[str, Facts] = {
    "clip": Facts(reads={"clip_low", "clip_high", "dual_clip"}, by_response=False),
    "gspo": Facts(reads={"gspo_clip_low", "gspo_clip_high"}),
    "cispo": Facts(reads={"cispo_cap"}, by_response=False),
    "reinforce": Facts(reads=set(), by_response=False, has_ratio=False),
}
CORRECTIONS: Mapping[str, Facts] = {
    "truncated_is": Facts(reads={"is_cap"}, by_response=False),
    "masked_is": Facts(reads={"mask_band"}, by_response=False, bands={"product": (0.5, 5.0)}),
    "sequence_truncated_is": Facts(reads={"is_cap", "sequence_ratio"}),
    "sequence_masked_is": Facts(reads={"mask_band", "sequence_ratio"}, bands={"product": (0.0, 2.0), "geometric": (0.98, 1.02)}),
    "decoupled": Facts(reads=set(), by_response=False),
    "trust_region_mask": Facts(reads={"trust_region_max", "trust_region_mean"}),
    "none": Facts(reads=set(), by_response=False, corrects=False),
}
ESTIMATORS: Mapping[str, Facts] = {
    "normalised": Facts(reads={"normalise", "combine", "alpha", "beta"}),
    "maxrl": Facts(reads={"combine", "beta"}, rewards="at least 0"),
    "pass_at_k": Facts(reads={"combine", "beta", "pass_k"}, rewards="0 or 1"),
    "uniqueness": Facts(reads={"normalise", "combine", "alpha", "beta", "cluster_by", "max_clusters", "rarity"}),
}


def facts_of(known: Mapping[str, Facts], name: str) -> Facts:
    """Return the facts of the method `name`; the defaults for an import path."""
    return known.get(name, Facts())


def needs_of(method: Any, named: str) -> frozenset[Need]:
    """Return what `method`, an estimator of your own, asks for with an attribute `needs`. Raises ExtensionError for
    anything but a set of `ESTIMATOR_NEEDS`."""
    needs: Any = getattr(method, "needs", frozenset())
    if isinstance(needs, str) or not isinstance(needs, Collection) or not set(needs) <= ESTIMATOR_NEEDS:
        raise ExtensionError(f"{named}: needs = {needs!r} is not a set of: {', '.join(sorted(ESTIMATOR_NEEDS))}")
    return frozenset(Need(need) for need in needs)


ESTIMATOR_NEEDS = frozenset({Need.FEATURES, Need.ANSWERS})
"""What an advantage estimator may be given besides rewards and bonuses."""


def without_effect(section: BaseModel, seam: str, known: Mapping[str, Facts], reads: Collection[str] | None) -> str | None:
    """Return why a key of `section` that is set has no effect, or None. `seam` is the key that names the method,
    `known` its known methods, and `reads` what the chosen method reads."""
    if reads is None:
        return None
    for key in sorted(set().union(*(facts.reads or () for facts in known.values())) - set(reads)):
        value = getattr(section, key)
        if value != type(section).model_fields[key].default:
            shown = list(value) if isinstance(value, tuple) else f'"{value}"' if isinstance(value, str) else value
            readers = " or ".join(f'"{name}"' for name, facts in known.items() if key in (facts.reads or ()))
            chosen = getattr(section, seam)
            return f'{key} = {shown} contradicts {seam} = "{chosen}": it has an effect with {seam} = {readers} alone'
    return None


def refuse_without_effect(section: BaseModel, seam: str, known: Mapping[str, Facts]) -> None:
    """Raise ValueError for keys and options of `section` that a known method does not read."""
    chosen, options = getattr(section, seam), getattr(section, f"{seam}_options")
    if (reason := without_effect(section, seam, known, facts_of(known, chosen).reads)) is not None:
        raise ValueError(reason)
    if options and chosen in known:
        raise ValueError(f'{seam}_options = {options} contradicts {seam} = "{chosen}": they are for a class named by an import path')
