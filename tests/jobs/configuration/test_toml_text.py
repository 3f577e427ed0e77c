import tomllib

from jobs.config import RunConfig
from jobs.configuration.toml_text import toml_text


def test_what_is_written_is_read_again():
    values = {
        "text": 'a "quoted"\nline \\ \x7f \x01 é',
        "numbers": [1, -2.5, 1e-5, True],
        "a.b c": {"mypackage.trackers:Mine": {"key": "value"}},
        "terms": [{"kind": "elliptical", "options": {"x": 1, "none": None}}, {}],
        "empty": {},
    }
    read = tomllib.loads(toml_text(values))
    del values["terms"][0]["options"]["none"]
    assert read == values


def test_none_is_left_out():
    assert toml_text({"a": None, "b": {"c": None, "d": 1}}) == "b.d = 1\n"


def test_a_whole_configuration_survives():
    config = RunConfig(seed=3)
    assert RunConfig.model_validate(tomllib.loads(toml_text(config.model_dump(mode="json")))) == config
