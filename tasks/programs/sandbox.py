"""Run an untrusted Python program where it can harm neither the caller nor the machine.

    if (reason := why_unavailable()) is not None:
        raise TaskError(reason)                        # once, before anything runs
    outcome = run(program, Limits(cpu_s=5), stdin="...")
    if outcome.status is ProgramStatus.OK:
        print(outcome.stdout)

docs/sandbox.md has the threat model. In short: the program has its own user, pid, mount, network, ipc and uts
namespaces (`tasks.programs.sandbox_namespaces`). It sees the standard library, the system's libraries and an empty
/tmp; it has no capability, no command to execute and no network. It runs under the limits below and behind a filter of
system calls (`tasks.programs.sandbox_filter`). When it ends, reaches its deadline or loses its caller, every process it
made is gone. With Isolation.RLIMITS, for hosts that forbid namespaces, there are only the limits and a process group:
that is NOT safe against a malicious program.

The first `run` of a process starts its launcher (`tasks.programs.sandbox_launcher`), which lives as long as the
process. Any number of threads may call `run`. A program's output is data, of which no more than the limit is held."""

import atexit
import fcntl
import json
import os
import platform
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from tasks.programs.sandbox_filter import MACHINES
from tasks.programs.sandbox_launcher import LOADER_VARIABLES, MEMORY_EXIT

__all__ = ["Isolation", "Limits", "Outcome", "ProgramStatus", "SandboxError", "run", "why_unavailable"]

_KERNEL = (5, 14)
_TRIES = 2
_PATIENCE_S = 15.0  # past a program's deadline: a busy machine may report its end late
_CHUNK_BYTES = 1 << 16
_ENVIRONMENT = {"HOME": "/tmp", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "TZ": "UTC"}
_LAUNCH = (
    "import sys; sys.path.insert(0, {root!r}); from tasks.programs.sandbox_launcher import main; "
    "del sys.path[0]; main({fd}, isolated={isolated})"
)


class Isolation(StrEnum):
    """How programs are isolated from the machine."""

    NAMESPACES = "namespaces"
    RLIMITS = "rlimits"  # not safe


class ProgramStatus(StrEnum):
    """How a program ended."""

    OK = "ok"  # exit code 0
    FAILED = "failed"  # another exit code; an uncaught exception gives 1
    TIMEOUT = "timeout"  # it reached its limit of processor time or wall-clock time
    MEMORY = "memory"  # an uncaught MemoryError
    OUTPUT = "output"  # it printed more than its limit
    SIGNAL = "signal"  # it crashed, or was killed by itself or by the kernel


