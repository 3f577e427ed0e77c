"""One of the processes that are a learner together: `actors.learner.Learner` on its part of the policy.

    address = first.open()                        # of the first rank's
    rank.join(address)                            # in all at once: returns when all are there and have loaded their parts
    report = rank.do("step", batch, version)      # the same method of `Learner` in all at once; the first one's answer counts

What breaks off because another rank is gone raises `RankLost`; after that a rank is of no more use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

from actors.learner import Learner
from learners.config import LearnerConfig
from learners.ranks import RankLost, is_rank_lost

if TYPE_CHECKING:  # it takes two seconds to import, in the driver for nothing
    from learners.fsdp import Rendezvous


class LearnerRank:
    def __init__(self, rank: int, model_path: str, config: LearnerConfig, *, device: str, **options: Any) -> None:
        """`options` are the other arguments of `PolicyLearner`."""
        self._rank = rank
        self._model_path = model_path
        self._config = config
        self._device = device
        self._options = options
        self._rendezvous: Rendezvous | None = None
        self._learner: Learner | None = None

    def open(self) -> str:
        """Where the others find this one, the first: a port of the address by which Ray knows this node."""
        from learners.fsdp import LOOPBACK, Rendezvous

        host = ray.util.get_node_ip_address() if ray.is_initialized() else LOOPBACK
        self._rendezvous = Rendezvous.open(host, timeout_s=self._config.join_timeout_s)
        return self._rendezvous.address

    def join(self, address: str) -> None:
        """Meet the others and load this rank's part of the model. Raises RankLost where one does not come within
        `join_timeout_s`."""
        from learners.fsdp import Rendezvous, ShardedRanks

        config = self._config
        try:
            rendezvous = self._rendezvous or Rendezvous.at(address, timeout_s=config.join_timeout_s)
            ranks = ShardedRanks.join(
                rendezvous, rank=self._rank, size=config.ranks, device=self._device, collective_timeout_s=config.collective_timeout_s
            )
            self._learner = Learner(self._model_path, config, device=self._device, ranks=ranks, **self._options)
        except RuntimeError as error:
            raise _as_rank_lost(error) from error

    def do(self, method: str, *args: Any) -> Any:
        assert self._learner is not None, "join comes first"
        try:
            return getattr(self._learner, method)(*args)
        except RuntimeError as error:
            raise _as_rank_lost(error) from error


def _as_rank_lost(error: RuntimeError) -> RuntimeError:
    return RankLost(str(error)) if is_rank_lost(error) else error
