"""The part of the working directory that a job takes along: code and configurations, never data, runs, environments or
caches.

    package = select(Path.cwd(), excludes=["notes"])
    package.check_size()                                    # UserError over 500 MiB, which names the largest entries
    package.write(archive, extra={"submitted/mine.toml": Path("/elsewhere/mine.toml")})

In a git work tree these are the files that git tracks or would track: what git ignores, for whatever reason, never
leaves this machine. So nothing is sent while git cannot say what it ignores. Elsewhere they are all files. A link to a
file is sent as that file; other links, and what else is no file, are left out and named. The same files give an archive
of the same bytes, so that a cluster which has it is sent nothing. Ray's own packaging reads .gitignore files only
(tests/jobs/test_submit.py)."""

from __future__ import annotations

import os
import shlex
import subprocess
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from buffers.paths import require_utf8
from jobs.configuration.user_error import UserError
from jobs.directory.code_version import UNKNOWN

MAX_BYTES = 500 << 20
"""Ray's own bound for a working directory, here applied before compression."""
START = "jobs/train.py"
"""What a job begins with."""
EXCLUDED = (
    *(".git", ".venv", "venv", ".uv", ".env", "node_modules"),
    *("__pycache__", "*.py[cod]", "*.egg-info", ".*_cache", ".hypothesis", "/build", "/dist"),
    *("/runs", "/data", "/wandb"),
)
"""What stays here whatever git says. A pattern with a slash matches from the top, others match any part of a path."""
GIT_TIMEOUT_S = 60
NAMED = 8
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Package:
    """Files under `root`, with their sizes in bytes."""

    root: Path
    sizes: Mapping[str, int]
    """By path relative to the root, with forward slashes."""
    left_out: Sequence[str] = ()
    """Paths that belong to the directory but cannot be sent: links to directories, to nothing and to files that are not
    sent themselves; repositories within this one; pipes and sockets."""

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(self.sizes.values())

    @property
    def named_left_out(self) -> str:
        """The first few of `left_out` in words."""
        shown = [path if path.isprintable() else ascii(path) for path in self.left_out[:NAMED]]
        return ", ".join(shown) + (f" and {len(self.left_out) - NAMED} more" if len(self.left_out) > NAMED else "")

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
                try:
                    out.writestr(info, files[name].read_bytes())
                except OSError as error:
                    raise UserError(f"{files[name]} cannot be read ({error.strerror}): mend it, or leave it out with --exclude") from None


def select(root: Path, excludes: Sequence[str] = ()) -> Package:
    """Return the files of `root` that belong to a job. Raises UserError where it is no checkout of this repository,
    where git fails, for a file name that an archive cannot hold, and where the code itself would be left out."""
    if not (root / START).is_file():
        raise UserError(f"{root} has no {START}: submit from the top of the repository, which is what is sent")
    patterns = (*EXCLUDED, *excludes)
    listed = _tracked(root) if _is_in_git(root) else _everything(root, patterns)
    paths = {path for path in listed if not is_excluded(path, patterns) and _is_there(root, path)}
    for path in sorted(paths):
        _require_name(path)
    sent = {path for path in paths if (root / path).is_file() and _may_follow(root, path, paths)}
    sizes = {path: (root / path).stat().st_size for path in sorted(sent)}
    if START not in sizes:
        raise UserError(f"{START} would not be sent, and no job begins without it: leave it out neither with --exclude nor with .gitignore")
    return Package(root=root, sizes=sizes, left_out=sorted(paths - sent))


