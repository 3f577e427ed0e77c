"""What this process and those it starts find in their environment."""

from __future__ import annotations

import os
from pathlib import Path

from learners.models import EMBEDDED


def prepare_environment(*models: str) -> None:
    """The embedded model and local directories need no hub; without this, loading them would still ask it."""
    if all(model in EMBEDDED or Path(model).is_dir() for model in models):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
