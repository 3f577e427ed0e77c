"""Evaluations beside training: of one version each, one at a time, and never what a run fails for."""

import asyncio

import pytest

from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from buffers.records import GroupRequest
from jobs.processes.handles import ActorDied, LocalHandle
from jobs.processes.verdict_counter import VerifierFailure
from tests.jobs.components_fixture import LocalRun, assert_same_state, small_config

pytestmark = pytest.mark.whole


class SampledEvaluation:
    """Samples one group on its worker; optionally waits before that, or fails."""

    def __init__(self, run_of, *, every: int = 2, gate: asyncio.Event | None = None, error: Exception | None = None) -> None:
        self.every = every
        self.gate = gate
        self.error = error
        self.begun: list[int] = []
        self.versions: dict[int, set[int]] = {}
        self._run_of = run_of

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    async def run(self, step, workers, verifier):
        self.begun.append(step)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        (worker,) = workers
        task = self._run_of().task
        problem = task.problem("test", 0)
        request = GroupRequest(group_id=0, problem=problem, num_responses=4, admitted_version=step)
        batch, _ = await worker.call(
            RolloutWorker.sample_pool, request, task.prompt(problem), 1, returns=2, timeout_s=30, waiting_for="an evaluation's samples"
        )
        verdicts = await verifier.call(VerifierPool.verify_batch, problem, batch, timeout_s=30, waiting_for="an evaluation's verdicts")
        self.versions[step] = {version for row in batch.column("version_values").to_pylist() for version in row}
        return {"eval/pass@1": sum(verdict.reward for verdict in verdicts) / 4}


@pytest.fixture
def start(tiny_model, tmp_path):
    def make(name="run", *, around=None, on_made=None, evaluation=None, synchronous=False, **values):
        return LocalRun(
            small_config(tiny_model, tmp_path / name, **values),
            around=around,
            on_made=on_made,
            evaluation=evaluation,
            synchronous=synchronous,
        )

    return make


@pytest.mark.parametrize("synchronous", [False, True])
def test_every_nth_policy_is_evaluated_with_its_own_weights_and_the_last_one_too(start, synchronous):
    evaluation = SampledEvaluation(lambda: run)
    run = start(steps=6, max_policy_lag=0, evaluation=evaluation, synchronous=synchronous)
    assert run.train() == 6
    run.check_valid()
    evaluated = [step for step, _ in run.evaluated]
    assert evaluated[-1] == 6 and set(evaluated) <= {2, 4, 6}
    assert evaluation.versions == {step: {step} for step in evaluated}
    assert not synchronous or evaluated == [2, 4, 6]
    assert all(0 <= metrics["eval/pass@1"] <= 1 for _, metrics in run.evaluated)


def test_training_goes_on_beside_an_evaluation_which_stays_with_its_version(start):
    gate = asyncio.Event()
    evaluation = SampledEvaluation(lambda: run, gate=gate)
    run = start(steps=7, evaluation=evaluation)
    run.on_report = lambda step: gate.set() if step == 6 else None
    assert run.train() == 7
    run.check_valid()
    assert evaluation.versions[2] == {2}
    assert run.warnings[:2] == [f"the evaluation of step {step} is left out: that of step 2 is still under way" for step in (4, 6)]


def test_an_evaluation_changes_nothing_of_what_is_learnt(start, tmp_path):
    without = start("without", steps=4, deterministic=True)
    without.train()
    evaluation = SampledEvaluation(lambda: run, every=1)
    run = start("with", steps=4, deterministic=True, evaluation=evaluation)
    run.train()
    assert run.evaluated
    assert run.samples() == without.samples()
    assert_same_state(run.state(tmp_path / "a"), without.state(tmp_path / "b"))


@pytest.mark.parametrize(
    "error",
    [
        ActorDied("the evaluation process died while the run waited for samples"),
        OSError(28, "No space left on device"),
        VerifierFailure("60 of 100 responses could not be scored"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_an_evaluation_fails_for_costs_the_evaluation_only_and_is_told(start, error):
    run = start(steps=3, evaluation=SampledEvaluation(lambda: run, error=error))
    assert run.train() == 3
    assert run.warnings == [f"the evaluation of step 2 is left out: {error}"]
    assert not run.evaluated


def test_the_last_evaluation_may_take_longer_than_the_run_may_stand_still(start):
    class SlowEvaluation(SampledEvaluation):
        async def run(self, step, workers, verifier):
            await asyncio.sleep(1.3)
            return {"eval/pass@1": 1.0}

    run = start(steps=2, evaluation=SlowEvaluation(lambda: run))
    run.trainer._changes.stuck_after_s = 1.0
    assert run.train() == 2
    assert run.evaluated == [(2, {"eval/pass@1": 1.0})]


def test_an_evaluation_whose_worker_gets_no_resources_is_left_out_and_told(start, monkeypatch):
    async def never(handle):
        if handle.name == "evaluation":
            await asyncio.Event().wait()

    monkeypatch.setattr(LocalHandle, "placed", never)
    run = start(steps=2, evaluation=SampledEvaluation(lambda: run), wait_timeout_s=1.0)
    assert run.train() == 2
    assert run.warnings == ["the evaluation of step 2 is left out: evaluation waited over 1 s for its resources"]


def test_a_bug_in_an_evaluation_ends_the_run(start):
    run = start(steps=30, evaluation=SampledEvaluation(lambda: run, error=ZeroDivisionError("half of nothing")))
    with pytest.raises(ZeroDivisionError, match="half of nothing"):
        run.train()


def test_a_stop_does_not_wait_for_an_evaluation(start):
    evaluation = SampledEvaluation(lambda: run, gate=asyncio.Event())
    run = start(steps=2, evaluation=evaluation)

    async def stop_at_the_end(name, method, args, proceed):
        result = await proceed()
        if method == "save_part":
            run.trainer.stop()
        return result

    run = start(steps=2, evaluation=evaluation, around=stop_at_the_end)
    assert run.train() == 2
    assert not run.evaluated
    assert run.warnings[-1:] == ["the evaluation of step 2 is cut off, as the run ends"]
    assert run.checkpoints.steps() == [2]


def test_what_was_missed_before_a_resume_is_made_up_for_and_what_was_not_is_not(start):
    first = start(steps=2)
    first.train()
    evaluation = SampledEvaluation(lambda: run)
    run = start(steps=3, evaluation=evaluation)
    run.train()
    assert [step for step, _ in run.evaluated] == [2]
    again = SampledEvaluation(lambda: third, every=3)
    third = start(steps=4, evaluation=again)
    third.trainer.evaluations._done = frozenset([3])
    third.train()
    assert not again.begun


def test_a_synchronous_run_does_not_count_the_tokens_of_its_evaluations(start) -> None:
    evaluation = SampledEvaluation(lambda: run, every=1)
    run = start(steps=3, evaluation=evaluation, synchronous=True, max_policy_lag=0)
    run.train()
    assert evaluation.begun == [1, 2, 3]
    counts = run.books.tokens.counts()
    assert counts["generated"] == counts["trained"] == sum(len(row["response_ids"]) for row in run.logged())
    assert counts["wasted_lost"] == 0


def test_a_dead_verifier_is_closed_and_not_replaced(start) -> None:
    run = start(steps=1)
    run.train()
    run.handles["verifier"].kill()
    asyncio.run(run.run.close())
    assert len(run.parts["verifier"]) == 1
