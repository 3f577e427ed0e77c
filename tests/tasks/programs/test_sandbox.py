"""The sandbox with ordinary programs: what they may do, how their ends are told, what becomes of the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tasks.programs import sandbox
from tasks.programs.sandbox import Isolation, Limits, ProgramStatus, SandboxError, run, why_unavailable

pytestmark = pytest.mark.usefixtures("sandboxed")

ROOT = Path(__file__).parents[3]
LIMITS = Limits(cpu_s=5, wall_s=20.0)
WAIT_S = 30.0  # bound of every wait


def launcher_pid(isolation: Isolation = Isolation.NAMESPACES) -> int:
    return sandbox._launchers[os.getpid(), isolation]._process.pid


def test_program_reads_its_input_and_says_what_it_finds() -> None:
    outcome = run("import sys; print(sum(map(int, sys.stdin))); print('note', file=sys.stderr)", LIMITS, stdin="1\n2\n39\n")
    assert (outcome.status, outcome.exit_code, outcome.signal) == (ProgramStatus.OK, 0, None)
    assert (outcome.stdout, outcome.stderr) == ("42\n", "note\n")
    assert 0 < outcome.cpu_s < LIMITS.cpu_s
    assert 0 < outcome.seconds < LIMITS.wall_s
    assert 1 << 20 < outcome.peak_bytes < LIMITS.memory_bytes


@pytest.mark.parametrize(
    ("program", "status", "exit_code", "stderr"),
    [
        ("", ProgramStatus.OK, 0, ""),
        ("exit()", ProgramStatus.OK, 0, ""),
        ("import sys; sys.exit(3)", ProgramStatus.FAILED, 3, ""),
        ("raise SystemExit('no')", ProgramStatus.FAILED, 1, "no\n"),
        (
            "1 / 0",
            ProgramStatus.FAILED,
            1,
            'Traceback (most recent call last):\n  File "<program>", line 1, in <module>\nZeroDivisionError: ',
        ),
        ("f(", ProgramStatus.FAILED, 1, "  File \"<program>\", line 1\n    f(\n     ^\nSyntaxError: '(' was never closed\n"),
        ("'\0'", ProgramStatus.FAILED, 1, "SyntaxError: source code string cannot contain null bytes\n"),
        ("'\ud800'", ProgramStatus.OK, 0, ""),
        ("import atexit; atexit.register(lambda: 1 / 0)", ProgramStatus.OK, 0, "Exception ignored in atexit callback"),
    ],
)
def test_end_of_a_program_is_an_interpreters(program: str, status: ProgramStatus, exit_code: int, stderr: str) -> None:
    outcome = run(program, LIMITS)
    assert (outcome.status, outcome.exit_code) == (status, exit_code)
    assert outcome.stderr.startswith(stderr) if stderr else not outcome.stderr


def test_output_is_flushed_threads_are_waited_for_and_exit_handlers_run() -> None:
    program = """
import atexit, threading, time
atexit.register(print, "handler")
threading.Thread(target=lambda: (time.sleep(0.05), print("thread"))).start()
print("main", end=" ")
"""
    assert run(program, LIMITS).stdout == "main thread\nhandler\n"


def test_every_program_begins_afresh() -> None:
    run("import builtins, json, math; builtins.print = json.loads = math.pi = None; open('/tmp/left', 'w').write('x')", LIMITS)
    outcome = run("import json, math, os; print(json.loads('1'), math.pi > 3, os.listdir('/tmp'), __name__, dir())", LIMITS)
    assert outcome.stdout.startswith("1 True [] __main__ ['__builtins__', '__doc__', ")


def test_order_of_a_set_of_strings_is_the_same_every_time() -> None:
    program = "print(list({'a', 'b', 'c', 'd', 'e', 'f', 'g'}))"
    first = run(program, LIMITS).stdout
    os.kill(launcher_pid(), signal.SIGKILL)
    assert run(program, LIMITS).stdout == first


def test_all_of_the_standard_library_is_there_and_nothing_else() -> None:
    program = """
import asyncio, ctypes, email, hashlib, sqlite3, ssl, zlib, zoneinfo, multiprocessing, concurrent.futures
try:
    import numpy
except ModuleNotFoundError as error:
    print(error)
