"""What a configuration must know of each known surrogate, correction and advantage estimator. Imports no torch.

The functions themselves are in `learners.loss.surrogates`, `learners.loss.corrections` and `learners.advantages`."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field


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
ESTIMATORS: Mapping[str, Facts] = {"normalised": Facts(reads={"normalise", "combine", "alpha", "beta"})}


def facts_of(known: Mapping[str, Facts], name: str) -> Facts:
    """Return the facts of the method `name`; the defaults for an import path."""
    return known.get(name, Facts())
