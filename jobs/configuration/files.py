"""How a configuration is read: a TOML file, `--set key=value` over it, and a strict model that checks the result.

    config = load(RunConfig, "configs/quickstart.toml", overrides=["learner.lr=1e-5"])

Every problem is a UserError with one line that a person can act on. The module knows no key by name; the models are in
`jobs.config`, `jobs.explore_config` and `jobs.evaluation_config`. A field that is a model is a section of the file."""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from buffers.paths import local_path, require_utf8
from jobs.configuration.overrides import KeysOf, key_of, value_of
from jobs.configuration.user_error import UserError, refusing

Config = TypeVar("Config", bound=BaseModel)

LABEL = "LABEL"
"""Stands for a name of the user's choice in a dotted key, as in task.mixture.parts.LABEL.weight."""
_PART = re.compile(r"^task\.mixture\.parts\.[^.]+\.")


def load(kind: type[Config], path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (TOML; None for an empty file), apply the overrides and validate as `kind`. Raises UserError."""
    return validated(kind, read_values(kind, path, overrides), source=source_of(path))


def read_values(kind: type[BaseModel], path: str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values of the file, replaced by `key.sub=value` overrides where given. The fields of `kind` say how
    an override is read (`jobs.configuration.overrides`). Raises UserError."""
    values = _read_toml(path) if path is not None else {}
    for override in overrides:
        key, (_, separator, text) = key_of(override), override.partition("=")
        with refusing(ValueError):
            require_utf8(override)
        if not separator or not key:
            raise UserError(f"--set {override!r}: write it as key=value, for example --set seed=1")
        _assign(values, key, value_of(text.strip(), _type_at(kind, key.split("."))))
    return values


def validated(kind: type[Config], values: dict[str, Any], *, source: str) -> Config:
    """Return `values` as a configuration. `source` names their origin in messages. Raises UserError."""
    _refuse_unknown_keys(values, kind, kind, source=source)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_line(error)}") from None


def path_of(argument: str) -> Path:
    """Return the path that a command is given, with ~ as the home directory. Raises UserError."""
    with refusing(ValueError):
        return Path(local_path(argument))


def source_of(path: str | None) -> str:
    """Return what messages call the origin of a configuration."""
    return path or "command line"


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `values`, replaced section by section by those of `over`."""
    shared = values.keys() & over.keys()
    both = {key: merged(values[key], over[key]) for key in shared if isinstance(values[key], dict) and isinstance(over[key], dict)}
    return values | over | both


def changed_keys(saved: dict[str, Any], config: BaseModel, changeable: Sequence[str]) -> list[str]:
    """Return the dotted keys in which `config` differs from the saved one, each with both values, without those in
    `changeable`. A key that the saved configuration lacks had what is its default now. A key of a mixture's part may
    change where the same key of the task may, and has its default."""
    defaults = _flatten(type(config)().model_dump(mode="json"))
    old, new = defaults | _flatten(saved), _flatten(config.model_dump(mode="json"))
    of_task = {key: _PART.sub("task.", key) for key in sorted(old.keys() | new.keys())}
    different = {key: general for key, general in of_task.items() if old.get(key, defaults.get(general)) != new.get(key)}
    fixed = (key for key, general in different.items() if not any(f"{general}.".startswith(f"{free}.") for free in changeable))
    return [f"{key} ({old.get(key)!r} -> {new.get(key)!r})" for key in fixed]


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every dotted key of a model, without its sections. LABEL stands for a name of the user's choice."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        section, labelled = section_of(field.annotation), labelled_section_of(field.annotation)
        if section is not None:
            keys += all_keys(section, f"{prefix}{name}.")
        elif labelled is not None:
            keys += all_keys(labelled, f"{prefix}{name}.{LABEL}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a field that is a section, and None for any other field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((found for part in typing.get_args(annotation) if (found := section_of(part))), None)
    return None


def labelled_section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a field that holds sections under labels of the user's choice, and None for any other."""
    return section_of(typing.get_args(annotation)[1]) if typing.get_origin(annotation) is dict else None


