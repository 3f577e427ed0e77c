"""Every key of a configuration with its type, its default and its text, for a terminal and for a page.

    repexp train --keys learner.loss                              # in a terminal
    python -m jobs.screens.config_keys docs/configuration.md      # the page; `make docs` runs this

Both walk the models, so they miss no key. A key's text is the docstring beside its field."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.text import Text

from buffers.extensions import Known
from jobs.compare_config import CompareConfig
from jobs.config import RunConfig
from jobs.configuration.files import LABEL, labelled_section_of, section_of, suggestion
from jobs.configuration.user_error import UserError
from jobs.evaluation_config import EvaluateConfig
from jobs.explore_config import ExploreConfig

COMMANDS: dict[str, type[BaseModel]] = {"train": RunConfig, "explore": ExploreConfig, "evaluate": EvaluateConfig, "compare": CompareConfig}
"""The commands that take a TOML file, and their configurations."""

_HEAD = """# Configuration

This page lists every key of the commands that take a TOML file. `make docs` writes it from the docstrings beside the
fields, so change those and not the page.

A key is set in the file under the header of its section, or on the command line as `--set section.key=value`. There, a
key for a string takes the text as it is (`--set evaluation.split=2024`), and any other key takes a TOML value. In a
path, `~` is the home directory. An unknown key is refused, and the message names the nearest known one. `repexp train
--keys learner.loss` prints the part of this page about `learner.loss`. A default "unset" has no word in TOML: it means
that the key is left out. `"package.module:name"` stands for a class or function of your own
([CONTRIBUTING.md](../CONTRIBUTING.md))."""

_WORDS = {str: "string", int: "integer", float: "number", bool: "true or false", dict: "table"}
_SIGNS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "multiple_of": "in multiples of {}", "min_length": "with at least {}"}

_Met = dict[type[BaseModel], tuple[str, BaseModel | None]]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key. `name` is its dotted name, `default` is written as in TOML."""

    name: str
    kind: str
    default: str
    text: str


@dataclass(frozen=True, kw_only=True)
class KeySection:
    """One table of the file with its keys, under its dotted name, "" above all tables. Where its model was met before,
    `same_as` names that section, and `changed` has the defaults that differ, instead of keys."""

    name: str
    text: str
    keys: list[Key] = field(default_factory=list)
    same_as: str | None = None
    changed: list[str] = field(default_factory=list)


def sections(root: type[BaseModel], met: _Met | None = None) -> list[KeySection]:
    """Return the sections of a configuration in the order of its fields. `met` has the sections of other
    configurations, to which those of the same models refer; it is added to."""
    return list(_sections(root, root(), "", root.__doc__, {} if met is None else met))


def selected(root: type[BaseModel], prefix: str) -> list[KeySection]:
    """Return what lies under `prefix`: a section, a key, or the beginning of a name. Raises UserError for neither."""
    repeated = list(_sections(root, root(), "", root.__doc__, None))
    for everything in (sections(root), repeated):
        for matches in (_is_under(prefix), lambda name: name.startswith(prefix)):
            if found := list(_matching(everything, matches)):
                return found
    raise UserError(f"unknown key '{prefix}'{_nearest(root, prefix)}")


def show(found: Sequence[KeySection], console: Console) -> None:
    """Print sections in a terminal. No text is read as markup."""
    for section in found:
        if section.name:
            console.print(Text(f"[{section.name}]", style="bold"))
        _print_wrapped(section.text + _reference(section), console)
        for key in section.keys:
            console.print(Text.assemble((key.name, "bold"), f"  {key.kind}  default {key.default}"), soft_wrap=True)
            _print_wrapped(key.text, console, indent="    ")


def _print_wrapped(text: str, console: Console, indent: str = "") -> None:
    lines = textwrap.wrap(_one_line(text), console.width, initial_indent=indent, subsequent_indent=indent)
    console.print(Text("\n".join([*lines, ""])), soft_wrap=True)


def page() -> str:
    """Return docs/configuration.md. A section that several commands share is listed once."""
    met: _Met = {}
    parts = [_HEAD]
    for command, root in COMMANDS.items():
        parts.append(f"\n## repexp {command}")
        parts += [_markdown(section) for section in sections(root, met)]
    return "\n".join([*parts, ""])


def _sections(model: type[BaseModel], values: BaseModel | None, name: str, text: str | None, met: _Met | None) -> Iterator[KeySection]:
    """Yield the section of `model`, then those below it. Without `met` every section lists its keys."""
    known = next((each for each in met or () if issubclass(model, each) and each.model_fields.keys() == model.model_fields.keys()), None)
    if met is not None and known is not None:
        other, defaults = met[known]
        yield KeySection(name=name, text=text or "", same_as=other, changed=_changed(values, defaults))
        return
    if met is not None:
        met[model] = (name, values)
    section = KeySection(name=name, text=text or "")
    yield section
    for each, info in model.model_fields.items():
        dotted = f"{name}.{each}" if name else each
        default = getattr(values, each) if values is not None else info.get_default(call_default_factory=True)
        below, labelled = section_of(info.annotation), labelled_section_of(info.annotation)
        if below is not None:
            yield from _sections(below, default, dotted, info.description or below.__doc__, met)
        elif labelled is not None:
            yield from _sections(labelled, None, f"{dotted}.{LABEL}", info.description or labelled.__doc__, met)
        else:
            kind = _kind(info.annotation, info.metadata)
            section.keys.append(Key(name=dotted, kind=kind, default=_toml(default), text=info.description or ""))


