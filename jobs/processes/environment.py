"""The environment of this process and of those that it starts."""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path

from pydantic import BaseModel

from jobs.configuration.user_error import UserError
from learners.models import EMBEDDED
from learners.placement import Placement

OFFLINE = "HF_HUB_OFFLINE"

_HOST_AND_PORT = re.compile(r"[^/,\s]+:(\d{1,5})")
_CLIENT = re.compile(r"ray://[^/,\s]+(/.*)?")


def quieten_libraries() -> None:
    """Set what keeps libraries from writing to the screen. They read it when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def prepare_environment(*models: str) -> None:
    """Set what the models need, once the problems are read, which may come from the hub. The embedded model and local
    directories need no hub; loading would ask it all the same."""
    quieten_libraries()
    if not all(model in EMBEDDED or Path(model).is_dir() for model in models):
        return
    constants = sys.modules.get("huggingface_hub.constants")
    if os.environ.setdefault(OFFLINE, "1") == "1" and constants is not None:  # it has read the variable already
        vars(constants)[OFFLINE] = True


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


def require_placements(config: BaseModel) -> None:
    """Raise UserError for a `placement` of a role that Ray cannot be asked for. Without one Ray is not imported."""
    for role, section in config:
        if (placement := getattr(section, "placement", Placement())) != Placement():
            _require_placement(placement, f"{role}.placement")


def _require_placement(placement: Placement, key: str) -> None:
    from ray.util.accelerators import accelerators

    from jobs.processes.needs import A_BIT, ACCELERATOR, Needs
    from jobs.processes.ray_handle import require_actor_options

    kind = placement.accelerator_type
    known = [name for variable, name in vars(accelerators).items() if not variable.startswith("_")]
    if kind and kind not in known:
        near = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
        suggestion = f"did you mean '{near[0]}'? " if near else ""
        otherwise = f'if the nodes have it all the same, set {key}.resources to {{ "{ACCELERATOR}{kind}" = {A_BIT} }}'
        raise UserError(f'{key}.accelerator_type = "{kind}" is none that Ray knows: {suggestion}{otherwise}')
    try:
        require_actor_options(Needs(placement=placement).options())
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
