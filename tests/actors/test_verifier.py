from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from actors.config import VerifierConfig
from actors.verifier import ResizeError, VerifierPool, VerifierPoolError
from buffers.records import Problem, VerdictStatus
from tasks.config import TaskConfig
from tasks.registry import make_task
from tests.actors.verifier_fakes import (
    PROBLEM,
    make_cold_task,
    make_exiting_task,
    make_fake_task,
    make_task_if_readable,
    make_task_unless,
    make_unbuildable_task,
)

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 1.0
CONFIG = VerifierConfig(num_workers=2, timeout_s=TIMEOUT_S)
WAIT_S = 30.0  # bounds every wait; a busy machine starts a process slowly


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[VerifierPool]:
    """A pool of two started workers, for tests that leave it unchanged."""
    with VerifierPool(TaskConfig(), CONFIG, task_factory=make_fake_task) as pool:
        warm_up(pool, CONFIG.num_workers)
        yield pool


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    """A pool of one worker for each test."""
    with VerifierPool(TaskConfig(), VerifierConfig(num_workers=1, timeout_s=TIMEOUT_S), task_factory=make_fake_task) as pool:
        yield pool


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s until {what}"
        time.sleep(0.01)


def pids(pool: VerifierPool, num_responses: int = 1) -> set[int]:
    """Return the processes that verified `num_responses` responses."""
    return {int(verdict.detail or "") for verdict in pool.verify(PROBLEM, ["pid"] * num_responses)}


def warm_up(pool: VerifierPool, num_workers: int) -> set[int]:
    """Return the processes of the pool, once all of them verify."""
    found: set[int] = set()

    def all_verify() -> bool:
        found.update(pids(pool, 20 * num_workers))
        found.intersection_update({pid for pid in found if is_alive(pid)})
        return len(found) == num_workers

    wait_until(all_verify, f"{num_workers} workers verify")
    return found


def children() -> set[int]:
    """Return the living children of this process, whichever code started them."""
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def worker_processes() -> set[int]:
    """Return the same from the system's own records, which contain processes that Python does not know."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is one, too
            if "spawn_main" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def parent_threads() -> int:
    return sum(thread.name == "verifier-parent" for thread in threading.enumerate())


def is_alive(pid: int) -> bool:
    """Return whether a process runs. A zombie counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def statuses(pool: VerifierPool, *responses: str) -> list[VerdictStatus]:
    return [verdict.status for verdict in pool.verify(PROBLEM, responses)]


def test_verdicts_come_in_the_order_of_the_responses(shared_pool: VerifierPool) -> None:
    responses = [f"wrong {index}" for index in range(50)]
    verdicts = shared_pool.verify(PROBLEM, responses)
    assert [verdict.answer for verdict in verdicts] == responses
    assert all(0.0 < verdict.elapsed_s < TIMEOUT_S for verdict in verdicts)


def test_no_responses_give_no_verdicts(shared_pool: VerifierPool) -> None:
    assert shared_pool.verify(PROBLEM, []) == []


def test_empty_answers_keep_their_place(shared_pool: VerifierPool) -> None:
    found = statuses(shared_pool, "", "correct", "", "wrong", "")
    no_answer, correct, incorrect = VerdictStatus.NO_ANSWER, VerdictStatus.CORRECT, VerdictStatus.INCORRECT
    assert found == [no_answer, correct, no_answer, incorrect, no_answer]


@pytest.mark.parametrize("hang", ["sleep 600", "regex"])
def test_hang_is_killed_at_the_deadline_and_leaves_its_neighbours_alone(shared_pool: VerifierPool, hang: str) -> None:
    before = warm_up(shared_pool, CONFIG.num_workers)
    started = time.monotonic()
    verdicts = shared_pool.verify(PROBLEM, ["correct", "wrong", hang, "", "correct"])
    assert time.monotonic() - started < TIMEOUT_S + 1.0
    assert [verdict.status.value for verdict in verdicts] == ["correct", "incorrect", "timeout", "no_answer", "correct"]
    assert verdicts[2].reward is None and "timeout_s" in (verdicts[2].detail or "")
    after = warm_up(shared_pool, CONFIG.num_workers)
    assert len(before - after) == 1, "the hung worker, and no other, was replaced"
    assert len(children()) == CONFIG.num_workers


