"""What a run exports to Prometheus: one table from the names that the run knows to series.

    exporter = Exporter("quickstart")
    exporter.export({**metrics, **status_values(status)})          # every second

The values are the metrics of docs/metrics.md and those of `status_values`; nothing is counted here. Ray exports the
series on the metrics port of the driver's node, each with `ray_` before its name and the label `run`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import ray.util.metrics

from jobs.directory.run_state import RunStatus
from jobs.run.fleet import WorkerState

MIB = 2**20


@dataclass(frozen=True)
class Series:
    """One series. It is a counter where its name ends in `_total`, and a gauge otherwise."""

    name: str
    source: str
    """A regular expression of the names that it takes its values from. Its named groups are the labels."""
    text: str
    scale: float = 1.0
    """What a value is multiplied by, for the base unit."""

    @property
    def is_counter(self) -> bool:
        """Whether it only grows."""
        return self.name.endswith("_total")

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels besides `run`."""
        return tuple(re.compile(self.source).groupindex)


SERIES = (
    Series("repexp_reward_mean", "reward/mean", "Mean reward of the newest batch"),
    Series("repexp_pass_ratio", r"reward/pass@(?P<k>\w+)", "Share of the batch's problems solved by k responses; K is a group"),
    Series("repexp_evaluation_pass_ratio", r"eval/pass@(?P<k>\d+)", "Unbiased pass@k of the newest evaluation"),
    Series("repexp_groups_ratio", r"groups/(?P<kind>all_correct|all_wrong|without_signal)", "Share of the batch's groups of a kind"),
    Series("repexp_response_length_tokens", "response/tokens_mean", "Mean length of the batch's responses"),
    Series("repexp_truncated_ratio", "response/truncated", "Share of the batch's responses that reached the limit"),
    Series("repexp_bonus_mean", "bonus/mean", "Mean exploration bonus of the batch"),
    Series("repexp_bonus_spread", "bonus/spread", "Median spread of the bonus within a group"),
    Series("repexp_policy_entropy_nats", "policy/entropy", "Mean entropy of the policy's next token"),
    Series("repexp_gradient_norm", "learner/grad_norm", "Norm of the gradient before clipping"),
    Series("repexp_policy_lag_versions", r"policy/lag_(?P<statistic>mean|max)", "Versions between sampling and training"),
    Series("repexp_logprob_mismatch_nats", r"mismatch/(?P<statistic>mean|p95|max)", "Difference of log-probs between learner and engine"),
    Series("repexp_step_seconds", "time/step_s", "Wall time of the newest step"),
    Series("repexp_activity_seconds", r"time/(?!step_)(?P<activity>\w+)_s", "Seconds of the newest step by activity"),
    Series("repexp_rollout_idle_seconds", "rollout/idle_s", "Seconds that an engine had no request in the newest step"),
    Series("repexp_published_bytes", "publication/mib", "Size of the weights last loaded", MIB),
    Series("repexp_replay_bytes", "replay/held_mib", "Size of the groups in replay", MIB),
    Series("repexp_trained_steps", "status/step", "Steps trained"),
    Series("repexp_planned_steps", "status/steps", "Steps of the whole run"),
    Series("repexp_policy_version", r"version/(?P<state>trained|live)", "Newest policy version that is trained, or that engines hold"),
    Series("repexp_groups", r"queues/(?P<stage>requests|sampling|sampled|held)", "Groups by where they are"),
    Series("repexp_free_slots", "queues/free_slots", "Groups that may still be admitted"),
    Series("repexp_workers", r"workers/(?P<role>\w+)/(?P<state>\w+)", "Processes of a role by state"),
    Series("repexp_desired_workers", r"desired/(?P<role>\w+)", "Processes of a role that are wanted"),
    Series("repexp_in_flight_tokens", "tokens/in_flight", "Sampled tokens that are not trained on yet"),
    Series("repexp_checkpoint_timestamp_seconds", "status/checkpoint_time", "Unix time of the newest checkpoint"),
    Series("repexp_generated_tokens_total", "tokens/generated", "Response tokens sampled"),
    Series("repexp_tokens_total", r"tokens/(?P<fate>trained|masked|wasted_\w+)", "Sampled tokens by what became of them"),
    Series("repexp_removed_groups_total", r"groups/(?P<fate>dropped|filtered)", "Groups that no step trains on"),
    Series("repexp_faults_total", r"faults/(?P<kind>\w+)", "Failures that the run survived, by kind"),
    Series("repexp_refused_publications_total", "publication/refused", "Times that a worker refused weights"),
)


class Exporter:
    """Gives values to Ray, which exports them. A counter starts at the value that it is given first: what an earlier
    start of the run counted, that start has exported."""

    def __init__(self, run_id: str) -> None:
        self._exported = {series.name: _ray_metric(series, run_id) for series in SERIES}
        self._counted: dict[str, float] = {}

    def export(self, known: Mapping[str, float]) -> None:
        """Export everything in `known` that has a series."""
        for name, value in known.items():
            for series, labels in places_of(name):
                metric = self._exported[series.name]
                if not series.is_counter:
                    metric.set(value * series.scale, labels)
                elif (grown := value - self._counted.setdefault(name, value)) > 0:
                    metric.inc(grown, labels)
                    self._counted[name] = value


def _ray_metric(series: Series, run_id: str) -> ray.util.metrics.Metric:
    kind = ray.util.metrics.Counter if series.is_counter else ray.util.metrics.Gauge
    return kind(series.name, series.text, tag_keys=("run", *series.labels)).set_default_tags({"run": run_id})


@lru_cache(maxsize=4096)
def places_of(name: str) -> tuple[tuple[Series, dict[str, str]], ...]:
    """Return the series that take the value called `name`, each with the labels of the value."""
    found = ((series, re.fullmatch(series.source, name)) for series in SERIES)
    return tuple((series, match.groupdict()) for series, match in found if match is not None)


def status_values(status: RunStatus) -> dict[str, float]:
    """Return the numbers of a status by name. Every state of a rollout worker has one, if only 0."""
    return dict(_values(status))


def _values(status: RunStatus) -> Iterator[tuple[str, float]]:
    yield "status/step", status.step
    yield "status/steps", status.steps
    if status.checkpoint_time is not None:
        yield "status/checkpoint_time", status.checkpoint_time
    yield "version/trained", status.trained_version
    yield "version/live", status.live_version
    for state in WorkerState:
        yield f"workers/rollout/{state}", 0
    for (role, current), number in Counter((worker.role, worker.state) for worker in status.workers).items():
        yield f"workers/{role}/{current}", number
    for part, numbers in {"queues": status.queues, "desired": status.desired, "tokens": status.tokens}.items():
        for name, number in numbers.items():
            yield f"{part}/{name}", number


def scrape_address() -> str:
    """Return where Prometheus finds the series of this process; empty where Ray does not say."""
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here and node.get("MetricsExportPort"):
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return ""
