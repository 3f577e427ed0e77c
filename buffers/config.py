"""Settings of the replay buffer and the rollout log. Importing this module loads neither Arrow nor torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator

from buffers.extensions import Known, is_path

Late = Literal["mask", "wait", "drop"]
"""What is done with a group that has tokens sampled more than `max_policy_lag` versions ago (`buffers.replay`)."""

SAMPLERS_IN_ORDER = frozenset({"oldest"})  # the samplers that take groups in the fixed order of their ids


class ReplayConfig(BaseModel):
    """What replay holds and hands out, and whether what leaves it is written down."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    max_bytes: PositiveInt = 1 << 30
    """Byte cap of the rows held. A group that would exceed it is refused as FULL and its producer waits. A cap below
    one step's worth of groups ends the run, with a line that says so."""

    sampler: Annotated[str, AfterValidator(Known("oldest"))] = "oldest"
    """Which of the groups held a step trains on: "oldest" takes those admitted first. Or the import path of a class of
    your own ("mypackage.module:MySampler", see `buffers/samplers.py`), but not with deterministic = true or
    max_policy_lag = 0, where groups are taken in a fixed order."""

    sampler_options: dict[str, Any] = {}
    """The table that a class of your own is made with. "oldest" takes none."""

    log_max_mib: PositiveFloat = 65536.0
    """Bound of the rollout log on disk. Beyond it the oldest steps are removed and counted, but never the steps since
    the newest checkpoint: a learner or a bonus that is lost is restored from those."""

    log_rollouts: bool = True
    """Write every consumed group to the rollout log, one Parquet file a step. Off saves disk, but leaves nothing to
    inspect, re-score or train on later."""

    @property
    def takes_fixed_order(self) -> bool:
        """Whether the sampler takes groups in the fixed order of their ids."""
        return self.sampler in SAMPLERS_IN_ORDER

    @model_validator(mode="after")
    def _options_have_a_class(self) -> Self:
        if self.sampler_options and not is_path(self.sampler):
            raise ValueError(f'sampler_options are for a class of your own, and sampler = "{self.sampler}" takes none: leave them out')
        return self
