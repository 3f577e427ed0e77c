from __future__ import annotations

import os
import subprocess
from pathlib import Path

from actors.orphans import remove_orphans


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    orphan, mine, other = (tmp_path / name for name in (f"prefix-{gone.pid}-x", f"prefix-{os.getpid()}-x", "tmpabc"))
    for directory in (orphan, mine, other):
        directory.mkdir()
        (directory / "weights").write_bytes(b"0")
    remove_orphans(tmp_path, "prefix-")
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])
