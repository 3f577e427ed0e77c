"""Weights that stay on the learner's GPU until a worker asks for them (`rollout.weight_transfer` = nccl or ipc).

The learner keeps copies of its last versions on its GPU. When a worker is about to load, it connects and asks for a
version, and a thread in the learner's process sends it while the next training step runs. Each worker forms a group of
two with the learner. So a worker that joins late or is lost concerns no other, and no group of all ever has to be
formed again.

vLLM's side for trainers directs the receiving engine through a client with four methods. Ours sends these calls over
the worker's connection, and the worker passes them to its engine:

    worker    version ->
    learner              <- _Call(method, arguments), answered by None or an error, as often as vLLM needs
                         <- None: it is sent; or _Failed(reason)"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from actors.config import WeightTransfer
from actors.weight_transfer import STAGING_BYTES, DeviceWeights, ObjectStorePublisher, TransferUnavailable, WeightPublisher
from learners.sharding import full_tensors
from learners.weight_check import WeightsRefused
from learners.weights import HEAD, TensorSpec, fingerprint

if TYPE_CHECKING:
    from learners.policy_learner import PolicyLearner

AUTHENTICATION_TIMEOUT_S = 20  # a client that stays silent for this long while it must prove itself is disconnected
ACCEPT_RETRY_S = 0.1  # pause after an error of the listening socket, for example too many open files
ENGINE_CALLS = frozenset(("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"))
"""The engine methods that the learner's side may call."""


class _Call(NamedTuple):
    """The engine must do this. The worker answers None, or what went wrong."""

    method: str
    arguments: dict[str, Any]


class _Failed(NamedTuple):
    """The version cannot be sent, or the transfer broke off."""

    reason: str


