"""The part of the working directory that a job takes along: code and configurations, never data, runs, environments or
caches.

    package = select(Path.cwd(), excludes=["notes"])
    package.check_size()                                    # UserError over 500 MiB, which names the largest entries
    package.write(archive, extra={"submitted/mine.toml": Path("/elsewhere/mine.toml")})

In a git work tree these are the files that git tracks or would track: what git ignores, for whatever reason, never
leaves this machine. Elsewhere they are all files. The same files give an archive of the same bytes, so that a cluster
which has it is sent nothing. Ray's own packaging reads .gitignore files only (tests/jobs/test_submit.py)."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from jobs.configuration.user_error import UserError

MAX_BYTES = 500 << 20
"""Ray's own bound for a working directory, here applied before compression."""
EXCLUDED = (
    *(".git", ".venv", "venv", ".uv", ".env", "node_modules"),
    *("__pycache__", "*.py[cod]", "*.egg-info", ".*_cache", ".hypothesis", "/build", "/dist"),
    *("/runs", "/data", "/wandb"),
)
"""What stays here whatever git says. A pattern with a slash matches from the top, others match any part of a path."""
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Package:
    """Files under `root`, with their sizes in bytes."""

    root: Path
    sizes: Mapping[str, int]
    """By path relative to the root, with forward slashes."""

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(self.sizes.values())

    def check_size(self, max_bytes: int = MAX_BYTES) -> None:
        """Raise UserError where the package is too large to be sent."""
        if self.total_bytes <= max_bytes:
            return
        entries: Counter[str] = Counter()
        for path, size in self.sizes.items():
            entries[PurePosixPath(path).parts[0]] += size
        largest = ", ".join(f"{name} ({mib(size)})" for name, size in entries.most_common(3))
        raise UserError(f"{self.root} is {mib(self.total_bytes)}, {mib(max_bytes)} at most can be sent: leave out with --exclude {largest}")

    def write(self, archive: Path, *, extra: Mapping[str, Path]) -> None:
        """Write a zip archive of the files, and of others under the names given in `extra`."""
        files = {path: self.root / path for path in self.sizes} | dict(extra)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for name in sorted(files):
                info = zipfile.ZipInfo(name, EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                out.writestr(info, files[name].read_bytes())


def select(root: Path, excludes: Sequence[str] = ()) -> Package:
    """Return the files of `root` that belong to a job. Raises UserError where it is no checkout of this repository."""
    if not (root / "jobs" / "train.py").is_file():
        raise UserError(f"{root} has no jobs/train.py: submit from the top of the repository, which is what is sent")
    patterns = (*EXCLUDED, *excludes)
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")  # None outside git
    paths = _all_files(root, patterns) if listed is None else sorted({path for path in listed.split("\0") if path})
    sizes = {path: size for path in paths if not is_excluded(path, patterns) and (size := _size(root / path)) is not None}
    return Package(root=root, sizes=sizes)


def is_excluded(path: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern names the path or a directory that it lies in."""
    pure = PurePosixPath(path)
    above = [str(pure), *(str(parent) for parent in pure.parents)]
    for pattern in patterns:
        bare = pattern.rstrip("/")
        candidates = above if "/" in bare else pure.parts
        if any(fnmatchcase(candidate, bare.lstrip("/")) for candidate in candidates):
            return True
    return False


def commit(root: Path) -> str:
    """Return the commit that is checked out, with "-dirty" where files differ from it; "unknown" outside git."""
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    return head.strip() + ("-dirty" if _git(root, "status", "--porcelain") else "")


def mib(size: float) -> str:
    """Return a size in bytes as text."""
    return f"{size / 2**20:.1f} MiB"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _all_files(root: Path, patterns: Sequence[str]) -> Iterator[str]:
    """Yield all files, without following links and without entering excluded directories."""
    for directory, subdirectories, files in os.walk(root):
        here = Path(directory).relative_to(root)
        subdirectories[:] = sorted(name for name in subdirectories if not is_excluded((here / name).as_posix(), patterns))
        yield from ((here / name).as_posix() for name in sorted(files))


def _size(file: Path) -> int | None:
    """Return the size, or None for what is no file: one that was deleted, or a link to a directory."""
    return file.stat().st_size if file.is_file() else None
