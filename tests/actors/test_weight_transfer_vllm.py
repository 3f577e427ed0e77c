"""nccl and ipc as far as a machine without a GPU goes: vLLM's own classes of both sides, our connection between them,
our engine around.

Stand-ins: for NCCL a queue, for the memory handles of CUDA tensors in this process, for streams nothing, for AsyncLLM a
call of the worker. What this does not show: that NCCL finds its peer, that CUDA shares memory, what either costs."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actors.config import RolloutConfig, SamplingConfig
from actors.device_transfer import DevicePublisher, vllm_trainer
from actors.engine import EngineError, EngineSetup, WeightMismatch
from actors.vllm_engine import AsyncVllmEngine
from actors.vllm_worker import EngineWorker
from actors.weight_transfer import DeviceWeights, check_weights
from learners.forward import causal_lm_shapes, load_causal_lm
from tests.actors.coroutines import WAIT_S, run

pytestmark = pytest.mark.engine

HOST = "127.0.0.1"
NORM = "model.norm.weight"


class Policy:
    """A policy whose weights change with each training step."""

    def __init__(self, path: str) -> None:
        self.model = load_causal_lm(path, dtype="float32")
        self.version = 0

    weight_dtype = None

    def named_weights(self) -> tuple[list[tuple[str, Tensor]], str | None]:
        return list(self.model.named_parameters()), "model.embed_tokens.weight"

    def snapshot(self) -> Any:
        raise AssertionError("weights stay on the device")

    def train(self) -> None:
        self.version += 1
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(self.version)))


class QueueCommunicator:
    """Replaces PyNcclCommunicator: rank 0 broadcasts to rank 1, which checks the number of bytes."""

    def __init__(self, pairs: dict[int, queue.Queue[Tensor]], port: int, rank: int) -> None:
        self.rank = rank
        self._queue = pairs.setdefault(port, queue.Queue())
        self.destroyed = False

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        assert src == 0 and not self.destroyed and tensor.is_contiguous()
        if self.rank == 0:
            self._queue.put(tensor.clone())
            return
        received = self._queue.get(timeout=WAIT_S)
        assert (received.shape, received.dtype) == (tensor.shape, tensor.dtype)
        tensor.copy_(received)

    def destroy(self) -> None:
        self.destroyed = True


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let vLLM's two transfer engines run on the CPU."""
    from vllm.distributed.weight_transfer import ipc_engine, nccl_engine, packed_tensor

    pairs: dict[int, queue.Queue[Tensor]] = {}

    def open_trainer(info: Any) -> QueueCommunicator:
        assert (info.master_address, info.world_size, info.rank) == (HOST, 2, 0)
        return QueueCommunicator(pairs, info.master_port, 0)

    def open_worker(info: Any, parallel_config: Any) -> QueueCommunicator:
        assert (info.master_address, info.world_size, info.rank_offset) == (HOST, 2, 1)
        return QueueCommunicator(pairs, info.master_port, parallel_config.rank + info.rank_offset)

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", open_trainer)
    monkeypatch.setattr(nccl_engine, "worker_init_process_group", open_worker)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda device, number: [SimpleNamespace(synchronize=lambda: None)] * number)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-of-both"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    shared: list[Tensor] = []

    def share(tensor: Tensor) -> tuple[Any, tuple[Any, ...]]:
        shared.append(tensor)
        return None, (len(shared) - 1, "", "", "", "", "", -1)

    monkeypatch.setattr(ipc_engine, "reduce_tensor", share)
    monkeypatch.setattr(ipc_engine, "rebuild_cuda_tensor", lambda number, *rest: shared[number] if rest[5] == 0 else None)
    yield


