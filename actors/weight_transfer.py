"""How the learner's weights get into the engines: three ways, one interface.

    publisher = make_publisher("object_store")          # in the learner
    weights = publisher.publish(policy)                 # of the policy's version; the learner may go on with the next step at once

    check_weights(weights, shapes=..., dtype=...)       # in a worker: nothing has been touched
    await engine.load(weights)                          # takes them between two steps, and proves that it holds them

| rollout.weight_transfer | what a worker is handed            | how the bytes travel                                                  |
|-------------------------|------------------------------------|-----------------------------------------------------------------------|
| object_store            | all of them, in one indexed buffer | Ray's object store: once to a node, shared there without copies       |
| nccl                    | names, and whom to ask for them    | from GPU to GPU by vLLM's NCCL engine, once to each worker            |
| ipc                     | names, and whom to ask for them    | not at all: vLLM's IPC engine reads the learner's memory (same GPU)   |

nccl and ipc have **not been run on a GPU**: here they are tested with vLLM's own classes for both sides and a stand-in
for NCCL.

With these two the learner keeps copies of its last versions on its GPU, and a thread of its process for each worker
sends them, while the next step goes on. A worker asks when it is to load. So one that joins late, or is lost, concerns
no other: each has a group of two with the learner, and never is there a group of all to be made anew. vLLM's side for
trainers tells the receiving engine what to do through a client with four methods; ours puts these calls on the
connection that the worker has asked on, and the worker passes them on to its engine."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.config import WeightTransfer
from learners.sharding import Deferred, full_tensors
from learners.weight_check import WeightsRefused, check_snapshot, check_tensors
from learners.weights import HEAD, TensorSpec, WeightSnapshot, fingerprint

STAGING_BYTES = 256 << 20
"""Of each of the two buffers, on both sides, that vLLM's NCCL engine packs tensors into."""
AUTHENTICATION_TIMEOUT_S = 20
"""Who has connected and is silent for so long while the learner waits for its proof is let go."""
ACCEPT_RETRY_S = 0.1
"""After an error of the listening socket, out of open files say."""
ENGINE_CALLS = frozenset(("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"))
"""What the learner's side may have an engine do."""


class TransferUnavailable(RuntimeError):
    """This way of handing over weights does not work here; the message names the key and the mend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceWeights:
    """All weights of one policy version, which stay on the learner's GPU: what they must be, and whom to ask for them.

    `index` has no places: its offsets are 0. `key` authenticates both ends of the connection to each other.
    """

    version: int
    index: tuple[TensorSpec, ...]
    fingerprint: Mapping[str, str]
    address: tuple[str, int]
    key: bytes = field(repr=False)

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.index)


Weights = WeightSnapshot | DeviceWeights


def check_weights(weights: Weights, *, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """Raises WeightsRefused unless `weights` are for a model of these parameters and, where their bytes are at hand,
    those published."""
    if isinstance(weights, WeightSnapshot):
        check_snapshot(weights, shapes=shapes, dtype=dtype)
    else:
        check_tensors(weights.index, shapes=shapes, dtype=dtype, version=weights.version)


# ---- the learner's side ----


class Policy(Protocol):
    """What is published: `learners.policy_learner.PolicyLearner`."""

    version: int

    @property
    def weight_dtype(self) -> torch.dtype | None:
        """What weights are published in; None: each in its own."""
        ...

    def snapshot(self) -> WeightSnapshot: ...
    def named_weights(self) -> tuple[list[tuple[str, Tensor | Deferred]], str | None]:
        """The tensors, which may be parts (`learners.sharding`), and the name of the one that is the output head too,
        if one is."""
        ...


class WeightPublisher(Protocol):
    """One way of handing out weights, in the learner's process."""

    def publish(self, policy: Policy) -> Weights:
        """The weights of `policy.version`, for any number of engines. They stay as they are while the policy is trained
        on."""
        ...

    def require_usable(self, device: torch.device) -> None:
        """Raises TransferUnavailable where it does not work for weights on this device."""
        ...


class ObjectStorePublisher:
    """All bytes in one buffer, which whoever calls the learner puts into Ray's object store."""

    def publish(self, policy: Policy) -> WeightSnapshot:
        return policy.snapshot()

    def require_usable(self, device: torch.device) -> None:
        return None


