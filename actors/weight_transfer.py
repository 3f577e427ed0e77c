"""How the learner's weights reach the engines: three ways behind one interface.

    publisher = make_publisher("object_store")          # in the learner
    weights = publisher.publish(policy)                 # of the policy's version; the learner may continue at once

    check_weights(weights, shapes=..., dtype=...)       # in a worker: refused before anything is touched
    await engine.load(weights)                          # taken between two steps, and proved

| weight_transfer | what a worker receives       | how the bytes travel                                                |
|-----------------|------------------------------|---------------------------------------------------------------------|
| object_store    | one indexed buffer           | Ray's object store: once to a node, shared there without copies     |
| nccl            | names, and an address to ask | from GPU to GPU by vLLM's NCCL engine, once to each worker          |
| ipc             | names, and an address to ask | not at all: vLLM's IPC engine reads the learner's memory (same GPU) |

nccl and ipc (`actors.device_transfer`) have **not been run on a GPU**: here they are tested with vLLM's own classes for
both sides and a stand-in for NCCL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from learners.weight_check import check_snapshot, check_tensors
from learners.weights import TensorSpec, WeightSnapshot

if TYPE_CHECKING:
    from learners.policy_learner import PolicyLearner

STAGING_BYTES = 256 << 20  # size of each of the two buffers, on both sides, that vLLM's NCCL engine packs tensors into


class TransferUnavailable(RuntimeError):
    """This way of handing over weights does not work here. The message names the key and what to set it to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceWeights:
    """The weights of one policy version, which stay on the learner's GPU: what they must be, and where to ask for them.
    The offsets in `index` are 0, because there is no buffer. `key` authenticates both ends of the connection."""

    version: int
    index: tuple[TensorSpec, ...]
    fingerprint: Mapping[str, int]
    address: tuple[str, int]
    key: bytes = field(repr=False)

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.index)


Weights = WeightSnapshot | DeviceWeights


def check_weights(weights: Weights, *, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """Raise WeightsRefused unless `weights` fit these parameters and, if the bytes are here, are those published."""
    if isinstance(weights, WeightSnapshot):
        check_snapshot(weights, shapes=shapes, dtype=dtype)
    else:
        check_tensors(weights.index, shapes=shapes, dtype=dtype, version=weights.version)


class WeightPublisher(Protocol):
    """One way of handing out weights, in the learner's process."""

    def publish(self, policy: PolicyLearner) -> Weights:
        """Return the weights of `policy.version`, for any number of engines. Training leaves them unchanged."""

    def require_usable(self, device: torch.device) -> None:
        """Raise TransferUnavailable if this way does not work for weights on this device."""


class ObjectStorePublisher:
    """Returns all bytes in one buffer, which the learner's caller puts into Ray's object store."""

    def publish(self, policy: PolicyLearner) -> WeightSnapshot:
        return policy.snapshot()

    def require_usable(self, device: torch.device) -> None: ...
