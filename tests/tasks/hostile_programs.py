"""Programs that mean harm, and how each must end.

A program that tries several things says "refused" of each that came to nothing, and what it managed of any other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from tasks.programs import sandbox
from tasks.programs.sandbox import ProgramStatus

__all__ = ["CASES", "FORK_BOMB", "TRY", "Case"]

TRY = """
import ctypes, errno, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
REFUSED = (errno.EPERM, errno.ENOSYS, errno.EACCES, errno.EINVAL, errno.EROFS)

def attempt(function, *args):
    try:
        result = function(*args)
    except (OSError, ValueError):
        print("refused")
        return
    if result == -1 and ctypes.get_errno() in REFUSED:
        print("refused")
    else:
        print("managed", function, args, result)
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A program, the ways it may end, and what it must say where that matters: a text, or so many refusals."""

    name: str
    program: str
    ends: tuple[ProgramStatus, ...]
    says: str | None
    is_idle: bool = False  # its end is that of the wall clock's seconds


def case(
    name: str, program: str, *ends: ProgramStatus, says: str | None = None, refusals: int | None = None, is_idle: bool = False
) -> Case:
    text = dedent(program)
    if refusals is not None:
        text, says = TRY + text, "refused\n" * refusals
    return Case(name=name, program=text, ends=ends or (ProgramStatus.OK,), says=says, is_idle=is_idle)


FORK_BOMB = """
import os
while True:
    try: os.fork()
    except OSError: pass
