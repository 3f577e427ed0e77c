"""The sandbox with programs that mean harm: each ends in time, is told as what it was, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tasks.programs import sandbox
from tasks.programs.sandbox import Isolation, Limits, ProgramStatus, run
from tests.tasks.hostile_programs import CASES, FORK_BOMB, TRY, Case

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("sandboxed")]

LIMITS = Limits(cpu_s=1, wall_s=2.0, memory_bytes=256 << 20, output_bytes=10_000, tmp_bytes=4 << 20)
PATIENT = replace(LIMITS, cpu_s=10, wall_s=20.0)
WAIT_S = 10.0  # bound of every wait


def strays() -> list[psutil.Process]:
    """Forks of this process' launcher that stay: the programs' and what watches over them. A keeper ends a moment after
    its report."""
    launcher = sandbox._launchers[os.getpid(), Isolation.NAMESPACES]._process.pid
    argv = command_line(launcher)
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and command_line(int(entry)) == argv]
    found = []
    for pid in set(pids) - {launcher}:
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return psutil.wait_procs(found, timeout=WAIT_S)[1]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile_program_ends_in_time_and_leaves_nothing(case: Case) -> None:
    limits = replace(LIMITS, wall_s=1.0) if case.is_idle else LIMITS if ProgramStatus.TIMEOUT in case.ends else PATIENT
    grace_s = max(1.0, 20 * run("", PATIENT).seconds)  # 1 s on a machine at rest; a busy one takes longer for everything
    outcome = run(case.program, limits)
    assert outcome.status in case.ends, outcome
    assert outcome.seconds < limits.wall_s + grace_s, outcome
    assert len(outcome.stdout) <= limits.output_bytes and len(outcome.stderr) <= limits.output_bytes
    assert case.says in (None, outcome.stdout), outcome
    assert strays() == []
    assert run("print('intact')", PATIENT).stdout == "intact\n"


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """One of TCP, and an abstract one of Unix, which is of a network namespace too."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0repexp-test-{os.getpid()}")
        unix.listen()
        for each in (tcp, unix):
            each.setblocking(False)
        yield [tcp, unix]


def test_nothing_arrives_at_a_listener_of_the_host(listeners: list[socket.socket]) -> None:
    tcp, unix = listeners
    for each in listeners:  # from here it does
        with socket.socket(each.family) as client:
            client.connect(each.getsockname())
            each.accept()[0].close()
    program = f"""
attempt(socket.create_connection, {tcp.getsockname()})
attempt(socket.socket(socket.AF_UNIX).connect, {unix.getsockname()!r})
"""
    assert run(TRY + program, PATIENT).stdout == "refused\n" * 2
    for each in listeners:
        with pytest.raises(BlockingIOError):
            each.accept()


def test_files_of_a_run_are_neither_seen_nor_changed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    program = f"""
attempt(open, {str(tmp_path / "secret")!r})
attempt(open, {str(tmp_path / "new")!r}, "w")
attempt(os.listdir, {str(tmp_path)!r})
"""
    assert run(TRY + program, PATIENT).stdout == "refused\n" * 3
    assert [path.name for path in tmp_path.iterdir()] == ["secret"] and (tmp_path / "secret").read_text() == "secret"


def test_little_is_held_of_an_endless_flood() -> None:
    before = psutil.Process().memory_info().rss
    for descriptor in (1, 2):
        outcome = run(f"import os\nwhile True: os.write({descriptor}, b'x' * 65536)", replace(PATIENT, output_bytes=1 << 20))
        assert outcome.status is ProgramStatus.OUTPUT
    assert psutil.Process().memory_info().rss - before < 64 << 20


def test_fork_bombs_take_no_process_from_the_program_beside_them() -> None:
    with ThreadPoolExecutor(3) as pool:
        bombs = [pool.submit(run, FORK_BOMB, LIMITS) for _ in range(2)]
        forks = pool.submit(run, "import os\nfor _ in range(3): os.fork()\nos.write(1, b'x')", PATIENT).result()
    assert forks.stdout.count("x") == 8 or forks.status is ProgramStatus.OK  # the last of them may outlive the first, which ends all
    assert {bomb.result().status for bomb in bombs} == {ProgramStatus.TIMEOUT}
    assert strays() == []
