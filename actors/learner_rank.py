"""One of several processes that form a learner: an `actors.learner.Learner` on its part of the policy.

    address = first.open()                      # the address of the first rank
    rank.join(address)                          # in all at once: returns when all have met and have loaded their parts
    report = rank.do("step", batch, version)    # one method of `Learner` in all at once; the first rank's answer counts

A call that fails because another rank is gone raises `RankLost`. All ranks must then be replaced."""

from typing import TYPE_CHECKING, Any

import ray

from actors.learner import Learner
from learners.config import LearnerConfig
from learners.ranks import RankLost, is_rank_lost

if TYPE_CHECKING:  # the import takes two seconds, and the driver does not need it
    from learners.fsdp import Rendezvous


class LearnerRank:
    """Builds its `Learner` when all ranks have met, and passes calls on to it."""

    def __init__(self, rank: int, model_path: str, config: LearnerConfig, *, device: str, **options: Any) -> None:
        """`options` are the other arguments of `Learner`."""
        self._rank, self._model_path, self._config = rank, model_path, config
        self._device, self._options = device, options
        self._rendezvous: Rendezvous | None = None
        self._learner: Learner | None = None

    def open(self) -> str:
        """Open a port on the address by which Ray knows this node, and return both. Only the first rank does this."""
        from learners.fsdp import LOOPBACK, Rendezvous

        host = ray.util.get_node_ip_address() if ray.is_initialized() else LOOPBACK
        self._rendezvous = Rendezvous.open(host, timeout_s=self._config.join_timeout_s)
        return self._rendezvous.address

    def join(self, address: str) -> None:
        """Meet the other ranks and load this rank's part. Raises RankLost if one is not there in `join_timeout_s`."""
        from learners.fsdp import Rendezvous, ShardedRanks

        config = self._config
        try:
            rendezvous = self._rendezvous or Rendezvous.at(address, timeout_s=config.join_timeout_s)
            timeout_s = config.collective_timeout_s
            ranks = ShardedRanks.join(rendezvous, rank=self._rank, size=config.ranks, device=self._device, collective_timeout_s=timeout_s)
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
