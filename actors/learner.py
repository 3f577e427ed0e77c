"""The learner actor: `PolicyLearner` with its state in checkpoints, and brought to today by the rollout log."""

from __future__ import annotations

from pyarrow import fs

from actors.checkpointed import Checkpointed
from buffers.records import GroupOutcome
from buffers.rollout_log import RolloutLog
from learners.policy_learner import PolicyLearner
from learners.weights import WeightSnapshot


class Learner(PolicyLearner, Checkpointed):
    """See `learners.policy_learner.PolicyLearner`.

    learner.load_part(manager, step, "learner")         # in place of one that was lost: its last saved state,
    learner.train_log(directory, last_step)             # and the steps since; then it is the lost one, bit for bit
    """

    def ready(self) -> int:
        """Returns the version once the model is loaded."""
        return self.version

    def publish(self) -> tuple[WeightSnapshot, int]:
        """The weights of the current version, bulk, and the version."""
        return self.snapshot(), self.version

    def train_log(self, directory: str, up_to_step: int) -> int:
        """Train again on the steps of a rollout log after this learner's version, in order; returns the version reached.

        Raises FileNotFoundError where a step in between was not logged: the policy would then not be that of the run.
        """
        log = RolloutLog(fs.LocalFileSystem(), directory)
        for step in range(self.version + 1, up_to_step + 1):
            self.step(log.batch(step, GroupOutcome.TRAINED), step - 1)
        return self.version
