"""The learner actor: `PolicyLearner` with its state in checkpoints, and brought to today by the rollout log.

With several ranks there is one of these in each, and every call but `ready` is made on all
(`jobs.processes.learner_group`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow import fs

from actors.checkpointed import Checkpointed
from actors.config import WeightTransfer
from actors.weight_transfer import Weights, make_publisher
from buffers.records import GroupOutcome
from buffers.rollout_log import RolloutLog
from learners.checkpoint import CheckpointManager, FileEntry
from learners.layers import require_compiler
from learners.policy_learner import PolicyLearner


class Learner(PolicyLearner, Checkpointed):
    """See `learners.policy_learner.PolicyLearner`.

    learner.load_part(manager, step, "learner")         # in place of one that was lost: its last saved state,
    learner.train_log(directory, last_step)             # and the steps since; then it is the lost one, bit for bit
    """

    def __init__(
        self, *args: Any, weight_transfer: WeightTransfer = "object_store", kept_versions: int = 1, kept_every: int = 0, **options: Any
    ) -> None:
        """`kept_versions` and `kept_every`: see `actors.weight_transfer`; the rest as `PolicyLearner`."""
        super().__init__(*args, **options)
        transfer: WeightTransfer = weight_transfer if self.is_first else "object_store"
        self._publisher = make_publisher(transfer, kept_versions=kept_versions, kept_every=kept_every)

    def ready(self) -> int:
        """Returns the version once the model is loaded. Raises TransferUnavailable where weights cannot be handed over
        as configured, and CompilerMissing where layers cannot be compiled."""
        if self._config.compile:
            require_compiler(self._device)
        self._publisher.require_usable(self._device)
        return self.version

    def publish(self) -> tuple[Weights | None, int]:
        """The weights of the current version, bulk, and the version. The first rank hands them out, the others give it
        their parts."""
        if not self.is_first:
            self.give_weights()
            return None, self.version
        return self._publisher.publish(self), self.version

    def save_part(self, manager: CheckpointManager, step: int, part: str) -> list[FileEntry]:
        """Written by the first rank; the others give it their parts, which it takes where it cannot write too."""
        began = False

        def save(directory: Path) -> None:
            nonlocal began
            began = True
            self.save(directory)

        try:
            return manager.save(step, part, save) if self.is_first else []
        finally:
            if not began:
                self.save(None)

    def train_log(self, directory: str, up_to_step: int) -> int:
        """Train again on the steps of a rollout log after this learner's version, in order; returns the version
        reached.

        Raises FileNotFoundError where a step in between was not logged: the policy would then not be that of the run.
        """
        log = RolloutLog(fs.LocalFileSystem(), directory)
        for step in range(self.version + 1, up_to_step + 1):
            self.step(log.batch(step, GroupOutcome.TRAINED), step - 1)
        return self.version
