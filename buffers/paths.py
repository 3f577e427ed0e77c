"""Paths as people write them, in a configuration, in a variable or after a flag.

    local_path("~/runs/a/")       # "/home/me/runs/a"

The module lies in the lowest folder because all others use it. It imports the standard library only."""

import os


def local_path(text: str) -> str:
    """Return `text` with ~ as the home directory and without slashes at its end; an address such as s3://… stays as it
    is. Raises ValueError for no text, for a user without a home, and for a name that is not UTF-8."""
    require_utf8(text)
    if not text.strip():
        raise ValueError("an empty text names no place: write . for the current directory")
    if "://" in text:
        return text
    path = os.path.expanduser(text)
    if path.startswith("~"):
        user = text.partition("/")[0]
        raise ValueError(f"there is no home directory {user}: write the whole path, or ./{text} for a name that begins with ~")
    return path.rstrip("/") or path[:1]


def require_utf8(text: str) -> None:
    """Raise ValueError for text that Python read from bytes of another encoding: no file of ours can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!a} is not UTF-8") from None
