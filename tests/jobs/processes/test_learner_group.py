"""A learner of several ranks as one component: with scripted ranks, and with real processes in whole runs."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import jobs.processes.learner_group
from actors.learner import Learner
from actors.learner_rank import LearnerRank
from jobs.config import RunConfig
from jobs.directory.events import EventKind
from jobs.processes.description import Component, TrainingComponents
from jobs.processes.handles import ActorDied, Deadline, Handle, LocalHandle
from jobs.processes.learner_group import LearnerGroup
from learners.checkpoint import CheckpointError, CheckpointManager
from learners.ranks import RankLost
from tests.actors.coroutines import begin, run
from tests.jobs.components_fixture import LocalRun, assert_same_state, small_config
from tests.jobs.process_handle import ProcessHandle
from tests.learners.samples import ragged_batch

pytestmark = pytest.mark.whole

# --- scripted ranks ---------------------------------------------------------------------------------------------------


class ScriptedRank:
    """Notes what it is asked, and answers with what it is told to: a value, an error, or never."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.asked: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}
        self.entered = asyncio.Event()

    async def open(self) -> str:
        self.asked.append(("open",))
        return "10.0.0.1:7"

    async def join(self, address: str) -> None:
        self.asked.append(("join", address))

    async def do(self, method: str, *args: Any) -> Any:
        self.asked.append((method, *args))
        self.entered.set()
        answer = self.answers.get(method, f"{method} by {self.rank}")
        if answer is ...:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Scene:
    def __init__(self, size: int = 2) -> None:
        self.ranks = [ScriptedRank(rank) for rank in range(size)]
        self.handles = [LocalHandle(rank, f"learner-{rank.rank}") for rank in self.ranks]
        self.group = LearnerGroup(self.handles)

    def answer(self, method: str, *answers: Any) -> None:
        for rank, answer in zip(self.ranks, answers, strict=True):
            rank.answers[method] = answer

    async def call(self, method: str, *args: Any, timeout_s: float = 5) -> Any:
        return await self.group.call(getattr(Learner, method), *args, timeout_s=timeout_s, waiting_for="the test")


def test_the_first_call_lets_them_meet_and_every_call_is_made_on_all() -> None:
    async def scenario() -> None:
        scene = Scene(3)
        assert await scene.call("step", "batch", 7) == "step by 0"
        assert await scene.call("publish") == "publish by 0"
        joined = [("join", "10.0.0.1:7"), ("step", "batch", 7), ("publish",)]
        assert [rank.asked for rank in scene.ranks] == [[("open",), *joined], joined, joined]

    run(scenario())


def test_ranks_that_find_no_room_are_not_waited_for_beyond_the_time() -> None:
    class Pending(LocalHandle):
        async def placed(self) -> str | None:
            await asyncio.Event().wait()
            return None

    async def scenario() -> None:
        group = LearnerGroup([LocalHandle(ScriptedRank(0), "learner-0"), Pending(ScriptedRank(1), "learner-1")])
        with pytest.raises(Deadline, match=r"the 2 ranks of the learner did not all find room within 0\.05 s: each needs its resources"):
            await group.call(Learner.ready, timeout_s=0.05, waiting_for="the learner")

    run(scenario())


def test_calls_made_at_once_come_in_one_order_on_all_ranks() -> None:
    async def scenario() -> None:
        scene = Scene()
        await asyncio.gather(*(scene.call("step", number) for number in range(20)))
        assert scene.ranks[0].asked[2:] == scene.ranks[1].asked[1:] == [("step", number) for number in range(20)]

    run(scenario())


def test_the_death_of_one_is_the_death_of_all_at_once() -> None:
    async def scenario() -> None:
        scene = Scene(3)
        scene.answer("step", ..., ..., ...)
        stepping = await begin(scene.call("step", timeout_s=60))
        await scene.ranks[2].entered.wait()
        began = time.monotonic()
        scene.handles[2].kill()
        with pytest.raises(ActorDied, match="the learner-2 process died while the run waited for the test"):
            await stepping
        assert time.monotonic() - began < 1
        with pytest.raises(ActorDied, match="learner-2 process died"):
            await scene.call("publish")
        assert [rank.asked[-1] for rank in scene.ranks] == [("step",)] * 3  # the rest is left alone

    run(scenario())


