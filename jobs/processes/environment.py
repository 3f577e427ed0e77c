"""The environment of this process and of those that it starts."""

from __future__ import annotations

import os
from pathlib import Path

from learners.models import EMBEDDED


def prepare_environment(*models: str) -> None:
    """Set what the models need. The embedded model and local directories need no hub; loading would ask it all the
    same."""
    if all(model in EMBEDDED or Path(model).is_dir() for model in models):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
