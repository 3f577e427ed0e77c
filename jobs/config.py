"""The configuration of a run: TOML file plus `--set key=value`, strict, resolved before anything heavy is imported.

    config = load_config("configs/quickstart.toml", overrides=["learner.lr=1e-5"])

Every problem is a ConfigError with one line a person can act on. Importing this module pulls in neither torch, Ray nor
vLLM."""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from actors.config import STRICT, EncoderConfig, RolloutConfig, SamplingConfig, VerifierConfig
from actors.engines import ENGINES, Repeats, facts_of, require_facts
from bonus.config import BonusConfig
from buffers.config import ReplayConfig
from buffers.extensions import Known
from jobs.evaluation_config import EvaluationConfig
from jobs.user_error import UserError
from learners.config import CheckpointConfig, LearnerConfig
from tasks.config import PATH_KEYS, TaskConfig
from tasks.rewards import RewardConfig

Config = TypeVar("Config", bound=BaseModel)

LABEL = "LABEL"
_PART = re.compile(r"^task\.mixture\.parts\.[^.]+\.")


ConfigError = UserError


class SupervisionConfig(BaseModel):
    """When a part of the run counts as lost, and how often it is replaced."""

    model_config = STRICT

    heartbeat_s: float = Field(5.0, gt=0)
    """A rollout worker says at least this often how far it is."""
    hang_timeout_s: float = Field(120.0, gt=0)
    """A worker that has said nothing, or sampled no token of the groups it has, for so long is killed and replaced."""
    max_group_tries: int = Field(3, ge=1)
    """Workers a group is given to, and encoders. A group that so many were lost with is dropped, and its problem counts
    an attempt."""
    max_failures: int = Field(5, ge=1)
    """Losses in a row of one role (rollout, encoder, verifier, learner, replay, bonus) with nothing done in between
    that end the run with the last one's error."""
    max_data_failures: int = Field(20, ge=0)
    """Groups in a row whose problem could not be used (too long a prompt) after which the run ends with the last one's
    error."""
    backoff_s: float = Field(1.0, ge=0)
    """Seconds before a lost process is replaced; doubled with each further loss in a row."""
    backoff_max_s: float = Field(60.0, ge=0)
    """Upper bound of these seconds."""
    drain_timeout_s: float = Field(60.0, ge=0)
    """A worker that leaves may finish its groups for so long; what it has not finished then goes on elsewhere from its
    tokens."""


class DynamicSamplingConfig(BaseModel):
    """Groups that there is nothing to learn from make room for others (DAPO, arXiv:2503.14476, section 3.2)."""

    model_config = STRICT

    enabled: bool = False
    """true: a group whose scored rewards are all equal is not trained on; the next problem takes its slot. It is
    counted, and its rows go to the rollout log as "filtered". With the exploration bonus such a group does have
    something to teach: think twice."""
    max_batches: int = Field(4, ge=1)
    """So many steps' worth of groups are sampled for a step at the most; groups beyond are trained on as they are, so
    that a task that is solved, or too hard, ends no run. 1: none is filtered."""


