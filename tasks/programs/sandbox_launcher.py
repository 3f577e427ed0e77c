"""The inner side of the sandbox: a process without secrets that forks one sandbox for each program.

`tasks.programs.sandbox` runs it in a fresh interpreter with an empty environment. There are four processes:

    launcher            serves a socket until its other end is closed
    └─ keeper           makes the namespaces of one program and reports its end
       └─ init          the first process of the pid namespace
          └─ program    without privileges, under limits, behind a filter of system calls

The launcher runs no foreign code, so each fork of it is a clean start. The keeper ends the namespaces at the deadline
or when the caller goes. The kernel ends every process of the namespace with init, and init ends with the keeper.

A fork of a running interpreter is several times cheaper than a fresh one. The program can read all of its own memory,
so nothing here knows more than the program's text. It can write anything as output, so the report has none of it."""

import atexit
import builtins
import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
import types
from typing import Any, NoReturn

from tasks.programs.sandbox_filter import filter_system_calls
from tasks.programs.sandbox_namespaces import House, check, drop_capabilities, enter_room, libc, make_house, readable_layout

__all__ = ["LOADER_VARIABLES", "MEMORY_EXIT", "PROGRAM", "REPORT", "STDERR", "STDIN", "STDOUT", "main"]

PROGRAM, STDIN, STDOUT, STDERR, REPORT = range(5)  # the descriptors of a request, in order
LOADER_VARIABLES = ("LD_LIBRARY_PATH",)  # some interpreters need it to start; programs do not see it
MEMORY_EXIT = 92  # exit code after an uncaught MemoryError
_PRELOADED = (  # what programs import most; a fork has them loaded
    "bisect cmath collections copy dataclasses datetime decimal fractions functools heapq itertools json math operator random re "
    "statistics string typing"
)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_MAX_REQUEST_BYTES = 4096


def main(descriptor: int, *, isolated: bool) -> None:
    """Serve the socket `descriptor`. With `isolated`, programs run in namespaces."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for name in LOADER_VARIABLES:
        os.environ.pop(name, None)
    for name in _PRELOADED.split():
        importlib.import_module(name)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # as `site`, which is not loaded, would do
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # some hosts forbid this
        file.write("1000")  # when memory is short, the kernel ends this process and those it starts before any other
    house, trouble = None, ""
    if isolated:
        try:
            house = make_house(readable_layout())
        except OSError as error:
            trouble = _describe(error)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the keepers
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=descriptor) as sock:
        while True:
            request, descriptors, _, _ = socket.recv_fds(sock, _MAX_REQUEST_BYTES, REPORT + 1)
            if not request:
                return
            if os.fork() == 0:
                sock.close()
                _keep(json.loads(request), descriptors, house, trouble)
            for each in descriptors:
                os.close(each)


# ---- the keeper ----
def _keep(limits: dict[str, Any], descriptors: list[int], house: House | None, trouble: str) -> NoReturn:
    """Run one program and report its end as a JSON object. It ends early if the caller closes the report's socket."""
    report = socket.socket(fileno=descriptors[REPORT])
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with open(descriptors[PROGRAM], encoding="utf-8", newline="") as file:
            program = file.read()
        if house is not None:
            enter_room(house, tmp_bytes=limits["tmp_bytes"])
        found = {"error": trouble} if trouble else _run_init(program, limits, descriptors, report, isolated=house is not None)
    except BaseException as error:
        found = {"error": _describe(error)}
    with contextlib.suppress(OSError):  # the caller may be gone
        report.sendall(json.dumps(found).encode())
    os._exit(0)


