from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.device_transfer import DevicePublisher, DeviceReceiver, make_publisher
from actors.learner import Learner
from actors.weight_transfer import DeviceWeights, TransferUnavailable, check_weights
from learners.config import LearnerConfig
from learners.forward import causal_lm_shapes
from learners.weight_check import WeightsRefused
from learners.weights import HEAD, WeightSnapshot, fingerprint, take_snapshot
from tests.actors.coroutines import WAIT_S, run
from tests.learners.samples import ragged_batch

HOST = "127.0.0.1"
SHAPES = {"embed.weight": (4, 3), "norm.weight": (3,)}


class Policy:
    """A policy whose weights all equal its version."""

    version = 0

    def __init__(self) -> None:
        self.tensors = {name: torch.zeros(shape) for name, shape in SHAPES.items()}

    weight_dtype = None

    def named_weights(self) -> tuple[list[tuple[str, Tensor]], str | None]:
        return list(self.tensors.items()), "embed.weight"

    def snapshot(self) -> WeightSnapshot:
        return take_snapshot(self.tensors.items(), version=self.version, tied_to="embed.weight")

    def train(self) -> None:
        self.version += 1
        for tensor in self.tensors.values():
            tensor.fill_(self.version)


class FakeTrainer:
    """Makes vLLM's calls in vLLM's order, with the weights themselves in the update. It checks its arguments."""

    made: list[FakeTrainer]

    def __init__(self, client: Any, source: Any) -> None:
        self.client, self.source, self.is_open = client, source, True
        self.before_update: Callable[[], None] = lambda: None
        self.made.append(self)
        client.init_weight_transfer_engine({"packed": False})

    def send_weights(self) -> None:
        assert self.is_open
        declared = self.source.metadata()
        tensors = dict(self.source)
        assert [(meta.name, meta.dtype, meta.shape) for meta in declared] == [(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == SHAPES
        self.client.start_weight_update()
        self.before_update()
        self.client.update_weights({name: tensor.tolist() for name, tensor in tensors.items()})
        self.client.finish_weight_update(None)

    def shutdown(self) -> None:
        self.is_open = False


class FakeEngine:
    """Does what vLLM's worker does with the calls, and checks their order."""

    def __init__(self) -> None:
        self.receiver = DeviceReceiver(self.call)
        self.calls: list[str] = []
        self.held: dict[str, Any] = {}
        self.error: Exception | None = None

    async def call(self, method: str, arguments: dict[str, Any]) -> None:
        self.calls.append(method)
        match method:
            case "init_weight_transfer_engine":
                assert arguments == {"init_info": {"packed": False}}
            case "update_weights":
                assert self.calls[-2] == "start_weight_update"
                if self.error is not None:
                    raise self.error
                self.held = arguments["update_info"]
            case _:
                assert arguments == {}

    async def load(self, weights: DeviceWeights) -> None:
        await self.receiver.ask(weights)
        await self.receiver.take()

    def holds(self, version: int) -> bool:
        return self.held == {name: torch.full(shape, version).float().tolist() for name, shape in SHAPES.items()}


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[FakeTrainer]:
    made: list[FakeTrainer] = []
    monkeypatch.setattr(FakeTrainer, "made", made, raising=False)
    return made


@pytest.fixture
def publisher(trainers: list[FakeTrainer]) -> Iterator[DevicePublisher]:
    publisher = DevicePublisher("nccl", FakeTrainer, host=HOST, kept_versions=2)
    yield publisher
    publisher.close()


def published(publisher: DevicePublisher, policy: Policy) -> DeviceWeights:
    policy.train()
    return publisher.publish(policy)


def test_the_object_store_s_publisher_hands_out_the_policy_s_snapshot() -> None:
    policy = Policy()
    policy.train()
    weights = make_publisher("object_store").publish(policy)
    assert isinstance(weights, WeightSnapshot) and weights.version == 1
    check_weights(weights, shapes=SHAPES, dtype="float32")
    with pytest.raises(WeightsRefused, match=r"tensor norm\.weight is missing"):
        check_weights(replace(weights, index=weights.index[:1]), shapes=SHAPES, dtype="float32")


def test_weights_on_a_device_say_what_they_are_and_not_the_key(publisher: DevicePublisher) -> None:
    policy = Policy()
    weights = published(publisher, policy)
    assert (weights.version, weights.nbytes) == (1, 4 * 15)
    assert dict(weights.fingerprint) == fingerprint({**policy.tensors, HEAD: policy.tensors["embed.weight"]}, version=1)
    assert repr(weights.key) not in repr(weights)
    check_weights(weights, shapes=SHAPES, dtype="float32")
    with pytest.raises(WeightsRefused, match=r"tensor norm\.weight has shape \[3\], this model's has \[4\]"):
        check_weights(weights, shapes={**SHAPES, "norm.weight": (4,)}, dtype="float32")


def test_versions_are_sent_as_they_were_over_one_connection(publisher: DevicePublisher, trainers: list[FakeTrainer]) -> None:
    async def main() -> None:
        policy, engine = Policy(), FakeEngine()
        first, second = published(publisher, policy), published(publisher, policy)
        policy.tensors["norm.weight"].fill_(99)
        for weights in (first, second):
            await engine.load(weights)
            assert engine.holds(weights.version)
        third = published(publisher, policy)
        for weights in (third, second):
            await engine.load(weights)
            assert engine.holds(weights.version)
        assert engine.calls.count("init_weight_transfer_engine") == len(trainers) == 1

    run(main())


def test_a_version_that_is_kept_no_more_is_refused_and_the_next_is_taken(publisher: DevicePublisher) -> None:
    async def main() -> None:
        policy, engine = Policy(), FakeEngine()
        weights = [published(publisher, policy) for _ in range(3)]
        with pytest.raises(WeightsRefused, match=r"^version 1: the learner keeps versions \[2, 3\] only$"):
            await engine.load(weights[0])
        assert engine.calls == []
        await engine.load(weights[2])
        assert engine.holds(3)

    run(main())


def test_a_learner_that_is_gone_costs_a_refusal_and_its_successor_is_found(trainers: list[FakeTrainer]) -> None:
    async def main() -> None:
        policy, engine = Policy(), FakeEngine()
        lost = DevicePublisher("ipc", FakeTrainer, host=HOST, kept_versions=1)
        weights = published(lost, policy)
        lost.close()
        with pytest.raises(WeightsRefused, match=r"^version 1: the learner that has it does not answer: ConnectionRefusedError"):
            await engine.load(weights)
        successor = DevicePublisher("ipc", FakeTrainer, host=HOST, kept_versions=1)
        await engine.load(published(successor, policy))
        assert engine.holds(2)
        successor.close()

    run(main())


def test_a_client_without_the_key_gets_nothing_and_blocks_no_other(publisher: DevicePublisher) -> None:
    async def main() -> None:
        policy, stranger, engine = Policy(), FakeEngine(), FakeEngine()
        weights = published(publisher, policy)
        with pytest.raises(WeightsRefused, match="does not answer: AuthenticationError"):
            await stranger.load(replace(weights, key=b"guessed"))
        await engine.load(weights)
        assert engine.holds(1) and stranger.calls == []

    run(main())


@pytest.mark.parametrize("says", [b"", b"\x00\x00\x00\x01?", b"\x7f\xff\xff\xff"])
def test_a_client_that_proves_nothing_blocks_no_other_and_is_disconnected(
    publisher: DevicePublisher, monkeypatch: pytest.MonkeyPatch, says: bytes
) -> None:
    monkeypatch.setattr("actors.device_transfer.AUTHENTICATION_TIMEOUT_S", 1)

    async def main() -> None:
        policy, engine = Policy(), FakeEngine()
        weights = published(publisher, policy)
        with socket.create_connection(weights.address) as stranger:
            stranger.sendall(says)
            await engine.load(weights)
            assert engine.holds(1)
            stranger.settimeout(WAIT_S)
            while await asyncio.to_thread(stranger.recv, 1024):
                pass

    run(main())


def test_an_error_of_the_listening_socket_ends_nothing(publisher: DevicePublisher, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        accept, errors = publisher._listener.accept, [OSError(24, "Too many open files")]

        def failing_once() -> Any:
            connection = accept()
            if errors:
                connection.close()
                raise errors.pop()
            return connection

        monkeypatch.setattr(publisher._listener, "accept", failing_once)
        policy, engine = Policy(), FakeEngine()
        weights = published(publisher, policy)
        socket.create_connection(weights.address).close()  # it is waiting in the true one
        with pytest.raises(WeightsRefused):
            await engine.load(weights)
        await engine.load(weights)
        assert engine.holds(1)

    run(main())


def test_the_version_that_is_evaluated_is_kept_until_the_next_one_is(trainers: list[FakeTrainer]) -> None:
    async def main() -> None:
        publisher = DevicePublisher("nccl", FakeTrainer, host=HOST, kept_versions=2, kept_every=4)
        policy, engine = Policy(), FakeEngine()
        weights = [published(publisher, policy) for _ in range(7)]
        await engine.load(weights[3])
        assert engine.holds(4)
        weights.append(published(publisher, policy))
        with pytest.raises(WeightsRefused, match=r"^version 4: the learner keeps versions \[7, 8\] only$"):
            await engine.load(weights[3])
        publisher.close()

    run(main())


def test_no_more_versions_are_held_at_a_time_than_are_kept(publisher: DevicePublisher) -> None:
    held: list[int] = []

    class Counting(Policy):
        def named_weights(self) -> Any:
            held.append(1 + len(publisher._copies))  # with the one that is about to be copied
            return super().named_weights()

    policy = Counting()
    for _ in range(5):
        published(publisher, policy)
    assert held == [1, 2, 2, 2, 2]


def test_a_way_that_cannot_be_opened_is_a_refusal_with_its_reason(trainers: list[FakeTrainer]) -> None:
    def make(client: Any, source: Any) -> FakeTrainer:
        raise RuntimeError("no NCCL here")

    async def main() -> None:
        publisher = DevicePublisher("nccl", make, host=HOST, kept_versions=1)
        with pytest.raises(WeightsRefused, match=r"^version 1: no NCCL here$"):
            await FakeEngine().load(published(publisher, Policy()))
        publisher.close()

    run(main())


def test_an_engine_that_fails_in_an_update_fails_alone(publisher: DevicePublisher, trainers: list[FakeTrainer]) -> None:
    async def main() -> None:
        policy, failing, engine = Policy(), FakeEngine(), FakeEngine()
        weights = published(publisher, policy)
        failing.error = MemoryError("no room")
        with pytest.raises(MemoryError, match="no room"):
            await failing.load(weights)
        await engine.load(weights)
        assert engine.holds(1) and failing.held == {}

    run(main())


def test_an_engine_that_waits_for_its_weights_holds_up_no_other(publisher: DevicePublisher, trainers: list[FakeTrainer]) -> None:
    """It does not affect the learner either, which publishes again."""

    async def main() -> None:
        policy, slow, engine = Policy(), FakeEngine(), FakeEngine()
        weights = published(publisher, policy)
        await slow.load(weights)
        may_go = threading.Event()
        trainers[0].before_update = lambda: assert_set(may_go)
        later = published(publisher, policy)
        waiting = asyncio.create_task(slow.load(later))
        await engine.load(later)
        assert engine.holds(2)
        newest = [published(publisher, policy) for _ in range(3)][-1]
        await engine.load(newest)
        may_go.set()
        await waiting
        assert slow.holds(2) and engine.holds(5), "what is on its way stays as it was"

    run(main())


def assert_set(event: threading.Event) -> None:
    assert event.wait(WAIT_S)


def test_the_learner_s_side_may_ask_for_a_transfer_and_for_nothing_else(publisher: DevicePublisher, trainers: list[FakeTrainer]) -> None:
    async def main() -> None:
        policy, engine = Policy(), FakeEngine()
        await engine.load(published(publisher, policy))
        trainers[0].before_update = lambda: trainers[0].client._call("shutdown")
        with pytest.raises(RuntimeError, match="the learner's side asks for shutdown"):
            await engine.load(published(publisher, policy))
        assert "shutdown" not in engine.calls
        engine.receiver.close()

    run(main())


@pytest.mark.parametrize("transfer", ["nccl", "ipc"])
def test_a_learner_without_a_gpu_says_which_key_to_set(tiny_model: str, transfer: Any) -> None:
    learner = Learner(tiny_model, LearnerConfig(dtype="float32"), temperature=1.0, group_size=4, weight_transfer=transfer)
    with pytest.raises(
        TransferUnavailable, match=rf'^rollout\.weight_transfer = "{transfer}" sends .* on the cpu: set it to "object_store"$'
    ):
        learner.ready()


def test_adapters_leave_merged_into_the_weights_they_change(publisher: DevicePublisher, tiny_model: str) -> None:
    lora = {"enabled": True, "rank": 2}
    learner = Learner(tiny_model, LearnerConfig.model_validate({"dtype": "float32", "lora": lora}), temperature=1.0, group_size=4)
    before = publisher.publish(learner)
    learner.step(ragged_batch(2))
    weights, snapshot = publisher.publish(learner), learner.snapshot()
    assert weights.fingerprint == snapshot.fingerprint and weights.fingerprint != before.fingerprint
    assert [(spec.name, spec.shape, spec.dtype) for spec in weights.index] == [(s.name, s.shape, s.dtype) for s in snapshot.index]
    check_weights(weights, shapes=causal_lm_shapes(tiny_model), dtype="float32")
