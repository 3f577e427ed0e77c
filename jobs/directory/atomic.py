"""Files that are whole under their name, or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path given; it takes the place of `path` where the block ends well, and is removed where it does
    not.

    with replacing(directory / "config.json") as staging:
        staging.write_text("{}")
    """
    staging = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