def _run_init(program: str, limits: dict[str, Any], descriptors: list[int], report: socket.socket, *, isolated: bool) -> dict[str, Any]:
    """Return init's account of the program's end; only the seconds if init was killed before it could report."""
    inner, outer = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        report.close()
        os.close(inner)
        _init(program, limits, descriptors, outer, isolated=isolated)
    for each in (outer, *descriptors[STDIN:REPORT]):
        os.close(each)
    died = _wait(pid, report, limits["wall_s"])
    if not isolated:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # returns when the last process of the namespace is gone
    seconds = time.monotonic() - started
    with open(inner, "rb") as pipe:
        told = pipe.read()
    if not told and died:
        return {"error": "the first process of the sandbox died"}
    return {**json.loads(told or "{}"), "seconds": seconds}


def _wait(pid: int, report: socket.socket, timeout_s: float) -> bool:
    """Wait until init ends, the caller closes the socket or the time is over. Return whether init ended."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(report, select.POLLIN)
    return any(ready == pidfd for ready, _ in poll.poll(timeout_s * 1000))


# ---- init ----
def _init(program: str, limits: dict[str, Any], descriptors: list[int], report: int, *, isolated: bool) -> NoReturn:
    """Start the program, wait for its end and report it."""
    try:
        if not isolated:
            os.setpgid(0, 0)
        _end_with_the_keeper(report)
        for number in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)  # children can send pid 1 only signals that it handles
        for target, each in enumerate(descriptors[STDIN:REPORT]):
            os.dup2(each, target)
        pid, trouble = _start(program, limits, isolated=isolated)
        told = {"error": trouble} if trouble else _reap(pid)
    except BaseException as error:
        told = {"error": _describe(error)}
    os.write(report, json.dumps(told).encode())
    os._exit(0)


def _end_with_the_keeper(report: int) -> None:
    check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    poll = select.poll()
    poll.register(report, 0)
    if poll.poll(0):  # the reader of the report is gone: the keeper died before the line above
        os._exit(1)


def _start(program: str, limits: dict[str, Any], *, isolated: bool) -> tuple[int, str]:
    """Start the program. Return its pid, and why it could not start or an empty text."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _confine(limits, done, isolated=isolated)
        except BaseException as error:
            os.write(done, _describe(error).encode())
            os._exit(1)
        os.close(done)
        _run(program)
    os.close(done)
    with open(ready, "rb") as pipe:
        return pid, pipe.read().decode()


def _reap(pid: int) -> dict[str, Any]:
    """Wait for the program, and reap orphans meanwhile. Return how it ended and the resources it used."""
    while True:
        ended, status, usage = os.wait4(-1, 0)
        if ended == pid:
            return {
                "exit_code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
                "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "peak_bytes": usage.ru_maxrss * 1024,
            }


# ---- the program ----
def _confine(limits: dict[str, Any], kept: int, *, isolated: bool) -> None:
    """Give up everything that a program may not have. Only `kept` and the three standard descriptors stay open."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/tmp")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _limit(limits)
    if isolated:
        drop_capabilities()
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    filter_system_calls()


def _limit(limits: dict[str, Any]) -> None:
    limited = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["tmp_bytes"],
        resource.RLIMIT_NPROC: limits["processes"] + 2,  # the keeper and init count too
        resource.RLIMIT_NOFILE: limits["open_files"],
        **dict.fromkeys((resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE), 0),
        resource.RLIMIT_CPU: limits["cpu_s"],
    }
    for name, value in limited.items():
        hard = value + 1 if name == resource.RLIMIT_CPU else value  # a program that ignores SIGXCPU gets SIGKILL
        largest = resource.getrlimit(name)[1]
        resource.setrlimit(name, (value, hard) if largest == resource.RLIM_INFINITY else (min(value, largest), min(hard, largest)))


def _run(program: str) -> NoReturn:
    """Run the program as __main__ and end as an interpreter does."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = sys.orig_argv = ["program"]
    code = 0
    try:
        exec(compile(program, "<program>", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        code = _exit_code(error)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        code = code or _exit_code(error)
    os._exit(code)


def _exit_code(error: BaseException) -> int:
    """Print `error` as an interpreter does and return its exit code."""
    if isinstance(error, MemoryError):
        return MEMORY_EXIT
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    traceback.print_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
    return 1


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