class DevicePublisher:
    """Keeps copies on the learner's GPU, which vLLM's engines send to the workers that ask."""

    def __init__(
        self, transfer: WeightTransfer, make_trainer: Callable[[Any, Any], Any], *, host: str, kept_versions: int, kept_every: int = 0
    ) -> None:
        """`make_trainer(client, source)` opens the way to the worker behind `client`. Workers reach this process at
        `host`. The newest `kept_versions` versions are kept, and the newest multiple of `kept_every` (0: none), because
        an evaluation may ask for it late."""
        self._transfer, self._make_trainer = transfer, make_trainer
        self._kept_versions, self._kept_every = kept_versions, kept_every
        self._copies: dict[int, dict[str, Tensor]] = {}
        self._key = secrets.token_bytes(32)
        self._listener = Listener((host, 0))
        self._is_closing = False
        self._accepting = threading.Thread(target=self._accept, name="weights", daemon=True)
        self._accepting.start()

    def require_usable(self, device: torch.device) -> None:
        if device.type != "cuda":
            fault = f"sends weights from the learner's GPU, and the learner is on the {device.type}"
            raise TransferUnavailable(f'rollout.weight_transfer = "{self._transfer}" {fault}: set it to "object_store"')

    def publish(self, policy: PolicyLearner) -> DeviceWeights:
        self._forget_for(policy.version)
        named, tied_to = policy.named_weights()
        with full_tensors(named, policy.weight_dtype) as tensors:
            copies = {name: tensor.clone() for name, tensor in tensors}
        if any(tensor.is_cuda for tensor in copies.values()):
            torch.cuda.current_stream().synchronize()  # other threads send the copies, on streams of their own
        digests = fingerprint(copies if tied_to is None else {**copies, HEAD: copies[tied_to]}, version=policy.version)
        self._copies[policy.version] = copies
        named_types = ((name, str(copy.dtype).removeprefix("torch."), tuple(copy.shape)) for name, copy in copies.items())
        index = tuple(TensorSpec(name=name, dtype=dtype, shape=shape, offset=0) for name, dtype, shape in named_types)
        return DeviceWeights(version=policy.version, index=index, fingerprint=digests, address=self._listener.address, key=self._key)

    def _forget_for(self, new_version: int) -> None:
        """Forget the versions that are not kept beside `new_version`, before it takes its memory."""
        versions = sorted({*self._copies, new_version})
        evaluated = [version for version in versions if self._kept_every and version % self._kept_every == 0]
        for version in versions[: -self._kept_versions]:
            if version != max(evaluated, default=None):
                self._copies.pop(version, None)  # a thread that is sending it holds a reference of its own

    def close(self) -> None:
        """Accept no more workers. Transfers under way continue."""
        self._is_closing = True
        socket.create_connection(self._listener.address).close()  # wakes the accepting thread
        self._accepting.join()

    def _accept(self) -> None:
        with self._listener:
            while not self._is_closing:
                try:
                    connection = self._listener.accept()
                except OSError:  # the client's error, or a shortage in this process that may pass
                    time.sleep(ACCEPT_RETRY_S)
                    continue
                threading.Thread(target=self._serve, args=(connection,), name="weights", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        source = _Source()
        trainer: Any = None  # vLLM's `TrainerWeightTransferEngine`, for this worker
        try:
            with connection, suppress(EOFError, OSError, AuthenticationError):
                self._authenticate(connection)
                while True:
                    version = connection.recv()
                    try:
                        if (kept := self._copies.get(version)) is None:
                            raise LookupError(f"the learner keeps versions {sorted(self._copies)} only")
                        source.tensors = kept
                        trainer = trainer or self._make_trainer(_ClientOf(connection), source)
                        trainer.send_weights()
                    except Exception as error:  # a seam: the worker is told, and connects again or is replaced
                        connection.send(_Failed(str(error) or repr(error)))
                        return
                    source.tensors = {}
                    connection.send(None)
        finally:
            if trainer is not None:
                trainer.shutdown()

    def _authenticate(self, connection: Connection) -> None:
        """Raise AuthenticationError, OSError or EOFError for a client without the key, OSError for a silent one."""
        _set_read_timeout(connection, AUTHENTICATION_TIMEOUT_S)
        deliver_challenge(connection, self._key)
        answer_challenge(connection, self._key)
        _set_read_timeout(connection, 0)


def _set_read_timeout(connection: Connection, seconds: int) -> None:
    """Let reads raise BlockingIOError after this long without data; 0: never."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


class _Declared(NamedTuple):
    """vLLM's `ParamMeta`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class _Source:
    """vLLM's `WeightSource`: the version that is being sent."""

    tensors: dict[str, Tensor]

    def metadata(self) -> list[_Declared]:
        return [_Declared(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.tensors.items()


class _ClientOf:
    """vLLM's `VLLMWeightSyncClient`: passes calls to the engine of the worker at the other end."""

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


class DeviceReceiver:
    """Takes weights from a `DevicePublisher` into one engine.

    await receiver.ask(weights)        # whether they can be had; the engine is untouched
    await receiver.take()              # into the engine, which is paused"""

    def __init__(self, call_engine: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        """`call_engine(method, arguments)` calls a method of vLLM's worker."""
        self._call_engine = call_engine
        self._connection: Connection | None = None
        self._key = b""
        self._next: Any = None

    async def ask(self, weights: DeviceWeights) -> None:
        """Ask for `weights`. Raises WeightsRefused if they cannot be had; nothing has changed then."""
        try:
            self._next = await asyncio.to_thread(self._ask, weights)
        except (OSError, EOFError, AuthenticationError) as error:
            self.close()
            raise WeightsRefused(f"version {weights.version}: the learner that has it does not answer: {error!r}") from error
        if isinstance(self._next, _Failed):
            self.close()
            raise WeightsRefused(f"version {weights.version}: {self._next.reason}")

    def _ask(self, weights: DeviceWeights) -> Any:
        if weights.key != self._key:  # a new learner's process
            self.close()
            self._connection, self._key = Client(weights.address, authkey=weights.key), weights.key
        assert self._connection is not None
        self._connection.send(weights.version)
        return self._connection.recv()

    async def take(self) -> None:
        """Take what was asked for into the engine, which must not step meanwhile. After an error the engine's weights
        belong to no version."""
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


def make_publisher(transfer: WeightTransfer, *, kept_versions: int = 1, kept_every: int = 0) -> WeightPublisher:
    """Return the publisher that `rollout.weight_transfer` names. `kept_versions` is how many versions may be on their
    way into engines at a time. For `kept_every` see `DevicePublisher`."""
    if transfer == "object_store":
        return ObjectStorePublisher()
    import ray

    host = ray.util.get_node_ip_address()
    make_trainer = partial(vllm_trainer, transfer, host=host)
    return DevicePublisher(transfer, make_trainer, host=host, kept_versions=kept_versions, kept_every=kept_every)


def vllm_trainer(transfer: WeightTransfer, client: Any, source: Any, *, host: str) -> Any:
    """Return vLLM's side for trainers: a group of this process and the worker behind `client`, an engine on one GPU."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    info: Any
    if transfer == "ipc":
        info = IPCTrainerInitInfo(rank=0)
    else:
        port = _free_port(host)
        info = NCCLTrainerInitInfo(rank=0, master_address=host, master_port=port, world_size=2, packed_buffer_size_bytes=STAGING_BYTES)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
