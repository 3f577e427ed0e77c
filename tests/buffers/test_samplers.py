from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from buffers.config import SAMPLERS_IN_ORDER, ReplayConfig
from buffers.extensions import ExtensionError
from buffers.records import Verdict, VerdictStatus
from buffers.replay import InsertResult, ReplayBuffer
from buffers.samplers import SAMPLERS, HeldGroup, require_methods
from buffers.schema import group_ids, with_verdicts

MakeGroup = Callable[..., pa.RecordBatch]
HERE = __name__


class Longest:
    """The groups with the most tokens."""

    offered: Sequence[HeldGroup] = ()

    def __init__(self, most_first: bool = True) -> None:
        self._sign = -1 if most_first else 1

    def choose(self, held: Sequence[HeldGroup], num_groups: int) -> Sequence[int]:
        type(self).offered = held
        return [group.group_id for group in sorted(held, key=lambda group: self._sign * group.num_tokens)][:num_groups]


class Told:
    """Returns what the test tells it to."""

    answer: Any = None

    def choose(self, held: Sequence[HeldGroup], num_groups: int) -> Any:
        return self.answer


class Without:
    pass


def make_replay(sampler: str = "oldest", **options: Any) -> ReplayBuffer:
    """Groups 0 to 3, of 2, 8, 4 and 6 tokens; group 3 is of version 1, the others of version 0."""
    config = ReplayConfig(sampler=sampler, sampler_options=options)
    return ReplayBuffer(group_size=2, max_policy_lag=1, config=config)


def fill(replay: ReplayBuffer, make_group: MakeGroup) -> ReplayBuffer:
    for group_id, (tokens, version) in enumerate([(1, 0), (4, 0), (2, 0), (3, 1)]):
        group = make_group(group_id, *[(version,) * tokens] * 2)
        verdicts = [Verdict(status=VerdictStatus.CORRECT, reward=1.0), Verdict(status=VerdictStatus.TIMEOUT, reward=None)]
        assert replay.insert(with_verdicts(group, verdicts), version=1) is InsertResult.ACCEPTED
    return replay


def test_every_known_sampler_is_made_and_takes_a_fixed_order_where_the_configuration_says_so() -> None:
    assert SAMPLERS.keys() >= SAMPLERS_IN_ORDER
    for name in SAMPLERS:
        require_methods(ReplayConfig(sampler=name))
    assert ReplayConfig().takes_fixed_order and not ReplayConfig(sampler=f"{HERE}:Longest").takes_fixed_order


def test_a_sampler_of_ones_own_chooses_and_the_batch_is_in_the_order_of_ids(make_group: MakeGroup) -> None:
    replay = fill(make_replay(f"{HERE}:Longest"), make_group)
    assert group_ids(replay.sample(2, version=1)).tolist() == [1, 3]
    assert replay.held_ids == [0, 2]
    replay.check_valid()
    shortest = fill(make_replay(f"{HERE}:Longest", most_first=False), make_group)
    assert group_ids(shortest.sample(1, version=1)).tolist() == [0]


def test_a_sampler_is_told_of_the_groups_that_may_be_trained_on_and_of_no_other(make_group: MakeGroup) -> None:
    replay = fill(make_replay(f"{HERE}:Longest"), make_group)
    assert replay.sample(2, version=2) is None  # only group 3 is young enough
    replay.sample(1, version=1)
    assert [(group.group_id, group.num_tokens, group.oldest_version) for group in Longest.offered] == [
        (0, 2, 0),
        (1, 8, 0),
        (2, 4, 0),
        (3, 6, 1),
    ]
    about = Longest.offered[0]
    assert (about.task, about.problem_id, about.rewards) == ("sums", "p0", (1.0, None))
    assert group_ids(replay.sample(1, version=2)).tolist() == [3]
    assert [group.group_id for group in Longest.offered] == [3]


def test_a_group_that_is_passed_over_until_it_is_too_old_is_evicted(make_group: MakeGroup) -> None:
    replay = fill(make_replay(f"{HERE}:Longest"), make_group)
    replay.sample(2, version=1)
    assert [group_ids(group).tolist() for group in replay.evict(version=2)] == [[0], [2]]


def test_a_restored_buffer_offers_what_it_offered(make_group: MakeGroup) -> None:
    replay, restored = fill(make_replay(f"{HERE}:Longest"), make_group), make_replay(f"{HERE}:Longest")
    restored.load_state_dict(replay.state_dict())
    replay.sample(1, version=1)
    offered = Longest.offered
    assert group_ids(restored.sample(1, version=1)).tolist() == [1] and Longest.offered == offered


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0], "chose 1 groups"),
        ([0, 1, 2], "chose 3 groups"),
        ([1, 1], r"chose \[1\] twice"),
        ([0, 9], r"chose \[9\], which are not among the groups offered"),
        (None, "choose must return group ids, not None"),
        (["a", "b"], r"choose must return group ids, not \['a', 'b'\]"),
    ],
)
def test_another_answer_is_one_line_and_changes_nothing(make_group: MakeGroup, answer: Any, message: str, monkeypatch: Any) -> None:
    replay = fill(make_replay(f"{HERE}:Told"), make_group)
    monkeypatch.setattr(Told, "answer", answer)
    with pytest.raises(ExtensionError, match=rf'^replay\.sampler = "{HERE}:Told": .*{message}$'):
        replay.sample(2, version=1)
    assert replay.held_ids == [0, 1, 2, 3]
    replay.check_valid()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (f"{HERE}:Longer", {}, r"did you mean 'Longest'\?"),
        (f"{HERE}:Without", {}, "Without has no choose"),
        (f"{HERE}:Longest", {"most": 1}, r"with replay\.sampler_options = \{'most': 1\}"),
        ("nowhere:Sampler", {}, "there is no module nowhere"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_the_key(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExtensionError, match=rf'^replay\.sampler = "{name}".*{message}'):
        require_methods(ReplayConfig(sampler=name, sampler_options=options))


def test_a_sampler_is_known_or_a_path_and_a_known_one_takes_no_options() -> None:
    with pytest.raises(ValidationError, match="did you mean 'oldest'"):
        ReplayConfig(sampler="oldst")
    with pytest.raises(ValidationError, match='sampler_options are for a class of your own, and sampler = "oldest"'):
        ReplayConfig(sampler_options={"most_first": True})
