"""Comparisons in this process: the real commands' work on the tiny model behind local handles, no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.rollout import RolloutWorker
from jobs import evaluate
from jobs.comparison.units import Command
from jobs.config import load_config
from jobs.directory.job_dir import JobDirectory
from jobs.directory.metrics import MetricsWriter
from jobs.directory.run_dir import RunDirectory
from jobs.evaluation_config import CHANGEABLE_BETWEEN_STARTS, EvaluateConfig
from jobs.processes.handles import LocalHandle
from jobs.reports.evaluate.report import write_report
from jobs.sampling.candidates import CandidateStore
from jobs.sampling.evaluated_models import PinnedModels
from jobs.sampling.evaluator import Evaluator, EvaluatorSettings
from jobs.sampling.job import problems_of
from jobs.sampling.samples import MODEL_AND_PROBLEM, SAMPLES, read_responses
from tasks.registry import make_task
from tests.jobs.components_fixture import LocalRun
from tests.jobs.explore_fixture import CoinVerifier

STEPS, PROBLEMS, SAMPLED = (1, 2), 3, 4

BASE_CONFIG = """
model = "{model}"
prompts_per_step = 2
responses_per_prompt = 4
max_policy_lag = 0
wait_timeout_s = 60

[sampling]
max_response_tokens = 6

[rollout]
engine = "transformers"
dtype = "float32"

[encoder]
dtype = "float32"

[bonus]
dim = 8

[learner]
dtype = "float32"
lr = 1e-2
warmup_steps = 0
advantage.combine = "advantage"
"""

COMPARISON = """
out = "{out}"
config = "{base}"
baseline = "grpo"
seeds = [0, 1]
steps = [1, 2]

[methods.grpo]
bonus.enabled = false

[methods.repexp]
bonus.ridge = "auto"
bonus.cut_off = "keep"
learner.advantage.beta = 1.0

[evaluation]
problems = 3
samples = 4
resamples = 200
"""


def write_comparison(directory: Path, model: str, *, out: str = "small", text: str = COMPARISON) -> Path:
    """Two methods and two seeds on the tiny model, in a file of `directory`; returns its path."""
    base, file = directory / "base.toml", directory / f"{out}.toml"
    base.write_text(BASE_CONFIG.format(model=model))
    file.write_text(text.format(out=directory / out, base=base))
    return file


class InProcess:
    """Does in this process what `jobs.train` and `jobs.evaluate` do in their own. `note` hears what is done."""

    at_once = 1
    stopped_hint = "nothing is under way"

    def __init__(self, note: Callable[[str], None] = lambda line: None) -> None:
        self._note = note
        self.commands: list[str] = []
        self.failing: dict[str, str] = {}
        """What a command answers in place of being carried out, by its name."""

    def execute(self, command: Command) -> str | None:
        self.commands.append(command.name)
        if command.name in self.failing:
            return self.failing[command.name]
        {"jobs.train": self._train, "jobs.evaluate": self._evaluate}[command.module](command)
        self._note(f"finished {command.name}")
        return None

    def stop(self, number: int) -> None:
        """Nothing is under way between two commands."""

    def _train(self, command: Command) -> None:
        config = load_config(command.arguments[0])
        with RunDirectory(config) as directory:
            start = directory.checkpoints.latest() or 0
            writer = MetricsWriter(directory.metrics, resume_step=start)
            run = LocalRun(config, synchronous=True)

            def report(step: int) -> None:
                writer.write(step, run.reports[-1][1])
                self._note(f"trained {command.name} {step}")

            run.on_report = report
            step = run.train()
            with directory.exporting_policy(step) as staging:
                run.the_learner.save_policy(str(staging))

    def _evaluate(self, command: Command) -> None:
        options = evaluate.parse_arguments(command.arguments)
        config, models, _ = evaluate.resolve(evaluate.values_of(options), source="the comparison")
        with JobDirectory(config.out, config, changeable=CHANGEABLE_BETWEEN_STARTS, kind="the directory", option="--out") as directory:
            pins = PinnedModels(directory.path)
            pinned = pins.known(models[0].name) or pins.pin(models[0])
            store = CandidateStore(directory.path, config.model_dump(mode="json"), file=SAMPLES, key=MODEL_AND_PROBLEM)
            self._sample(config, pinned.label, pinned.path, store, command.name)
            pins.release()

            def read(label: str, problem_ids: Any = None) -> Any:
                return read_responses(store, label, problem_ids)

            write_report(read, [pinned.label], {}, directory.path, max_k=config.samples, num_resamples=100)

    def _sample(self, config: EvaluateConfig, label: str, path: str, store: CandidateStore, name: str) -> None:
        task = make_task(config.task)
        problems = problems_of(task, config.split, config.problems, warn=print)
        finished = store.finished()
        waiting = [problem for problem in problems if (label, problem.problem_id) not in finished]
        if not waiting:  # the copy of the policy may be released already
            store.compact([(label, problem.problem_id) for problem in problems])
            return
        worker = RolloutWorker(
            worker_id="rollout-0", run_id="evaluate", model=path, config=config.rollout, sampling=config.sampling, seed=config.seed
        )
        settings = EvaluatorSettings(
            samples=config.samples, seed=config.seed, verifier=config.verifier, pool_timeout_s=30, wait_timeout_s=30
        )

        def keep(responses: pa.Table) -> None:
            store.add(responses)
            self._note(f"sampled {name} {responses['problem_id'][0].as_py()}")

        async def run() -> None:
            try:
                await worker.start()
                verifier: LocalHandle[Any] = LocalHandle(CoinVerifier(), "verifier")
                evaluator = Evaluator(
                    task, [LocalHandle(worker, "rollout-0")], verifier, settings, label=label, keep=keep, on_finished=lambda usage: None
                )
                await evaluator.run(waiting)
            finally:
                await worker.close()

        asyncio.run(run())
        store.compact([(label, problem.problem_id) for problem in problems])
