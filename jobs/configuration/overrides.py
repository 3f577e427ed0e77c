"""What the text of `--set key=value` and of a flag means: it is read by the type of the field that it is for.

    value_of("2024", str)                        # "2024"
    value_of("2024", int)                        # 2024
    value_of('[2024, "a, b"]', tuple[str, ...])  # ["2024", "a, b"]

A field of text takes the text as it is; only quotes around the whole are TOML's. Any other field takes a TOML value,
and what is none is text, so that `--set bonus.ridge=auto` needs no quotes. No field takes a date: it is text too."""

from __future__ import annotations

import pkgutil
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, time
from typing import Any

_ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^,]*?)\s*(?:,|$)""")


@dataclass(frozen=True)
class KeysOf:
    """Says of a field `dict[str, Any]` that it holds keys of another configuration."""

    path: str
    """The import path of that configuration: not every module that imports the field may import it."""

    @property
    def model(self) -> Any:
        """The configuration, imported now."""
        return pkgutil.resolve_name(self.path)


def without(overrides: Sequence[str], *keys: str) -> list[str]:
    """Return the overrides, each written as key=value, but those of `keys`."""
    return [override for override in overrides if key_of(override) not in keys]


def key_of(override: str) -> str:
    """Return the dotted key of an override."""
    return override.partition("=")[0].strip()


def value_of(text: str, annotation: Any) -> Any:
    """Return the value that `text` stands for in a field of this type."""
    alternatives = list(_alternatives(annotation))
    if alternatives and all(_is_text(each) or _is_texts(each) for each in alternatives):
        is_list = text.startswith("[") and text.endswith("]") and any(map(_is_texts, alternatives))
        return [_text(item) for item in _ITEM.findall(text[1:-1]) if item] if is_list else _text(text)
    value = _toml(text)
    return text if value is None or isinstance(value, date | time) else value


def _text(text: str) -> str:
    """Return `text`, or what is between its quotes."""
    value = _toml(text) if text[:1] in ("'", '"') else None
    return value if isinstance(value, str) else text


def _toml(text: str) -> Any:
    """Return the one TOML value that `text` is, else None."""
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return None
    return values["value"] if len(values) == 1 else None


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, and any other type itself; None is left out."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        for each in typing.get_args(annotation):
            yield from _alternatives(each)
    elif typing.get_origin(annotation) is typing.Annotated:
        yield from _alternatives(annotation.__origin__)
    elif annotation is not type(None):
        yield annotation


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return all(isinstance(each, str) for each in typing.get_args(kind))
    return kind is str


def _is_texts(kind: Any) -> bool:
    """Return whether `kind` is a list of text of any length."""
    items = [each for each in typing.get_args(kind) if each is not ...]
    return typing.get_origin(kind) in (tuple, list) and len(items) == 1 and all(map(_is_text, _alternatives(items[0])))