class SandboxError(RuntimeError):
    """The sandbox failed, so nothing is known of the program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The resources of one program. Its memory is at most processes * memory_bytes + tmp_bytes."""

    cpu_s: int = 5  # of each process
    wall_s: float = 10.0
    memory_bytes: int = 512 << 20  # address space of each process
    output_bytes: int = 64 << 10  # of stdout and of stderr, each
    tmp_bytes: int = 16 << 20  # of all files together
    processes: int = 8  # and threads, in all
    open_files: int = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a program ended. `exit_code` is None if it did not exit, and `signal` is None if no signal ended it. Its
    output is cut at the limit and decoded as UTF-8 with replacement. `cpu_s` and `peak_bytes` (resident, with the
    interpreter) count its first process and the children this waited for. A program killed at a deadline has 0."""

    status: ProgramStatus
    exit_code: int | None
    signal: int | None
    stdout: str
    stderr: str
    seconds: float
    cpu_s: float
    peak_bytes: int


def run(program: str, limits: Limits, *, stdin: str = "", isolation: Isolation = Isolation.NAMESPACES) -> Outcome:
    """Run `program` as __main__ of an interpreter of its own, without installed packages, in an empty /tmp. Returns
    shortly after limits.wall_s at the latest. Raises SandboxError if the sandbox could not be made, or broke twice."""
    for _ in range(_TRIES):
        told, said = _try(program, limits, stdin, isolation)
        if told is not None:
            return _outcome(told, said, limits)
    raise SandboxError("the sandbox was killed while a program ran in it")


def _try(program: str, limits: Limits, stdin: str, isolation: Isolation) -> tuple[dict[str, Any] | None, list[bytes]]:
    """Return the keeper's report, or None if the keeper was killed, and the program's output."""
    report, to_report = socket.socketpair()
    (stdout, to_stdout), (stderr, to_stderr) = _pipe(), _pipe()
    with report, stdout, stderr:
        with to_report, to_stdout, to_stderr, _file(program) as program_file, _file(stdin) as stdin_file:
            _send(isolation, limits, [each.fileno() for each in (program_file, stdin_file, to_stdout, to_stderr, to_report)])
        return _watch(report, [stdout.fileno(), stderr.fileno()], limits)


@cache
def why_unavailable(isolation: Isolation = Isolation.NAMESPACES) -> str | None:
    """Return why this machine cannot isolate programs so, in one line, or None. The first call runs a trial."""
    machine, kernel = platform.machine(), tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
    if sys.platform != "linux" or machine not in MACHINES:
        return f"the sandbox needs Linux on {' or '.join(MACHINES)}, and this is {sys.platform} on {machine}"
    if isolation is Isolation.NAMESPACES and kernel < _KERNEL:
        return f"the sandbox needs Linux {_KERNEL[0]}.{_KERNEL[1]} or newer, and this is {platform.release()}"
    limits = Limits()
    try:
        outcome = run(_TRIAL, limits, isolation=isolation)
    except SandboxError as error:
        return str(error)
    if outcome.status is not ProgramStatus.OK:
        return f"a trial program ended as {outcome.status}: {outcome.stderr.strip()[-200:]}"
    if isolation is Isolation.NAMESPACES and int(outcome.stdout) >= limits.processes:
        return "the limit on processes does not hold here"
    return None


_TRIAL = """
import colorsys, os, signal  # colorsys is not loaded yet: this checks that the library can be read
children = []
try:
    while len(children) < 64:
        children.append(os.fork())
        if children[-1] == 0:
            signal.pause()
except BlockingIOError:
    pass
