"""The books of groups under random schedules: every fate told once, every sum kept."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from actors.replay import DrawnBatch
from buffers.records import GroupRequest, GroupUsage, Heartbeat, Verdict, VerdictStatus
from buffers.replay import InsertResult
from jobs.config import RunConfig
from jobs.directory.events import EventKind
from jobs.run.books import DropReason, GroupBooks
from tasks.base import TaskError
from tasks.registry import make_task
from tasks.stream import ProblemStream

PROMPTS, RESPONSES, LAG = 3, 4, 1
CORRECT = Verdict(status=VerdictStatus.CORRECT, reward=1.0)


def config_of(**values: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"prompts_per_step": PROMPTS, "responses_per_prompt": RESPONSES, "max_policy_lag": LAG, "max_attempts": 2, **values}
    )


class Told:
    """Books, and all that they said."""

    def __init__(self, **values: Any) -> None:
        config = config_of(**values)
        self.events: list[tuple[EventKind, dict[str, Any]]] = []
        self.warnings: list[str] = []
        stream = ProblemStream(make_task(config.task), "train", config.seed)
        self.books = GroupBooks(config, stream, note=self._note, warn=self.warnings.append)

    def _note(self, kind: EventKind, /, **fields: Any) -> None:
        assert fields.keys() == kind.fields
        self.events.append((kind, fields))
        self.books.check_valid()

    def ends(self) -> Counter[int]:
        """How often each group came to an end."""
        drawn = [i for kind, fields in self.events if kind is EventKind.BATCH for i in fields["group_ids"]]
        return Counter(drawn + [fields["group_id"] for kind, fields in self.events if kind is EventKind.DROPPED])


def usage_of(worker: str, tokens: int, sampled: int) -> GroupUsage:
    return GroupUsage(worker_id=worker, prompt_tokens=1, response_tokens=tokens, generate_s=0.1, sampled_tokens=sampled)


class Schedule:
    """A run of groups in random order, with every fate there is."""

    def __init__(self, seed: int, **values: Any) -> None:
        self.rng = random.Random(seed)
        self.told = Told(**values)
        self.books = self.told.books
        self.to_sample: list[GroupRequest] = []
        self.with_worker: list[GroupRequest] = []
        self.sampled: list[GroupRequest] = []
        self.sampled_tokens = 0
        self.step = 0
        self.masked = 0

    def act(self) -> None:
        books, rng = self.books, self.rng
        actions = [self.admit] * bool(books.admission.free_slots) + [self.dispatch] * bool(self.to_sample)
        actions += [self.give_back, self.beat, self.fail] * bool(self.with_worker) + [self.judge] * bool(self.sampled)
        actions += [self.train] * books.next_batch_is_in(self.step) + [self.lose_rows] * bool(books.held)
        rng.choice(actions)()
        books.check_valid()

    def take(self, groups: list[GroupRequest]) -> GroupRequest:
        return groups.pop(self.rng.randrange(len(groups)))

    def admit(self) -> None:
        request = self.books.admit()
        self.books.submitted(request)
        self.to_sample.append(request)

    def dispatch(self) -> None:
        request = self.take(self.to_sample)
        self.books.dispatched(request, "rollout-0", tries=1, resumed_tokens=0)
        self.with_worker.append(request)

    def beat(self) -> None:
        request = self.rng.choice(self.with_worker)
        self.sampled_tokens += 2
        beat = Heartbeat(
            worker_id="rollout-0", version=0, tokens_by_group={request.group_id: 2}, sampled_tokens=self.sampled_tokens, rss_bytes=1
        )
        self.books.beat("rollout-0", beat)

    def give_back(self) -> None:
        request = self.take(self.with_worker)
        self.sampled_tokens += 5
        self.books.returned(request, "rollout-0", usage_of("rollout-0", 5, self.sampled_tokens))
        self.sampled.append(request)

    def fail(self) -> None:
        request = self.take(self.with_worker)
        self.books.returned(request, "rollout-0", None)
        self.books.dropped(request.group_id, self.rng.choice([DropReason.TIMEOUT, DropReason.DATA, DropReason.LOST]))

    def judge(self) -> None:
        request = self.take(self.sampled)
        self.books.judged(request, [CORRECT] * RESPONSES)
        results = [InsertResult.ACCEPTED] * 6 + [InsertResult.STALE, InsertResult.FILTERED]
        self.books.inserted(request, self.rng.choice(results))

    def lose_rows(self) -> None:
        if self.rng.random() < 0.2:
            self.to_sample.append(self.books.rows_lost(self.rng.choice(sorted(self.books.held))))

    def train(self) -> None:
        held = sorted(self.books.held)
        stale = tuple(held[:1]) if self.rng.random() < 0.2 else ()
        batch = tuple(i for i in held if i not in stale)[:PROMPTS]
        batch = batch if len(batch) == PROMPTS else ()
        masked = tuple(self.rng.randint(0, 5) for _ in batch)
        drawn = DrawnBatch(group_ids=batch, masked_tokens=masked, stale_ids=stale, held_groups=0, held_bytes=0)
        self.masked += sum(masked)
        self.books.drawn(drawn, step=self.step + 1)
        if batch:
            self.step += 1
            self.books.trained(batch, step=self.step, version=self.step)
            self.books.live(self.step, workers=1)


@pytest.mark.parametrize("late", ["mask", "wait", "drop"])
@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_group_has_one_end_and_every_sum_is_kept(seed, late):
    schedule = Schedule(seed, late=late)
    for _ in range(300):
        schedule.act()
    books, ends = schedule.books, schedule.told.ends()
    admitted = [fields["group_id"] for kind, fields in schedule.told.events if kind is EventKind.ADMITTED]
    in_flight = {request.group_id for request in books.admission.in_flight}
    assert set(ends.values()) <= {1} and not in_flight & ends.keys()
    assert in_flight | ends.keys() == set(admitted)
    counts = books.tokens.counts()
    assert counts["generated"] == schedule.sampled_tokens
    assert schedule.step > 0 and counts["trained"] + counts["masked"] == 5 * PROMPTS * schedule.step
    assert counts["masked"] == schedule.masked > 0
    assert books.metrics()["groups/dropped"] == sum(
        kind is EventKind.DROPPED and fields["reason"] != "filtered" for kind, fields in schedule.told.events
    )


@pytest.mark.parametrize("seed", range(5))
def test_saved_and_restored_books_are_the_same(seed):
    schedule = Schedule(seed)
    for _ in range(120):
        schedule.act()
    state = json.loads(json.dumps(schedule.books.state_dict()))
    restored = Told()
    restored.books.load_state_dict(state, held=schedule.books.held)
    restored.books.check_valid()
    assert restored.books.held == schedule.books.held
    assert {r.group_id for r in restored.books.admission.in_flight} == schedule.books.held, "what was on its way is sampled again"
    assert restored.books.admission.ledger.admitted == schedule.books.admission.ledger.admitted


@pytest.mark.parametrize("fate", ["trained", "stale"])
def test_a_group_that_is_drawn_before_the_answer_to_its_insert_is_here_is_not_held_for_ever(fate):
    """Replay has accepted it, and a draw overtakes the answer. It would be counted for a batch that never comes."""
    told = Told()
    requests = [told.books.admit() for _ in range(PROMPTS)]
    for request in requests:
        told.books.submitted(request)
        told.books.dispatched(request, "rollout-0", tries=1, resumed_tokens=0)
        told.books.returned(request, "rollout-0", usage_of("rollout-0", 1, request.group_id + 1))
        told.books.judged(request, [CORRECT] * RESPONSES)
    *early, late = requests
    for request in early:
        told.books.inserted(request, InsertResult.ACCEPTED)
    batch = tuple(request.group_id for request in requests)
    drawn = (batch, ()) if fate == "trained" else ((), batch)
    told.books.drawn(
        DrawnBatch(group_ids=drawn[0], masked_tokens=(0,) * len(drawn[0]), stale_ids=drawn[1], held_groups=0, held_bytes=0), step=1
    )
    assert told.books.has_left_replay(late.group_id)
    told.books.inserted(late, InsertResult.ACCEPTED)
    assert not told.books.held and not told.books.has_left_replay(late.group_id)
    if fate == "trained":
        told.books.trained(batch, step=1, version=1)
        told.books.live(1, workers=1)
    told.books.check_valid()


def under_way(told: Told, num: int) -> list[GroupRequest]:
    requests = [told.books.admit() for _ in range(num)]
    for request in requests:
        told.books.submitted(request)
        told.books.dispatched(request, "rollout-0", tries=1, resumed_tokens=0)
        told.books.returned(request, "rollout-0", usage_of("rollout-0", 1, request.group_id + 1))
        told.books.judged(request, [CORRECT] * RESPONSES)
    return requests


@pytest.mark.parametrize("late", ["mask", "wait", "drop"])
def test_only_wait_waits_for_groups_of_which_it_is_the_last_chance(late):
    """Of six groups under version 0, three are in: at step 1 (S = 1) the other three could be trained on for the last
    time."""
    told = Told(late=late)
    books, requests = told.books, under_way(told, 2 * PROMPTS)
    for request in requests[PROMPTS:]:
        books.inserted(request, InsertResult.ACCEPTED)
    assert books.next_batch_is_in(0)
    assert books.next_batch_is_in(1) is (late != "wait")
    assert books.num_due(1) == (PROMPTS if late == "wait" else 0)
    books.waiting_for_room.add(requests[0].group_id)
    assert books.next_batch_is_in(1), "only a step makes room"


def test_with_wait_no_step_leaves_more_to_the_later_ones_than_they_can_take():
    """Random arrivals of groups that overtake each other: whatever a step takes beside what is due, nothing is late."""
    for seed in range(60):
        rng = random.Random(seed)
        lag = rng.randint(1, 3)
        told = Told(late="wait", max_policy_lag=lag)
        books, trained = told.books, 0
        for _ in range(400):
            on_their_way = [request for request in books.admission.in_flight if request.group_id not in books.held]
            if books.admission.free_slots and rng.random() < 0.7:
                under_way(told, 1)
            elif on_their_way and rng.random() < 0.8:
                books.inserted(rng.choice(on_their_way), InsertResult.ACCEPTED)
            elif books.next_batch_is_in(trained):
                due, others = sorted(books.held)[: books.num_due(trained)], sorted(books.held)[books.num_due(trained) :]
                batch = tuple(sorted(due + rng.sample(others, PROMPTS - len(due))))
                requests = {request.group_id: request for request in books.admission.in_flight}
                assert all(trained - requests[group_id].admitted_version <= lag for group_id in batch)
                books.drawn(
                    DrawnBatch(group_ids=batch, masked_tokens=(0,) * PROMPTS, stale_ids=(), held_groups=0, held_bytes=0), step=trained + 1
                )
                trained += 1
                books.trained(batch, step=trained, version=trained)
                books.live(trained, workers=1)
            left = [request.admitted_version for request in books.admission.in_flight]
            assert all(trained - version <= lag for version in left), f"seed {seed}: a group has become too old"
        assert trained > 10


def test_lateness_is_no_failure_of_the_problem_and_what_is_sampled_again_has_as_much_time_as_others():
    told = Told(max_attempts=1)
    books, requests = told.books, under_way(told, 2 * PROMPTS)
    batch = tuple(request.group_id for request in requests[:PROMPTS])
    for request in requests[:PROMPTS]:
        books.inserted(request, InsertResult.ACCEPTED)
    books.drawn(DrawnBatch(group_ids=batch, masked_tokens=(0,) * PROMPTS, stale_ids=(), held_groups=0, held_bytes=0), step=1)
    books.trained(batch, step=1, version=1)
    late = requests[PROMPTS]
    books.inserted(late, InsertResult.STALE)
    assert not told.warnings and books.admission.free_slots == 0, "version 1 is not live yet"
    books.live(1, workers=1)
    again = books.admit()
    assert (again.problem, again.attempt, again.admitted_version) == (late.problem, 0, 1)
    assert books.admission.free_slots == PROMPTS


def test_a_problem_that_fails_too_often_is_given_up_by_name():
    told = Told(max_attempts=1)
    request = told.books.admit()
    told.books.dispatched(request, "rollout-0", tries=1, resumed_tokens=0)
    told.books.returned(request, "rollout-0", None)
    told.books.dropped(request.group_id, DropReason.DATA)
    (warning,) = told.warnings
    assert request.problem.problem_id in warning and "'data'" in warning


def test_where_every_problem_was_given_up_the_run_says_so(monkeypatch):
    told = Told(max_attempts=1)
    monkeypatch.setattr(type(told.books.admission), "is_quarantined", lambda self, problem: True)
    request = told.books.admission.admit(lambda: next(told.books._stream))
    told.books.tokens.started("rollout-0", request.group_id)
    told.books.dropped(request.group_id, DropReason.DATA)
    with pytest.raises(TaskError, match="no problem is left to train on"):
        told.books.admit()


def test_in_a_fixed_order_a_dropped_group_is_told_of_once():
    told = Told(deterministic=True)
    requests = [told.books.admit() for _ in range(2)]
    for request in requests:
        told.books.submitted(request)
        told.books.dispatched(request, "rollout-0", tries=1, resumed_tokens=0)
        told.books.returned(request, "rollout-0", None)
        told.books.dropped(request.group_id, DropReason.TIMEOUT)
    assert sum("another start may differ" in warning for warning in told.warnings) == 1