def test_a_death_explains_what_the_others_say_of_it() -> None:
    async def scenario() -> None:
        scene = Scene(3)
        scene.answer("step", RankLost("Connection closed by peer"), ..., RankLost("Connection closed by peer"))
        stepping = await begin(scene.call("step"))
        await scene.ranks[1].entered.wait()
        scene.handles[1].kill()
        with pytest.raises(ActorDied, match="learner-1 process died"):
            await stepping

    run(scenario())


def test_a_rank_that_does_not_answer_the_others_is_lost_though_its_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.processes.learner_group, "EXPLANATION_S", 0.05)

    async def scenario() -> None:
        scene = Scene()
        scene.answer("step", RankLost("Timed out waiting 3000ms for recv"), ...)
        with pytest.raises(ActorDied, match="a rank of the learner did not answer the others while the run waited for the test") as raised:
            await scene.call("step")
        assert "Timed out" in str(raised.value.__cause__)

    run(scenario())


def test_a_rank_that_takes_too_long_is_named() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.answer("step", "done", ...)
        with pytest.raises(Deadline, match=r"learner-1\.do took over 0\.05 s: waited for the test"):
            await scene.call("step", timeout_s=0.05)

    run(scenario())


def test_an_error_of_a_ranks_own_is_raised_and_not_what_the_others_say_of_it() -> None:
    async def scenario() -> None:
        for others in (..., RankLost("Connection closed by peer")):
            scene = Scene()
            scene.answer("step", others, ZeroDivisionError("its own"))
            with pytest.raises(ZeroDivisionError, match="its own"):
                await scene.call("step")
            with pytest.raises(ActorDied, match="ZeroDivisionError: its own"):
                await scene.call("step")

    run(scenario())


def test_a_checkpoint_that_cannot_be_written_harms_nothing() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.answer("save_part", CheckpointError("disk full"), [])
        with pytest.raises(CheckpointError, match="disk full"):
            await scene.call("save_part")
        assert await scene.call("step") == "step by 0"

    run(scenario())


def test_memory_is_that_of_all_ranks_and_all_are_killed() -> None:
    class Rank(LocalHandle):
        async def rss_bytes(self, *, timeout_s: float) -> int | None:
            return 1000

    async def scenario() -> None:
        handles: list[Handle] = [Rank(ScriptedRank(rank), f"learner-{rank}") for rank in range(2)]
        group = LearnerGroup(handles)
        assert await group.rss_bytes(timeout_s=1) == 2000
        assert await LearnerGroup([*handles, LocalHandle(None, "learner-2")]).rss_bytes(timeout_s=1) is None
        group.kill()
        for handle in handles:
            with pytest.raises(ActorDied):
                await handle.call(LearnerRank.do, "ready", timeout_s=1, waiting_for="the dead")

    run(scenario())


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    ProcessHandle.end_all()


def learner_group(config: RunConfig) -> tuple[LearnerGroup, list[ProcessHandle]]:
    components = TrainingComponents(config, config.model, run_id="test", log_directory="")
    ranks = [ProcessHandle.launch(components.learner_rank(rank)) for rank in range(config.learner.ranks)]
    return LearnerGroup(ranks), ranks


class RunOfRanks(LocalRun):
    """A whole run whose learner is `learner.ranks` real processes."""

    def __init__(self, config: RunConfig) -> None:
        self.learner_ranks: list[list[ProcessHandle]] = []
        """The ranks of every learner there was."""
        super().__init__(config)

    def _launch(self, component: Component[Any]) -> Handle[Any]:
        if component.cls is not LearnerRank:
            return super()._launch(component)
        handle = ProcessHandle.launch(component)
        if handle.name == "learner-0":
            self.learner_ranks.append([])
        self.learner_ranks[-1].append(handle)
        return handle


