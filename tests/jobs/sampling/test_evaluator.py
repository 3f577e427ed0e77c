"""Samples of models: whole, judged, the same after any interruption; and the same evaluation in training, pinned to a
version."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.configuration.user_error import REFUSALS
from jobs.evaluation_config import EvaluationConfig
from jobs.processes.handles import LocalHandle
from jobs.sampling.training_evaluation import TrainingEvaluation
from learners.config import LearnerConfig
from learners.policy_learner import PolicyLearner
from learners.weights import WeightSnapshot
from tasks.config import TaskConfig
from tasks.registry import make_task
from tests.jobs.components_fixture import LocalRun, small_config
from tests.jobs.evaluate_fixture import SETTINGS, LocalEvaluate, make_worker
from tests.jobs.explore_fixture import CoinVerifier
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def models(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"a": tiny_model, "b": make_tiny_model(tmp_path_factory.mktemp("other"), seed=1)}


@pytest.fixture(scope="module")
def sampled(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Of a whole evaluation, shared by the tests that only read it."""
    return LocalEvaluate(tmp_path_factory.mktemp("sampled"), models).run()


def test_every_model_has_every_sample_of_every_problem_judged(sampled: pa.Table) -> None:
    rows = sampled.to_pylist()
    assert [(row["model"], row["index"]) for row in rows] == [(model, index) for model in "ab" for _ in range(3) for index in range(6)]
    assert len({row["problem_id"] for row in rows}) == 3
    assert all(row["verdict_status"] in ("correct", "incorrect") for row in rows)
    assert all(len(row["response_ids"]) == len(row["response_logprobs"]) > 0 for row in rows)
    assert all(row["mean_logprob"] == pytest.approx(np.mean(row["response_logprobs"])) for row in rows)
    assert "feature" not in sampled.column_names


def test_models_differ_in_what_they_say(sampled: pa.Table) -> None:
    texts = sampled["response_text"].to_pylist()
    assert texts[:18] != texts[18:]


@pytest.mark.parametrize("stop_after", [1, 4])
def test_an_interrupted_evaluation_ends_with_the_same_samples(
    models: dict[str, str], sampled: pa.Table, tmp_path: Path, stop_after: int
) -> None:
    class Killed(BaseException):
        pass

    first = LocalEvaluate(tmp_path, models)

    def stop() -> None:
        if len(first.usages) == stop_after:
            raise Killed

    first.on_finished = stop
    with pytest.raises(Killed):
        first.run()
    num_finished = len(first.store.finished())
    assert stop_after <= num_finished < 6
    second = LocalEvaluate(tmp_path, models, num_workers=2)
    assert second.run().equals(sampled)
    assert len(second.usages) == 6 - num_finished, "a finished problem was sampled again"


# ---- in training ----


def snapshots(model: str) -> list[WeightSnapshot]:
    """Versions 1 and 2 of a policy: the same weights but for one."""
    learner = PolicyLearner(model, LearnerConfig(dtype="float32"), temperature=1.0, group_size=2)
    made = []
    for version in (1, 2):
        learner.version = version
        parameter = next(iter(learner._model.parameters()))
        parameter.data.mul_(1.0 + 0.05 * version)
        made.append(learner.snapshot())
    return made


def training_evaluation(directory: Path, **config: object) -> TrainingEvaluation:
    values = EvaluationConfig.model_validate({"every": 2, "problems": 3, "samples": 6, "k": [1, 6], **config})
    return TrainingEvaluation(values, make_task(TaskConfig()), SETTINGS, directory / "eval")


def test_a_training_run_is_told_that_there_are_fewer_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's console says it, as one JSON line where logs.format = "json"; nothing is printed past that."""
    evaluation = training_evaluation(tmp_path, problems=1000)
    asked = len(evaluation.problems)
    assert evaluation.warnings == [f"split 'test' of task arithmetic has only {asked} different questions, 1000 were asked for"]
    assert not training_evaluation(tmp_path).warnings and not capsys.readouterr().out