def test_time_in_the_queue_does_not_count(pool: VerifierPool) -> None:
    num_responses, sleep_s = 4, 0.6 * TIMEOUT_S
    assert statuses(pool, *[f"sleep {sleep_s}"] * num_responses) == [VerdictStatus.INCORRECT] * num_responses


def test_raising_verifier_is_an_error_that_says_why_and_keeps_its_process(pool: VerifierPool) -> None:
    (before,) = pids(pool)
    (verdict,) = pool.verify(PROBLEM, ["raise"])
    assert (verdict.status, verdict.reward) == (VerdictStatus.ERROR, None)
    assert "ValueError: told to raise" in (verdict.detail or "")
    assert pids(pool) == {before}


def test_verifier_that_returns_no_verdict_is_an_error(pool: VerifierPool) -> None:
    (verdict,) = pool.verify(PROBLEM, ["none"])
    assert verdict.status is VerdictStatus.ERROR and "NoneType" in (verdict.detail or "")


@pytest.mark.parametrize("crash", ["exit", "sigkill"])
def test_crash_is_an_error_for_its_own_response_only(pool: VerifierPool, crash: str) -> None:
    verdicts = pool.verify(PROBLEM, ["correct", crash, "correct"])
    assert [verdict.status.value for verdict in verdicts] == ["correct", "error", "correct"]
    assert "died 2 times" in (verdicts[1].detail or "")
    assert len(pids(pool)) == 1


def test_crash_that_does_not_repeat_is_verified(pool: VerifierPool, tmp_path: Path) -> None:
    assert statuses(pool, f"crash_once {tmp_path / 'crashed'}") == [VerdictStatus.INCORRECT]


def test_worker_killed_while_idle_is_replaced(pool: VerifierPool) -> None:
    (worker,) = pids(pool)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_alive(worker), "the worker is dead")
    assert statuses(pool, "correct", "wrong") == [VerdictStatus.CORRECT, VerdictStatus.INCORRECT]
    (successor,) = pids(pool)
    assert successor != worker


def test_workers_share_the_responses(shared_pool: VerifierPool) -> None:
    warm_up(shared_pool, 2)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: shared_pool.verify(PROBLEM, ["sleep 0.3"]), range(4)))
    assert time.monotonic() - started < 1.0


def test_threads_get_their_own_verdicts_while_workers_crash_and_hang(shared_pool: VerifierPool) -> None:
    def verify(thread: int) -> list[str | None]:
        responses = [f"thread {thread} {index}" for index in range(10)] + ["sigkill" if thread % 2 else "regex"]
        return [verdict.answer for verdict in shared_pool.verify(PROBLEM, responses)]

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(verify, range(6)))
    assert found == [[f"thread {thread} {index}" for index in range(10)] + [None] for thread in range(6)]
    warm_up(shared_pool, CONFIG.num_workers)


def test_workers_outlive_the_thread_that_called_first(pool: VerifierPool) -> None:
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(pids, pool).result(WAIT_S)
    assert pids(pool) == first


def test_ctrl_c_does_not_reach_a_worker(pool: VerifierPool) -> None:
    (worker,) = pids(pool)
    os.kill(worker, signal.SIGINT)
    assert pids(pool) == {worker}


def test_the_tags_of_the_configuration_reach_the_task_and_outlive_a_cut() -> None:
    problem = Problem(task="arithmetic", problem_id="0", question="?", answer="7")
    with VerifierPool(TaskConfig(), VerifierConfig(reasoning_tags=("[THINK]", "[/THINK]"), max_response_chars=20)) as pool:
        responses = [f"[THINK]{'hm ' * 20}7", f"[THINK]{'hm ' * 20}9[/THINK] 7", "[THINK]7[/THINK] 9", "<think>7</think>"]
        expected = [VerdictStatus.NO_ANSWER, VerdictStatus.CORRECT, VerdictStatus.INCORRECT, VerdictStatus.CORRECT]
        assert [verdict.status for verdict in pool.verify(problem, responses)] == expected


