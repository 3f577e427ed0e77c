"""The learner actor: `PolicyLearner` with its state in checkpoints."""

from __future__ import annotations

from actors.checkpointed import Checkpointed
from learners.policy_learner import PolicyLearner
from learners.weights import WeightSnapshot


class Learner(PolicyLearner, Checkpointed):
    """See `learners.policy_learner.PolicyLearner`."""

    def ready(self) -> int:
        """Returns the version once the model is loaded."""
        return self.version

    def publish(self) -> tuple[WeightSnapshot, int]:
        """The weights of the current version, bulk, and the version."""
        return self.snapshot(), self.version
