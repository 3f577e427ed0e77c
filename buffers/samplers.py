"""Which of the groups held in replay a step trains on.

    ids = sampler.choose(held, num_groups)

A class with this method is a sampler; `replay.sampler = "mypackage.module:MySampler"` trains with it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from buffers.config import ReplayConfig
from buffers.extensions import ExtensionError, load


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldGroup:
    """What a sampler is told of a group that may be trained on now."""

    group_id: int  # counts admissions: a lower id was admitted earlier
    task: str
    problem_id: str
    oldest_version: int  # Policy version that sampled the oldest token. Groups that may not be trained on are not offered.
    num_tokens: int  # tokens of all responses
    rewards: tuple[float | None, ...]  # one a response; None where the verifier could not score


class Sampler(Protocol):
    """Chooses among the groups held. A sampler has no state: nothing of it is saved, and a resumed run makes a new one.
    A group that is passed over stays in replay until it is chosen or too old. Then its problem is admitted again."""

    def choose(self, held: Sequence[HeldGroup], num_groups: int) -> Sequence[int]:
        """Return the ids of `num_groups` different groups of `held`, which has at least that many, lowest id first. The
        step trains on them in the order of their ids."""


class Oldest:
    """Chooses the lowest ids: the groups that were admitted first."""

    def choose(self, held: Sequence[HeldGroup], num_groups: int) -> Sequence[int]:
        return [group.group_id for group in held[:num_groups]]


SAMPLERS: Mapping[str, Callable[[], Sampler]] = {"oldest": Oldest}
"""Each known name with what makes the sampler. `buffers.config.SAMPLERS_IN_ORDER` says which take groups in order."""


def sampler_of(config: ReplayConfig) -> Sampler:
    """Return the sampler that `config.sampler` names. Raises ExtensionError."""
    if config.sampler in SAMPLERS:
        return SAMPLERS[config.sampler]()
    sampler: Sampler = load(config.sampler, config.sampler_options, key="replay.sampler", methods=("choose",))
    return sampler


def require_methods(config: ReplayConfig) -> None:
    """Raise ExtensionError, one line that names the key, unless the sampler of `config` can be used."""
    sampler_of(config)


def choose_checked(sampler: Sampler, held: Sequence[HeldGroup], num_groups: int, *, name: str) -> list[int]:
    """Return what `sampler` chooses, lowest id first. `name` is the sampler's in the configuration. Raises
    ExtensionError for another number of groups, a group named twice, and one that is not in `held`."""
    answer: Any = sampler.choose(held, num_groups)
    try:
        ids = sorted(int(group_id) for group_id in answer)
    except (TypeError, ValueError):
        raise ExtensionError(f'replay.sampler = "{name}": choose must return group ids, not {answer!r}') from None
    twice = [group_id for group_id, times in Counter(ids).items() if times > 1]
    unknown = sorted(set(ids) - {group.group_id for group in held})
    if len(ids) != num_groups or twice or unknown:
        what = f"{twice} twice" if twice else f"{unknown}, which are not among the groups offered" if unknown else f"{len(ids)} groups"
        raise ExtensionError(f'replay.sampler = "{name}": choose must return {num_groups} different groups of those held, and chose {what}')
    return ids
