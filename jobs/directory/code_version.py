"""Which code a run is made with."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

COMMIT = "REPEXP_COMMIT"
"""The variable that names the commit where the code was sent without its repository (`jobs.submit`)."""
UNKNOWN = "unknown"
GIT_TIMEOUT_S = 20
_ROOT = Path(__file__).resolve().parents[2]


@cache
def code_commit() -> str:
    """Return the commit of this code, with "-dirty" where tracked files differ from it; "unknown" where no one can
    tell."""
    if not (_ROOT / ".git").exists():  # git would name the repository around this one
        return os.environ.get(COMMIT) or UNKNOWN
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    return done.stdout.strip() if done.returncode == 0 else UNKNOWN
