"""Types of configuration fields that several folders have."""

from typing import Annotated

from pydantic import AfterValidator

from buffers.paths import local_path

__all__ = ["LocalPath"]

LocalPath = Annotated[str, AfterValidator(local_path)]
"""A path, or another name of a model or a place, which `local_path` leaves as it is."""