def test_a_training_run_evaluates_the_version_it_began_with(tiny_model: str, tmp_path: Path) -> None:
    evaluation = training_evaluation(tmp_path)
    assert [step for step in range(5) if evaluation.is_due(step)] == [0, 2, 4]
    one, two = snapshots(tiny_model)

    async def evaluate(snapshot: WeightSnapshot) -> dict[str, float]:
        worker = make_worker(tiny_model)
        await worker.start()
        try:
            await worker.update(snapshot)
            handles = [LocalHandle(worker, "evaluation")]
            return await evaluation.run(snapshot.version, handles, LocalHandle(CoinVerifier(), "verifier"))
        finally:
            await worker.close()

    first, second = asyncio.run(evaluate(one)), asyncio.run(evaluate(two))
    assert {"eval/pass@1", "eval/pass@6", "eval/maj@6", "eval/distinct_answers", "eval/entropy"} <= set(first)
    assert first["eval/problems"] == 3.0
    tables = [pq.read_table(tmp_path / "eval" / f"step_{step:06d}.parquet") for step in (1, 2)]
    correct = np.array([status == "correct" for status in tables[0]["verdict_status"].to_pylist()])
    assert first["eval/pass@1"] == pytest.approx(correct.mean())
    assert set(tables[1]["model"].to_pylist()) == {"step 2"}
    assert tables[0]["response_ids"] != tables[1]["response_ids"]
    assert tables[0]["problem_id"] == tables[1]["problem_id"]
    assert first["eval/entropy"] != second["eval/entropy"]


def test_a_run_trains_on_while_its_policies_are_evaluated(tiny_model: str, tmp_path: Path) -> None:
    """The real evaluation in the real loops, on the run's own task."""
    run = LocalRun(small_config(tiny_model, tmp_path / "run", steps=4), evaluation=training_evaluation(tmp_path))
    assert run.train() == 4
    run.check_valid()
    assert run.evaluated and {step for step, _ in run.evaluated} <= {2, 4}
    for step, metrics in run.evaluated:
        rows = pq.read_table(tmp_path / "eval" / f"step_{step:06d}.parquet").to_pylist()
        assert len(rows) == 3 * 6
        assert metrics["eval/pass@1"] == pytest.approx(np.mean([row["verdict_status"] == "correct" for row in rows]))
    assert run.warnings == [] or all("is left out: that of step 2" in text for text in run.warnings)


def test_weights_that_change_meanwhile_are_found_out(tiny_model: str, tmp_path: Path) -> None:
    one, two = snapshots(tiny_model)
    evaluation = training_evaluation(tmp_path, problems=30)

    async def disturbed() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        verifier = CoinVerifier()
        judge = verifier.verify
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def verify(*arguments: object) -> object:
            loop.call_soon_threadsafe(reached.set)
            return judge(*arguments)  # type: ignore[arg-type]

        verifier.verify = verify  # type: ignore[method-assign,assignment]
        try:
            await worker.update(one)
            running = asyncio.create_task(evaluation.run(1, [LocalHandle(worker, "evaluation")], LocalHandle(verifier, "verifier")))
            await reached.wait()
            await worker.update(two)
            await running
        finally:
            await worker.close()

    with pytest.raises(RuntimeError, match="the evaluation of version 1 was sampled in part under version 2"):
        asyncio.run(disturbed())
    assert not (tmp_path / "eval").exists()


def test_a_split_that_the_task_does_not_have_is_refused_before_training_begins(tmp_path: Path) -> None:
    with pytest.raises(REFUSALS, match="no split 'nowhere'"):
        training_evaluation(tmp_path, split="nowhere")


def test_k_above_the_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="asks for pass@16, but there are 8 samples"):
        EvaluationConfig(samples=8, k=(1, 16))