def test_long_response_is_verified_by_its_end() -> None:
    config = VerifierConfig(max_response_chars=7)
    with VerifierPool(TaskConfig(), config, task_factory=make_fake_task) as pool:
        assert statuses(pool, "x" * 1000 + "correct") == [VerdictStatus.CORRECT]


def test_stats_count_every_verdict(pool: VerifierPool) -> None:
    assert pool.stats().error_rate == 0.0
    pool.verify(PROBLEM, ["correct", "correct", "wrong", "", "raise"])
    stats = pool.stats()
    assert (stats.num_correct, stats.num_incorrect, stats.num_no_answer, stats.num_timeout, stats.num_error) == (2, 1, 1, 0, 1)
    assert stats.num_verdicts == 5 and stats.error_rate == pytest.approx(0.2)


def test_worker_is_warmed_up_once_before_its_first_response() -> None:
    with VerifierPool(TaskConfig(), CONFIG, task_factory=make_cold_task) as pool:
        assert statuses(pool, *["correct"] * 8) == [VerdictStatus.CORRECT] * 8


def test_deadline_is_the_tasks_own_unless_the_configuration_has_one() -> None:
    with VerifierPool(TaskConfig(), VerifierConfig(), task_factory=make_cold_task) as pool:
        assert statuses(pool, "correct") == [VerdictStatus.CORRECT]
        (verdict,) = pool.verify(PROBLEM, ["sleep 600"])
        assert (verdict.status, verdict.elapsed_s, pool.deadline_s) == (VerdictStatus.TIMEOUT, 0.5, 0.5)
    with VerifierPool(TaskConfig(), CONFIG, task_factory=make_cold_task) as pool:
        assert pool.deadline_s == TIMEOUT_S
    for name, deadline_s in (("arithmetic", 2.0), ("gsm8k", 2.0), ("math", 5.0), ("aime", 5.0), ("dapo-math", 5.0)):
        assert make_task(TaskConfig(name=name)).deadline_s == deadline_s


def test_final_answers_come_with_the_verdicts_where_they_are_asked_for() -> None:
    """A response that is killed has none, and a resize changes nothing."""
    responses = ["correct", "wrong", "", "regex"]
    with VerifierPool(TaskConfig(), CONFIG, task_factory=make_fake_task, final_answers=True) as pool:
        found = pool.verify(PROBLEM, responses)
        pool.resize(1)
        again = pool.verify(PROBLEM, responses[:3])
    assert [verdict.final_answer for verdict in found] == ["correct: correct", "correct: wrong", None, None]
    assert [verdict.status for verdict in found] == ["correct", "incorrect", "no_answer", "timeout"]
    assert [verdict.final_answer for verdict in again] == ["correct: correct", "correct: wrong", None]


def test_no_final_answer_is_read_where_nobody_asks(shared_pool: VerifierPool) -> None:
    assert [verdict.final_answer for verdict in shared_pool.verify(PROBLEM, ["correct", "wrong"])] == [None, None]


def test_task_that_states_final_answers_is_warmed_up_and_keeps_its_deadline() -> None:
    with VerifierPool(TaskConfig(), VerifierConfig(), task_factory=make_cold_task, final_answers=True) as pool:
        assert pool.deadline_s == 0.5
        (verdict,) = pool.verify(PROBLEM, ["correct"])
    assert (verdict.status, verdict.final_answer) == (VerdictStatus.CORRECT, "correct: correct")


