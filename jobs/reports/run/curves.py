"""Which metrics a run's page draws, and beside which others. docs/metrics.md defines them.

    sections = curve_sections(record.metrics, record.evaluations)       # plain values, as the page's script takes them

A panel whose metrics the run does not have is left out, and a metric that no panel names gets a panel of its own at the
end, so that a metric of a user's own bonus is drawn too."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

MAX_POINTS = 1000
"""Of more records than this, evenly chosen ones are drawn."""

Records = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Metrics that share a vertical axis. A name may be a pattern. `is_stacked`: they are the parts of a whole."""

    title: str
    names: tuple[str, ...]
    hint: str = ""
    is_stacked: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


SECTIONS = (
    Section(
        title="Learning",
        panels=(
            Panel(title="Reward", names=("reward/mean", "reward/task", "reward/format", "reward/length"), hint="mean over a batch"),
            Panel(
                title="pass@k, batches and evaluations",
                names=("reward/pass@1", "reward/pass@K", "eval/pass@*"),
                hint="eval: problems of their own",
            ),
            Panel(
                title="Groups",
                names=("groups/all_correct", "groups/all_wrong", "groups/without_signal"),
                hint="shares; a group without signal teaches nothing",
            ),
            Panel(title="Entropy of the policy", names=("policy/entropy", "eval/entropy"), hint="nats; should neither collapse nor surge"),
            Panel(title="Response length", names=("response/tokens_mean", "eval/tokens_mean"), hint="tokens, mean"),
            Panel(title="Cut off", names=("response/truncated", "eval/truncated"), hint="share that reached the limit"),
            Panel(title="Gradient norm", names=("learner/grad_norm",), hint="before clipping"),
            Panel(title="Absolute advantage", names=("advantage/abs_mean",), hint="mean over a batch"),
        ),
    ),
    Section(
        title="Exploration bonus",
        panels=(
            Panel(title="Bonus", names=("bonus/mean", "bonus/*/mean"), hint="after the gate, before beta"),
            Panel(title="Spread within groups", names=("bonus/spread", "bonus/*/spread"), hint="median over groups"),
            Panel(title="Distance to saturation", names=("bonus/distance_to_saturation", "bonus/*/distance_to_saturation")),
            Panel(title="Effective rank", names=("bonus/effective_rank", "bonus/*/effective_rank")),
            Panel(title="Correlation with length", names=("bonus/length_correlation", "bonus/*/length_correlation"), hint="near 0 is good"),
            Panel(title="Groups decided by the bonus", names=("bonus/gated_out_share", "advantage/bonus_alone"), hint="shares"),
        ),
    ),
    Section(
        title="Staleness and mismatch",
        panels=(
            Panel(title="Lag", names=("policy/lag_mean", "policy/lag_max"), hint="versions between sampling and training"),
            Panel(title="Too late", names=("late/masked",), hint="share of tokens too old to be trained on"),
            Panel(
                title="Log-prob mismatch",
                names=("mismatch/mean", "mismatch/p95"),
                hint="|learner − engine|, nats a token",
            ),
            Panel(title="Mismatch by lag", names=("mismatch_lag?/mean",), hint="lag 0 is the noise of the two programs"),
            Panel(title="Effective sample size", names=("mismatch/ess", "learner/is_weight_mean"), hint="near 1"),
            Panel(
                title="Clipped and masked", names=("learner/clipped", "learner/masked", "mismatch/outside_band"), hint="shares of tokens"
            ),
        ),
    ),
    Section(
        title="Tokens by fate",
        panels=(
            Panel(
                title="All sampled tokens",
                names=("tokens/trained", "tokens/masked", "tokens/in_flight", "tokens/wasted_*"),
                hint="of the whole run",
                is_stacked=True,
            ),
            Panel(title="Sampled tokens a second", names=("rollout/tokens_per_s", "learner/tokens_per_s")),
        ),
    ),
    Section(
        title="Time",
        panels=(
            Panel(
                title="What a step waited for",
                names=("time/learn_s", "time/wait_for_batch_s", "time/generate_s", "time/checkpoint_s", "time/plumbing_s"),
                hint="seconds, of the learner",
                is_stacked=True,
            ),
            Panel(title="Engines without work", names=("rollout/idle_s",), hint="seconds between two weight updates, mean"),
            Panel(title="New weights", names=("time/publish_s", "time/check_weights_s", "time/load_weights_s"), hint="seconds"),
            Panel(title="Scoring", names=("time/encode_s", "time/verify_s"), hint="seconds, summed over groups"),
            Panel(title="Rollout workers", names=("rollout/workers",)),
            Panel(title="Memory", names=("memory/*",), hint="MiB by process"),
        ),
    ),
)


def curve_sections(metrics: Records, evaluations: Records) -> list[dict[str, Any]]:
    """Return the sections with their numbers: `x` are steps, None in `y` is a value that a step does not have."""
    columns = _columns(thinned(metrics)) | _columns(thinned(evaluations))
    drawn: set[str] = set()
    sections = []
    for section in SECTIONS:
        panels = []
        for panel in section.panels:
            names = _matching(panel.names, columns)
            drawn.update(names)
            if names:
                panels.append(_drawn(panel, {name: columns[name] for name in names}))
        sections.append({"title": section.title, "panels": panels, "folded": False})
    rest = [_drawn(Panel(title=name, names=(name,)), {name: columns[name]}) for name in columns if name not in drawn]
    return [one for one in (*sections, {"title": "Every other metric", "panels": rest, "folded": True}) if one["panels"]]


def thinned(records: Records) -> Records:
    """Return at most MAX_POINTS records, evenly chosen, the last among them."""
    every = -(-len(records) // MAX_POINTS)
    return records[::-1][::every][::-1] if every > 1 else records


def _columns(records: Records) -> dict[str, dict[str, list[float | None]]]:
    names = sorted({name for record in records for name in record} - {"step", "time"}, key=_natural)
    steps: list[float | None] = [record["step"] for record in records]
    return {name: {"x": steps, "y": [_known(record.get(name)) for record in records]} for name in names}


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _known(value: object) -> float | None:
    """Return a number with six digits; None for what is no finite number."""
    return float(f"{value:.6g}") if isinstance(value, int | float) and math.isfinite(value) else None


def _matching(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    known = list(names)
    found = [name for pattern in patterns for name in known if fnmatchcase(name, pattern)]
    return list(dict.fromkeys(found))


def _drawn(panel: Panel, columns: Mapping[str, Any]) -> dict[str, Any]:
    lines = [{"name": name, **column} for name, column in columns.items()]
    return {"title": panel.title, "hint": panel.hint, "stacked": panel.is_stacked, "lines": lines}
