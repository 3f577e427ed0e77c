"""The configuration of a run: everything that `repexp train` can be told.

    config = load_config("configs/quickstart.toml", overrides=["learner.lr=1e-5"])

Every section is a strict model beside its owner, every field has a line of text, and each contradiction between two
sections is refused here with both values. `jobs.configuration.files` reads the file, `jobs.screens.config_keys` lists
the keys. Importing this module loads neither torch, Ray nor vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from actors.config import STRICT, VERIFIER_MEANS, EncoderConfig, PromptConfig, RolloutConfig, SamplingConfig, VerifierConfig
from actors.engines import ENGINES, Repeats, facts_of, require_facts
from bonus.base import Need
from bonus.config import BonusConfig, FeatureSource
from bonus.kinds import READS
from buffers.config import Late, ReplayConfig
from buffers.extensions import Known
from buffers.fields import LocalPath
from jobs.configuration.files import load
from jobs.evaluation_config import EvaluationConfig
from learners import facts
from learners.config import CheckpointConfig, LearnerConfig
from tasks.config import PATH_KEYS, TaskConfig
from tasks.rewards import RewardConfig


class SupervisionConfig(BaseModel):
    """When a part of the run counts as lost, and how often it is replaced."""

    model_config = STRICT

    heartbeat_s: float = Field(5.0, gt=0)
    """A rollout worker reports its progress at least this often, in seconds."""
    hang_timeout_s: float = Field(120.0, gt=0)
    """A worker is killed and replaced when it has reported nothing, or sampled no token of its groups, for this many
    seconds."""
    max_group_tries: int = Field(3, ge=1)
    """A group is given to at most this many workers and encoders. If all are lost with it, or sample nothing of it, the
    group is dropped and its problem counts an attempt."""
    max_failures: int = Field(5, ge=1)
    """The run ends with the last error after this many failures in a row of one role without any work done in between.
    Roles are rollout, encoder, verifier, learner, replay and bonus."""
    max_data_failures: int = Field(20, ge=0)
    """The run ends with the last error after this many groups in a row whose problem could not be used, for example
    because its prompt is too long."""
    backoff_s: float = Field(1.0, ge=0)
    """Seconds before a lost process is replaced. They double with each further failure in a row."""
    backoff_max_s: float = Field(60.0, ge=0)
    """Upper bound of these seconds."""
    drain_timeout_s: float = Field(60.0, ge=0)
    """A worker that leaves may finish its groups for this many seconds. Other workers then continue the unfinished
    groups from their tokens."""


class DynamicSamplingConfig(BaseModel):
    """Groups that there is nothing to learn from make room for others (DAPO, arXiv:2503.14476, section 3.2)."""

    model_config = STRICT

    enabled: bool = False
    """true: a group whose scored rewards are all equal is not trained on, and the next problem takes its slot. It is
    counted, and its rows go to the rollout log as "filtered". With the exploration bonus such a group does have
    something to teach. With learner.advantage.combine = "ties" a bonus enters nowhere else, so both are refused."""
    max_batches: int = Field(4, ge=1)
    """At most this many steps' worth of groups are sampled for one step. Groups beyond are trained on as they are, so
    that a task that is solved, or too hard, ends no run. With 1 no group is filtered."""


class AutoscaleConfig(BaseModel):
    """Who decides how many rollout workers there are."""

    model_config = STRICT

    policy: Literal["off", "queue"] = "off"
    """off: `rollout.workers`, until `repexp scale` says otherwise. queue: one more while the learner waits for groups,
    one less while the workers wait for room (`jobs.run.autoscale`)."""
    min_workers: int = Field(1, ge=1)
    """The fewest workers that policy = "queue" keeps."""
    max_workers: int = Field(8, ge=1)
    """The most workers that policy = "queue" starts."""
    interval_s: float = Field(30.0, gt=0)
    """Waiting shares are measured over this many seconds, and no change follows another sooner."""
    waiting_share: float = Field(0.25, gt=0, lt=1)
    """The number changes when the learner (or the workers) waited for this share of the interval."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers = {self.min_workers} exceeds max_workers = {self.max_workers}")
        return self


class LogsConfig(BaseModel):
    """What a run prints, and how much disk its logs may take; `replay.log_max_mib` bounds the rollout log. The newest
    half of a log is always kept."""

    model_config = STRICT

    format: Literal["text", "json"] = "text"
    """What standard output is: "text" for people, or "json", one record a line for programs that collect logs. The logs
    that Ray keeps of the processes of the run then are JSON lines, too."""
    events_max_mib: int = Field(1024, ge=1)
    """Bounds events.jsonl and events.older.jsonl, about 2 KiB a group."""
    metrics_max_mib: int = Field(256, ge=1)
    """Bounds metrics.jsonl and metrics.older.jsonl, about 3 KiB a step."""