print(len(children))
"""


# ---- the output of a program and its end ----
def _watch(report: socket.socket, streams: Sequence[int], limits: Limits) -> tuple[dict[str, Any] | None, list[bytes]]:
    """Return the keeper's report and the output up to it. The keeper ends the program if a stream exceeds the limit."""
    said: dict[int, bytearray] = {stream: bytearray() for stream in streams}
    told = bytearray()
    deadline = time.monotonic() + limits.wall_s + _PATIENCE_S
    with selectors.DefaultSelector() as selector:
        selector.register(report, selectors.EVENT_READ)
        for stream in streams:
            os.set_blocking(stream, False)
            selector.register(stream, selectors.EVENT_READ)
        while report in selector.get_map():
            ready = [key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
            if not ready:
                raise SandboxError(f"nothing was heard of a program's end {_PATIENCE_S:g} s after its deadline")
            for source in ready:
                if source is report:
                    chunk = report.recv(_CHUNK_BYTES)
                    told += chunk
                    done = not chunk
                else:
                    assert isinstance(source, int)
                    done = _read(source, said[source], limits.output_bytes)
                    if len(said[source]) > limits.output_bytes:
                        report.shutdown(socket.SHUT_WR)
                if done:
                    selector.unregister(source)
    for stream in streams:
        _read(stream, said[stream], limits.output_bytes)
    return json.loads(told) if told else None, [bytes(text) for text in said.values()]


def _read(stream: int, said: bytearray, limit: int) -> bool:
    """Append what can be read, up to one byte beyond `limit`, and return whether nothing more will be read."""
    while len(said) <= limit:
        try:
            chunk = os.read(stream, min(_CHUNK_BYTES, limit + 1 - len(said)))
        except BlockingIOError:
            return False
        if not chunk:
            return True
        said += chunk
    return True


def _outcome(told: dict[str, Any], said: list[bytes], limits: Limits) -> Outcome:
    if "error" in told:
        raise SandboxError(f"the sandbox could not be made: {told['error']}")
    exit_code, ended_by, cpu_s = told.get("exit_code"), told.get("signal"), told.get("cpu_s", 0.0)
    if any(len(text) > limits.output_bytes for text in said):
        status = ProgramStatus.OUTPUT
    elif exit_code is not None:
        status = {0: ProgramStatus.OK, MEMORY_EXIT: ProgramStatus.MEMORY}.get(exit_code, ProgramStatus.FAILED)
    elif ended_by is None or ended_by == signal.SIGXCPU or (ended_by == signal.SIGKILL and cpu_s >= limits.cpu_s):
        status = ProgramStatus.TIMEOUT
    else:
        status = ProgramStatus.SIGNAL
    stdout, stderr = (text[: limits.output_bytes].decode("utf-8", "replace") for text in said)
    return Outcome(
        status=status,
        exit_code=exit_code,
        signal=ended_by,
        stdout=stdout,
        stderr=stderr,
        seconds=told["seconds"],
        cpu_s=cpu_s,
        peak_bytes=told.get("peak_bytes", 0),
    )


# ---- the launcher ----
class _Launcher:
    """The launcher of this process. It ends when the last copy of `socket` is closed, hence with this process."""

    def __init__(self, isolation: Isolation) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            root = str(Path(__file__).parents[2])
            code = _LAUNCH.format(root=root, fd=theirs.fileno(), isolated=isolation is Isolation.NAMESPACES)
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-s", "-P", "-B", "-c", code, f"of process {os.getpid()}"],
                env=_ENVIRONMENT | {name: os.environ[name] for name in LOADER_VARIABLES if name in os.environ},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C must not reach programs
            )
        self.socket.settimeout(_PATIENCE_S)

    def close(self) -> None:
        self.socket.close()
        self._process.kill()
        self._process.wait()


_launchers: dict[tuple[int, Isolation], _Launcher] = {}  # a fork of this process gets launchers of its own
_lock = threading.Lock()


def _send(isolation: Isolation, limits: Limits, descriptors: Sequence[int]) -> None:
    """Send a request to the launcher, or to a new one if that has died."""
    request = json.dumps(asdict(limits)).encode()
    for _ in range(_TRIES):
        launcher = _launcher(isolation)
        try:
            socket.send_fds(launcher.socket, [request], descriptors)
            return
        except OSError:
            _forget(isolation, launcher)
    raise SandboxError("the sandbox's launcher dies as it starts")


def _launcher(isolation: Isolation) -> _Launcher:
    key = (os.getpid(), isolation)
    with _lock:
        if key not in _launchers:
            for other in [each for each in _launchers if each[0] != key[0]]:
                _launchers.pop(other).socket.close()  # inherited from the parent process by fork
            try:
                _launchers[key] = _Launcher(isolation)
            except OSError as error:
                raise SandboxError(f"the sandbox's launcher cannot be started: {error}") from None
        return _launchers[key]


def _forget(isolation: Isolation, launcher: _Launcher) -> None:
    key = (os.getpid(), isolation)
    with _lock:
        if _launchers.get(key) is launcher:
            del _launchers[key]
    launcher.close()


@atexit.register
def _close_launchers() -> None:
    for (pid, _), launcher in _launchers.items():
        if pid == os.getpid():
            launcher.close()


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    reader, writer = os.pipe()
    return open(reader, "rb", buffering=0), open(writer, "wb", buffering=0)


def _file(text: str) -> BinaryIO:
    """Return a sealed file in memory, positioned at its start. Nothing can change it any more."""
    file = os.fdopen(os.memfd_create("text", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb+")
    file.write(text.encode("utf-8", "replace"))
    file.seek(0)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    return file
