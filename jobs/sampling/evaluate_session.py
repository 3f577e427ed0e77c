"""One start of `jobs.evaluate`: lock the directory, sample and judge model after model, score under the base model,
report.

    model 1: engines start ──> responses to every problem ──> engines end
    model 2: the same, and so on
    then the scorer alone, then the report"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from actors.config import SamplingConfig
from actors.scorer import ResponseScorer
from actors.verifier import VerifierPool
from buffers.records import Problem
from jobs.configuration.user_error import UserError
from jobs.directory.job_dir import JobDirectory
from jobs.evaluation_config import CHANGEABLE_BETWEEN_STARTS, EvaluateConfig
from jobs.plan import evaluate_memory_gib
from jobs.processes.build import all_ready, close_all, launch, namespace, ray_session
from jobs.processes.description import rollout_worker, scorer, verifier_pool
from jobs.processes.environment import prepare_environment
from jobs.processes.handles import Handle
from jobs.processes.models import room_for_prompts, sampled_model, scoring_model
from jobs.processes.needs import needs_of
from jobs.processes.threads import share_of_cores
from jobs.reports.evaluate.report import write_report
from jobs.sampling.candidates import CandidateStore, with_columns
from jobs.sampling.evaluated_models import EvaluatedModel, PinnedModel, PinnedModels
from jobs.sampling.evaluator import Evaluator, EvaluatorSettings
from jobs.sampling.job import Bar, interruptibly, posed, problems_of, require_memory, run_to_end
from jobs.sampling.pipeline import FINISHERS
from jobs.sampling.samples import BASE_COLUMN, MODEL_AND_PROBLEM, SAMPLES, read_responses
from jobs.screens.terminal import say, terminal
from tasks.base import Task
from tasks.registry import make_task


def run_evaluate(config: EvaluateConfig, models: Sequence[EvaluatedModel], base: EvaluatedModel | None) -> int:
    """Run the job and return its exit code. Raises one of `user_error.REFUSALS` before anything is touched."""
    task = _task(config)
    console = terminal()
    problems = problems_of(task, config.split, config.problems, warn=lambda text: say(console, f"warning: {text}"))
    everything = [*models, *([base] if base else [])]
    require_memory(evaluate_memory_gib(config, [model.model for model in models], base.model if base else None))
    prepare_environment(*(str(model.run.path) if model.run else model.model for model in everything))
    problems, samplings = _looked_at(config, models, base, task, problems, console)
    with JobDirectory(config.out, config, changeable=CHANGEABLE_BETWEEN_STARTS, kind="the directory", option="--out DIR") as directory:
        session = EvaluateSession(config, task, problems, directory.path, console, samplings=samplings)
        work = session.run(models, base)
        return run_to_end(lambda: asyncio.run(work), console, directory.path, lambda: len(session.store.finished()))


def _task(config: EvaluateConfig) -> Task:
    task = make_task(config.task, config.verifier)
    if not task.has_verifier:
        raise UserError(f"task {task.name} has no verifier, and evaluation needs verdicts: set its verifier")
    return task


def _looked_at(
    config: EvaluateConfig,
    models: Sequence[EvaluatedModel],
    base: EvaluatedModel | None,
    task: Task,
    problems: Sequence[Problem],
    console: Console,
) -> tuple[list[Problem], list[SamplingConfig]]:
    """Look at every model and at all prompts. Return the problems that all models can be asked, and how each of the
    models samples. Raises UserError and ModelError."""
    places = [model.directory() for model in models]
    facts = {place: sampled_model(place, config.sampling, config.rollout, computed=False) for place in places if place is not None}
    left, samplings = posed(list(facts.values()), problems, config.prompt, config.sampling, task, warn=lambda text: say(console, text))
    sampling_at = dict(zip(facts, samplings, strict=True))
    if base is not None and (place := base.directory()) is not None:
        scoring = scoring_model(place, config.sampling)
        for model, sampling in zip(facts.values(), samplings, strict=True):
            room_for_prompts(scoring, sampling)
            if model.max_token_id >= scoring.num_embeddings:
                raise UserError(
                    f"base_model = {base.name} knows {scoring.num_embeddings} token ids, and the tokenizer of {model.path} has ids up to "
                    f"{model.max_token_id}: choose a base model with the same tokenizer"
                )
    return left, [config.sampling if place is None else sampling_at[place] for place in places]


class EvaluateSession:
    """The work of one start."""

    def __init__(
        self,
        config: EvaluateConfig,
        task: Task,
        problems: Sequence[Problem],
        directory: Path,
        console: Console,
        *,
        samplings: Sequence[SamplingConfig],
    ) -> None:
        """`samplings` says how each model samples."""
        self._config, self._task, self._problems, self._samplings = config, task, problems, samplings
        self._directory, self._console = directory, console
        self.store = CandidateStore(directory, config.model_dump(mode="json"), file=SAMPLES, key=MODEL_AND_PROBLEM)

    async def run(self, models: Sequence[EvaluatedModel], base: EvaluatedModel | None) -> None:
        """Do what is not done yet, then report on everything."""
        pins = PinnedModels(self._directory)
        labels = await interruptibly(self._fill(models, base, pins))
        self.store.compact([(label, problem.problem_id) for label in labels for problem in self._problems])
        await asyncio.to_thread(pins.release)
        self._report(labels)

    async def _fill(self, models: Sequence[EvaluatedModel], base: EvaluatedModel | None, pins: PinnedModels) -> list[str]:
        everything = [*models, *([base] if base else [])]
        pinned = []
        for model in everything:
            known = pins.known(model.name)
            pinned.append(known if known is not None else await asyncio.to_thread(pins.pin, model))
        labels = [one.label for one in pinned[: len(models)]]
        sampling_of = dict(zip(labels, self._samplings, strict=True))
        waiting = self._waiting(labels)
        is_scored = base is None or not (waiting or any(BASE_COLUMN not in one.column_names for one in self.store.parts()))
        if waiting or not is_scored:
            pinned = [await asyncio.to_thread(pins.pin, model) for model in everything]  # they must exist and be unchanged
            with self._ray(is_scored=is_scored):
                if waiting:
                    await self._sample_all([one for one in pinned[: len(models)] if one.label in waiting], waiting, sampling_of)
                if not is_scored:
                    await self._score(pinned[-1])
        return labels

    def _ray(self, *, is_scored: bool) -> AbstractContextManager[None]:
        config = self._config
        numbers = {"rollout": config.rollout.workers, "verifier": 1, "scorer": int(not is_scored)}
        needs = [needs_of(role, getattr(config, role)) for role, number in numbers.items() for _ in range(number)]
        return ray_session(namespace(config.out), needs, warn=partial(say, self._console))

    def _waiting(self, labels: Sequence[str]) -> dict[str, list[Problem]]:
        """Return by label the problems that a model has no finished responses to. Finished models are left out."""
        finished = self.store.finished()
        missing = {label: [problem for problem in self._problems if (label, problem.problem_id) not in finished] for label in labels}
        return {label: problems for label, problems in missing.items() if problems}

    async def _sample_all(
        self, todo: Sequence[PinnedModel], waiting: dict[str, list[Problem]], sampling_of: dict[str, SamplingConfig]
    ) -> None:
        verifier = launch(verifier_pool(self._config.task, self._config.verifier, max_concurrency=FINISHERS + 1))
        done, left = len(self.store.finished()), sum(map(len, waiting.values()))
        try:
            with Bar(self._console, total=done + left, done=done) as bar:
                for model in todo:
                    await self._sample(model, waiting[model.label], sampling_of[model.label], verifier, bar)
        finally:
            await close_all([verifier])

    async def _sample(
        self, model: PinnedModel, problems: Sequence[Problem], sampling: SamplingConfig, verifier: Handle[VerifierPool], bar: Bar
    ) -> None:
        """Start one model's engines, use them, and end them: the next model's engines need the memory."""
        config = self._config
        say(self._console, f"{model.label}: starting the engine (about 30 s on two cores), then {len(problems)} problems")
        make = partial(rollout_worker, prompt=config.prompt, model=model.path, run_id="evaluate", seed=config.seed)
        names = [f"rollout-{index}" for index in range(config.rollout.workers)]
        engine = share_of_cores(config.rollout, config.rollout.processes)
        workers = [launch(make(name, engine, sampling)) for name in names]
        settings = EvaluatorSettings(
            samples=config.samples,
            seed=config.seed,
            verifier=config.verifier,
            pool_timeout_s=config.pool_timeout_s,
            wait_timeout_s=config.wait_timeout_s,
        )
        try:
            await all_ready(workers, [], timeout_s=config.rollout.start_timeout_s)
            evaluator = Evaluator(self._task, workers, verifier, settings, label=model.label, keep=self.store.add, on_finished=bar.advance)
            await evaluator.run(problems)
        finally:
            await close_all(workers)
            for worker in workers:
                worker.kill()

    async def _score(self, base: PinnedModel) -> None:
        """Add how likely the base model finds the responses, where that is missing."""
        config = self._config
        handle = launch(scorer(share_of_cores(config.scorer, 1), model=base.path))
        say(self._console, f"likelihood under {base.label}: loading")
        await all_ready([], [handle], timeout_s=config.rollout.start_timeout_s)
        lacking = [BASE_COLUMN not in responses.column_names for responses in self.store.parts()]
        with Bar(self._console, total=len(lacking), done=len(lacking) - sum(lacking), what="scored problem") as bar:
            for responses in self.store.parts():
                if BASE_COLUMN not in responses.column_names:
                    scored = await self._scored(handle, responses)
                    await asyncio.to_thread(self.store.add, scored)
                    bar.advance(None)

    async def _scored(self, handle: Handle[ResponseScorer], responses: pa.Table) -> pa.Table:
        batch = responses.select(["prompt_ids", "response_ids"]).combine_chunks().to_batches()[0]
        waiting_for = f"the likelihood of the responses to {responses['problem_id'][0].as_py()}"
        values = await handle.call(ResponseScorer.mean_logprobs, batch, timeout_s=self._config.wait_timeout_s, waiting_for=waiting_for)
        return with_columns(responses, {BASE_COLUMN: values})

    def _report(self, labels: Sequence[str]) -> None:
        config = self._config
        report = write_report(
            partial(read_responses, self.store),
            labels,
            config.model_dump(mode="json"),
            self._directory,
            max_k=config.samples,
            ks=config.k,
            num_resamples=config.resamples,
            seed=config.seed,
        )
        report.print(self._console)
        say(self._console, f"{self._directory}/report.html   {SAMPLES}   report.json")