def _changed(values: BaseModel | None, others: BaseModel | None) -> list[str]:
    if values is None or others is None:
        return []
    return [f"{name} = {_toml(value)}" for name, value in values if value != getattr(others, name) and not isinstance(value, BaseModel)]


def _is_under(prefix: str) -> Callable[[str], bool]:
    """Return a test for names that are `prefix` or lie below it. LABEL in a name stands for any label."""
    wanted = prefix.split(".") if prefix else []

    def matches(name: str) -> bool:
        parts = name.split(".")
        return len(parts) >= len(wanted) and all(part in (each, LABEL) for part, each in zip(parts, wanted, strict=False))

    return matches


def _matching(everything: Sequence[KeySection], matches: Callable[[str], bool]) -> Iterator[KeySection]:
    for section in everything:
        if matches(section.name):
            yield section
        elif keys := [key for key in section.keys if matches(key.name)]:
            yield KeySection(name=section.name, text=section.text, keys=keys)


def _nearest(root: type[BaseModel], prefix: str) -> str:
    model, at = root, ""
    parts = iter(prefix.split("."))
    for part in parts:
        if part not in model.model_fields:
            return suggestion(at, part, model, root)
        annotation = model.model_fields[part].annotation
        below = section_of(annotation)
        if below is None and (below := labelled_section_of(annotation)) is not None:
            part = f"{part}.{next(parts, LABEL)}"
        if below is None:
            break
        model, at = below, f"{at}{part}."
    return f"; '{at}{part}' is a key and has none below it"


def _kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return in words what a value may be: its type, its known names, its bounds."""
    known = next((each.func for each in metadata if isinstance(each, AfterValidator) and isinstance(each.func, Known)), None)
    if known is not None:
        return " | ".join([*map(json.dumps, known.names), '"package.module:name"'])
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = arguments[1].metadata if isinstance(arguments[1], FieldInfo) else arguments[1:]
        return _kind(arguments[0], [*inner, *metadata])
    if origin is typing.Literal:
        kind = " | ".join(_toml(each) for each in arguments)
    elif origin in (typing.Union, types.UnionType):
        kind = " | ".join(_kind(each) for each in arguments if each is not type(None))
    elif origin in (tuple, list) and (origin is list or arguments[1:] == (...,)):
        item = _kind(arguments[0])
        kind = f"list of {item}s" if item in _WORDS.values() else f"list of ({item})"
    elif origin is tuple:
        kind = f"[{', '.join(map(_kind, arguments))}]"
    else:
        kind = "table" if section_of(annotation) is not None else _WORDS.get(origin or annotation, "value")
    bounds = [(sign, getattr(each, name, None)) for each in metadata for name, sign in _SIGNS.items()]
    return f"{kind} {', '.join(sign.format(f'{bound:.12g}') for sign, bound in bounds if bound is not None)}".strip()


def _toml(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


def _reference(section: KeySection) -> str:
    if section.same_as is None:
        return ""
    defaults = f", but with {' and '.join(section.changed)}" if section.changed else ""
    return f" The keys are those of {section.same_as}{defaults}."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(section: KeySection) -> str:
    """Return a section as Markdown: a heading, its text and a list of its keys, or one item that refers to another."""
    if section.same_as is not None:
        anchor = re.sub(r"[^a-z0-9_-]", "", section.same_as.lower())
        defaults = f", but with {' and '.join(map(_code, section.changed))}" if section.changed else ""
        return f"- **{_code(f'[{section.name}]')}**: the keys of [{section.same_as}](#{anchor}){defaults}."
    lines = [f"\n### {section.name}\n"] if section.name else [""]
    lines += [f"{_wrapped(paragraph)}\n" for paragraph in inspect.cleandoc(section.text).split("\n\n")]
    for key in section.keys:
        name = key.name.removeprefix(f"{section.name}.")
        lines.append(f"- **{_code(name)}**: {_code(key.kind)}, default {_code(key.default)}  ")
        lines.append(textwrap.indent(_wrapped(key.text), "  "))
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"```` {text} ````" if "`" in text else f"`{text}`"


def _wrapped(text: str) -> str:
    """Return `text` in lines of Markdown that shows every character as it is, outside of backticks."""
    parts = _one_line(text).split("`")
    parts[::2] = [re.sub(r"[\\*<\[\]~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    lines = textwrap.wrap("`".join(parts), 116, break_long_words=False, break_on_hyphens=False)
    unlisted = re.compile(r"^(?:([-+#>])|(\d+)(?=[.)]))(?=\W)")  # what would begin a list, a heading or a quotation
    return "\n".join(unlisted.sub(lambda found: f"{found[2]}\\" if found[2] else f"\\{found[1]}", line) for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.screens.config_keys", description="Write the page of all configuration keys.")
    parser.add_argument("file", type=Path, help="the page, docs/configuration.md")
    parser.parse_args(arguments).file.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
