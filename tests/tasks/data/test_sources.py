from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from pydantic import ValidationError

from tasks.base import TaskError
from tasks.data.sources import DataSource, SourceConfig
from tasks.gsm8k import Gsm8kConfig
from tests.tasks.samples import write_rows

COMMIT = "0123456789" * 4
HUB = SourceConfig(hub="owner/name", revision=COMMIT)
PLACES = ("test.parquet", "test-*.parquet", "data/test-*.parquet")


@pytest.fixture(autouse=True)
def _no_data_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPEXP_DATA", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def source(config: SourceConfig) -> DataSource:
    return DataSource(task="demo", key="task.demo", folder="demo", config=config)


def put(path: Path) -> Path:
    write_rows(path, [{"prompt": "2 + 2?"}])
    return path


def put_into_cache(cache: Path, revision: str, name: str) -> Path:
    return put(cache / "cache" / "datasets--owner--name" / "snapshots" / revision / name)


def refusal(config: SourceConfig) -> str:
    with pytest.raises(TaskError) as caught:
        source(config).file(*PLACES)
    message = str(caught.value)
    assert message.startswith("task demo: no file test.parquet") and "\n" not in message
    return message


def test_a_path_may_be_the_file_itself_whatever_its_name(tmp_path: Path) -> None:
    file = put(tmp_path / "mine.jsonl")
    assert source(SourceConfig(path=str(file))).file(*PLACES).path == file


@pytest.mark.parametrize("name", ["test.parquet", "test-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"])
def test_a_directory_may_have_our_layout_or_the_hubs(tmp_path: Path, name: str) -> None:
    file = put(tmp_path / name)
    assert source(SourceConfig(path=str(tmp_path))).file(*PLACES).path == file


def test_the_first_of_the_names_wins(tmp_path: Path) -> None:
    put(tmp_path / "data" / "test-00000-of-00001.parquet")
    first = put(tmp_path / "test.parquet")
    assert source(SourceConfig(path=str(tmp_path))).file(*PLACES).path == first


def test_a_path_that_lacks_the_file_is_refused_though_other_places_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPEXP_DATA", str(tmp_path))
    put(tmp_path / "demo" / "test.parquet")
    put_into_cache(tmp_path, COMMIT, "test.parquet")
    (tmp_path / "empty").mkdir()
    config = SourceConfig(path=str(tmp_path / "empty"), hub=HUB.hub, revision=COMMIT)
    assert f"in {tmp_path / 'empty'}: put it there, or set task.demo.path" in refusal(config)


def test_without_a_path_the_folder_of_the_environment_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = put_into_cache(tmp_path, COMMIT, "test.parquet")
    assert source(HUB).file(*PLACES).path == cached
    monkeypatch.setenv("REPEXP_DATA", str(tmp_path))
    assert source(HUB).file(*PLACES).path == cached, "the environment has no such folder"
    put(tmp_path / "demo" / "test.parquet")
    assert source(HUB).file(*PLACES).path == tmp_path / "demo" / "test.parquet"


def test_the_cache_of_the_hub_is_used_without_network_at_the_pinned_commit_only(tmp_path: Path) -> None:
    put_into_cache(tmp_path, "f" * 40, "data/test-00000-of-00001.parquet")
    assert "owner/name" in refusal(HUB)
    file = put_into_cache(tmp_path, COMMIT, "data/test-00000-of-00001.parquet")
    assert source(HUB).file(*PLACES).path == file


def test_without_network_and_files_one_line_says_what_to_put_where() -> None:
    message = refusal(HUB)
    for part in (
        "put it in a directory and set task.demo.path to that",
        "REPEXP_DATA to the directory whose folder demo it is",
        "owner/name",
    ):
        assert part in message
    assert COMMIT in message and "offline" in message


def test_an_unreachable_hub_is_told_at_once_and_in_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens on the discard port
    assert "cannot be had from the hub: " in refusal(HUB)


def test_without_a_hub_only_files_are_asked_for() -> None:
    assert refusal(SourceConfig()).endswith("task.demo.hub is not set")


def test_another_hub_needs_a_revision_of_its_own() -> None:
    with pytest.raises(ValidationError, match='hub = "mine/gsm8k" needs a revision of its own'):
        Gsm8kConfig(hub="mine/gsm8k")
    assert Gsm8kConfig(hub="mine/gsm8k", revision="main").revision == "main"
    assert Gsm8kConfig(hub=None).hub is None