def test_final_answers_of_a_real_task_are_whole_and_in_one_spelling() -> None:
    config = TaskConfig()
    task = make_task(config)
    problem = next(iter(task.problems("train")))
    long = "9" * 100
    responses = [f"The answer is {text}" for text in ("007", "7", long)]
    with VerifierPool(config, CONFIG, final_answers=True) as pool:
        found = pool.verify(problem, responses)
    assert [verdict.final_answer for verdict in found] == [task.final_answer(problem, response) for response in responses]
    assert [verdict.final_answer for verdict in found] == ["7", "7", long]
    assert len(found[2].answer or "") < len(long)


def test_task_that_cannot_be_built_is_an_error_that_says_why() -> None:
    with VerifierPool(TaskConfig(), CONFIG, task_factory=make_unbuildable_task) as pool:
        (verdict,) = pool.verify(PROBLEM, ["correct"])
    assert verdict.status is VerdictStatus.ERROR and "no such data set" in (verdict.detail or "")


def test_worker_without_a_task_makes_it_as_soon_as_that_is_possible(tmp_path: Path) -> None:
    """Else a worker that was replaced at a bad moment would answer all with an error, and faster than the others."""
    broken = tmp_path / "broken"
    with VerifierPool(TaskConfig(), VerifierConfig(num_workers=1), task_factory=partial(make_task_if_readable, broken)) as pool:
        broken.touch()
        assert statuses(pool, "exit", "correct") == [VerdictStatus.ERROR, VerdictStatus.ERROR]
        broken.unlink()
        assert statuses(pool, "correct") == [VerdictStatus.CORRECT]
        assert pool.stats().num_rebuilds == 0


def test_workers_that_cannot_start_end_the_call_with_an_error() -> None:
    with (
        VerifierPool(TaskConfig(), CONFIG, task_factory=make_exiting_task) as pool,
        pytest.raises(VerifierPoolError, match="1 of 1 responses to 'fake/train/0'"),
    ):
        pool.verify(PROBLEM, ["correct"])


def test_stuck_pool_ends_the_call_with_what_it_waited_for_and_is_replaced() -> None:
    config = VerifierConfig(num_workers=1, timeout_s=0.5, start_timeout_s=4.0)
    with VerifierPool(TaskConfig(), config, task_factory=make_fake_task) as pool:
        (worker,) = pids(pool)
        os.kill(worker, signal.SIGSTOP)
        with pytest.raises(VerifierPoolError, match=r"for 4.5 s .* 2 of 2 responses to 'fake/train/0' on 1 workers"):
            pool.verify(PROBLEM, ["correct", "wrong"])
        assert not is_alive(worker)
        assert statuses(pool, "correct") == [VerdictStatus.CORRECT]
        assert pool.stats().num_rebuilds == 1


def test_unpicklable_task_is_refused_at_once() -> None:
    before = children()
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        VerifierPool(TaskConfig(), VerifierConfig(), task_factory=lambda: make_fake_task())
    assert children() == before


def test_close_is_idempotent_and_leaves_no_process() -> None:
    before = children()
    pool = VerifierPool(TaskConfig(), CONFIG, task_factory=make_fake_task)
    assert len(children() - before) == CONFIG.num_workers
    pool.close()
    pool.close()
    assert children() == before
    with pytest.raises(VerifierPoolError, match="closed"):
        pool.verify(PROBLEM, ["correct"])


def test_close_ends_a_call_in_another_thread(tmp_path: Path) -> None:
    hanging = tmp_path / "pid"
    errors: list[VerifierPoolError] = []
    pool = VerifierPool(TaskConfig(), VerifierConfig(timeout_s=600.0), task_factory=make_fake_task)

    def verify() -> None:
        try:
            pool.verify(PROBLEM, [f"hang {hanging}"])
        except VerifierPoolError as error:
            errors.append(error)

    thread = threading.Thread(target=verify)
    thread.start()
    wait_until(hanging.exists, "the worker hangs")
    pool.close()
    thread.join(WAIT_S)
    assert not thread.is_alive() and "closed" in str(errors[0])
    assert not is_alive(int(hanging.read_text()))


# ---- resize ----