def learnt(config: RunConfig) -> dict[str, torch.Tensor]:
    """Masters, moments and weights, as the last checkpoint has them."""
    directory = Path(config.run_dir) / f"checkpoints/step_{config.steps:06d}/learner"
    state = {name: value for name, value in load_file(directory / "optimiser.safetensors").items() if name != "rng"}
    return state | {f"policy/{name}": value for name, value in load_file(directory / "policy/model.safetensors").items()}


def run_config(model: str, directory: Path, *, ranks: int, **values: Any) -> RunConfig:
    """At lag 0, so that a run is a function of its configuration."""
    directory.mkdir()
    learner = {"ranks": ranks, "collective_timeout_s": 5.0, "lr": 1e-3}
    return small_config(model, directory, steps=3, max_policy_lag=0, learner=learner, supervision={"backoff_s": 0.01}, **values)


@pytest.fixture(scope="module")
def undisturbed(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> RunOfRanks:
    """A run of two ranks that nothing happens to."""
    finished = RunOfRanks(run_config(tiny_model, tmp_path_factory.mktemp("undisturbed") / "two", ranks=2))
    assert finished.train() == 3
    return finished


def test_a_run_of_two_ranks_samples_what_a_run_of_one_does(tiny_model: str, tmp_path: Path, undisturbed: RunOfRanks) -> None:
    one = LocalRun(run_config(tiny_model, tmp_path / "one", ranks=1))
    assert one.train() == 3
    tokens = [[row["response_ids"] for row in each.logged()] for each in (undisturbed, one)]
    assert tokens[0] == tokens[1] and len(tokens[0]) == 3 * 2 * 4
    found, expected = learnt(undisturbed.config), learnt(one.config)
    assert found.keys() == expected.keys()
    moved = load_file(f"{tiny_model}/model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert any(not torch.equal(expected[f"policy/{name}"], before) for name, before in moved.items())


@pytest.mark.parametrize(
    ("rank", "number"),
    [
        pytest.param(1, signal.SIGKILL, id="second killed"),
        pytest.param(0, signal.SIGKILL, id="first killed", marks=pytest.mark.long),
        pytest.param(0, signal.SIGSTOP, id="first stopped", marks=pytest.mark.long),
    ],
)
def test_a_rank_lost_in_a_step_is_a_learner_lost_and_the_run_is_the_same_bit_for_bit(
    tiny_model: str, tmp_path: Path, undisturbed: RunOfRanks, rank: int, number: int
) -> None:
    disturbed = RunOfRanks(run_config(tiny_model, tmp_path / "disturbed", ranks=2, wait_timeout_s=20.0))
    victim = disturbed.learner_ranks[0][rank]

    def strike(method: str, args: tuple[Any, ...]) -> None:
        if args[:1] == ("step",) and args[2] == 1:  # the second
            time.sleep(0.03)
            victim.signal(number)

    victim.when_asked = strike
    assert disturbed.train() == 3
    assert len(disturbed.learner_ranks) == 2
    (fault,) = disturbed.noted(EventKind.FAULT, role="learner")
    assert fault["kind"] == "infrastructure"
    assert disturbed.samples() == undisturbed.samples()
    assert_same_state(learnt(disturbed.config), learnt(undisturbed.config))


def test_where_a_checkpoint_cannot_be_written_at_all_the_ranks_stay_in_step(tiny_model: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tiny_model, tmp_path / "run", ranks=2)
        group, _ = learner_group(config)

        async def call(method: str, *args: Any) -> Any:
            return await group.call(getattr(Learner, method), *args, timeout_s=30, waiting_for=method)

        (tmp_path / "file").write_text("no directory can be made here")
        with pytest.raises(CheckpointError, match="could not be written"):
            await call("save_part", CheckpointManager(str(tmp_path / "file" / "checkpoints"), keep=1), 0, "learner")
        assert (await call("step", ragged_batch(2), 0)).version == 1
        manager = CheckpointManager(str(tmp_path / "checkpoints"), keep=1)
        files = await call("save_part", manager, 1, "learner")
        manager.commit(1, files, {})
        await call("load_part", manager, 1, "learner")
        assert await call("ready") == 1

    run(scenario())