class FakeAsyncLLM:
    """Replaces AsyncLLM: one worker of vLLM's own class with our extension. Its methods are called in a thread."""

    errored = False

    def __init__(self, model: nn.Module, arguments: Any) -> None:
        from vllm.config import VllmConfig
        from vllm.distributed.weight_transfer import WeightTransferEngineFactory
        from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
        from vllm.v1.worker.gpu_worker import Worker

        class WorkerUnderTest(Worker, EngineWorker):  # type: ignore[misc]
            def __init__(self) -> None:
                record_metadata_for_reloading(model)
                self.vllm_config = VllmConfig()
                self.rank = 0
                self.model_runner = SimpleNamespace(get_model=lambda: model, reset_lora_state=lambda: None)
                self.weight_transfer_engine = WeightTransferEngineFactory.create_engine(
                    arguments.weight_transfer_config, self.vllm_config, torch.device("cpu", 0), model
                )
                self._weight_update_active = self._weight_update_is_draft = False

        self.worker = WorkerUnderTest()
        self.is_paused = False
        self.calls: list[str] = []
        self.fail_at: str | None = None

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("keep", False)
        self.is_paused = True

    async def resume_generation(self) -> None:
        self.is_paused = False

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> list[Any]:
        assert self.is_paused, f"{method} while the engine steps"
        self.calls.append(method)
        if method == self.fail_at:
            raise RuntimeError(f"no memory for {method}")
        return [await asyncio.to_thread(getattr(self.worker, method), *args, **(kwargs or {}))]

    def shutdown(self) -> None:
        pass


class Receiving(nn.Module):
    """The engine's model, which reads tensors by name as vLLM's models do."""

    def __init__(self, path: str) -> None:
        super().__init__()
        whole = load_causal_lm(path, dtype="float32")
        self.model, self.lm_head = whole.model, whole.lm_head
        self.dropped: str | None = None

    def load_weights(self, weights: Any) -> None:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            if name != self.dropped:
                getattr(parameters[name], "weight_loader", default_weight_loader)(parameters[name], tensor)


class Side:
    """A learner and one engine: `with Side("nccl", path, monkeypatch) as side`."""

    def __init__(self, transfer: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        self.path = path
        self.policy = Policy(path)
        self.publisher = DevicePublisher(
            transfer, lambda client, source: vllm_trainer(transfer, client, source, host=HOST), host=HOST, kept_versions=2
        )
        self.model = Receiving(path)
        monkeypatch.setattr(AsyncLLM, "from_engine_args", lambda arguments: FakeAsyncLLM(self.model, arguments))
        config = RolloutConfig(engine="vllm-async", weight_transfer=transfer, dtype="float32")
        self.engine = AsyncVllmEngine()
        asyncio.run(self.engine.start(EngineSetup(model=path, config=config, sampling=SamplingConfig(), seed=0)))
        self.llm: FakeAsyncLLM = self.engine._engine

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.publisher.close()

    def publish(self) -> DeviceWeights:
        self.policy.train()
        weights = self.publisher.publish(self.policy)
        check_weights(weights, shapes=causal_lm_shapes(self.path), dtype="float32")
        return weights

    def holds(self, version: int) -> bool:
        expected = Policy(self.path)
        while expected.version < version:
            expected.train()
        theirs = dict(self.model.named_parameters())
        return all(torch.equal(theirs[name], tensor) for name, tensor in expected.model.named_parameters())


@pytest.fixture(params=["nccl", "ipc"])
def side(request: pytest.FixtureRequest, tiny_model: str, without_cuda: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with Side(request.param, tiny_model, monkeypatch) as side:
        yield side


def test_an_engine_takes_version_after_version_and_proves_them(side: Side) -> None:
    async def main() -> None:
        for version in (1, 2, 3):
            weights = side.publish()
            assert await side.engine.load(weights) >= 0
            assert side.engine._version == version and side.holds(version) and not side.llm.is_paused
        assert side.llm.calls.count("init_weight_transfer_engine") == 1, "the two stay in touch"

    run(main())
    assert side.llm.calls[1:5] == ["start_weight_update", "update_weights", "finish_weight_update", "held_weights"]


def test_a_version_is_sent_as_it_was_while_the_learner_trains_on(side: Side) -> None:
    first = side.publish()
    second = side.publish()
    side.policy.train()
    run(side.engine.load(first))
    assert side.holds(1)
    run(side.engine.load(second))
    assert side.holds(2)


def test_a_tensor_that_the_engine_does_not_take_is_named(side: Side) -> None:
    side.model.dropped = NORM
    with pytest.raises(WeightMismatch, match=rf"version 1 the engine \(rank 0\) does not hold tensor {NORM}"):
        run(side.engine.load(side.publish()))
    assert side.llm.is_paused and side.engine._version == 0


def test_what_fails_half_way_is_the_engine_s_failure_and_it_stays_paused(side: Side) -> None:
    side.llm.fail_at = "start_weight_update"
    with pytest.raises(EngineError, match=r"loading version 1 failed: .*no memory for start_weight_update"):
        run(side.engine.load(side.publish()))
    assert side.llm.is_paused and side.engine._version == 0