def test_a_pool_that_is_resized_under_load_answers_every_response_once_and_rightly() -> None:
    before, before_threads, num_threads = worker_processes(), parent_threads(), 3
    stop = threading.Event()

    def verify(thread: int) -> int:
        num_calls = 0
        while not stop.is_set() or num_calls < 3:
            words = [f"{thread} {num_calls} {index}" for index in range(8)]
            responses = ["correct", *words, "raise", "sleep 0.02", ""]
            verdicts = pool.verify(PROBLEM, responses)
            assert [verdict.answer for verdict in verdicts[1:9]] == words
            found = [verdict.status.value for verdict in verdicts]
            assert found == ["correct", *["incorrect"] * 8, "error", "incorrect", "no_answer"]
            num_calls += 1
        return num_calls

    with VerifierPool(TaskConfig(), VerifierConfig(timeout_s=20.0), task_factory=make_fake_task) as pool:
        with ThreadPoolExecutor(num_threads) as threads:
            calls = [threads.submit(verify, thread) for thread in range(num_threads)]
            try:
                for size in (3, 1):
                    pool.resize(size)
                    assert pool.num_workers == size == len(worker_processes() - before)
                    assert parent_threads() == before_threads + 1
            finally:
                stop.set()
            num_calls = sum(call.result(WAIT_S) for call in calls)
        stats = pool.stats()
        assert (stats.num_verdicts, stats.num_correct, stats.num_error) == (12 * num_calls, num_calls, num_calls)
        assert stats.num_rebuilds == 0
    assert worker_processes() == before


def test_what_waits_behind_a_hang_goes_to_the_new_workers_and_the_hang_ends_at_its_deadline(tmp_path: Path) -> None:
    hanging, before = tmp_path / "pid", worker_processes()
    config = VerifierConfig(num_workers=1, timeout_s=10.0)
    with VerifierPool(TaskConfig(), config, task_factory=make_fake_task) as pool, ThreadPoolExecutor(3) as threads:
        first = threads.submit(statuses, pool, f"hang {hanging}")
        wait_until(hanging.exists, "the worker hangs")
        second = threads.submit(statuses, pool, "correct", "wrong")
        resized = threads.submit(pool.resize, 2)
        assert second.result(WAIT_S) == [VerdictStatus.CORRECT, VerdictStatus.INCORRECT]
        assert not first.done() and not resized.done(), "the old worker has its full time"
        assert first.result(WAIT_S) == [VerdictStatus.TIMEOUT]
        resized.result(WAIT_S)
        assert pool.stats().num_rebuilds == 0
        assert not is_alive(int(hanging.read_text()))
        assert len(worker_processes() - before) == 2
    assert worker_processes() == before


