"""Real processes that are the ranks of one learner.

    norms = on_ranks(2, train, model, batch)        # train(ranks, model, batch) in each; the results, by rank

They are forked from one process that has imported what takes seconds to import. None of them outlives the call.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from learners.fsdp import Rendezvous, ShardedRanks

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.learners.rank_processes", "learners.policy_learner", "transformers.models.llama.modeling_llama"])

TIMEOUT_S = 60.0
COLLECTIVE_TIMEOUT_S = 20.0


class RankFailed(AssertionError):
    """A rank failed. The message is its traceback."""


def on_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what `function(ranks, *args)` returns in each process. Raises RankFailed with the first traceback."""
    with rank_processes(size, function, *args) as ranks:
        return [rank.result() for rank in ranks]


class RankProcess:
    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection

    def receive(self) -> Any:
        assert self.connection.poll(TIMEOUT_S), f"{self.process.name} said nothing for {TIMEOUT_S:g} s"
        return pickle.loads(self.connection.recv_bytes())

    def result(self) -> Any:
        """Return what the rank's function returned. Raises EOFError if the rank is gone."""
        went_well, value = self.receive()
        if not went_well:
            raise RankFailed(f"{self.process.name}: {value}")
        return value

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@contextmanager
def rank_processes(
    size: int, function: Callable[..., Any], *args: Any, collective_timeout_s: float = COLLECTIVE_TIMEOUT_S
) -> Iterator[list[RankProcess]]:
    """Run `function(ranks, *args)` in `size` processes, and yield them."""
    started: list[RankProcess] = []
    try:
        for rank in range(size):
            ours, theirs = CONTEXT.Pipe()
            task = pickle.dumps((function, args))
            process = CONTEXT.Process(target=_run, args=(rank, size, theirs, task, collective_timeout_s), name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()
            started.append(RankProcess(process, ours))
        address = started[0].receive()
        for other in started[1:]:
            other.connection.send_bytes(pickle.dumps(address))
        yield started
    finally:
        for rank in started:
            if rank.process.is_alive():
                rank.process.kill()
        wait([rank.process.sentinel for rank in started], 5)


def _run(rank: int, size: int, connection: Connection, task: bytes, collective_timeout_s: float) -> None:
    def send(value: Any) -> None:
        connection.send_bytes(pickle.dumps(value))

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        if rank == 0:
            rendezvous = Rendezvous.open(timeout_s=TIMEOUT_S)
            send(rendezvous.address)
        else:
            rendezvous = Rendezvous.at(pickle.loads(connection.recv_bytes()), timeout_s=TIMEOUT_S)
        ranks = ShardedRanks.join(rendezvous, rank=rank, size=size, device="cpu", collective_timeout_s=collective_timeout_s)
        function, args = pickle.loads(task)
        send((True, function(ranks, *args)))
    except BaseException:
        send((False, traceback.format_exc()))
    connection.recv_bytes()  # until it is ended: nobody is to find its sockets closed while it still works
