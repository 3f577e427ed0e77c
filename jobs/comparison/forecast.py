"""What a comparison will take, in words: `--dry-run` prints it."""

from __future__ import annotations

import numpy as np

from jobs.comparison.experiment import Experiment
from jobs.configuration.toml_text import toml_text
from jobs.directory.metrics import read_metrics
from jobs.plan import UNKNOWN, evaluate_memory_gib, make_plan
from jobs.reports.text import count


def forecast(experiment: Experiment) -> list[str]:
    """Return how many runs, hours and tokens the comparison takes, and how much of it is done."""
    config, asked, shared = experiment.config, experiment.config.evaluation, experiment.shared
    evaluations = list(experiment.evaluations)
    done, trained = sum(one.is_done for one in evaluations), sum(not run.waiting or run.has_policies for run in experiment.runs)
    tokens = shared.sampling.max_response_tokens
    sampled = asked.problems * asked.samples * tokens
    run_tokens = shared.steps * shared.responses_per_step * tokens
    step_s, source = _step_seconds(experiment)
    runs_left, evaluations_left = len(experiment.runs) - trained, len(evaluations) - done
    hours = (_run_hours(experiment, step_s), _evaluation_hours(experiment, sampled))
    whole, left = len(experiment.runs) * hours[0] + len(evaluations) * hours[1], runs_left * hours[0] + evaluations_left * hours[1]
    return [
        *(f"{name}: {_changes(own)}{' (the baseline)' if name == config.baseline else ''}" for name, own in config.methods.items()),
        f"runs: {len(experiment.runs)} ({count(len(config.methods), 'method')} x {count(len(config.seeds), 'seed')}) "
        f"of {shared.steps} steps x {shared.responses_per_step} responses; {trained} are trained",
        f"evaluations: {len(evaluations)} of {asked.problems} problems x {asked.samples} responses; {done} are done",
        f"tokens: at most {_millions(len(experiment.runs) * run_tokens)} in training, "
        f"{_millions(len(evaluations) * sampled)} in evaluations",
        f"time: about {whole:.1f} hours one after the other, {left:.1f} of them left ({60 * hours[0]:.0f} minutes a run, "
        f"{60 * hours[1]:.0f} an evaluation at most; {step_s:.1f} s a step, {source})",
        _memory(experiment),
    ]


def _step_seconds(experiment: Experiment) -> tuple[float, str]:
    """Return the median seconds of the steps that were trained, else what the configuration says."""
    records = [record for run in experiment.runs for record in read_metrics(run.directory.metrics)]
    measured = [record["time/step_s"] for record in records if "time/step_s" in record]
    if measured:
        return float(np.median(measured)), f"measured over {len(measured)} steps"
    return experiment.config.pace.step_s, "as pace.step_s says"


def _run_hours(experiment: Experiment, step_s: float) -> float:
    return (experiment.config.pace.start_s + experiment.shared.steps * step_s) / 3600


def _evaluation_hours(experiment: Experiment, tokens: int) -> float:
    pace = experiment.config.pace
    return (pace.start_s + tokens / pace.evaluation_tokens_per_s) / 3600


def _memory(experiment: Experiment) -> str:
    """Return what the largest command takes; those of one machine take turns."""
    plans = [make_plan(run.config) for run in experiment.runs]
    needed = [plan.memory_gib for plan in plans] + [evaluate_memory_gib(experiment.evaluation, [experiment.shared.model], None)]
    memory = UNKNOWN if any(one is None for one in needed) else f"about {max(one for one in needed if one is not None):.1f} GiB"
    disk = UNKNOWN if plans[0].disk_gib is None else f"about {plans[0].disk_gib:.1f} GiB"
    kept = "all of it stays" if experiment.config.keep_checkpoints else "checkpoints are removed once their policies are evaluated"
    return f"memory: {memory} at a time; disk: {disk} for a run's checkpoints and policy ({kept})"


def _changes(own: dict[str, object]) -> str:
    return ", ".join(toml_text(own).splitlines()) or "the base configuration itself"


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:.1f} million"
