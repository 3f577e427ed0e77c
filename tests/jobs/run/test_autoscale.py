from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.config import AutoscaleConfig
from jobs.run.autoscale import Meter, Signals, decide

CONFIG = AutoscaleConfig(policy="queue", min_workers=1, max_workers=8, interval_s=30.0, waiting_share=0.25)
SHARES = st.floats(0.0, 1.0)
CONFIGS = st.builds(
    lambda low, more, share: AutoscaleConfig(min_workers=low, max_workers=low + more, waiting_share=share),
    st.integers(1, 6),
    st.integers(0, 20),
    st.floats(0.05, 0.95),
)


def signals(learner: float, workers: float, interval_s: float = 30.0) -> Signals:
    return Signals(learner_wait_share=learner, worker_wait_share=workers, interval_s=interval_s)


@pytest.mark.parametrize(
    ("learner", "workers", "change"),
    [
        (0.9, 0.0, +1),
        (0.26, 0.25, +1),
        (0.25, 0.0, 0),  # no more than the share
        (0.9, 0.9, 0),  # start-up, a weight load: both wait for something else
        (0.0, 0.0, 0),
        (0.0, 0.3, -1),
        (0.2, 0.3, 0),  # the learner waits at times
        (0.0, 0.2, 0),
    ],
)
def test_who_waits_decides(learner: float, workers: float, change: int) -> None:
    assert decide(signals(learner, workers), 5, CONFIG, last_change_s=None) == 5 + change


def test_no_worker_leaves_whose_work_the_others_could_not_do() -> None:
    assert decide(signals(0.0, 0.3), 2, CONFIG, last_change_s=None) == 2
    assert decide(signals(0.0, 0.3), 4, CONFIG, last_change_s=None) == 3


def test_no_change_follows_another_sooner_than_the_interval() -> None:
    assert decide(signals(1.0, 0.0), 3, CONFIG, last_change_s=29.9) == 3
    assert decide(signals(1.0, 0.0), 3, CONFIG, last_change_s=30.0) == 4


def test_a_shorter_measurement_decides_nothing() -> None:
    assert decide(signals(1.0, 0.0, interval_s=29.0), 3, CONFIG, last_change_s=None) == 3


def test_a_number_out_of_bounds_is_corrected_at_once() -> None:
    assert decide(signals(0.0, 0.0, interval_s=1.0), 20, CONFIG, last_change_s=0.0) == 8
    assert decide(signals(0.0, 0.0, interval_s=1.0), 0, CONFIG, last_change_s=0.0) == 1


@given(learner=SHARES, workers=SHARES, current=st.integers(0, 40), config=CONFIGS, last=st.none() | st.floats(0, 100))
def test_bounds_hold_and_a_change_within_them_is_of_one(
    learner: float, workers: float, current: int, config: AutoscaleConfig, last: float | None
) -> None:
    wanted = decide(signals(learner, workers), current, config, last_change_s=last)
    assert config.min_workers <= wanted <= config.max_workers
    if config.min_workers <= current <= config.max_workers:
        assert abs(wanted - current) <= 1


@given(a=st.tuples(SHARES, SHARES), b=st.tuples(SHARES, SHARES), current=st.integers(1, 20), more=st.integers(0, 5), config=CONFIGS)
def test_a_learner_that_waits_more_and_workers_that_wait_less_never_ask_for_fewer(
    a: tuple[float, float], b: tuple[float, float], current: int, more: int, config: AutoscaleConfig
) -> None:
    (low, high), (less, idler) = sorted([a[0], b[0]]), sorted([a[1], b[1]])
    wanted = decide(signals(low, less), current, config, last_change_s=None)
    assert decide(signals(high, less), current, config, last_change_s=None) >= wanted
    assert decide(signals(low, idler), current, config, last_change_s=None) <= wanted
    assert decide(signals(low, less), current + more, config, last_change_s=None) >= wanted


def simulate(load: float, start: int, config: AutoscaleConfig) -> list[int]:
    """The number of workers over 40 intervals. The learner needs `load` workers' worth of groups: with fewer it waits,
    with more they do."""
    numbers = [start]
    for _ in range(40):
        n = numbers[-1]
        learner, workers = max(0.0, 1 - n / load), max(0.0, 1 - load / n)
        numbers.append(decide(signals(learner, workers), n, config, last_change_s=config.interval_s))
    return numbers


@given(load=st.floats(0.05, 20.0), start=st.integers(1, 24), share=st.floats(0.05, 0.6))
@example(load=1.4, start=1, share=0.25)
def test_a_constant_load_settles_where_nobody_waits_much_and_stays_there(load: float, start: int, share: float) -> None:
    config = AutoscaleConfig(min_workers=1, max_workers=24, waiting_share=share)
    numbers = simulate(load, start, config)
    settled = numbers[-1]
    changes = [b - a for a, b in pairwise(numbers) if a != b]
    assert len(set(changes)) <= 1, f"it turned back: {numbers}"
    assert numbers[abs(settled - start) :] == [settled] * (len(numbers) - abs(settled - start))
    assert settled >= (1 - share) * load - 1e-9
    assert settled <= max(load / (1 - share) + 1e-9, math.floor(load) + 1 + 1e-9)


@settings(max_examples=300)
@given(load=st.floats(0.05, 3.0), start=st.integers(1, 8))
def test_a_small_fleet_settles_within_one_of_what_the_load_needs(load: float, start: int) -> None:
    settled = simulate(load, start, CONFIG)[-1]
    assert abs(settled - math.ceil(load)) <= 1, f"{settled} workers for {load:.2f} workers' worth"


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_the_meter_gives_the_shares_of_its_interval() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    meter.workers_idle(0.5)
    clock.now += 4
    with meter.learner_waits():
        clock.now += 6
        meter.workers_idle(0.0)
        clock.now += 10
    assert meter.elapsed_s == 20.0
    assert meter.take() == Signals(learner_wait_share=0.8, worker_wait_share=0.25, interval_s=20.0)


def test_a_wait_counts_in_every_interval_it_reaches_into() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    clock.now += 5
    with meter.learner_waits():
        clock.now += 5
        assert meter.take().learner_wait_share == 0.5
        clock.now += 3
        assert meter.take().learner_wait_share == 1.0
        clock.now += 2
    clock.now += 2
    assert meter.take().learner_wait_share == 0.5
    assert meter.take() == Signals(learner_wait_share=0.0, worker_wait_share=0.0, interval_s=0.0)


def test_idleness_lasts_until_it_is_said_to_end() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    meter.workers_idle(1.0)
    clock.now += 5
    meter.take()
    clock.now += 5
    assert meter.take().worker_wait_share == 1.0
    with pytest.raises(ValueError, match=r"1\.5 is not a share"):
        meter.workers_idle(1.5)


def test_a_learner_whose_wait_raises_does_not_wait_for_ever() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    with pytest.raises(KeyError), meter.learner_waits():
        clock.now += 1
        raise KeyError
    clock.now += 3
    assert meter.take().learner_wait_share == 0.25
