"""Settings of the replay buffer and the rollout log. Importing this module loads neither Arrow nor torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt


class ReplayConfig(BaseModel):
    """How much replay may hold, and whether what leaves it is written down."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    max_bytes: PositiveInt = 1 << 30
    """Byte cap of the rows held. A group that would exceed it is refused as FULL and its producer waits, so a cap below
    one step's worth of groups stops the run: the learner waits for groups that are never let in."""

    log_max_mib: PositiveFloat = 65536.0
    """Most that the rollout log may take on disk. Beyond it the oldest steps are removed, counted and told, but for
    those that a lost learner or bonus would be brought back from: the steps since the newest checkpoint."""

    log_rollouts: bool = True
    """Write every consumed group to the rollout log, one Parquet file a step. Off saves disk, but leaves nothing to
    inspect, re-score or train on later."""
