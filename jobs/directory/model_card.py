"""The model card of a policy: what it was made from, how, and how good it was.

    text = model_card("quickstart", config, step=40, metrics=record, evaluation=None)     # for README.md

Names, prompts and settings are text from outside. In the front matter the library for YAML writes them; below it they
stand in code spans and code blocks, which nothing in them can end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs import __version__
from jobs.config import RunConfig
from jobs.configuration.characters import spelled_out
from jobs.configuration.toml_text import toml_text
from jobs.directory.code_version import code_commit
from learners.models import EMBEDDED, HUB_NAMES, LICENSES
from tasks.config import MIXTURE, TASKS

README = "README.md"
MEANS = {"run_dir", "wait_timeout_s", "trackers", "tracker_options", "checkpoint", "supervision", "autoscale", "logs"}
"""Keys that a card leaves out: they compute nothing, and their addresses may hold passwords."""
_SECRET = re.compile(r"(?i)token|(.*_)?(api_?key|(access|private|secret)_key|secret|passw(or)?d|credentials?|(access|api|auth|hf)_token)s?")
_PASS_AT_K = re.compile(r"eval/pass@(\d+)")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights came from that training began with. What is not known is None."""

    name: str
    hub: str | None = None
    license: str | None = None
    license_name: str | None = None
    """Of a license that the hub has no name for, and calls "other"."""


def model_card(
    run: str, config: RunConfig, *, step: int, metrics: Mapping[str, float] | None, evaluation: Mapping[str, float] | None
) -> str:
    """Return the card of the policy of `step`. `metrics` are of its last training step, `evaluation` is the newest one
    up to it, each with its own `step`."""
    from huggingface_hub import ModelCardData

    origin = _origin(config.model)
    data = ModelCardData(
        base_model=origin.hub,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=origin.license or "unknown",
        license_name=origin.license_name,
        datasets=sorted(set(_data_sets(config))) or None,
        tags=["repexp", "reinforcement-learning", *_tasks(config)],
    )
    return _TEMPLATE.render(
        front_matter=data.to_yaml(),
        run=run,
        step=step,
        config=config,
        origin=origin,
        data_sets=data.datasets or [],
        tasks=_tasks(config),
        metrics=metrics or {},
        evaluation=evaluation or {},
        pass_at_k=[(int(match[1]), evaluation[name]) for name in evaluation or () if evaluation and (match := _PASS_AT_K.fullmatch(name))],
        settings=toml_text(_without_secrets(config.model_dump(mode="json", exclude_defaults=True, exclude=MEANS))),
        version=__version__,
        commit=code_commit(),
    )


def _origin(model: str) -> Origin:
    if model in EMBEDDED:
        return Origin(name=model, hub=HUB_NAMES[model], license=LICENSES[model])
    is_directory = Path(model).is_dir()
    card = _metadata(Path(model) / README if is_directory else _cached_card(model))
    known = {key: value for key in ("license", "license_name") if isinstance(value := card.get(key), str)}
    hub = card.get("base_model") if is_directory else model
    name = Path(model).absolute().name if is_directory else model
    return Origin(name=name, hub=hub if isinstance(hub, str) and is_hub_name(hub) else None, **known)


def _cached_card(hub_name: str) -> Path | None:
    """Return the card of a model that was fetched from the hub. Nothing is asked for over the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_name, README) if is_hub_name(hub_name) else None
    return Path(found) if isinstance(found, str) else None


def _metadata(card: Path | None) -> dict[str, Any]:
    """Return the front matter of a card, of which nothing is known."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        return (metadata_load(card) or {}) if card is not None else {}
    except (OSError, ValueError, YAMLError):
        return {}


def is_hub_name(name: str) -> bool:
    """Return whether the hub takes `name` for a model or a data set: it refuses a card with another."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _tasks(config: RunConfig) -> list[str]:
    """Return the names of the tasks that were trained on."""
    parts = config.task.mixture.parts.values()
    return list(dict.fromkeys(str(part.name) for part in parts)) if config.task.name == MIXTURE else [config.task.name]


def _data_sets(config: RunConfig) -> Iterator[str]:
    """Yield the data sets of the hub that training problems came from, or that have the same problems."""
    for part in config.task.mixture.parts.values() if config.task.name == MIXTURE else [config.task]:
        if known := TASKS.get(str(part.name)):
            hub = getattr(getattr(part, known.keys[0]), "hub", None)
            if hub is not None and is_hub_name(hub):
                yield hub


def _without_secrets(value: Any) -> Any:
    """Return `value` without what looks like the key to something, in tables and in lists of tables."""
    if isinstance(value, Mapping):
        return {key: _without_secrets(one) for key, one in value.items() if not _SECRET.fullmatch(key)}
    return [_without_secrets(one) for one in value] if isinstance(value, list) else value


def _code(text: object) -> str:
    """Return `text` on one line as a code span."""
    line = " ".join(spelled_out(str(text)).split())
    ticks = _ticks(line, at_least=1)
    pad = " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _block(text: str, language: str = "") -> str:
    """Return `text` as a code block."""
    shown = spelled_out(text).rstrip("\n")
    ticks = _ticks(shown, at_least=3)
    return f"{ticks}{language}\n{shown}\n{ticks}"


def _ticks(text: str, *, at_least: int) -> str:
    """Return more backticks than any row of them in `text` has."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(at_least, longest + 1)


def _environment() -> Environment:
    loader = PackageLoader("jobs.directory", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"code": _code, "block": _block}
    return environment


_TEMPLATE = _environment().get_template("model_card.md.jinja")
"""Read with this module: a run ends as it began, also where its code was replaced meanwhile."""