print(zoneinfo.ZoneInfo("Europe/Rome").key, sqlite3.connect(":memory:").execute("select 6 * 7").fetchone())
with concurrent.futures.ThreadPoolExecutor(3) as pool:
    print(list(pool.map(abs, [-1, -2])))
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-3, -4]))
"""
    outcome = run(program, LIMITS)
    assert outcome.stderr == ""
    assert outcome.stdout == "No module named 'numpy'\nEurope/Rome (42,)\n[1, 2]\n[3, 4]\n"


def test_output_at_the_limit_is_kept_and_a_byte_more_ends_the_program() -> None:
    limits = replace(LIMITS, output_bytes=100_000)
    program = "import sys; sys.stdout.write('x' * {}); sys.stdout.flush()"
    assert run(program.format(100_000), limits).status is ProgramStatus.OK
    over = run(program.format(100_001), limits)
    assert (over.status, over.stdout) == (ProgramStatus.OUTPUT, "x" * 100_000)


def test_output_that_is_no_text_is_replaced() -> None:
    assert run("import os; os.write(1, b'a\\xffb')", LIMITS).stdout == "a\ufffdb"


def test_programs_of_many_threads_do_not_meet() -> None:
    program = (
        "import os, time; open('/tmp/mine', 'x').write('{0}'); time.sleep(0.05); print(open('/tmp/mine').read(), len(os.listdir('/tmp')))"
    )
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda number: run(program.format(number), LIMITS).stdout, range(12)))
    assert said == [f"{number} 1\n" for number in range(12)]


def test_launcher_that_dies_is_replaced_and_no_program_is_lost() -> None:
    run("", LIMITS)
    before = launcher_pid()
    os.kill(before, signal.SIGKILL)
    assert run("print(1)", LIMITS).stdout == "1\n"
    assert launcher_pid() != before


def test_launcher_outlives_the_thread_that_started_it() -> None:
    os.kill(launcher_pid(), signal.SIGKILL) if sandbox._launchers else None
    thread = threading.Thread(target=run, args=("", LIMITS))
    thread.start()
    thread.join()
    before = launcher_pid()
    assert run("print(1)", LIMITS).stdout == "1\n"
    assert launcher_pid() == before


def test_launcher_holds_neither_the_callers_environment_nor_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "secret")
    with open(tmp_path / "held", "w") as held:
        os.set_inheritable(held.fileno(), True)
        run("", LIMITS)
        os.kill(launcher_pid(), signal.SIGKILL)
        run("", LIMITS)
        process = psutil.Process(launcher_pid())
        assert "secret" not in process.environ().values()
        assert not [file for file in process.open_files() if file.path.startswith(str(tmp_path))]


CALLER = """
import os, sys
from tasks.programs.sandbox import Isolation, Limits, run
print("started", flush=True)
run("import os, time\\nfor _ in range(3): os.fork()\\nos.setsid() if os.getpid() != 2 else None\\ntime.sleep(600)", Limits(wall_s=600.0))
"""


def test_nothing_is_left_when_the_caller_is_killed_in_the_middle() -> None:
    caller = subprocess.Popen([sys.executable, "-c", CALLER], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + WAIT_S
        while len(family := psutil.Process(caller.pid).children(recursive=True)) < 11:  # launcher, keeper, init and eight of the program's
            assert time.monotonic() < deadline, family
            time.sleep(0.01)
    finally:
        caller.kill()
        caller.wait()
    _, alive = psutil.wait_procs(family, timeout=WAIT_S)
    assert not alive


def test_caller_that_ends_takes_its_launcher_along() -> None:
    code = "from tasks.programs import sandbox; sandbox.run('', sandbox.Limits()); print(list(sandbox._launchers.values())[0]._process.pid)"
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert not psutil.pid_exists(int(ended.stdout))


def test_weaker_isolation_runs_programs_under_limits() -> None:
    limits = replace(LIMITS, cpu_s=1, wall_s=2.0)
    assert why_unavailable(Isolation.RLIMITS) is None
    assert run("print(6 * 7)", limits, isolation=Isolation.RLIMITS).stdout == "42\n"
    assert run("x = bytearray(1 << 31)", limits, isolation=Isolation.RLIMITS).status is ProgramStatus.MEMORY
    forking = "import os, time\nif os.fork() == 0:\n    time.sleep(600)"
    assert run(forking, limits, isolation=Isolation.RLIMITS).status is ProgramStatus.OK
    left = psutil.Process(launcher_pid(Isolation.RLIMITS)).children(recursive=True)
    assert psutil.wait_procs(left, timeout=WAIT_S)[1] == []


def test_host_that_forbids_namespaces_is_named_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real refusal: in a user namespace that may have no other one."""
    code = """
import ctypes
from tasks.programs.sandbox import Limits, SandboxError, run, why_unavailable
assert ctypes.CDLL(None).unshare(1 << 28) == 0
open("/proc/sys/user/max_user_namespaces", "w").write("0")
print(why_unavailable())
try:
    run("print('ran')", Limits())
except SandboxError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == second == "the sandbox could not be made: OSError: [Errno 28] unshare: No space left on device"


def test_machine_without_the_sandbox_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, release, part in (
        ("riscv64", "6.1.0", "needs Linux on x86_64 or aarch64"),
        ("x86_64", "5.4.0-1", "needs Linux 5.14 or newer"),
    ):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        monkeypatch.setattr("platform.release", lambda release=release: release)
        assert part in str(why_unavailable.__wrapped__())


def test_launcher_that_cannot_start_is_an_error_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_launchers", {})
    monkeypatch.setattr(sandbox, "_LAUNCH", "raise SystemExit")
    with pytest.raises(SandboxError):
        run("", LIMITS)
