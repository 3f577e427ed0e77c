from __future__ import annotations

import pwd
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from learners import models
from learners.models import ModelError, check_model, is_cached, resolve_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPEXP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_model(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")


@pytest.mark.parametrize("name", ["/no/such/directory", "./nowhere", "~/models/x", "smollm", "a/b/c"])
def test_name_that_can_be_no_model_is_refused_at_once(name: str):
    with pytest.raises(ModelError, match="neither an embedded alias"):
        check_model(name)


def test_directory_without_a_config_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


def test_directory_with_a_model_is_itself(tiny_model: str):
    assert resolve_model(tiny_model) == tiny_model


def test_hub_id_that_cannot_be_fetched_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="'no-such-owner/no-such-model' is no directory here and could not be fetched") as refused:
        resolve_model("no-such-owner/no-such-model")
    assert "\n" not in str(refused.value)


def test_missing_package_of_the_embedded_model_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(models.EMBEDDED, "smollm2-135m", ("no_such_package", "x.gguf"))
    with pytest.raises(ModelError, match="no-such-package, which is not installed"):
        check_model("smollm2-135m")


def test_concurrent_starts_unpack_the_embedded_model_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    all_started = threading.Barrier(4, timeout=10)
    unpacked = []

    def unpack(source: Path, target: Path) -> None:
        unpacked.append(target)
        write_model(source, target)

    def start() -> str:
        all_started.wait()
        return resolve_model("smollm2-135m")

    monkeypatch.setattr(models, "embedded_file", lambda alias: Path("unused.gguf"))
    monkeypatch.setattr(models, "_dequantise", unpack)
    with ThreadPoolExecutor(4) as pool:
        paths = {future.result(timeout=20) for future in [pool.submit(start) for _ in range(4)]}
    assert len(unpacked) == 1
    assert paths == {str(unpacked[0])}


def test_half_written_model_does_not_count_as_cached(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def unpack_and_die(source: Path, target: Path) -> None:
        write_model(source, Path(f"{target}.part-1"))
        raise OSError("killed")

    monkeypatch.setattr(models, "embedded_file", lambda alias: Path("unused.gguf"))
    monkeypatch.setattr(models, "_dequantise", unpack_and_die)
    with pytest.raises(OSError, match="killed"):
        resolve_model("smollm2-135m")
    assert not is_cached("smollm2-135m")


def test_a_start_that_waits_too_long_for_another_says_for_what(cache: Path, monkeypatch: pytest.MonkeyPatch):
    from filelock import FileLock

    monkeypatch.setattr(models, "embedded_file", lambda alias: Path("unused.gguf"))
    monkeypatch.setattr(models, "LOCK_TIMEOUT_S", 0.1)
    target = models.cached_path("smollm2-135m")
    target.parent.mkdir(parents=True)
    with FileLock(f"{target}.lock"), pytest.raises(ModelError, match=r"waited 0\.1 s for another process"):
        resolve_model("smollm2-135m")


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_embedded_model_is_unpacked_whole_and_answers(cache: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve_model("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)


@pytest.mark.parametrize("place", ["file", "file/below", "dangling/below", "/proc/no-cache"])
@pytest.mark.parametrize("variable", ["REPEXP_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_a_cache_directory_that_cannot_be_made_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, variable: str
):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "file/nothing")
    for name in ("REPEXP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / place))
    monkeypatch.setattr(models, "embedded_file", lambda alias: Path("unused.gguf"))
    for refused in (check_model, resolve_model):
        with pytest.raises(ModelError, match=r"the cache directory .* cannot be used \(.+\): set REPEXP_CACHE to one that") as error:
            refused("smollm2-135m")
        assert "\n" not in str(error.value)


def test_who_has_no_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch):
    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    for name in ("HOME", "REPEXP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ModelError, match="no home directory for the cache of models: set REPEXP_CACHE"):
        models.cache_dir()


def test_the_cache_may_be_named_from_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REPEXP_CACHE", "~/here/")
    assert models.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("REPEXP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/there")
    assert models.cache_dir() == tmp_path / "there/repexp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.cache_dir() == tmp_path / ".cache/repexp"
    monkeypatch.setenv("REPEXP_CACHE", "~no-such-user-here/x")
    with pytest.raises(ModelError, match="there is no home directory ~no-such-user-here"):
        models.cache_dir()
