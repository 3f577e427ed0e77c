from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from jobs.compare_config import CompareConfig
from jobs.config import RunConfig
from jobs.configuration.files import load, read_values
from jobs.configuration.overrides import value_of, without
from jobs.configuration.user_error import UserError
from jobs.evaluation_config import EvaluateConfig
from jobs.explore_config import ExploreConfig

NO_TEXT = [
    "2026-11-29",
    "2024",
    "1e5",
    "1_000",
    "007",
    "true",
    "nan",
    "12:30:00",
    "2026-11-29T10:00:00Z",
    "[a]",
    "{}",
    "0x1F",
    "-inf",
    "a#b",
]


@pytest.mark.parametrize("text", NO_TEXT)
@pytest.mark.parametrize("kind", [str, str | None, Annotated[str, "metadata"], Annotated[str, "x"] | None, Literal["a", "b"]])
def test_a_value_for_a_text_field_is_text(text, kind):
    assert value_of(text, kind) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"my model"', "my model"),
        ("'2024'", "2024"),
        (r'"a\tb"', "a\tb"),
        ('"a" and "b"', '"a" and "b"'),
        ("'tis", "'tis"),
        ('"a"\nsteps = 3', '"a"\nsteps = 3'),
        ("", ""),
    ],
)
def test_only_quotes_around_the_whole_are_toml(text, value):
    assert value_of(text, str) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[2024, 2025]", ["2024", "2025"]),
        ("[2026-11-29]", ["2026-11-29"]),
        ("[\"a, b\", 'c', d e,]", ["a, b", "c", "d e"]),
        ("[]", []),
        ("[q_proj,v_proj]", ["q_proj", "v_proj"]),
        ('["a]b"]', ["a]b"]),
    ],
)
@pytest.mark.parametrize("kind", [tuple[str, ...], list[str], tuple[Annotated[str, "x"], ...] | None, Literal["all"] | tuple[str, ...]])
def test_a_list_of_text_holds_text(text, value, kind):
    assert value_of(text, kind) == value


def test_other_fields_take_toml_and_text_without_quotes():
    assert value_of("1e-5", float) == 1e-5
    assert value_of("[0.8, 0.9]", tuple[float, float]) == [0.8, 0.9]
    assert value_of("false", bool) is False
    assert value_of("auto", float | Literal["auto"]) == "auto"
    assert value_of("2", float | Literal["auto"]) == 2
    assert value_of('{ a = "b" }', dict[str, Any]) == {"a": "b"}
    assert value_of("3\nseed = 4", int) == "3\nseed = 4", "a second key is not dropped in silence"


@pytest.mark.parametrize("text", ["2026-11-29", "07:32:00", "2026-11-29 07:32:00"])
def test_no_field_takes_a_date(text):
    assert value_of(text, Any) == text
    assert not isinstance(value_of(text, int), datetime.date)


@pytest.mark.parametrize("text", ["2026-11-29", "2024", "1e5"])
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *[(RunConfig, key) for key in ("run_dir", "model", "checkpoint.storage", "evaluation.split", "task.parquet.id_column")],
        (RunConfig, "task.gsm8k.path"),
        (RunConfig, "task.gsm8k.revision"),
        (RunConfig, "task.mixture.parts.hard.countdown.path"),
        (ExploreConfig, "split"),
        (EvaluateConfig, "base_model"),
        (CompareConfig, "out"),
        (CompareConfig, "evaluation.split"),
        (CompareConfig, "common.model"),
        (CompareConfig, "common.task.parquet.split_column"),
        (CompareConfig, "methods.mine.task.parquet.prompt_column"),
    ],
)
def test_every_text_key_is_found_below_sections_labels_and_keys_of_other_commands(kind, key, text):
    found: Any = read_values(kind, None, [f"{key}={text}"])
    for part in key.split("."):
        found = found[part]
    assert found == text


def test_numbers_stay_numbers_below_the_same_sections():
    values = read_values(CompareConfig, None, ["common.learner.lr=1e-3", "methods.a.bonus.enabled=false", "seeds=[1, 2]"])
    assert values == {"common": {"learner": {"lr": 1e-3}}, "methods": {"a": {"bonus": {"enabled": False}}}, "seeds": [1, 2]}


def test_models_and_trackers_are_lists_of_text():
    config = load(EvaluateConfig, None, ["models=[2024, 'a b']", "split=2025"])
    assert (config.models, config.split) == (("2024", "a b"), "2025")
    assert load(RunConfig, None, ['trackers=["tensorboard"]']).trackers == ("tensorboard",)
    assert load(RunConfig, None, ["learner.lora.enabled=true", "learner.lora.targets=[q_proj]"]).learner.lora.targets == ("q_proj",)


@pytest.mark.parametrize("name", ["plain.toml", "bom.toml"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, name: str):
    text = 'seed = 4\nmodel = "tiny/"\n'
    (tmp_path / name).write_text(text, encoding="utf-8-sig" if name == "bom.toml" else "utf-8")
    config = load(RunConfig, str(tmp_path / name))
    assert (config.seed, config.model) == (4, "tiny")


def test_a_file_in_the_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.toml").write_text("seed = 7\n")
    assert load(RunConfig, "~/mine.toml").seed == 7
    with pytest.raises(UserError, match="there is no home directory ~nobody-here"):
        load(RunConfig, "~nobody-here/mine.toml")


@pytest.mark.parametrize("override", ["model=caf\udce9", "task.parquet.instruction=\udcff", "\udc80=1"])
def test_text_in_another_encoding_is_refused(override: str):
    with pytest.raises(UserError, match=r"\\udc.* is not UTF-8"):
        load(RunConfig, None, [override])


def test_overrides_of_a_key_are_left_out_however_they_are_written():
    given = ["run_dir=a", " run_dir = b", "run_directory=c", "task.run_dir=d", "steps=3"]
    assert without(given, "run_dir", "steps") == ["run_directory=c", "task.run_dir=d"]
