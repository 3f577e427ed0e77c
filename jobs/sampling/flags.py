"""The flags of `jobs.explore` and `jobs.evaluate`: each sets a key of the configuration, and `--set` any other key.
This module imports neither torch nor Ray.

    add_flags(parser, FLAGS)
    values = read_values(ExploreConfig, options.config, overrides_of(options, FLAGS))
    config = resolved(ExploreConfig, values, source="a.toml", data=options.data, overrides=options.overrides)"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from buffers.extensions import is_path
from jobs.configuration.files import merged, validated
from jobs.configuration.overrides import key_of
from jobs.evaluation_config import EvaluateConfig
from jobs.explore_config import ExploreConfig

Config = TypeVar("Config", ExploreConfig, EvaluateConfig)

Flags = Mapping[str, tuple[str, str]]
"""By flag: the key that it sets, and its help."""
LISTS = ("k", "select")
"""Flags whose value is a list, written without brackets."""


def add_flags(parser: argparse.ArgumentParser, flags: Flags) -> None:
    """Add the flags, `--data`, `--set` and `--dry-run`."""
    for flag, (key, text) in flags.items():
        parser.add_argument(f"--{flag}", metavar=flag.upper(), help=f"{text} ({key})" if text else key)
    parser.add_argument("--data", metavar="PATH", help="where the task's files are (task.TASK.path)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="any other key; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, start nothing")


def overrides_of(options: argparse.Namespace, flags: Flags) -> list[str]:
    """Return the flags that were given as `key=value`, followed by what --set says."""
    given = {flag: value for flag in flags if (value := getattr(options, flag.replace("-", "_"))) is not None}
    return [f"{flags[flag][0]}={f'[{value}]' if flag in LISTS else value}" for flag, value in given.items()] + options.overrides


def resolved(kind: type[Config], values: dict[str, Any], *, source: str, data: str | None, overrides: Sequence[str]) -> Config:
    """Return the configuration. `data` is where the files of its task are, whichever task that is; as with every flag,
    `overrides` come before it. Raises UserError."""
    config = validated(kind, values, source=source)
    name = config.task.name
    section = "options" if is_path(name) else name.replace("-", "_")
    if data is None or f"task.{section}.path" in map(key_of, overrides):
        return config
    return validated(kind, merged(values, {"task": {section: {"path": data}}}), source=source)