class AutoscaleConfig(BaseModel):
    """Who decides how many rollout workers there are."""

    model_config = STRICT

    policy: Literal["off", "queue"] = "off"
    """off: `rollout.workers`, until `jobs.scale` says otherwise. queue: one more while the learner waits for groups,
    one less while the workers wait for room (`jobs.run.autoscale`)."""
    min_workers: int = Field(1, ge=1)
    max_workers: int = Field(8, ge=1)
    interval_s: float = Field(30.0, gt=0)
    """Waiting shares are measured over so long, and no change follows another sooner."""
    waiting_share: float = Field(0.25, gt=0, lt=1)
    """Share of the interval that the learner (or the workers) must have waited for a change."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers = {self.min_workers} exceeds max_workers = {self.max_workers}")
        return self


class LogsConfig(BaseModel):
    """What the logs of a run may take on disk; of the rollout log `replay.log_max_mib` says so. The newest half of it
    is always kept."""

    model_config = STRICT

    events_max_mib: int = Field(1024, ge=1)
    """events.jsonl and events.older.jsonl, about 2 KiB a group."""
    metrics_max_mib: int = Field(256, ge=1)
    """metrics.jsonl and metrics.older.jsonl, about 3 KiB a step."""


class RunConfig(BaseModel):
    """Everything a run is made of."""

    model_config = STRICT

    run_dir: str = "runs/default"
    """Where checkpoints, rollouts and metrics go. One run, one directory."""
    model: str = "smollm2-135m"
    """The initial policy and the frozen encoder: the embedded alias, a local directory, or a hub id."""
    seed: int = 0
    """Seeds problem order, sampling and the projection."""
    steps: int = Field(40, ge=1)
    """Training steps of the whole run, counted over resumes."""
    prompts_per_step: int = Field(8, ge=1)
    """P: groups trained on in one step."""
    responses_per_prompt: int = Field(8, ge=2)
    """K: responses in a group. Centering needs at least two."""
    max_policy_lag: int = Field(1, ge=0)
    """S: a token sampled more than S versions ago is never trained on. 0 is the synchronous trainer."""
    deterministic: bool = False
    """true: which groups a step trains on, and under which weights they are sampled, is fixed, so the same
    configuration gives the same policy bit for bit, also when the run is killed and resumed. Slow groups then hold up
    their step, weights are not changed in flight, and a vLLM engine samples one group at a time
    (`jobs.run.fixed_order`). For debugging and for papers."""
    max_attempts: int = Field(5, ge=1)
    """A problem whose group was dropped this often is quarantined and named."""
    wait_timeout_s: float = Field(900.0, gt=0)
    """No call of the controller waits longer; the message then says what it waited for. Generation has
    rollout.group_timeout_s."""
    trackers: tuple[Annotated[str, AfterValidator(Known("tensorboard"))], ...] = ("tensorboard",)
    """Where metrics go besides metrics.jsonl, which always exists: known names, or import paths of classes of your own
    (`jobs.directory.trackers`). [] leaves metrics.jsonl alone."""
    tracker_options: dict[str, dict[str, Any]] = {}
    """By the name of a tracker as it stands in `trackers`, the arguments that its class is made with."""
    task: TaskConfig = TaskConfig()
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
    def _consistent(self) -> Self:
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
        if (known := ENGINES.get(self.rollout.engine)) is not None:  # an engine of one's own is imported first: `require_methods`
            require_facts(known.facts, self.rollout, deterministic=self.deterministic)
        self._check_gpus_of_weight_transfer()
        if len(dtypes := {self.rollout.dtype, self.learner.dtype} - {"auto"}) > 1:
            raise ValueError(
                f'rollout.dtype = "{self.rollout.dtype}" and learner.dtype = "{self.learner.dtype}": an engine must hold the '
                f"learner's weights bit for bit, so make both {' or '.join(sorted(dtypes))}"
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
        if self.bonus.enabled and self.bonus.source == "policy" and (self.encoder.layer, self.encoder.pooling) != (-1, "mean"):
            raise ValueError(
                f"bonus.source = \"policy\" takes the engine's own states, the last layer's mean, but encoder.layer = {self.encoder.layer} "
                f'and encoder.pooling = "{self.encoder.pooling}": set bonus.source to "encoder", or leave both out'
            )
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

    def _check_gpus_of_weight_transfer(self) -> None:
        transfer = self.rollout.weight_transfer
        if transfer == "object_store":
            return
        if self.learner.num_gpus == 0:
            raise ValueError(
                f'rollout.weight_transfer = "{transfer}" sends weights from the learner\'s GPU, but learner.num_gpus = 0: raise that, or '
                'set rollout.weight_transfer to "object_store"'
            )
        engines = self.rollout.workers + (self.evaluation.every > 0)
        if transfer == "ipc" and (asked := self.learner.num_gpus + engines * self.rollout.num_gpus) > 1:
            raise ValueError(
                'rollout.weight_transfer = "ipc" needs learner and engines on one GPU, but learner.num_gpus = '
                f"{self.learner.num_gpus:g} and {engines} engine(s) of rollout.num_gpus = {self.rollout.num_gpus:g} (that of evaluations "
                f'included) make {asked:g}: lower them, or set it to "nccl"'
            )

    @property
    def responses_per_step(self) -> int:
        return self.prompts_per_step * self.responses_per_prompt

    @property
    def encodes_alone(self) -> bool:
        """Whether no group is encoded in the company of others: a feature's last bits depend on it, and at S = 0 a run
        is to be the synchronous one, bit for bit."""
        return self.deterministic or self.max_policy_lag == 0

    @property
    def isolates_groups(self) -> bool:
        """Whether a worker samples one group at a time, so that it depends on nothing else in the engine. Some engines
        compute every response by itself anyway."""
        return self.deterministic and facts_of(self.rollout).repeats is not Repeats.ALWAYS


CHANGEABLE_ON_RESUME = (
    *(
        "run_dir",
        "steps",
        "wait_timeout_s",
        "rollout",
        "verifier",
        "replay",
        "checkpoint",
        "supervision",
        "autoscale",
        "logs",
        "evaluation",
        "trackers",
        "tracker_options",
    ),
    *PATH_KEYS,
    *("encoder.threads", "encoder.num_gpus", "encoder.tokens_per_batch", "encoder.replicas", "encoder.max_waiting"),
    *("learner.threads", "learner.tokens_per_micro_batch", "learner.logits_mib", "learner.activation_checkpointing", "learner.compile"),
    *("learner.ranks", "learner.num_gpus", "learner.join_timeout_s", "learner.collective_timeout_s"),
)
"""Keys and sections that say how long or with what means a run goes on, not what it computes."""


def changed_keys(saved: dict[str, Any], config: BaseModel, changeable: Sequence[str]) -> list[str]:
    """Dotted keys outside `changeable`, with both values, in which `config` differs from the saved one.

    A key that the saved configuration lacks did not exist when it was written: it then had what is its default now. A
    key of a mixture's part may change where the same key of the task may, and has the same default."""
    defaults = _flatten(type(config)().model_dump(mode="json"))
    old, new = defaults | _flatten(saved), _flatten(config.model_dump(mode="json"))
    of_task = {key: _PART.sub("task.", key) for key in sorted(old.keys() | new.keys())}
    different = {key: general for key, general in of_task.items() if old.get(key, defaults.get(general)) != new.get(key)}
    fixed = (key for key, general in different.items() if not any(f"{general}.".startswith(f"{free}.") for free in changeable))
    return [f"{key} ({old.get(key)!r} -> {new.get(key)!r})" for key in fixed]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run: see `load`."""
    return load(RunConfig, path, overrides)


def load(kind: type[Config], path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (TOML; None for an empty one), apply `key.sub=value` overrides, validate as `kind`. Raises
    ConfigError."""
    return validated(kind, read_values(path, overrides), source=source_of(path))


