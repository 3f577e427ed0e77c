"""A learner of several processes, each with its shard of every weight, gradient and moment: PyTorch's FSDP2.

    rendezvous = Rendezvous.open("10.0.0.7", timeout_s=120)            # in the first rank
    rendezvous = Rendezvous.at("10.0.0.7:41234", timeout_s=120)        # in the others
    ranks = ShardedRanks.join(rendezvous, rank=1, size=4, …)           # in all at the same time
    learner = PolicyLearner(model_path, config, ranks=ranks, …)

The parameters that a rank holds are float32: they are the masters. `fully_shard` casts them to `learner.dtype` while it
gathers a layer, and sums gradients over micro-batches and ranks in float32. `MasterAdamW` does the same with its
masters in one process, and the weights that are computed with and published are the same bit for bit. So there is no
second copy, and the optimiser works on each rank's shards as they are.

Gradients are summed over ranks, not averaged. The units that are gathered one at a time are the layers, twice a pass,
and the embeddings together with the head, because tied models share them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Concatenate, Literal, Self

import psutil
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from learners.forward import load_causal_lm
from learners.layers import layers_of
from learners.precision import Dtype
from learners.ranks import P, RankLost, T

LOOPBACK = "127.0.0.1"


class Rendezvous:
    """Where ranks find each other: a key-value store in the process of the first rank, which must outlive them."""

    def __init__(self, store: TCPStore, address: str, timeout_s: float) -> None:
        self.store = store
        self.address = address
        self._timeout_s = timeout_s

    @classmethod
    def open(cls, host: str = LOOPBACK, *, timeout_s: float) -> Self:
        """Open the store on a free port of `host`, an address of this machine, and on no other address."""
        listening = socket.create_server((host, 0))
        port = listening.getsockname()[1]
        timeout, descriptor = timedelta(seconds=timeout_s), listening.detach()
        store = TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=descriptor)
        return cls(store, f"{host}:{port}", timeout_s)

    @classmethod
    def at(cls, address: str, *, timeout_s: float) -> Self:
        """Return the store that another process has opened. Raises RankLost if there is none."""
        host, _, port = address.rpartition(":")
        try:
            store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
        except dist.DistError as error:
            raise RankLost(f"the learner's first rank is not to be had at {address}: {error}") from error
        return cls(store, address, timeout_s)

    def wait_for_all(self, rank: int, size: int) -> None:
        """Announce `rank`, and return once all ranks have. Raises RankLost naming those that are late."""
        keys = [f"rank {other}" for other in range(size)]
        self.store.set(keys[rank], "here")
        try:
            self.store.wait(keys)
        except dist.DistError as error:
            absent = ", ".join(key for key in keys if not self.store.check([key]))
            raise RankLost(f"{absent} of the learner did not come within {self._timeout_s:g} s") from error


class ShardedRanks:
    """One of several ranks (`learners.ranks.Ranks`)."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.rank = mesh.get_rank()
        self.size = mesh.size()
        self.weight_dtype: torch.dtype | None = None
        self._mesh = mesh

    @classmethod
    def join(cls, rendezvous: Rendezvous, *, rank: int, size: int, device: str, collective_timeout_s: float) -> Self:
        """Return once all ranks are there, or raise RankLost. Later waits end after `collective_timeout_s`."""
        rendezvous.wait_for_all(rank, size)
        if (interface := interface_of(local_address_towards(rendezvous.address.rpartition(":")[0]))) is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        dist.init_process_group(
            "cpu:gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
            store=rendezvous.store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=collective_timeout_s),
            device_id=None if device == "cpu" else torch.device("cuda", torch.cuda.current_device()),
        )
        return cls(init_device_mesh(device, (size,)))

    def load(self, path: str, *, dtype: Dtype | Literal["float64"], device: str) -> Any:
        """Read the whole model into host memory in `dtype`, and return it with this rank's shard of each layer."""
        model = load_causal_lm(path, dtype=dtype, device=device, place=False)
        self.weight_dtype = model.dtype
        precision = MixedPrecisionPolicy(param_dtype=self.weight_dtype, reduce_dtype=torch.promote_types(self.weight_dtype, torch.float32))
        for module in [*layers_of(model), model]:
            for parameter in module.parameters():
                if not hasattr(parameter, "full_tensor"):  # not yet sharded: widened, so that it is a master
                    parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
            fully_shard(module, mesh=self._mesh, reshard_after_forward=True, mp_policy=precision)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # else a factor of 1 is multiplied by, which gloo cannot
        model.apply_function = lambda function, *args, **kwargs: function(model, *args, **kwargs)
        register_fsdp_forward_method(model, "apply_function")
        return model

    def compute(self, function: Callable[Concatenate[Any, P], T], model: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = model.apply_function(function, *args, **kwargs)
        return result

    def gather(self, value: T) -> list[T]:
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values


def local_address_towards(host: str) -> str:
    """Return the address of this machine from which `host` is reached. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Return the network interface that has this address, or None. Without it gloo takes the interface that the
    machine's own name leads to, which is often the loopback."""
    interfaces = psutil.net_if_addrs().items()
    return next((str(name) for name, addresses in interfaces if address in [found.address for found in addresses]), None)
