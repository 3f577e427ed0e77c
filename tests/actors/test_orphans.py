from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from actors.orphans import remove_orphans

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT_S = 60.0

CHAIN = """
import multiprocessing, os, signal, sys, time
from actors.orphans import end_with

def last(owner, told):
    end_with(owner)
    told.send(os.getpid())
    time.sleep(3600)

def between(owner, told):
    multiprocessing.get_context("spawn").Process(target=last, args=(owner, told)).start()
    time.sleep(3600)

if __name__ == "__main__":
    heard, told = multiprocessing.Pipe()
    first = {"one": last, "two": between}[sys.argv[1]]
    process = multiprocessing.get_context("spawn").Process(target=first, args=(os.getpid(), told))
    process.start()
    print(process.pid, heard.recv(), flush=True)
    time.sleep(3600)
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    orphan, mine, other = (tmp_path / name for name in (f"prefix-{gone.pid}-x", f"prefix-{os.getpid()}-x", "tmpabc"))
    for directory in (orphan, mine, other):
        directory.mkdir()
        (directory / "weights").write_bytes(b"0")
    remove_orphans(tmp_path, "prefix-")
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])


@pytest.mark.parametrize("length", ["one", "two"])
def test_processes_end_with_the_one_that_owns_them(tmp_path: Path, length: str) -> None:
    (tmp_path / "chain.py").write_text(CHAIN)
    command = [sys.executable, str(tmp_path / "chain.py"), length]
    owner = subprocess.Popen(command, env={"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    children = [psutil.Process(pid) for pid in {*map(int, owner.stdout.readline().split())}]
    assert len(children) == {"one": 1, "two": 2}[length]
    owner.kill()
    owner.wait()
    alive = psutil.wait_procs(children, timeout=WAIT_S)[1]
    for process in alive:
        process.kill()
    assert not alive
