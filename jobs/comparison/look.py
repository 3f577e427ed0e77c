"""What the runs of a comparison would refuse at their start, found before the first of them: the model, and prompts."""

from __future__ import annotations

from collections.abc import Callable

from jobs.comparison.experiment import Experiment
from jobs.configuration.user_error import refusing
from jobs.processes.environment import prepare_environment
from jobs.processes.models import REFUSED, policy_model, require_trainable
from jobs.processes.prompts import DRAWN, PromptLook
from jobs.sampling.job import problems_of
from tasks.registry import make_task
from tasks.stream import ProblemStream, is_endless


def look_at_runs(experiment: Experiment, warn: Callable[[str], None]) -> None:
    """Look at the model, and at the prompts of training and evaluation as each method makes them. Raises one of
    `jobs.configuration.user_error.REFUSALS`."""
    shared, asked = experiment.shared, experiment.config.evaluation
    task = make_task(shared.task)
    stream = ProblemStream(task, "train", shared.seed)
    problems = [*stream.known(DRAWN), *problems_of(task, asked.split, asked.problems, warn=warn)]
    prepare_environment(shared.model)  # the problems are in the cache now, if they came from the hub
    facts = policy_model(shared)
    seen = []
    for config in (shared, *(run.config for run in experiment.runs[: len(experiment.config.methods)])):
        require_trainable(facts, config)
        if (prompts := (config.prompt, config.sampling)) in seen:
            continue
        seen.append(prompts)
        with refusing(*REFUSED):
            look = PromptLook(facts, config.prompt, config.sampling, task.prompt)
        for text in look.at(problems, is_all=not is_endless(task)).warnings:
            warn(text)
