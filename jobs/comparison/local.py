"""Commands as processes of this machine, one at a time: each has its own Ray and its own engines, which end with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from jobs.cluster.runs import is_alive, owner
from jobs.comparison.experiment import Experiment
from jobs.comparison.units import Command

POLL_S = 2.0
NO_REASON = "it says no reason"


class LocalExecutor:
    """Runs commands in the working directory, with this interpreter. Their output is added to `OUT/logs/NAME.log`."""

    at_once = 1
    stopped_hint = "the command under way wrote what it had"

    def __init__(self, experiment: Experiment, *, say: Callable[[str], None]) -> None:
        self._experiment, self._say = experiment, say
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    def execute(self, command: Command) -> str | None:
        """Wait for a process that an earlier start left behind, or run the command."""
        if self._waited_for(command):
            return None
        log = self._experiment.log_file(command.name)
        with open(log, "ab") as output:
            begin = output.tell()
            if self._stopping.is_set():
                return None
            words = [sys.executable, "-m", command.module, *command.arguments]
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            if self._stopping.is_set():
                self._process.send_signal(signal.SIGTERM)
            code = self._process.wait()
        if code == 0 or self._waited_for(command):  # one that began just before may have been first to lock the directory
            return None
        with open(log, "rb") as output:
            output.seek(begin)
            return reason_in(output.read().decode("utf-8", errors="replace"))

    def stop(self, number: int) -> None:
        """Pass the signal on: a first one ends the command gracefully, a second one at once. A command has a session of
        its own, so Ctrl-C reaches it through here only."""
        self._stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _waited_for(self, command: Command) -> bool:
        """Wait while another process works in the command's directory, or in that of the run whose policy it takes, and
        return whether one did: of a comparison that was killed, what was under way continues by itself."""
        busy = next((one for one in (command.directory, command.takes_from) if one is not None and is_alive(one)), None)
        if busy is None:
            return False
        self._say(f"process {owner(busy)} of an earlier start is at work on this: waiting for it")
        while is_alive(busy) and not self._stopping.wait(POLL_S):
            pass
        return True


def reason_in(output: str) -> str:
    """Return why a command failed: the last line of its output that begins with "error:", else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return (named or lines or [NO_REASON])[-1]
