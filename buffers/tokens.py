"""The account of every sampled response token: trained on, still in flight, or wasted, and why.

    worker samples ──progress──> kept ──group drawn──> trained, or masked
          │                        └──group dropped──> wasted: aborted, stale, filtered, lost
          └──worker ended, or has no group left──────> wasted: lost

This is a pure state machine. The messages that it is told may be late, repeated or out of order. A worker's reports are
cumulative, so an old one changes nothing. A group belongs to one worker at a time, so what another says of it changes
nothing. A worker that has ended is not listened to."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class TokenWaste(StrEnum):
    """The reason why a sampled token is never trained on."""

    ABORTED = "aborted"  # its group was given up while it was sampled: too slow, too many tries, the end of the run
    STALE = "stale"  # its group was too old for the policy
    FILTERED = "filtered"  # its group taught nothing, or had no verdict
    LOST = "lost"  # a worker or a node was lost before the token was safe elsewhere


@dataclass(slots=True)
class _Group:
    """The safe tokens of one group, the worker that samples it now, and the cause if it was dropped meanwhile."""

    tokens: int = 0
    worker_id: str | None = None
    cause: TokenWaste | None = None


@dataclass(slots=True)
class _Account:
    """The newest report of one worker, the number of its tokens that were kept or wasted, and the groups it samples."""

    reported: int = 0
    settled: int = 0
    groups: set[int] = field(default_factory=set)

    @property
    def sampled(self) -> int:
        return max(self.reported, self.settled)

    @property
    def unkept(self) -> int:
        return self.sampled - self.settled


class TokenLedger:
    """Accounts for every response token of a run.

        ledger.started("rollout-0", 7)                         # group 7 is given to a worker
        ledger.sampled("rollout-0", 640)                       # a heartbeat: all that it ever sampled,
        ledger.kept("rollout-0", 7, 320)                       # and what of a group is safe by now
        ledger.worker_ended("rollout-0")                       # 320 tokens are lost
        ledger.started("rollout-1", 7)                         # it continues from the 320 tokens kept
        ledger.finished("rollout-1", 7, 500)                   # the whole group is here; 180 tokens are this worker's
        ledger.trained(7)                                      # or dropped(7, TokenWaste.STALE)

    Let S_w be the tokens that worker w is known to have sampled, A_w those of them settled (kept for a group, or
    wasted), and K_g the tokens kept of group g. At every moment

        generated = Σ_w S_w  =  trained + masked + wasted + in_flight
        in_flight = Σ_{g alive} K_g + Σ_{w alive} (S_w − A_w)

    where the first sum goes over all workers of the run, and g is alive from `started` until `trained` or `dropped`. A
    worker without groups has nothing in flight: its tokens that were not kept are lost at once, as they are at its end.
    Tokens that a worker sampled after its last report are not known. S_w is the largest of its reports, or A_w where
    results overtook them. If the worker's total is reported before, or with, every message that tokens are kept, each
    number is exact, token for token. Otherwise `generated` and `in_flight` are short by what the next report brings,
    and the identity still holds. (Exactness has one more condition: no old report of a group may be on its way from a
    worker that is given that group again with fewer tokens kept.) A `worker_id` names one process and is not used again
    after `worker_ended`. A method that raises has changed nothing."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._workers: dict[str, _Account] = {}
        self._ended: set[str] = set()
        self._generated_by_ended = 0
        self._trained = 0
        self._masked = 0
        self._wasted = dict.fromkeys(TokenWaste, 0)

    def started(self, worker_id: str, group_id: int, *, resumed_tokens: int | None = None) -> None:
        """Give the group to `worker_id`, which continues from `resumed_tokens` (by default from all that is kept). The
        worker that had it before has it no longer. Tokens kept beyond `resumed_tokens` are lost. Raises ValueError if
        fewer than `resumed_tokens` are kept, if the group was dropped, and for a worker that has ended."""
        if worker_id in self._ended:
            raise ValueError(f"{worker_id} has ended: it cannot be given group {group_id}")
        group = self._groups.get(group_id) or _Group()
        tokens = group.tokens if resumed_tokens is None else resumed_tokens
        if group.cause is not None:
            raise ValueError(f"group {group_id} was dropped ({group.cause})")
        if not 0 <= tokens <= group.tokens:
            raise ValueError(f"group {group_id} cannot go on from {tokens} tokens: {group.tokens} are kept")
        self._release(group_id, group)
        self._wasted[TokenWaste.LOST] += group.tokens - tokens
        group.tokens, group.worker_id = tokens, worker_id
        self._groups[group_id] = group
        self._account(worker_id).groups.add(group_id)

    def sampled(self, worker_id: str, total: int) -> None:
        """Record that `worker_id` has sampled `total` response tokens since it began, for any group."""
        if worker_id in self._ended:
            return
        account = self._account(worker_id)
        account.reported = max(account.reported, total)
        self._lose_unkept(account)

    def kept(self, worker_id: str, group_id: int, tokens: int) -> None:
        """Record that `tokens` tokens of the group, resumed ones included, are safe outside of its worker."""
        group = self._groups.get(group_id)
        if group is None or group.worker_id != worker_id or tokens <= group.tokens:
            return  # the message is late, or from a worker that no longer has the group
        grown = tokens - group.tokens
        group.tokens = tokens
        self._workers[worker_id].settled += grown
        if group.cause is not None:
            self._wasted[group.cause] += grown

    def finished(self, worker_id: str, group_id: int, tokens: int | None = None) -> None:
        """Record that the worker has let go of the group, which has `tokens` tokens (None: those that are kept). Call
        it for a group that ended, was handed over or was dropped."""
        if tokens is not None:
            self.kept(worker_id, group_id, tokens)
        group = self._groups.get(group_id)
        if group is not None and group.worker_id == worker_id:
            self._release(group_id, group)

    def worker_ended(self, worker_id: str) -> None:
        """Record that the worker is gone, or ignored from now on. Its tokens that were not kept are lost."""
        account = self._workers.pop(worker_id, _Account())
        self._ended.add(worker_id)
        for group_id in account.groups:
            self._let_go(group_id, self._groups[group_id])
        self._generated_by_ended += account.sampled
        self._wasted[TokenWaste.LOST] += account.unkept

    def trained(self, group_id: int, *, masked: int = 0) -> None:
        """Record that a gradient used the group, all but `masked` tokens of it. Raises ValueError if the group is being
        sampled or is not alive."""
        group = self._groups.get(group_id)
        if group is None or group.worker_id is not None or group.cause is not None:
            raise ValueError(f"group {group_id} cannot be trained on: it is {'unknown' if group is None else 'not finished, or dropped'}")
        self._trained += self._groups.pop(group_id).tokens - masked
        self._masked += masked

    def dropped(self, group_id: int, cause: TokenWaste) -> None:
        """Record that the group will not be trained on. If it is still sampled, tokens kept of it later are waste too.
        A group that was never started, or that was dropped before, has no tokens to waste."""
        group = self._groups.get(group_id)
        if group is None or group.cause is not None:
            return
        self._wasted[cause] += group.tokens
        if group.worker_id is None:
            del self._groups[group_id]
        else:
            group.cause = cause

    @property
    def generated(self) -> int:
        return self._generated_by_ended + sum(account.sampled for account in self._workers.values())

    @property
    def in_flight(self) -> int:
        """Tokens of living groups, and those that workers have yet to hand out. No other count goes into it."""
        kept = sum(group.tokens for group in self._groups.values() if group.cause is None)
        return kept + sum(account.unkept for account in self._workers.values())

    def counts(self) -> dict[str, int]:
        """Return generated, trained, masked, in_flight and wasted_CAUSE by name."""
        wasted = {f"wasted_{cause}": tokens for cause, tokens in self._wasted.items()}
        return {"generated": self.generated, "trained": self._trained, "masked": self._masked, "in_flight": self.in_flight, **wasted}

    def metrics(self) -> dict[str, float]:
        """Return the counts as tokens/NAME (docs/metrics.md)."""
        return {f"tokens/{name}": float(count) for name, count in self.counts().items()}

    def check_sums(self) -> None:
        """Raise AssertionError unless generated = trained + masked + in flight + wasted, and no count is negative."""
        counts = self.counts()
        generated = counts.pop("generated")
        assert generated == sum(counts.values()), f"{generated} tokens were generated, {sum(counts.values())} are accounted for: {counts}"
        assert min(counts.values()) >= 0, f"a count is negative: {counts}"
        for group_id, group in self._groups.items():
            owns = group.worker_id is not None and group_id in self._workers[group.worker_id].groups
            assert owns == (group.worker_id is not None), f"{group.worker_id} does not know that it samples group {group_id}"
            assert owns or group.cause is None, f"group {group_id} was dropped and no worker samples it"

    def state_dict(self) -> dict[str, Any]:
        """Return everything that outlives the workers, in values that JSON can hold."""
        return {
            "generated": self.generated,
            "trained": self._trained,
            "masked": self._masked,
            "wasted": {cause.value: tokens for cause, tokens in self._wasted.items()},
            "unkept": sum(account.unkept for account in self._workers.values()),
            "groups": [[group_id, group.tokens] for group_id, group in sorted(self._groups.items()) if group.cause is None],
        }

    def load_state_dict(self, state: dict[str, Any], *, held: Collection[int]) -> None:
        """Continue from a checkpoint whose replay holds the groups `held`, with new workers. Tokens that were in flight
        and are in no group of `held` are lost. Tokens sampled after the checkpoint are not known. Raises ValueError if
        `held` names a group that was not alive."""
        groups = {int(group_id): int(tokens) for group_id, tokens in state["groups"]}
        unknown = sorted(set(held) - groups.keys())
        if unknown:
            raise ValueError(f"replay holds groups {unknown}, of which the token ledger knows nothing")
        self._groups = {group_id: _Group(tokens=groups[group_id]) for group_id in sorted(held)}
        self._workers, self._ended = {}, set()
        self._generated_by_ended = state["generated"]
        self._trained, self._masked = state["trained"], state.get("masked", 0)
        self._wasted = {cause: state["wasted"][cause.value] for cause in TokenWaste}
        lost = sum(tokens for group_id, tokens in groups.items() if group_id not in self._groups)
        self._wasted[TokenWaste.LOST] += state["unkept"] + lost
        self.check_sums()

    def _account(self, worker_id: str) -> _Account:
        return self._workers.setdefault(worker_id, _Account())

    def _release(self, group_id: int, group: _Group) -> None:
        if group.worker_id is None:
            return
        account = self._workers[group.worker_id]
        account.groups.remove(group_id)
        self._let_go(group_id, group)
        self._lose_unkept(account)

    def _let_go(self, group_id: int, group: _Group) -> None:
        group.worker_id = None
        if group.cause is not None:
            del self._groups[group_id]

    def _lose_unkept(self, account: _Account) -> None:
        if not account.groups:  # it has no group left to hand them out with
            self._wasted[TokenWaste.LOST] += account.unkept
            account.settled = account.sampled