def read_values(path: str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a person has written: the file, and over it the overrides. Raises ConfigError."""
    values = _read_toml(path) if path is not None else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {override!r}: write it as key=value, for example --set seed=1")
        _assign(values, key.strip(), _parse_value(text.strip()))
    return values


def validated(kind: type[Config], values: dict[str, Any], *, source: str) -> Config:
    """`values` as a configuration; `source` is where they come from, in messages. Raises ConfigError."""
    _refuse_unknown_keys(values, kind, kind, source=source)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_line(error)}") from None


def source_of(path: str | None) -> str:
    return path or "command line"


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`values` with those of `over` in the place of theirs, section by section."""
    both = {
        key: merged(values[key], over[key])
        for key in values.keys() & over.keys()
        if isinstance(values[key], dict) and isinstance(over[key], dict)
    }
    return values | over | both


def _read_toml(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.toml"))) or "none in ./configs"
        raise ConfigError(f"config file {path} does not exist (there are: {known})")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _parse_value(text: str) -> Any:
    """A TOML value; anything else is taken as a string, so that --set model=some/dir needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for depth, parent in enumerate(parents):
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {dotted}: {'.'.join(parents[: depth + 1])} is a value, not a section")
    values[last] = value


def _refuse_unknown_keys(values: dict[str, Any], model: type[BaseModel], root: type[BaseModel], *, source: str, prefix: str = "") -> None:
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'{_suggestion(prefix, key, model, root)}")
        if not isinstance(value, dict):
            continue
        section, labelled = _section(field.annotation), _labelled_section(field.annotation)
        if section is not None:
            _refuse_unknown_keys(value, section, root, source=source, prefix=f"{prefix}{key}.")
        elif labelled is not None:
            for label, part in value.items():
                if isinstance(part, dict):
                    _refuse_unknown_keys(part, labelled, root, source=source, prefix=f"{prefix}{key}.{label}.")


def _suggestion(prefix: str, key: str, model: type[BaseModel], root: type[BaseModel]) -> str:
    """The nearest key of the same section, else a key of that name anywhere, else what the section has."""
    near = difflib.get_close_matches(key, model.model_fields, n=1)
    if near:
        return f"; did you mean '{prefix}{near[0]}'?"
    dotted = sorted(all_keys(root), key=lambda name: LABEL not in name)  # a key of the task itself comes before one of a mixture's part
    by_last = {name.rpartition(".")[2]: name for name in dotted}
    elsewhere = difflib.get_close_matches(key, by_last, n=1)
    if elsewhere:
        return f"; did you mean '{by_last[elsewhere[0]]}'?"
    return f"; known here: {', '.join(model.model_fields)}"


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a config model, sections left out. What people name themselves is LABEL."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        section, labelled = _section(field.annotation), _labelled_section(field.annotation)
        if section is not None:
            keys += all_keys(section, f"{prefix}{name}.")
        elif labelled is not None:
            keys += all_keys(labelled, f"{prefix}{name}.{LABEL}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((found for part in typing.get_args(annotation) if (found := _section(part))), None)
    return None


def _labelled_section(annotation: Any) -> type[BaseModel] | None:
    """Of a field that holds sections by labels of people's choice."""
    return _section(typing.get_args(annotation)[1]) if typing.get_origin(annotation) is dict else None


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    location = [str(part) for part in first["loc"] if not str(part).startswith(("literal[", "constrained-"))]
    while len(location) > 1 and location[-1] in ("float", "int", "str"):
        location.pop()
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if not location:
        return message + more
    given = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"  # a whole section says nothing of what is wrong in it
    return f"{'.'.join(location)}{given}: {message[0].lower()}{message[1:]}{more}"
