"""Which groups a step trains on, and under which weights each is sampled, as a function of the configuration alone.

Otherwise both depend on what arrives first. With `deterministic = true`, S = `max_policy_lag` and P groups a step,
where versions count the steps trained:

    step t trains on the P lowest groups in flight, t·P … t·P + P − 1 where none is dropped
    they are sampled, to the last token, under version max(0, t − S)

The first rule waits for a slow group even where others are there already. The second rule holds because version v is
published only once every slot is taken and every group in flight is in replay. These are then the groups of steps
before v + S, whose versions are below v. The groups of step v + S can only be admitted, and sampled, after it. At that
moment the engines are empty, so no response has tokens of two versions. The learner trains the steps before v + S
meanwhile, which hides the time of sampling.

A checkpoint of step k is written once version k is live. So it has every group that was sampled under older weights.
What it leaves out, a resumed run samples under the same weights and with the same ids. A group that is dropped
(unusable) is replaced by one whose id depends on when that was. From there on two runs may differ, and the run
says so."""

from __future__ import annotations

from collections.abc import Collection

from buffers.admission import Admission


class FixedOrder:
    """What a controller asks before it draws, publishes or saves: a pure state machine beside `Admission`.

    order = FixedOrder(admission, prompts_per_step=8)
    order.submitted(group_id); order.settled(group_id); order.dropped(group_id)
    order.next_batch_is_in(held)
    """

    def __init__(self, admission: Admission, *, prompts_per_step: int) -> None:
        self._admission = admission
        self._prompts_per_step = prompts_per_step
        self._under_way: set[int] = set()
        self.num_dropped = 0

    def submitted(self, group_id: int) -> None:
        """Note a group that is to be sampled, verified and encoded."""
        self._under_way.add(group_id)

    def settled(self, group_id: int) -> None:
        """Note that a group is in replay."""
        self._under_way.discard(group_id)

    def dropped(self, group_id: int) -> None:
        self._under_way.discard(group_id)
        self.num_dropped += 1

    def next_batch_is_in(self, held: Collection[int]) -> bool:
        """Return whether replay holds the groups of the next step."""
        lowest = self._admission.in_flight[: self._prompts_per_step]
        return len(lowest) == self._prompts_per_step and all(request.group_id in held for request in lowest)

    def may_publish(self) -> bool:
        """Return whether all that is to be sampled under the live weights is in replay."""
        return self._admission.free_slots == 0 and not self._under_way

    def may_save(self, step: int) -> bool:
        """Return whether all that a checkpoint of `step` leaves out was begun under its own weights."""
        return self._admission.live_version == step