def is_excluded(path: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern names the path or a directory that it lies in."""
    pure = PurePosixPath(path)
    above = [str(pure), *(str(parent) for parent in pure.parents)]
    for pattern in patterns:
        bare = pattern.rstrip("/")
        bare = bare.removeprefix(".") if bare.startswith("./") else bare
        candidates = above if "/" in bare else pure.parts
        if any(fnmatchcase(candidate, bare.lstrip("/")) for candidate in candidates):
            return True
    return False


def commit(root: Path) -> str:
    """Return the commit that is checked out, with "-dirty" where files differ from it; "unknown" outside git and before
    the first commit."""
    head = _git(root, "rev-parse", "--verify", "--quiet", "--short=12", "HEAD", may_fail=True).strip() if _is_in_git(root) else ""
    return head + ("-dirty" if _git(root, "status", "--porcelain") else "") if head else UNKNOWN


def mib(size: float) -> str:
    """Return a size in bytes as text."""
    return f"{size / 2**20:.1f} MiB"


def _is_in_git(root: Path) -> bool:
    """Return whether `root` lies in a work tree. git is not asked: where it fails, it says so of any directory."""
    return "GIT_DIR" in os.environ or any(os.path.lexists(directory / ".git") for directory in (root.resolve(), *root.resolve().parents))


def _git(root: Path, *arguments: str, may_fail: bool = False) -> str:
    """Return what git prints; with `may_fail` also where its exit code is not 0. Raises UserError with what it says."""
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, timeout=GIT_TIMEOUT_S, env=environment)
    except OSError as error:
        raise _refusal(root, f"git cannot be run ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise _refusal(root, f"git did not answer within {GIT_TIMEOUT_S} s") from None
    said = os.fsdecode(done.stderr)
    if not may_fail and (done.returncode != 0 or said.startswith("warning: ")):  # of a .gitignore that it cannot read
        raise _refusal(root, " ".join(said.split()) or f"git ended with exit code {done.returncode}")
    return os.fsdecode(done.stdout)


def _refusal(root: Path, why: str) -> UserError:
    return UserError(f"git does not say which files of {root} are to stay here, so nothing is sent: {why}")


def _tracked(root: Path) -> list[str]:
    """Return what git tracks or would track. A repository within this one is one entry. Raises UserError for a file of
    patterns that git reads as other bytes than were meant."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    paths = [path.rstrip("/") for path in listed.split("\0") if path]
    for path in paths:
        if PurePosixPath(path).name == ".gitignore" and (root / path).is_file() and b"\0" in (root / path).read_bytes():
            raise _refusal(root, f"{path} is not UTF-8 (UTF-16, perhaps), so git ignores nothing that it names: save it as UTF-8")
    return paths


def _everything(root: Path, patterns: Sequence[str]) -> Iterator[str]:
    """Yield all files, and links to directories, without following these and without entering excluded directories."""
    for directory, subdirectories, files in os.walk(root):
        here = Path(directory).relative_to(root)
        links = [name for name in subdirectories if (root / here / name).is_symlink()]
        subdirectories[:] = [name for name in subdirectories if not is_excluded((here / name).as_posix(), patterns)]
        yield from ((here / name).as_posix() for name in (*files, *links))


def _is_there(root: Path, path: str) -> bool:
    """Return whether a path that git tracks is in the tree. It may be deleted, or a link be where its directory was."""
    return os.path.lexists(root / path) and not any((root / parent).is_symlink() for parent in PurePosixPath(path).parents[:-1])


def _may_follow(root: Path, path: str, paths: Collection[str]) -> bool:
    """Return whether what `path` links to may be sent: what lies in the tree only if it is sent itself."""
    if not (root / path).is_symlink():
        return True
    top, target = root.resolve(), (root / path).resolve()
    return not target.is_relative_to(top) or target.relative_to(top).as_posix() in paths


def _require_name(path: str) -> None:
    """Raise UserError for a path that an archive cannot hold."""
    try:
        require_utf8(path)
    except ValueError as error:
        pattern = "".join(char if char.isprintable() else "?" for char in path)
        fix = f"rename the file, or leave it out with --exclude {shlex.quote(pattern)}"
        raise UserError(f"the file name {error}, and no archive can hold it: {fix}") from None
