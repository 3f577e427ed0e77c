"""Paths as people write them, in a configuration, in a variable or after a flag.

    run_dir: LocalPath = "runs/default"       # "~/runs/a/" is then "/home/me/runs/a"

The module lies in the lowest folder because all others use it."""

import os
from typing import Annotated

from pydantic import AfterValidator

__all__ = ["LocalPath", "local_path"]


def local_path(text: str) -> str:
    """Return `text` with ~ as the home directory and without slashes at its end; an address such as s3://… stays as it
    is. Raises ValueError for a user without a home."""
    if "://" in text:
        return text
    path = os.path.expanduser(text)
    if path.startswith("~"):
        user = text.partition("/")[0]
        raise ValueError(f"there is no home directory {user}: write the whole path, or ./{text} for a name that begins with ~")
    return path.rstrip("/") or path[:1]


LocalPath = Annotated[str, AfterValidator(local_path)]
"""A path, or another name of a model or a place, which `local_path` leaves as it is."""