def suggestion(prefix: str, key: str, model: type[BaseModel], root: type[BaseModel]) -> str:
    """Return the end of a message about the unknown `key` of `model`, whose dotted keys begin with `prefix`. It names
    the nearest key of the same section, else a key of that name anywhere, else what the section has."""
    near = difflib.get_close_matches(key, model.model_fields, n=1)
    if near:
        return f"; did you mean '{prefix}{near[0]}'?"
    dotted = sorted(all_keys(root), key=lambda name: LABEL not in name)  # a key of the task itself comes before one of a mixture's part
    by_last = {name.rpartition(".")[2]: name for name in dotted}
    elsewhere = difflib.get_close_matches(key, by_last, n=1)
    if elsewhere:
        return f"; did you mean '{by_last[elsewhere[0]]}'?"
    return f"; known here: {', '.join(model.model_fields)}"


def _refuse_unknown_keys(values: dict[str, Any], model: type[BaseModel], root: type[BaseModel], *, source: str, prefix: str = "") -> None:
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            raise UserError(f"{source}: unknown key '{prefix}{key}'{suggestion(prefix, key, model, root)}")
        if not isinstance(value, dict):
            continue
        section, labelled = section_of(field.annotation), labelled_section_of(field.annotation)
        if section is not None:
            _refuse_unknown_keys(value, section, root, source=source, prefix=f"{prefix}{key}.")
        elif labelled is not None:
            for label, part in value.items():
                if isinstance(part, dict):
                    _refuse_unknown_keys(part, labelled, root, source=source, prefix=f"{prefix}{key}.{label}.")


def _read_toml(path: str) -> dict[str, Any]:
    file = path_of(path)
    if not file.is_file():
        beside = [one for one in file.parent.glob("*.toml") if one.name != "pyproject.toml"]
        known = ", ".join(sorted(map(str, beside or Path("configs").glob("*.toml")))) or "none in ./configs"
        raise UserError(f"config file {path} does not exist (there are: {known})")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}") from None


def _type_at(annotation: Any, parts: Sequence[str]) -> Any:
    """Return the type of the field that the parts of a dotted key lead to, Any where nothing is known of it."""
    metadata: Sequence[Any] = ()
    for part in parts:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, metadata = annotation.__origin__, annotation.__metadata__
        model = next((each.model for each in metadata if isinstance(each, KeysOf)), None) or section_of(annotation)
        if model is not None and part in model.model_fields:
            annotation, metadata = model.model_fields[part].annotation, model.model_fields[part].metadata
        elif model is None and typing.get_origin(annotation) is dict:
            annotation, metadata = typing.get_args(annotation)[1], ()
        else:
            return Any
    return annotation


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for depth, parent in enumerate(parents):
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {dotted}: {'.'.join(parents[: depth + 1])} is a value, not a section")
    values[last] = value


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _first_line(error: ValidationError) -> str:
    """Return what is wrong in the first wrong place. A field of several types has an error of each: all are told."""
    errors = error.errors(include_url=False)
    places = [_place(each["loc"]) for each in errors]
    here = [each["msg"].removeprefix("Value error, ") for each, place in zip(errors, places, strict=True) if place == places[0]]
    others = len(set(places)) - 1
    message = "; or ".join([here[0], *(_small(text) for text in here[1:])]) + (f" (and {others} more)" if others else "")
    if not places[0]:
        return message
    given = errors[0]["input"]
    shown = "" if isinstance(given, dict) else f" = {given!r}"  # a whole section shows nothing of what is wrong in it
    return f"{'.'.join(places[0])}{shown}: {_small(message)}"


def _place(location: Sequence[int | str]) -> tuple[str, ...]:
    """Return the key, without the type among several that pydantic adds to it."""
    parts = [str(part) for part in location if not str(part).startswith(("literal[", "constrained-"))]
    while len(parts) > 1 and parts[-1] in ("float", "int", "str"):
        parts.pop()
    return tuple(parts)


def _small(text: str) -> str:
    return f"{text[0].lower()}{text[1:]}"
