"""A learner of several processes as one component: it is called, lost, killed and replaced as a whole.

    learner = LearnerGroup([rank_0, rank_1])           # Handles of LearnerRank
    report = await learner.call(Learner.step, batch, step, timeout_s=900, waiting_for="training step 7")

A call is made on all ranks, in the same order on each, and the first rank's answer is the answer of the group. The
first call makes the ranks meet (the rendezvous).

A rank can only compute together with the others. So where one rank is lost the group is lost (`ActorDied`), at once and
not when a deadline ends, and its supervisor (`jobs.processes.supervised`) makes a new group. After any other error the
ranks may be out of step: the error is raised as it is, and the group is of no more use either. Only a checkpoint that
cannot be written (`CheckpointError`) does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from actors.learner import Learner
from actors.learner_rank import LearnerRank
from jobs.processes.handles import ActorDied, Deadline, Handle
from learners.checkpoint import CheckpointError
from learners.ranks import RankLost

EXPLANATION_S = 5.0
"""After a rank says that it lost another, the other's end may take this long to become known."""


class LearnerGroup(Handle[Learner]):
    """A Handle of a learner around the Handles of its ranks."""

    def __init__(self, ranks: Sequence[Handle[LearnerRank]], name: str = "learner") -> None:
        self.name = name
        self._ranks = list(ranks)
        self._has_met = False
        self._broken: str | None = None
        self._one_at_a_time = asyncio.Lock()

    async def call_named(self, method: str, args: tuple[Any, ...], *, timeout_s: float, waiting_for: str, returns: int) -> Any:
        async with self._one_at_a_time:
            if self._broken is not None:
                raise ActorDied(f"the {self.name} was lost before the run waited for {waiting_for}: {self._broken}")
            try:
                if not self._has_met:
                    await self._meet(timeout_s)
                return await self._on_all(LearnerRank.do, method, *args, timeout_s=timeout_s, waiting_for=waiting_for, returns=returns)
            except CheckpointError:
                raise
            except BaseException as error:
                self._broken = f"{type(error).__name__}: {error}"
                raise

    async def _meet(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.placed()
        except TimeoutError:
            who = f"the {len(self._ranks)} ranks of the {self.name}"
            raise Deadline(f"{who} did not all find room within {timeout_s:g} s: each needs {self._ranks[0].needs}") from None
        first = self._ranks[0]
        address = await first.call(LearnerRank.open, timeout_s=timeout_s, waiting_for=f"the first rank of the {self.name}")
        await self._on_all(
            LearnerRank.join, address, timeout_s=timeout_s, waiting_for=f"the ranks of the {self.name} to meet and to load their parts"
        )
        self._has_met = True

    async def _on_all(self, method: Callable[..., Any], *args: Any, timeout_s: float, waiting_for: str, returns: int = 1) -> Any:
        """Return the first rank's result, or raise the error that best explains why there is none."""
        calls = [
            asyncio.ensure_future(rank.call(method, *args, timeout_s=timeout_s, waiting_for=waiting_for, returns=returns))
            for rank in self._ranks
        ]
        try:
            done, others = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            errors = [error for call in done if (error := call.exception()) is not None]
            if others and all(isinstance(error, CheckpointError) for error in errors):
                await asyncio.wait(others)
            elif others and all(isinstance(error, RankLost) for error in errors):
                await asyncio.wait(others, timeout=EXPLANATION_S)
            self._raise_cause([error for call in calls if call.done() and (error := call.exception()) is not None], waiting_for)
            return calls[0].result()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def _raise_cause(self, errors: Sequence[BaseException], waiting_for: str) -> None:
        """Raise a lost process before a rank's own error, and either before what the ranks that waited for it say."""
        for kinds in ((ActorDied, Deadline), (Exception,)):
            for error in errors:
                if isinstance(error, kinds) and not isinstance(error, RankLost):
                    raise error
        if errors:
            raise ActorDied(f"a rank of the {self.name} did not answer the others while the run waited for {waiting_for}") from errors[0]

    async def placed(self) -> str | None:
        """Return the first rank's node, once all have theirs."""
        nodes = await asyncio.gather(*(rank.placed() for rank in self._ranks))
        return nodes[0]

    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        found = await asyncio.gather(*(rank.rss_bytes(timeout_s=timeout_s) for rank in self._ranks))
        return None if None in found else sum(rss for rss in found if rss is not None)

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()
