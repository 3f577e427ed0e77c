"""Programs in the verifier pool: they are judged in parallel, and end with their worker."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from actors.config import VerifierConfig
from actors.verifier import VerifierPool
from buffers.records import Problem, Verdict, VerdictStatus
from tasks.config import TaskConfig
from tasks.mbpp_plus import MbppPlusConfig
from tasks.programs.program_tests import ProgramTests, write_tests

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("sandboxed")]

WAIT_S = 30.0
TESTS = ProgramTests(reference="def f(x):\n    return x * x", calls=("f(*[2])", "f(*[3])"))
PROBLEM = Problem(task="mbpp-plus", problem_id="mbpp-plus/0", question="Square x.\nassert f(2) == 4", answer=write_tests(TESTS))
RIGHT = "```python\ndef f(x): return x ** 2\n```"
ENDLESS = "```python\ndef f(x):\n    while True: pass\n```"
FORKING = """```python
import os, time
def f(x):
    for _ in range(2): os.fork()
    if os.getpid() != 2: os.setsid()
    time.sleep(600)
```"""


def task(limit_s: float) -> TaskConfig:
    return TaskConfig(name="mbpp-plus", mbpp_plus=MbppPlusConfig(limit_s=limit_s))


def judged(responses: list[str]) -> list[Verdict]:
    with VerifierPool(task(limit_s=1.0), VerifierConfig(num_workers=2)) as pool:
        return pool.verify(PROBLEM, responses)


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    """The worker is killed long before the program's own time limit."""
    with VerifierPool(task(limit_s=600.0), VerifierConfig(num_workers=1, timeout_s=3.0)) as pool:
        yield pool


def test_responses_are_judged_side_by_side_in_order() -> None:
    wrong = "```python\ndef f(x): return x\n```"
    verdicts = judged(
        [RIGHT, wrong, ENDLESS, "I do not know.", "```python\ndef f(x) return\n```", "```python\nimport os\nos._exit(0)\n```"] + [RIGHT] * 6
    )
    assert [verdict.status.value for verdict in verdicts] == [
        *("correct", "incorrect", "incorrect", "no_answer", "malformed", "incorrect"),
        *["correct"] * 6,
    ]
    assert "ran over 2 s of processor time" in str(verdicts[2].detail)


def processes_of_the_program() -> list[psutil.Process]:
    """Return the program's processes and those that supervise it: all below the launcher of the pool's worker."""
    try:
        workers = psutil.Process().children()
        launchers = [each for worker in workers for each in worker.children() if "sandbox_launcher" in " ".join(each.cmdline())]
        return [process for launcher in launchers for process in (launcher, *launcher.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def test_worker_killed_at_its_deadline_leaves_no_process_of_the_program(pool: VerifierPool) -> None:
    family: list[psutil.Process] = []
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.verify, PROBLEM, [FORKING])
        while len(family) < 7 and not waiting.done():  # launcher, keeper, init and four of the program's
            time.sleep(0.05)
            family = max(family, processes_of_the_program(), key=len)
        (verdict,) = waiting.result()
    assert (verdict.status, verdict.reward) == (VerdictStatus.TIMEOUT, None)
    assert len(family) == 7
    assert psutil.wait_procs(family, timeout=WAIT_S)[1] == []
    (verdict,) = pool.verify(PROBLEM, [RIGHT])
    assert verdict.status is VerdictStatus.CORRECT


@pytest.mark.ray
def test_programs_are_judged_inside_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    directory = tempfile.mkdtemp(prefix="rxp-", dir="/tmp")  # short: the path of a socket has at most 107 characters
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", directory)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = set(psutil.Process().children(recursive=True))
    try:
        ray.init(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
        verdicts = ray.get(ray.remote(judged).remote([RIGHT, ENDLESS]), timeout=100)
        assert [verdict.status.value for verdict in verdicts] == ["correct", "incorrect"]
    finally:
        ray.shutdown()
        left = [process for process in psutil.Process().children(recursive=True) if process not in before]
        psutil.wait_procs(left, timeout=WAIT_S)
        shutil.rmtree(directory, ignore_errors=True)