def test_what_the_old_workers_do_not_end_in_time_is_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old worker is given no time, so its response goes to the new workers."""
    hanging = tmp_path / "pid"
    config = VerifierConfig(num_workers=1, timeout_s=600.0)
    with VerifierPool(TaskConfig(), config, task_factory=make_fake_task) as pool, ThreadPoolExecutor(1) as threads:
        call = threads.submit(statuses, pool, f"hang_once {hanging}", "correct")
        wait_until(hanging.exists, "the worker hangs")
        monkeypatch.setattr("actors.verifier._KILL_S", -600.0)
        pool.resize(2)
        assert call.result(WAIT_S) == [VerdictStatus.INCORRECT, VerdictStatus.CORRECT]
        assert pool.stats().num_rebuilds == 0


def test_a_crash_while_the_pool_is_resized_costs_its_own_response_only() -> None:
    config = VerifierConfig(num_workers=2, timeout_s=2.0)
    with VerifierPool(TaskConfig(), config, task_factory=make_fake_task) as pool, ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(statuses, pool, "correct", crash, "wrong", "sleep 0.1") for crash in ("exit", "sigkill")]
        pool.resize(1)
        for call in calls:
            first, crashed, *others = [status.value for status in call.result(WAIT_S)]
            assert [first, *others] == ["correct", "incorrect", "incorrect"]
            assert crashed in ("error", "timeout"), "pebble may see the death before it knows which response the worker had"


def test_a_resize_to_the_same_size_keeps_the_workers(pool: VerifierPool) -> None:
    before = pids(pool)
    pool.resize(1)
    assert pids(pool) == before


def test_a_pool_without_workers_is_refused(pool: VerifierPool) -> None:
    with pytest.raises(ValueError, match="not 0"):
        pool.resize(0)
    assert pool.num_workers == 1


def test_a_closed_pool_is_not_resized() -> None:
    pool = VerifierPool(TaskConfig(), VerifierConfig(num_workers=1), task_factory=make_fake_task)
    pool.close()
    before = worker_processes()
    for size in (1, 2):
        with pytest.raises(VerifierPoolError, match="closed"):
            pool.resize(size)
    assert worker_processes() == before


def test_a_resize_whose_workers_cannot_start_leaves_the_old_ones(tmp_path: Path) -> None:
    before, broken = worker_processes(), tmp_path / "broken"
    with VerifierPool(TaskConfig(), VerifierConfig(), task_factory=partial(make_task_unless, broken)) as pool:
        (worker,) = pids(pool)
        broken.touch()
        with pytest.raises(ResizeError, match="none of 2 new verifier workers"):
            pool.resize(2)
        assert pids(pool) == {worker} == worker_processes() - before
        assert (pool.num_workers, pool.stats().num_rebuilds) == (1, 0)


def test_a_broken_pool_is_resized(pool: VerifierPool) -> None:
    (worker,) = pids(pool)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_alive(worker), "the worker is dead")
    pool.resize(2)
    assert statuses(pool, "correct", "wrong") == [VerdictStatus.CORRECT, VerdictStatus.INCORRECT]
    assert pool.num_workers == 2


def test_workers_that_break_after_a_resize_are_replaced_by_as_many() -> None:
    before = worker_processes()
    with VerifierPool(TaskConfig(), VerifierConfig(num_workers=1, timeout_s=TIMEOUT_S), task_factory=make_fake_task) as pool:
        pool.resize(2)
        for worker in warm_up(pool, 2):
            os.kill(worker, signal.SIGKILL)
        assert statuses(pool, "correct", "wrong") == [VerdictStatus.CORRECT, VerdictStatus.INCORRECT]
        wait_until(lambda: len(worker_processes() - before) == 2, "two workers live")


def test_close_ends_a_resize_under_way_and_both_lots_of_workers(tmp_path: Path) -> None:
    hanging, before, before_threads = tmp_path / "pid", worker_processes(), parent_threads()
    pool = VerifierPool(TaskConfig(), VerifierConfig(timeout_s=600.0), task_factory=make_fake_task)
    with ThreadPoolExecutor(2) as threads:
        call = threads.submit(pool.verify, PROBLEM, [f"hang {hanging}"])
        wait_until(hanging.exists, "the worker hangs")
        resized = threads.submit(pool.resize, 2)
        wait_until(lambda: pool.num_workers == 2, "the new workers have taken over")
        pool.close()
        with pytest.raises(VerifierPoolError, match="closed"):
            call.result(WAIT_S)
        resized.result(WAIT_S)
    assert worker_processes() == before
    assert parent_threads() == before_threads


# ---- the end of processes, from outside ----


def test_verdicts_come_though_every_worker_is_killed_while_it_verifies(tmp_path: Path) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    config = VerifierConfig(num_workers=2, timeout_s=600.0)
    with VerifierPool(TaskConfig(), config, task_factory=make_fake_task) as pool, ThreadPoolExecutor(1) as threads:
        call = threads.submit(statuses, pool, *[f"hang_once {file}" for file in files], "correct", "wrong")
        wait_until(lambda: all(file.exists() for file in files), "both workers hang")
        for file in files:
            os.kill(int(file.read_text()), signal.SIGKILL)
        assert [status.value for status in call.result(WAIT_S)] == ["incorrect", "incorrect", "correct", "incorrect"]
        warm_up(pool, 2)


def test_a_stopped_worker_costs_its_response_only_and_is_replaced(tmp_path: Path) -> None:
    """pebble waits three seconds beyond the deadline for a process that ignores SIGTERM."""
    hanging = tmp_path / "pid"
    config = VerifierConfig(num_workers=1, timeout_s=TIMEOUT_S)
    with VerifierPool(TaskConfig(), config, task_factory=make_fake_task) as pool, ThreadPoolExecutor(1) as threads:
        call = threads.submit(statuses, pool, f"hang {hanging}", "correct")
        wait_until(hanging.exists, "the worker hangs")
        worker = int(hanging.read_text())
        os.kill(worker, signal.SIGSTOP)
        assert call.result(WAIT_S) == [VerdictStatus.TIMEOUT, VerdictStatus.CORRECT]
        assert not is_alive(worker)
        assert len(pids(pool)) == 1 and pool.stats().num_rebuilds == 0


def test_a_batch_may_be_verified_again_even_while_it_is_being_verified(shared_pool: VerifierPool) -> None:
    batch = pa.record_batch({"response_text": ["correct", "", "wrong", "raise"]})
    copy = pa.record_batch({"response_text": batch.column("response_text").to_pylist()})
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: shared_pool.verify_batch(PROBLEM, batch), range(6)))
    assert {tuple(verdict.status.value for verdict in verdicts) for verdicts in found} == {("correct", "no_answer", "incorrect", "error")}
    assert batch.equals(copy)


OWNER = """
import sys
from actors.verifier import VerifierPool
from actors.config import VerifierConfig
from tasks.config import TaskConfig
from tests.actors.verifier_fakes import PROBLEM, make_fake_task
pool = VerifierPool(TaskConfig(), VerifierConfig(num_workers=2, timeout_s=600.0), task_factory=make_fake_task)
if sys.argv[1:]:
    pool.verify(PROBLEM, [f"hang {path}" for path in sys.argv[1:]])
