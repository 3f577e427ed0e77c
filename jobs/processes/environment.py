"""The environment of this process and of those that it starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jobs.configuration.user_error import UserError
from learners.models import EMBEDDED

_HOST_AND_PORT = re.compile(r"[^/,\s]+:(\d{1,5})")
_CLIENT = re.compile(r"ray://[^/,\s]+(/.*)?")


def prepare_environment(*models: str) -> None:
    """Set what the models need. The embedded model and local directories need no hub; loading would ask it all the
    same."""
    if all(model in EMBEDDED or Path(model).is_dir() for model in models):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def require_ray_address() -> None:
    """Raise UserError where RAY_ADDRESS names something that no job can be attached to: Ray itself says so only once
    the model is loaded."""
    address = os.environ.get("RAY_ADDRESS", "")
    place = _HOST_AND_PORT.fullmatch(address)
    if address in ("", "auto", "local") or _CLIENT.fullmatch(address) or (place and 0 < int(place[1]) < 1 << 16):
        return
    is_job_server = address.lower().startswith(("http://", "https://"))
    what = "is a job server, to which `repexp submit` sends a run" if is_job_server else "is no address of a Ray cluster"
    raise UserError(
        f"RAY_ADDRESS={address} {what}: unset RAY_ADDRESS to use this machine alone, or set it to the cluster's HOST:PORT (port 6379 "
        "unless `ray start` said otherwise) or to auto"
    )
