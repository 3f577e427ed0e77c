import pytest

from buffers.paths import local_path
from jobs.compare_config import CompareConfig
from jobs.config import RunConfig
from jobs.evaluation_config import EvaluateConfig
from jobs.explore_config import ExploreConfig
from tasks.config import TaskConfig


@pytest.fixture(autouse=True)
def _home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~/runs/a", "/home/me/runs/a"),
        ("~", "/home/me"),
        ("runs/a/", "runs/a"),
        ("models/tiny//", "models/tiny"),
        ("/", "/"),
        ("~/x y/", "/home/me/x y"),
        ("runs/~a", "runs/~a"),
        ("./~a", "./~a"),
        ("OWNER/NAME/", "OWNER/NAME"),
        ("s3://bucket/path/", "s3://bucket/path/"),
        ("file:///", "file:///"),
    ],
)
def test_a_path_is_what_its_author_means(text, path):
    assert local_path(text) == path
    assert local_path(path) == path


@pytest.mark.parametrize("text", ["~no-such-user-of-this-machine/runs", "~~", "~ /x"])
def test_a_home_that_is_not_there_is_refused(text):
    with pytest.raises(ValueError, match=r"there is no home directory ~.*: write the whole path, or \./~"):
        local_path(text)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_no_text_is_no_path(text):
    with pytest.raises(ValueError, match="an empty text names no place"):
        local_path(text)


@pytest.mark.parametrize("text", ["caf\udce9", "~/\udcff/", "s3://\udc80"])
def test_a_name_in_another_encoding_is_refused(text):
    with pytest.raises(ValueError, match=r"\\udc.* is not UTF-8"):
        local_path(text)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (RunConfig, ["run_dir", "model", "checkpoint.storage"]),
        (ExploreConfig, ["out", "model"]),
        (EvaluateConfig, ["out", "base_model"]),
        (CompareConfig, ["out", "config"]),
        (TaskConfig, ["gsm8k.path", "mbpp_plus.mbpp.path", "parquet.path", "countdown.path", "game24.path", "aime.path", "dapo_math.path"]),
    ],
)
def test_every_key_for_a_path_takes_the_home_directory_and_a_last_slash(kind, keys):
    for key in keys:
        *sections, last = key.split(".")
        values = {last: "~/here/"}
        for section in reversed(sections):
            values = {section: values}
        found = kind.model_validate(values)
        for part in key.split("."):
            found = getattr(found, part)
        assert found == "/home/me/here", key
    assert EvaluateConfig(models=("~/a/", "b/")).models == ("/home/me/a", "b")