class RunConfig(BaseModel):
    """Everything a run is made of."""

    model_config = STRICT

    run_dir: LocalPath = "runs/default"
    """The directory of checkpoints, rollouts and metrics. One run has one directory."""
    model: LocalPath = "smollm2-135m"
    """The initial policy and the frozen encoder: the embedded alias, a local directory, or a hub id."""
    seed: int = Field(0, ge=0)
    """Seeds problem order, sampling and the projection."""
    steps: int = Field(40, ge=1)
    """Training steps of the whole run, counted over resumes."""
    prompts_per_step: int = Field(8, ge=1)
    """P: groups trained on in one step."""
    responses_per_prompt: int = Field(8, ge=2)
    """K: responses in a group. Centering needs at least two."""
    max_policy_lag: int = Field(1, ge=0)
    """S: a token sampled more than S versions ago is never trained on. 0 is the synchronous trainer."""
    late: Late = "mask"
    """What is done with a slow group that has older tokens than that. "mask": it is trained on all the same, except for
    these tokens. "wait": none is that slow, because the learner waits for the groups that would be. "drop": it is
    thrown away as a whole and its problem sampled again, which trains on short answers more than on long ones."""
    deterministic: bool = False
    """true: the groups of each step and the weights they are sampled under are fixed. The same configuration then
    gives the same policy bit for bit, also when the run is killed and resumed. Slow groups hold up their step, weights
    are not changed in flight, and a vLLM engine samples one group at a time (`jobs.run.fixed_order`). It is meant for
    debugging and for papers."""
    max_attempts: int = Field(5, ge=1)
    """A problem whose groups have failed this often is quarantined and named. Being late is no failure."""
    wait_timeout_s: float = Field(900.0, gt=0)
    """No call of the controller waits longer, and the message then says what it waited for. Generation has
    rollout.group_timeout_s instead."""
    trackers: tuple[Annotated[str, AfterValidator(Known("tensorboard", "wandb"))], ...] = ("tensorboard",)
    """Where metrics go besides metrics.jsonl, which always exists: known names, or import paths of classes of your own
    (`jobs.directory.trackers`). [] leaves metrics.jsonl alone."""
    tracker_options: dict[str, dict[str, Any]] = {}
    """By the name of a tracker as it stands in `trackers`, the arguments that its class is made with."""
    task: TaskConfig = TaskConfig()
    prompt: PromptConfig = PromptConfig()
    sampling: SamplingConfig = SamplingConfig()
    rollout: RolloutConfig = RolloutConfig()
    encoder: EncoderConfig = EncoderConfig()
    bonus: BonusConfig = BonusConfig()
    verifier: VerifierConfig = VerifierConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    autoscale: AutoscaleConfig = AutoscaleConfig()
    reward: RewardConfig = RewardConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    logs: LogsConfig = LogsConfig()

    @model_validator(mode="after")
    def _steps_can_be_made(self) -> Self:
        loss = self.learner.loss
        if self.max_policy_lag > 0 and not loss.is_corrected and not loss.accept_uncorrected:
            raise ValueError(
                f'max_policy_lag = {self.max_policy_lag} with learner.loss.correction = "{loss.correction}" would train off-policy '
                'uncorrected: set the correction to "truncated_is" or max_policy_lag to 0, or learner.loss.accept_uncorrected to true if '
                "that is meant"
            )
        if not self.replay.takes_fixed_order and (self.deterministic or self.max_policy_lag == 0):
            key = "deterministic = true" if self.deterministic else "max_policy_lag = 0"
            raise ValueError(
                f'{key} contradicts replay.sampler = "{self.replay.sampler}": groups are then taken in a fixed order; leave the sampler '
                "out, or change the other"
            )
        if self.learner.mini_batches > self.prompts_per_step:
            raise ValueError(
                f"learner.mini_batches = {self.learner.mini_batches} exceeds prompts_per_step = {self.prompts_per_step}: "
                "a mini-batch needs at least one group"
            )
        if (known := ENGINES.get(self.rollout.engine)) is not None:  # an engine of your own is imported first: `require_methods`
            require_facts(known.facts, self.rollout, deterministic=self.deterministic)
        return self

    @model_validator(mode="after")
    def _weight_transfer_has_gpus(self) -> Self:
        transfer, rollout = self.rollout.weight_transfer, self.rollout
        if transfer == "object_store":
            return self
        if self.learner.num_gpus == 0:
            raise ValueError(
                f'rollout.weight_transfer = "{transfer}" sends weights from the learner\'s GPU, but learner.num_gpus = 0: raise that, or '
                'set rollout.weight_transfer to "object_store"'
            )
        engines = rollout.workers + (self.evaluation.every > 0)
        if transfer == "ipc" and (asked := self.learner.num_gpus + engines * rollout.num_gpus) > 1:
            raise ValueError(
                'rollout.weight_transfer = "ipc" needs learner and engines on one GPU, but learner.num_gpus = '
                f"{self.learner.num_gpus:g} and {engines} engine(s) of rollout.num_gpus = {rollout.num_gpus:g} (that of evaluations "
                f'included) make {asked:g}: lower them, or set it to "nccl"'
            )
        return self

    @model_validator(mode="after")
    def _engine_and_learner_agree(self) -> Self:
        parts = (self.rollout, self.learner)
        dtypes = {"bfloat16" if part.dtype == "auto" and part.num_gpus > 0 else part.dtype for part in parts} - {"auto"}
        if len(dtypes) > 1:
            raise ValueError(
                f'rollout.dtype = "{self.rollout.dtype}" and learner.dtype = "{self.learner.dtype}": an engine must hold the '
                f"learner's weights bit for bit, so make both {' or '.join(sorted(dtypes))} (auto is bfloat16 on a GPU)"
            )
        if quantized := next((name for name in self.rollout.engine_args if name.startswith("quantization")), None):
            raise ValueError(
                f"rollout.engine_args.{quantized}: an engine must hold the learner's weights bit for bit, so a training run leaves it out"
            )
        if self.rollout.max_sequences < self.responses_per_prompt:
            raise ValueError(
                f"rollout.max_sequences = {self.rollout.max_sequences} is less than responses_per_prompt = {self.responses_per_prompt}: "
                "a group must fit into one engine"
            )
        if (self.sampling.top_p, self.sampling.top_k) != (1.0, 0):
            raise ValueError(
                f"sampling.top_p = {self.sampling.top_p} and sampling.top_k = {self.sampling.top_k}: training needs top_p = 1.0 and "
                "top_k = 0, because the learner's log-probs are those of the whole distribution"
            )
        if self.bonus.source == "policy" and (self.encoder.layer, self.encoder.pooling) != (-1, "mean"):
            raise ValueError(
                f"bonus.source = \"policy\" takes the engine's own states, the last layer's mean, but encoder.layer = {self.encoder.layer} "
                f'and encoder.pooling = "{self.encoder.pooling}": set bonus.source to "encoder", or leave both out'
            )
        return self

    @model_validator(mode="after")
    def _ties_can_happen(self) -> Self:
        advantage = self.learner.advantage
        reads = facts.facts_of(facts.ESTIMATORS, advantage.estimator).reads or ()
        waits_for_ties = self.bonus.enabled and advantage.beta and advantage.combine in ("ties", "positive_ties") and "combine" in reads
        gated = self.bonus.gate == "group_mixed" and all("gate" in READS.get(part.kind, ()) for part in self.bonus.parts)
        kl, off = self.learner.loss.kl.where == "reward", "bonus.enabled to false"
        apart = "it makes equal rewards of right answers unequal, and the bonus would hardly ever enter"
        obstacles = (
            (
                kl,
                'learner.loss.kl.where = "reward"',
                "with it no two rewards are equal, and the bonus would never enter",
                'where to "loss"',
            ),
            (self.dynamic_sampling.enabled, "dynamic_sampling.enabled = true", "it leaves out the groups in which the bonus enters", off),
            (
                gated,
                'bonus.gate = "group_mixed"',
                "rewards of a mixed group are not equal, and the bonus would never enter",
                "the gate to another",
            ),
            (advantage.unlikeliness, f"learner.advantage.unlikeliness = {advantage.unlikeliness}", apart, off),
            (advantage.diversity_product, f"learner.advantage.diversity_product = {advantage.diversity_product}", apart, off),
        )
        combine = f'learner.advantage.combine = "{advantage.combine}"'
        for is_set, what, why, otherwise in obstacles:
            if waits_for_ties and is_set:
                raise ValueError(f'{what} contradicts {combine}: {why}: set combine to "advantage", or {otherwise}')
        return self

    @model_validator(mode="after")
    def _rewards_and_trackers_agree(self) -> Self:
        if self.reward.overlong_tokens > self.sampling.max_response_tokens:
            raise ValueError(
                f"reward.overlong_tokens = {self.reward.overlong_tokens} exceeds sampling.max_response_tokens = "
                f"{self.sampling.max_response_tokens}: the penalty would begin before the first token"
            )
        if unused := self.tracker_options.keys() - set(self.trackers):
            raise ValueError(f"tracker_options are for '{min(unused)}', which is not among trackers = {list(self.trackers)}")
        if self.learner.advantage.beta > 0 and self.learner.advantage.alpha == 0 and not self.bonus.enabled:
            raise ValueError("learner.advantage.alpha = 0 and bonus.enabled = false leave no signal to learn from")
        return self

    @model_validator(mode="after")
    def _rewards_suit_the_estimator(self) -> Self:
        advantage = self.learner.advantage
        rewards = facts.facts_of(facts.ESTIMATORS, advantage.estimator).rewards
        suits = {"any": True, "at least 0": self.reward.stays_at_least_0, "0 or 1": self.reward.stays_0_or_1}[rewards]
        if not suits:
            contradicts = f'contradicts learner.advantage.estimator = "{advantage.estimator}": its rewards must be {rewards}: set'
            if self.reward.format_penalty:
                raise ValueError(f"reward.format_penalty = {self.reward.format_penalty} {contradicts} format_penalty to 0")
            raise ValueError(
                f"reward.overlong_tokens = {self.reward.overlong_tokens} {contradicts} overlong_tokens to 0, or overlong_tokens and "
                'overlong_penalty to 1 and overlong_of to "correct"'
            )
        if advantage.estimator == "pass_at_k" and advantage.pass_k > self.responses_per_prompt:
            raise ValueError(
                f"learner.advantage.pass_k = {advantage.pass_k} exceeds responses_per_prompt = {self.responses_per_prompt}: a group then "
                "has no pass@k"
            )
        return self

    @property
    def feature_source(self) -> FeatureSource | None:
        """Whose hidden states are computed, for the bonus or for the advantages; None where neither needs features.
        Raises ExtensionError for a method of your own that cannot be used."""
        return self.bonus.feature_source or (self.bonus.source if Need.FEATURES in self.learner.advantage.needs else None)

    @property
    def num_encoders(self) -> int:
        """The encoders that the run starts: none where no features come from one. Raises as `feature_source`."""
        return self.encoder.replicas if self.feature_source == "encoder" else 0

    @property
    def needs_answers(self) -> bool:
        """Whether final answers are read where responses are judged. Raises as `feature_source`."""
        return self.bonus.needs_answers or Need.ANSWERS in self.learner.advantage.needs

    @property
    def responses_per_step(self) -> int:
        return self.prompts_per_step * self.responses_per_prompt

    @property
    def encodes_alone(self) -> bool:
        """Whether each group is encoded by itself. A feature's last bits depend on the groups encoded with it, and a
        run at S = 0 must equal the synchronous run bit for bit."""
        return self.deterministic or self.max_policy_lag == 0

    @property
    def isolates_groups(self) -> bool:
        """Whether a worker samples one group at a time, for engines whose responses depend on what else they hold."""
        return self.deterministic and facts_of(self.rollout).repeats is not Repeats.ALWAYS


CHANGEABLE_ON_RESUME = (
    *("run_dir", "steps", "wait_timeout_s", "rollout", *VERIFIER_MEANS, "checkpoint", "supervision", "autoscale", "logs"),
    *("evaluation", "trackers", "tracker_options", "prompt.too_long", "sampling.max_prompt_tokens", *PATH_KEYS),
    *("replay.max_bytes", "replay.log_max_mib", "replay.log_rollouts"),
    *("encoder.threads", "encoder.num_gpus", "encoder.placement", "encoder.tokens_per_batch", "encoder.replicas", "encoder.max_waiting"),
    *("learner.threads", "learner.tokens_per_micro_batch", "learner.logits_mib", "learner.activation_checkpointing", "learner.compile"),
    *("learner.ranks", "learner.num_gpus", "learner.placement", "learner.join_timeout_s", "learner.collective_timeout_s"),
)
"""Keys and sections that say how long a run continues and with which means. They do not change what it computes."""


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration of a run (`jobs.configuration.files.load`). Raises UserError."""
    return load(RunConfig, path, overrides)
