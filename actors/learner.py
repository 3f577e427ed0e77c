"""The learner actor: a `PolicyLearner` that keeps its state in checkpoints and catches up from the rollout log.

With several ranks there is one in each, and every call but `ready` is made on all of them
(`jobs.processes.learner_group`)."""

from pathlib import Path
from typing import Any

from pyarrow import fs

from actors.checkpointed import Checkpointed
from actors.config import WeightTransfer
from actors.device_transfer import make_publisher
from actors.weight_transfer import Weights
from buffers.records import GroupOutcome
from buffers.rollout_log import RolloutLog
from learners.checkpoint import CheckpointManager, FileEntry
from learners.layers import require_compiler
from learners.policy_learner import PolicyLearner


class Learner(PolicyLearner, Checkpointed):
    """See `learners.policy_learner.PolicyLearner`.

    learner.load_part(manager, step, "learner")         # replaces a lost learner: its last saved state,
    learner.train_log(directory, last_step)             # and the steps since. The two are then equal bit for bit"""

    def __init__(
        self, *args: Any, weight_transfer: WeightTransfer = "object_store", kept_versions: int = 1, kept_every: int = 0, **options: Any
    ) -> None:
        """For `kept_versions` and `kept_every` see `make_publisher`. `PolicyLearner` takes the other arguments."""
        super().__init__(*args, **options)
        transfer: WeightTransfer = weight_transfer if self.is_first else "object_store"
        self._publisher = make_publisher(transfer, kept_versions=kept_versions, kept_every=kept_every)

    def ready(self) -> int:
        """Return the version, which shows that the model is loaded. Raises TransferUnavailable if weights cannot be
        handed over as configured, and CompilerMissing if layers cannot be compiled."""
        if self._config.compile:
            require_compiler(self._device)
        self._publisher.require_usable(self._device)
        return self.version

    def publish(self) -> tuple[Weights | None, int]:
        """Return the weights of the current version, which are bulk data, and the version. The first rank returns the
        weights; the others give it their parts and return None."""
        if self.is_first:
            return self._publisher.publish(self), self.version
        self.give_weights()
        return None, self.version

    def save_part(self, manager: CheckpointManager, step: int, part: str) -> list[FileEntry]:
        """Save the state. The first rank writes it and the others give it their parts. The first rank takes the parts
        even if it cannot write, because the others wait until they are taken."""
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
        """Train again, in order, on the logged steps after this learner's version, and return the version reached.
        Raises FileNotFoundError for a step that was not logged: the policy would then differ from the run's."""
        log = RolloutLog(fs.LocalFileSystem(), directory)
        for step in range(self.version + 1, up_to_step + 1):
            self.step(log.batch(step, GroupOutcome.TRAINED), step - 1)
        return self.version