else:
    print(pool.verify(PROBLEM, ["correct"])[0].status)
"""


def start_owner(*args: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen([sys.executable, "-c", OWNER, *args], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def test_owner_killed_outright_leaves_no_worker(tmp_path: Path) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    owner = start_owner(*map(str, files))
    try:
        wait_until(lambda: all(file.exists() for file in files), "both workers hang")
    finally:
        owner.kill()
        owner.communicate(timeout=WAIT_S)
    workers = [int(file.read_text()) for file in files]
    wait_until(lambda: not any(map(is_alive, workers)), f"workers {workers} are dead")


def test_owner_that_forgets_to_close_exits() -> None:
    owner = start_owner()
    try:
        output, _ = owner.communicate(timeout=WAIT_S)
    finally:
        owner.kill()
    assert (owner.returncode, output.strip()) == (0, "correct")


def test_pool_judges_expressions_and_hostile_ones_as_fast() -> None:
    config = TaskConfig(name="countdown")
    problem = make_task(config).problem("train", 0)  # type: ignore[attr-defined]
    responses = [problem.answer, f"<answer>{problem.answer} + 1</answer>", "no", "9**9**9", "((9!)!)!", "(" * 100_000 + "1", "1+" * 50_000]
    with VerifierPool(config, VerifierConfig(timeout_s=5.0)) as pool:
        verdicts = pool.verify(problem, responses)
        stats = pool.stats()
    assert [verdict.status.value for verdict in verdicts] == ["correct", "incorrect", "no_answer", *["malformed"] * 4]
    assert max(verdict.elapsed_s for verdict in verdicts) < 1.0
    assert stats.num_rebuilds == 0 and stats.error_rate == 0


def test_pool_makes_the_task_of_its_config() -> None:
    problem = make_task(TaskConfig()).problem("train", 0)  # type: ignore[attr-defined]
    with VerifierPool(TaskConfig(), VerifierConfig()) as pool:
        verdicts = pool.verify(problem, [f"It is {problem.answer}.", "It is -1."])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]
