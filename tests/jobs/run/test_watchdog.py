from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from jobs.run.watchdog import Overdue, Waits

UNIX = 1.7e9
FLOOR_S, FACTOR = 5.0, 3.0


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def unix(self) -> float:
        return UNIX + self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waits(clock: Clock) -> Waits:
    return Waits(floor_s=FLOOR_S, factor=FACTOR, clock=clock, unix_clock=clock.unix)


def wait(waits: Waits, clock: Clock, loop: str, *durations: float, waiting_for: str = "group {}") -> None:
    """Waits of one kind that came to an end."""
    for number, duration in enumerate(durations):
        with waits.waiting(loop, waiting_for.format(number)):
            clock.pass_(duration)


def named(waits: Waits) -> list[str]:
    return [overdue.waiting_for for overdue in waits.overdue()]


def test_what_is_waited_for_is_shown_while_it_lasts_and_since_when(waits: Waits, clock: Clock) -> None:
    with waits.waiting("learn", "8 groups in replay"):
        clock.pass_(3)
        with waits.waiting("score", "verdicts of group 7"):
            clock.pass_(2)
            current = waits.current()
    assert [(w.loop, w.waiting_for, w.since) for w in current] == [
        ("learn", "8 groups in replay", UNIX + 100),
        ("score", "verdicts of group 7", UNIX + 103),
    ]
    assert waits.current() == []


def test_a_wait_is_named_once_when_it_passes_its_usual_time_and_again_when_it_has_doubled(waits: Waits, clock: Clock) -> None:
    wait(waits, clock, "learn", 4.0, waiting_for="8 groups in replay")
    with waits.waiting("learn", "8 groups in replay"):
        found = []
        for second in range(1, 101):
            clock.pass_(1)
            found += [second for _ in waits.overdue()]
    assert found == [13, 26, 52]
    assert waits.overdue() == []


def test_a_wait_says_who_waits_for_what_how_long_and_what_is_usual(waits: Waits, clock: Clock) -> None:
    wait(waits, clock, "score", 2.5, waiting_for="verdicts of group {}")
    with waits.waiting("score", "verdicts of group 7"):
        clock.pass_(20)
        (overdue,) = waits.overdue()
    assert overdue == Overdue(loop="score", waiting_for="verdicts of group 7", waited_s=20.0, usual_s=2.5)
    assert str(overdue) == "score has waited 20 s for verdicts of group 7, usually up to 2.5 s"


def test_a_wait_of_which_nothing_is_known_is_named_after_the_floor(waits: Waits, clock: Clock) -> None:
    with waits.waiting("publish", "version 3"):
        clock.pass_(FLOOR_S)
        assert waits.overdue() == []
        clock.pass_(0.5)
        assert [str(overdue) for overdue in waits.overdue()] == ["publish has waited 6 s for version 3"]


def test_an_expected_time_counts_until_a_wait_has_come_to_an_end(waits: Waits, clock: Clock) -> None:
    with waits.waiting("learn", "step 1", usual_s=10.0):
        clock.pass_(30)
        assert named(waits) == []
        clock.pass_(1)
        assert named(waits) == ["step 1"]
    with waits.waiting("learn", "step 2", usual_s=100.0):
        clock.pass_(94)
        assert [overdue.usual_s for overdue in waits.overdue()] == [31.0]


def test_short_waits_make_nobody_impatient(waits: Waits, clock: Clock) -> None:
    wait(waits, clock, "admit", *[0.001] * 64, waiting_for="a free slot")
    with waits.waiting("admit", "a free slot"):
        clock.pass_(FLOOR_S)
        assert waits.overdue() == []


def test_one_long_wait_makes_nobody_patient_and_old_ones_are_forgotten(waits: Waits, clock: Clock) -> None:
    wait(waits, clock, "learn", *[2.0] * 40, 500.0)
    assert waits.usual_s("learn", "group 99") == 2.0
    wait(waits, clock, "learn", *[9.0] * 64)
    assert waits.usual_s("learn", "group 99") == 9.0
    wait(waits, clock, "learn", *[1.0] * 61)
    assert waits.usual_s("learn", "group 99") == 1.0


def test_a_wait_that_was_cancelled_or_raised_says_nothing_of_the_usual(waits: Waits, clock: Clock) -> None:
    for error in (ValueError, asyncio.CancelledError):
        with pytest.raises(error), waits.waiting("score", "group 7"):
            clock.pass_(1000)
            raise error
    assert waits.current() == []
    assert waits.usual_s("score", "group 99") is None


def test_waits_of_one_loop_at_once_are_named_each_for_itself(waits: Waits, clock: Clock) -> None:
    """Two waits of one name and one text are two."""
    wait(waits, clock, "score", 1.0)
    with ExitStack() as first:
        first.enter_context(waits.waiting("score", "group 1"))
        with waits.waiting("score", "group 1"):
            clock.pass_(4)
            with waits.waiting("score", "group 3"):
                clock.pass_(4)
                assert named(waits) == ["group 1", "group 1"]
                first.close()
                assert [w.waiting_for for w in waits.current()] == ["group 1", "group 3"]
                clock.pass_(8)
                assert named(waits) == ["group 1"], "the other one has doubled"


def test_each_kind_of_wait_has_its_own_history(waits: Waits, clock: Clock) -> None:
    wait(waits, clock, "learn", 100.0, waiting_for="the checkpoint of step {}")
    with (
        waits.waiting("learn", "the checkpoint of step 20"),
        waits.waiting("learn", "training step 20"),
        waits.waiting("score", "the checkpoint of step 20"),
    ):
        clock.pass_(6)
        assert [(overdue.loop, overdue.waiting_for) for overdue in waits.overdue()] == [
            ("learn", "training step 20"),
            ("score", "the checkpoint of step 20"),
        ]


def test_tasks_that_wait_at_once_leave_nothing_behind(waits: Waits, clock: Clock) -> None:
    async def scenario() -> None:
        release = asyncio.Event()

        async def loop(number: int) -> None:
            with waits.waiting("score", f"group {number}"):
                await release.wait()

        tasks = [asyncio.create_task(loop(number)) for number in range(5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.sleep(0)
        clock.pass_(7)
        assert named(waits) == ["group 0", "group 1", "group 3", "group 4"]
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())
    assert waits.current() == []
    assert waits.usual_s("score", "group 99") == 7.0


def test_the_time_to_judge_by_can_be_given(waits: Waits, clock: Clock) -> None:
    with waits.waiting("learn", "a step"):
        assert waits.overdue(clock.now + 4) == []
        assert [overdue.waited_s for overdue in waits.overdue(clock.now + 50)] == [50.0]
        assert waits.overdue(clock.now + 99) == []
        assert len(waits.overdue(clock.now + 100)) == 1


def test_what_ends_by_itself_is_no_standstill_which_counts_from_its_end(waits: Waits, clock: Clock) -> None:
    clock.pass_(3)
    assert waits.still_s() == 3
    with waits.ending():
        with waits.ending():
            clock.pass_(5)
        clock.pass_(5)
        assert waits.still_s() == 0
    clock.pass_(2)
    assert waits.still_s() == 2