"""

TIME = [
    case("endless loop", "while True: pass", ProgramStatus.TIMEOUT),
    case("sleep", "import time; time.sleep(10**6)", ProgramStatus.TIMEOUT, is_idle=True),
    case("stop", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", ProgramStatus.TIMEOUT, is_idle=True),
    case(
        "thread that does not end",
        "import threading; threading.Thread(target=threading.Event().wait).start()",
        ProgramStatus.TIMEOUT,
        is_idle=True,
    ),
    case("exit handler that does not end", "import atexit, time; atexit.register(time.sleep, 10**6)", ProgramStatus.TIMEOUT, is_idle=True),
    case("regular expression", "import re; re.match('(a*)*b', 'a' * 60)", ProgramStatus.TIMEOUT),
    case(
        "signals ignored",
        """
        import signal
        for each in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(each, signal.SIG_IGN)
        while True: pass
        """,
        ProgramStatus.TIMEOUT,
    ),
]

RESOURCES = [
    case("memory", "held = []\nwhile True: held.append(bytearray(1 << 22))", ProgramStatus.MEMORY),
    case(
        "memory, caught",
        """
        held = []
        while True:
            try: held.append(bytearray(1 << 22))
            except MemoryError: pass
        """,
        ProgramStatus.TIMEOUT,
    ),
    case("power tower", "9 ** 9 ** 9 ** 9", ProgramStatus.TIMEOUT, ProgramStatus.MEMORY),
    case(
        "recursion",
        """
        import sys
        sys.setrecursionlimit(10**9)
        def f(): return f()
        f()
        """,
        *(ProgramStatus.MEMORY, ProgramStatus.TIMEOUT),
    ),
    case("recursion in C", "import json, sys; sys.setrecursionlimit(10**9); json.loads('[' * 10**6)", ProgramStatus.SIGNAL),
    case("flood of output", "while True: print('x' * 10**6)", ProgramStatus.OUTPUT),
    case("flood of errors", "import os\nwhile True: os.write(2, b'x' * 10**6)", ProgramStatus.OUTPUT),
    case(
        "disk filled",
        """
        try:
            for number in range(10**6):
                with open(f"/tmp/{number}", "w") as file: file.write("x" * 100_000)
        except OSError:
            print(30 < number < 50)
        """,
        says="True\n",
    ),
    case(
        "one large file",
        """
        import os
        descriptor = os.open("/tmp/x", os.O_CREAT | os.O_WRONLY)
        try:
            while True: os.write(descriptor, bytes(10**6))
        except OSError:
            print(os.path.getsize("/tmp/x") <= 4 << 20)
        """,
        says="True\n",
    ),
    case(
        "a million files",
        """
        try:
            for number in range(10**6): open(f"/tmp/{number}", "x").close()
        except OSError:
            print(number <= 4096)
        """,
        says="True\n",
    ),
    case(
        "descriptors",
        """
        held = []
        try:
            while True: held.append(open("/dev/null"))
        except OSError:
            print(len(held) < 64)
        """,
        says="True\n",
    ),
    case("output closed", "import os, sys; sys.stdout.close(); os.closerange(0, 3)", ProgramStatus.OK, ProgramStatus.FAILED),
    case(
        "limits raised",
        """
        import resource
        for name in "AS", "NPROC", "CPU", "FSIZE":
            attempt(resource.setrlimit, getattr(resource, "RLIMIT_" + name), (-1, -1))
        attempt(os.nice, -1)
        """,
        refusals=5,
    ),
]

PROCESSES = [
    case("fork bomb", FORK_BOMB, ProgramStatus.TIMEOUT),
    case(
        "thread bomb",
        """
        import threading
        try:
            while True: threading.Thread(target=threading.Event().wait, daemon=True).start()
        except RuntimeError:
            print(threading.active_count() <= 8)
        """,
        says="True\n",
    ),
    case(
        "daemon that writes on",
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True:
                    with open("/tmp/alive", "a") as file: file.write("x")
                    time.sleep(0.01)
            os._exit(0)
        os.wait()
        print("gone")
        """,
        says="gone\n",
    ),
    case(
        "child that holds the output",
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            time.sleep(10**6)
        print("parent")
        """,
        says="parent\n",
    ),
    case(
        "children unreaped",
        """
        import os
        try:
            for _ in range(20):
                if os.fork() == 0: os._exit(0)
        except BlockingIOError:
            print("full")
        """,
        says="full\n",
    ),
    case(
        "kill everyone",
        """
        import os, time
        if os.fork() == 0: time.sleep(10**6)
        os.kill(-1, 9)
        print("alone")
        """,
        says="alone\n",
    ),
    case(
        "kill the first process",
        """
        import os, signal
        for each in signal.Signals:
            try: os.kill(1, each)
            except OSError: pass
        print("done")
        """,
        says="done\n",
    ),
    case("kill itself", "import os; os.kill(os.getpid(), 9)", ProgramStatus.SIGNAL),
    case("crash", "import ctypes; ctypes.string_at(0)", ProgramStatus.SIGNAL),
    case("abort", "import os; os.abort()", ProgramStatus.SIGNAL),
    case("early exit", "import os; os._exit(0); print('never')", says=""),
    case(
        "parents traced",
        """
        for pid in 1, os.getppid(): attempt(libc.ptrace, 16, pid, 0, 0)
        attempt(libc.process_vm_readv, 1, 0, 0, 0, 0, 0)
        """,
        refusals=3,
    ),
    case(
        "the host's processes",
        f"""
        import os
        seen = []
        for pid in [*range(1, 5000), {os.getpid()}, {os.getppid()}]:
            try: os.kill(pid, 0)
            except ProcessLookupError: continue
            except PermissionError: pass
            seen.append(pid)
        print(seen, os.path.exists("/proc"))
        """,
        says="[1, 2] False\n",
    ),
]

RIGHTS = [
    case(
        "become root",
        """
        for function in os.setuid, os.setgid: attempt(function, 0)
        attempt(os.setresuid, 0, 0, 0)
        attempt(os.setgroups, [0])
        """,
        refusals=4,
    ),
    case(
        "namespaces",
        """
        for bit in 17, 25, 26, 27, 28, 29, 30: attempt(libc.unshare, 1 << bit)
        attempt(libc.setns, 0, 0)
        attempt(libc.syscall, 56 if os.uname().machine == "x86_64" else 220, 1 << 28 | 17, 0, 0, 0, 0)
        """,
        refusals=9,
    ),
    case(
        "mounts",
        """
        os.mkdir("/tmp/m")
        for kind in b"tmpfs", b"proc", b"sysfs": attempt(libc.mount, kind, b"/tmp/m", kind, 0, None)
        attempt(libc.mount, None, b"/", None, 32 | 4096, None)
        attempt(libc.umount2, b"/tmp", 2)
        attempt(libc.syscall, 430, b"tmpfs", 0)
        attempt(os.chroot, "/tmp")
        """,
        refusals=7,
    ),
    case(
        "devices",
        """
        attempt(os.mknod, "/tmp/d", 0o60666, os.makedev(254, 0))
        for name in "mem", "kmsg", "vda", "tty": attempt(open, "/dev/" + name)
        """,
        refusals=5,
    ),
    case(
        "system calls",
        """
        for number in 425, 438, 442: attempt(libc.syscall, number, 0, 0, 0, 0, 0)
        attempt(os.memfd_create, "m")
        attempt(libc.shmget, 0, 4096, 0o1600)
        attempt(libc.sethostname, b"x", 1)
        attempt(libc.personality, 0)
        """,
        refusals=7,
    ),
    case(
        "commands",
        """
        for path in "/bin/sh", "/usr/bin/env", sys.executable: attempt(os.execv, path, [path])
        attempt(os.posix_spawn, "/bin/true", ["true"], {})
        """,
        refusals=4,
    ),
    case(
        "a command of its own",
        """
        import glob, shutil
        (loader,) = glob.glob("/lib*/ld-linux*")
        shutil.copy(loader, "/tmp/x")
        os.chmod("/tmp/x", 0o4755)
        attempt(os.execv, "/tmp/x", ["x"])
        """,
        refusals=1,
    ),
]

FILES = [
    case(
        "the system's files changed",
        """
        import json
        for path in "/etc/x", "/usr/lib/x", "/dev/x", "/x", json.__file__: attempt(open, path, "w")
        attempt(os.remove, json.__file__)
        attempt(os.rename, "/usr/lib", "/tmp/l")
        attempt(os.link, json.__file__, "/tmp/j")
        """,
        refusals=8,
    ),
    case(
        "secrets read",
        f"""
        for path in "/etc/shadow", "/etc/passwd", "/home", "/var", "/sys", "/run", "/proc/1/environ", "/proc/self/maps":
            attempt(open, path)
        for path in {str(Path.home())!r} + "/.bashrc", {os.getcwd()!r}, {__file__!r}, {sandbox.__file__!r}:
            attempt(open, path)
        """,
        refusals=12,
    ),
    case(
        "ways out by links",
        """
        os.symlink("/etc/shadow", "/tmp/s")
        attempt(open, "/tmp/s")
        attempt(open, "/../../../../etc/shadow")
        os.symlink("/proc/1/root", "/tmp/r")
        attempt(os.listdir, "/tmp/r")
        """,
        refusals=3,
    ),
    case("environment", "import os; print(*sorted(os.environ))", says="HOME LC_ALL PYTHONHASHSEED PYTHONUTF8 TZ\n"),
    case(
        "descriptors inherited",
        """
        import os
        for number in range(3, 1024):
            try: print(number, os.fstat(number))
            except OSError: pass
        """,
        says="",
    ),
    case("name of the host", "import socket; print(socket.gethostname())", says="sandbox\n"),
    case(
        "what there is",
        "import os; print(os.listdir('/etc'), os.listdir('/tmp'), os.listdir('/usr/share'))",
        says="['ld.so.cache'] [] ['zoneinfo']\n",
    ),
]

NETWORK = [
    case(
        "sockets",
        """
        for family in socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK:
            attempt(socket.socket, family, socket.SOCK_STREAM)
        attempt(socket.create_connection, ("127.0.0.1", 1))
        """,
        refusals=6,
    ),
]

CASES = [*TIME, *RESOURCES, *PROCESSES, *RIGHTS, *FILES, *NETWORK]