class Trainer(Protocol):
    """vLLM's `TrainerWeightTransferEngine`: one worker's."""

    def send_weights(self) -> None: ...
    def shutdown(self) -> None: ...


class DevicePublisher:
    """Copies on the learner's GPU, sent by vLLM's engines to whoever asks."""

    def __init__(
        self,
        transfer: WeightTransfer,
        make_trainer: Callable[[Any, Any], Trainer],
        *,
        host: str,
        kept_versions: int,
        kept_every: int = 0,
    ) -> None:
        """`make_trainer(client, source)` opens the way to the worker behind `client`. Workers reach this process at
        `host`. The newest `kept_versions` are kept, and the newest multiple of `kept_every` (0: none), which somebody
        may take longer to ask for."""
        self._transfer = transfer
        self._make_trainer = make_trainer
        self._kept_versions = kept_versions
        self._kept_every = kept_every
        self._copies: dict[int, dict[str, Tensor]] = {}
        self._key = secrets.token_bytes(32)
        self._listener = Listener((host, 0))
        self._is_closing = False
        self._accepting = threading.Thread(target=self._accept, name="weights", daemon=True)
        self._accepting.start()

    def require_usable(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise TransferUnavailable(
                f'rollout.weight_transfer = "{self._transfer}" sends weights from the learner\'s GPU, and the learner is on the '
                f'{device.type}: set it to "object_store"'
            )

    def publish(self, policy: Policy) -> DeviceWeights:
        named, tied_to = policy.named_weights()
        with full_tensors(named, policy.weight_dtype) as tensors:
            copies = {name: tensor.clone() for name, tensor in tensors}
        if any(tensor.is_cuda for tensor in copies.values()):
            torch.cuda.current_stream().synchronize()  # other threads send them, on streams of their own
        digests = fingerprint(copies if tied_to is None else {**copies, HEAD: copies[tied_to]}, version=policy.version)
        self._copies[policy.version] = copies
        evaluated = [version for version in self._copies if self._kept_every and version % self._kept_every == 0]
        for version in sorted(self._copies)[: -self._kept_versions]:
            if version != max(evaluated, default=None):
                del self._copies[version]  # whoever sends it at the moment still has it
        index = tuple(TensorSpec(name=name, dtype=_name(copy.dtype), shape=tuple(copy.shape), offset=0) for name, copy in copies.items())
        return DeviceWeights(version=policy.version, index=index, fingerprint=digests, address=self._listener.address, key=self._key)

    def close(self) -> None:
        """Nobody is answered any more; what is being sent still is."""
        self._is_closing = True
        socket.create_connection(self._listener.address).close()  # wakes it
        self._accepting.join()

    def _accept(self) -> None:
        with self._listener:
            while not self._is_closing:
                try:
                    connection = self._listener.accept()
                except OSError:  # of whoever connected, or of this process, which may be mended
                    time.sleep(ACCEPT_RETRY_S)
                    continue
                threading.Thread(target=self._serve, args=(connection,), name="weights", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        """One worker, until it goes, or a transfer fails."""
        source = _Source()
        trainer: Trainer | None = None
        try:
            with connection, suppress(EOFError, OSError, AuthenticationError):
                self._authenticate(connection)
                while True:
                    version = connection.recv()
                    try:
                        source.tensors = self._kept(version)
                        trainer = trainer or self._make_trainer(_ClientOf(connection), source)
                        trainer.send_weights()
                    except Exception as error:  # a seam: told to the worker, which comes again on another connection, or is lost
                        connection.send(_Failed(str(error) or repr(error)))
                        return
                    source.tensors = {}
                    connection.send(_Sent())
        finally:
            if trainer is not None:
                trainer.shutdown()

    def _authenticate(self, connection: Connection) -> None:
        """Raises AuthenticationError, OSError or EOFError for somebody else's connection, OSError for one that says
        nothing."""
        _set_read_timeout(connection, AUTHENTICATION_TIMEOUT_S)
        deliver_challenge(connection, self._key)
        answer_challenge(connection, self._key)
        _set_read_timeout(connection, 0)

    def _kept(self, version: int) -> dict[str, Tensor]:
        copies = self._copies.get(version)
        if copies is None:
            raise LookupError(f"the learner keeps versions {sorted(self._copies)} only")
        return copies


def _set_read_timeout(connection: Connection, seconds: int) -> None:
    """A read then raises BlockingIOError when nothing has come for so long; 0: never."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


@dataclass(frozen=True, slots=True)
class _Declared:
    """vLLM's `ParamMeta`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class _Source:
    """vLLM's `WeightSource`: the version that is being sent."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def metadata(self) -> list[_Declared]:
        return [_Declared(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.tensors.items()


class _ClientOf:
    """vLLM's `VLLMWeightSyncClient`: the worker at the other end has its engine do what is asked for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._call("update_weights", update_info=update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update")

    def _call(self, method: str, **arguments: Any) -> None:
        self._connection.send(_Call(method, arguments))
        if (failure := self._connection.recv()) is not None:
            raise RuntimeError(f"the engine could not {method}: {failure}")


def make_publisher(transfer: WeightTransfer, *, kept_versions: int = 1, kept_every: int = 0) -> WeightPublisher:
    """The way that `rollout.weight_transfer` names. `kept_versions`: how many may be on their way into engines at a
    time; `kept_every`: see `DevicePublisher`."""
    if transfer == "object_store":
        return ObjectStorePublisher()
    import ray

    host = ray.util.get_node_ip_address()
    return DevicePublisher(
        transfer,
        lambda client, source: vllm_trainer(transfer, client, source, host=host),
        host=host,
        kept_versions=kept_versions,
        kept_every=kept_every,
    )


def vllm_trainer(transfer: WeightTransfer, client: Any, source: Any, *, host: str) -> Trainer:
    """vLLM's own side for trainers: a group of this process and the worker behind `client`, an engine of one GPU."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    info: Any
    if transfer == "ipc":
        info = IPCTrainerInitInfo(rank=0)
    else:
        info = NCCLTrainerInitInfo(
            rank=0, master_address=host, master_port=_free_port(host), world_size=2, packed_buffer_size_bytes=STAGING_BYTES
        )
    trainer: Trainer = WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
    return trainer


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


# ---- the worker's side ----


@dataclass(frozen=True, slots=True)
class _Call:
    """The engine is to do this; the answer is None, or what went wrong."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Failed:
    """It cannot be sent, or no further."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Sent:
    """That was all of it."""


class WeightReceiver(Protocol):
    """Takes weights that stay on the learner's GPU into one engine."""

    async def ask(self, weights: DeviceWeights) -> None:
        """Raises WeightsRefused where they cannot be had: nothing has changed then."""
        ...

    async def take(self) -> None:
        """What was asked for, into the engine, which must not step meanwhile. After an error its weights are of no
        version."""
        ...

    def close(self) -> None: ...


class DeviceReceiver:
    """`DevicePublisher`'s other end."""

    def __init__(self, call_engine: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        """`call_engine(method, arguments)` calls a method of vLLM's worker."""
        self._call_engine = call_engine
        self._connection: Connection | None = None
        self._key = b""
        self._next: Any = None

    async def ask(self, weights: DeviceWeights) -> None:
        try:
            self._next = await asyncio.to_thread(self._ask, weights)
        except (OSError, EOFError, AuthenticationError) as error:
            self.close()
            raise WeightsRefused(f"version {weights.version}: the learner that has it does not answer: {error!r}") from error
        if isinstance(self._next, _Failed):
            self.close()
            raise WeightsRefused(f"version {weights.version}: {self._next.reason}")

    def _ask(self, weights: DeviceWeights) -> Any:
        if weights.key != self._key:  # another learner's process
            self.close()
            self._connection, self._key = Client(weights.address, authkey=weights.key), weights.key
        assert self._connection is not None
        self._connection.send(weights.version)
        return self._connection.recv()

    async def take(self) -> None:
        assert self._connection is not None
        while isinstance(self._next, _Call):
            call = self._next
            if call.method not in ENGINE_CALLS:
                raise RuntimeError(f"the learner's side asks for {call.method}")
            try:
                await self._call_engine(call.method, call.arguments)
            except Exception as error:
                self._connection.send(repr(error))
                raise
            self._connection.send(None)
            self._next = await asyncio.to_thread(self._connection.recv)
        if isinstance(self._next, _Failed):
            raise RuntimeError(self._next.reason)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._key = None, b""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
