"""What a configuration will do, before anything is started: sizes of a step, processes, memory, disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.config import EncoderConfig, RolloutConfig, SamplingConfig
from actors.engines import facts_of
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.evaluation_config import EvaluateConfig
from jobs.explore_config import ExploreConfig
from learners.config import LearnerConfig
from learners.model_files import TokenLimit, read_config, tensors_in, text_values, token_limit, weight_files
from learners.models import EMBEDDED, ModelError, check_model, model_here
from learners.precision import Dtype, resolve_dtype

BASE_PROCESS_GIB = 0.7
"""The memory of a process with torch, transformers and Ray loaded."""
LOG_ROW_BYTES, LOG_TOKEN_BYTES = 4096, 24  # of the rollout log, where nothing can be compressed
EVENTS_GROUP_KIB, METRICS_STEP_KIB = 2, 3  # measured
RAY_GIB = 1.0
DRIVER_GIB = 0.3
BYTES = {"bfloat16": 2, "float32": 4}
UNKNOWN = "unknown before the model is fetched"
EMBEDDED_PARAMETERS = {"smollm2-135m": 134_515_008}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """The sizes of one step, and what the run needs. Tokens are upper bounds, of responses alone where prompts have no
    limit of their own."""

    prompts_per_step: int
    responses_per_step: int
    max_tokens_per_step: int
    counts_prompts: bool
    optimiser_steps_per_step: int
    steps: int
    total_responses: int
    max_groups_in_flight: int
    processes: dict[str, int]
    memory_gib: float | None
    disk_gib: float | None
    checkpoint_gib: float | None
    """The part of `disk_gib` that goes to `checkpoint.storage`, where that is set."""
    log_gib: float
    remark: str | None = None

    def lines(self) -> list[str]:
        """Return the plan in words."""
        memory, disk = (UNKNOWN if gib is None else f"about {gib:.1f} GiB" for gib in (self.memory_gib, self.disk_gib))
        processes = ", ".join(f"{count} {name}" for name, count in self.processes.items())
        return [
            f"per step: {self.prompts_per_step} prompts x {self.responses_per_step // self.prompts_per_step} responses = "
            f"{self.responses_per_step} responses, at most {self.max_tokens_per_step} {'' if self.counts_prompts else 'response '}tokens, "
            f"{self.optimiser_steps_per_step} optimiser step(s)",
            f"whole run: {self.steps} steps, {self.total_responses} responses trained on",
            f"in flight: at most {self.max_groups_in_flight} groups between prompt and live gradient",
            f"processes: {processes}",
            f"memory: {memory}; disk for checkpoints: {disk}, for logs about {self.log_gib:.1f} GiB",
            *([self.remark] if self.remark else []),
        ]


def make_plan(config: RunConfig) -> RunPlan:
    """Return the plan of a run."""
    prompt = config.sampling.max_prompt_tokens
    tokens = (prompt or 0) + config.responses_per_prompt * config.sampling.max_response_tokens
    learner = "learner" if config.learner.ranks == 1 else "learner rank"
    processes = {worker_of(config.rollout): config.rollout.workers, learner: config.learner.ranks, "replay": 1, "verifier pool": 1}
    if config.bonus.enabled:
        processes["bonus"] = 1
    if config.feature_source == "encoder":
        processes["encoder"] = config.encoder.replicas
    if config.evaluation.every:
        processes["evaluation worker"] = 1
    processes["verifier process"] = config.verifier.num_workers
    parameters = _num_parameters(config.model)
    return RunPlan(
        prompts_per_step=config.prompts_per_step,
        responses_per_step=config.responses_per_step,
        max_tokens_per_step=config.prompts_per_step * tokens,
        counts_prompts=prompt is not None,
        optimiser_steps_per_step=config.learner.mini_batches,
        steps=config.steps,
        total_responses=config.steps * config.responses_per_step,
        max_groups_in_flight=(config.max_policy_lag + 1) * config.prompts_per_step,
        processes=processes,
        memory_gib=_memory_gib(config),
        disk_gib=None if parameters is None else _checkpoint_gib(config, parameters) + _own_disk_gib(config, parameters),
        checkpoint_gib=None if parameters is None else _checkpoint_gib(config, parameters),
        log_gib=_log_gib(config),
        remark=_remark(config),
    )


def _log_gib(config: RunConfig) -> float:
    """Return what the logs of the whole run may take, at most their caps and at least 0.1."""
    prompt, groups = config.sampling.max_prompt_tokens, config.steps * config.prompts_per_step
    row_bytes = LOG_ROW_BYTES + LOG_TOKEN_BYTES * ((prompt or 0) + config.sampling.max_response_tokens) + 8 * config.bonus.dim
    cap, responses = config.replay.log_max_mib, groups * config.responses_per_prompt
    rollouts_mib = cap if prompt is None else min(cap, responses * row_bytes / 2**20)
    events_mib = min(config.logs.events_max_mib, groups * EVENTS_GROUP_KIB / 1024)
    metrics_mib = min(config.logs.metrics_max_mib, config.steps * METRICS_STEP_KIB / 1024)
    return max(0.1, (config.replay.log_rollouts * rollouts_mib + events_mib + metrics_mib) / 1024)


def worker_of(config: RolloutConfig) -> str:
    """Return what a plan calls a rollout worker."""
    return "rollout worker" if config.tensor_parallel == 1 else f"rollout worker ({config.tensor_parallel} ranks)"


def _remark(config: RunConfig) -> str | None:
    """Warn where two responses do not fit behind one long prompt: it is computed for each of them, which costs more."""
    prompt, response, budget = config.sampling.max_prompt_tokens, config.sampling.max_response_tokens, config.learner.tokens_per_micro_batch
    if prompt is None or prompt < response or prompt + 2 * response <= budget:
        return None
    return (
        f"learner.tokens_per_micro_batch = {budget} has no room for a prompt of {prompt} tokens and two responses of {response}: such a "
        f"prompt is computed once a response, not once a group; {prompt + config.responses_per_prompt * response} holds the group"
    )


def _memory_gib(config: RunConfig) -> float | None:
    """Return the memory of weights, float32 masters, gradients, AdamW moments, a reference, KV cache and processes."""
    parameters = _num_parameters(config.model)
    if parameters is None:
        return None
    weight_bytes = bytes_of(config.learner.dtype, config.learner.num_gpus)
    learner = _learner_gib(parameters, config.learner)
    engines = config.rollout.workers + (config.evaluation.every > 0)
    rollout = _rollout_gib(parameters, config.rollout)
    encoder = config.num_encoders * _encoder_gib(parameters, config.encoder) + (BASE_PROCESS_GIB if config.bonus.enabled else 0.0)
    published = 2 * parameters * weight_bytes / 2**30
    return learner + engines * rollout + encoder + published + config.replay.max_bytes / 2**30 * 0.1 + RAY_GIB + DRIVER_GIB


def _learner_gib(parameters: int, config: LearnerConfig) -> float:
    """Return the host memory of all ranks: the state, of which each holds a part, and what each computes with. On GPUs
    the host holds only the weights that each rank loads. Adapters and their state are small beside the frozen model."""
    weight_bytes = bytes_of(config.dtype, config.num_gpus)
    if config.num_gpus:
        return config.ranks * (parameters * weight_bytes / 2**30 + BASE_PROCESS_GIB)
    copy_bytes = weight_bytes if weight_bytes < 4 else 0  # float32 weights are their own masters
    reference_bytes = weight_bytes if config.loss.kl.where != "off" else 0
    trained = parameters * (copy_bytes + 4 * 4 + reference_bytes)
    loading = parameters * (config.ranks * weight_bytes + 4)
    state = parameters * weight_bytes if config.lora.enabled else max(trained, loading)
    return state / 2**30 + config.ranks * (BASE_PROCESS_GIB + config.tokens_per_micro_batch * 1e-3)


def _rollout_gib(parameters: int, config: RolloutConfig) -> float:
    """Return the memory of weights and a packed copy of them in the engine's precision, KV cache and processes: that of
    the engine, and one for each rank of several."""
    process_gib = BASE_PROCESS_GIB + facts_of(config).memory_gib
    num_processes = 1 if config.tensor_parallel == 1 else 1 + config.tensor_parallel
    return parameters * 2 * bytes_of(config.dtype, config.num_gpus) / 2**30 + num_processes * process_gib + config.kv_cache_gib


def _encoder_gib(parameters: int, config: EncoderConfig) -> float:
    return parameters * bytes_of(config.dtype, config.num_gpus) / 2**30 + BASE_PROCESS_GIB


def explore_memory_gib(config: ExploreConfig, *, sampling: bool, encoding: bool) -> float | None:
    """Return what `jobs.explore` needs, or None for a model that is not here yet."""
    parameters = _num_parameters(config.model) if sampling or encoding else 0
    if parameters is None:
        return None
    engines = config.rollout.workers * _rollout_gib(parameters, config.rollout) if sampling else 0.0
    encoder = _encoder_gib(parameters, config.encoder) if encoding else 0.0
    return engines + encoder + RAY_GIB + BASE_PROCESS_GIB + DRIVER_GIB


def explore_lines(config: ExploreConfig, pools: str | None, *, encodes: bool) -> list[str]:
    """Return in words what `jobs.explore` will do, or what it will do with the candidates of the file `pools`. It has
    an encoder where it `encodes`."""
    problems = f"{config.problems} problems" if config.problems else f"all problems of split {config.split}"
    times = config.novel_sampling.candidates if config.novel_sampling.enabled else 1
    judged = {"all": "all of them", "selected": f"{config.select[-1]} a problem", "none": "none"}[config.verify]
    memory = explore_memory_gib(config, sampling=pools is None, encoding=encodes)
    given = "the engine's own states" if pools is None else "those of the file"
    features = f"an encoder (layer {config.encoder.layer}, {config.encoder.pooling})" if encodes else given
    engines = [f"{config.rollout.workers} {worker_of(config.rollout)}"] if pools is None else []
    encoders = ["1 encoder"] if encodes else []
    verifiers = [f"{config.verifier.num_workers} verifier process"] if config.verify != "none" else []
    sampled = (
        f"{problems} x {config.pool} candidates of at most {config.sampling.max_response_tokens} tokens"
        f"{f', each chunk chosen among {times}' if times > 1 else ''}"
    )
    return [
        f"{sampled if pools is None else f'the candidates of {pools}; nothing is sampled'}; verified: {judged}",
        f"features: {features}, {config.selection.dim} dimensions; order: {config.primary_order}",
        f"processes: {', '.join([*engines, *encoders, *verifiers]) or 'none besides this one'}",
        f"memory: {UNKNOWN if memory is None else f'about {memory:.1f} GiB'}",
    ]


def evaluate_memory_gib(config: EvaluateConfig, models: Sequence[str], base: str | None) -> float | None:
    """Return what `jobs.evaluate` needs at most, as models take turns; None where one of them is not here yet."""
    parameters = [_num_parameters(model) for model in models]
    base_parameters = _num_parameters(base) if base is not None else 0
    if base_parameters is None or any(number is None for number in parameters):
        return None
    engines = config.rollout.workers * _rollout_gib(max(number for number in parameters if number is not None), config.rollout)
    weight_bytes = bytes_of(config.scorer.dtype, config.scorer.num_gpus)
    scorer = BASE_PROCESS_GIB + base_parameters * weight_bytes / 2**30 + config.scorer.tokens_per_batch * 1e-3 if base is not None else 0.0
    return max(engines, scorer) + RAY_GIB + BASE_PROCESS_GIB + DRIVER_GIB


def evaluate_lines(config: EvaluateConfig, models: Sequence[str], base: str | None, memory: float | None) -> list[str]:
    """Return in words what `jobs.evaluate` will do. `models` and `base` are descriptions."""
    problems = f"{config.problems} problems" if config.problems else f"all problems of split {config.split}"
    return [
        *(f"model: {model}" for model in models),
        *([f"likelihood under: {base}"] if base is not None else []),
        f"each: {problems} of task {config.task.name}, split {config.split}, x {config.samples} samples of at most "
        f"{config.sampling.max_response_tokens} tokens at temperature {config.sampling.temperature:g}",
        f"processes: {config.rollout.workers} {worker_of(config.rollout)}, {config.verifier.num_workers} verifier process; "
        "models take turns",
        f"memory: {UNKNOWN if memory is None else f'about {memory:.1f} GiB'}",
    ]


def _checkpoint_gib(config: RunConfig, parameters: int) -> float:
    """Return the size of every checkpoint kept and of one being written. Those of adapters need hardly anything."""
    if config.learner.lora.enabled:
        return 0.0
    checkpoint = config.checkpoint
    kept = checkpoint.keep + 1
    if checkpoint.keep_every:
        common = math.lcm(checkpoint.keep_every, checkpoint.every)  # steps that are multiples of both are kept forever
        kept += max(0, config.steps // common - checkpoint.keep)  # the newest are counted above
    return kept * _state_gib(config, parameters)


def _own_disk_gib(config: RunConfig, parameters: int) -> float:
    """Return what a run directory always holds: a snapshot of the learner, one being written, the final policy."""
    snapshots = 2 if config.checkpoint.learner_every and not config.learner.lora.enabled else 0
    policy = parameters * bytes_of(config.learner.dtype, config.learner.num_gpus) / 2**30
    return snapshots * _state_gib(config, parameters) + policy


def _state_gib(config: RunConfig, parameters: int) -> float:
    """Return the size of policy, float32 masters and two moments."""
    return parameters * (bytes_of(config.learner.dtype, config.learner.num_gpus) + 3 * 4) / 2**30


def bytes_of(dtype: Dtype, num_gpus: float = 0) -> int:
    """Return the number of bytes of a weight."""
    return BYTES[resolve_dtype(dtype, on_gpu=num_gpus > 0)]


def _num_parameters(model: str) -> int | None:
    if model in EMBEDDED_PARAMETERS:
        return EMBEDDED_PARAMETERS[model]
    files = list(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    if not files:
        return None
    try:
        return sum(math.prod(tensor.shape) for tensor in tensors_in(files).values())
    except ModelError:  # which a start names; until then two bytes a weight are assumed
        return sum(file.stat().st_size for file in files) // 2


def require_memory(plan: RunPlan, available_gib: float) -> None:
    """Raise UserError where the plan does not fit."""
    if plan.memory_gib is not None and plan.memory_gib > available_gib:
        raise UserError(
            f"this run needs about {plan.memory_gib:.1f} GiB of memory and {available_gib:.1f} GiB are available: close other programs, "
            "or lower learner.tokens_per_micro_batch, rollout.kv_cache_gib or rollout.workers"
        )


def require_room(model: str, limit: TokenLimit, sampling: SamplingConfig) -> None:
    """Raise UserError where the model's limit leaves no room for the response, or for the prompts asked for."""
    prompt, response = sampling.max_prompt_tokens, sampling.max_response_tokens
    allowed = f"model {model} allows {limit.tokens} ({limit.key})"
    if prompt is None and response >= limit.tokens:
        raise UserError(f"sampling.max_response_tokens = {response} leaves no token for a prompt: {allowed}: lower it")
    if prompt is not None and prompt + response > limit.tokens:
        raise UserError(
            f"sampling.max_prompt_tokens = {prompt} and sampling.max_response_tokens = {response} make {prompt + response} tokens, and "
            f"{allowed}: lower one of them, or leave max_prompt_tokens out"
        )


def require_divisible_model(model: str, values: Mapping[str, Any], num_ranks: int) -> None:
    """Raise UserError for a model, of this config, that an engine cannot divide among so many ranks. vLLM lets ranks
    share heads of keys and values where there are fewer of them."""
    text = text_values(values)
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        number = text.get(key)
        if isinstance(number, int) and number % num_ranks and not (key == "num_key_value_heads" and num_ranks % number == 0):
            raise UserError(
                f"rollout.tensor_parallel = {num_ranks} does not divide {key} = {number} of model {model}: set it to a number that does"
            )


def engine_limit(model: str, limit: TokenLimit | None, config: RolloutConfig) -> TokenLimit | None:
    """Return the most tokens that an engine takes: what the model allows, or rollout.max_model_len. Raises UserError
    where that is more."""
    if config.max_model_len is None:
        return limit
    if limit is not None and config.max_model_len > limit.tokens:
        allowed = f"the {limit.tokens} tokens that model {model} allows ({limit.key})"
        raise UserError(f"rollout.max_model_len = {config.max_model_len} exceeds {allowed}: lower it, or leave it out")
    return TokenLimit(tokens=config.max_model_len, key="rollout.max_model_len")


def look_unloaded(model: str, sampling: SamplingConfig, rollout: RolloutConfig) -> None:
    """Raise ModelError or UserError for a model that a start would refuse, as far as it is here and its files tell
    without torch. Nothing is fetched or unpacked."""
    check_model(model)
    if (path := model_here(model)) is None:
        return
    if model not in EMBEDDED:
        tensors_in([file for file in weight_files(path) if file.suffix == ".safetensors"])
    values = read_config(path)
    require_divisible_model(model, values, rollout.tensor_parallel)
    if (limit := engine_limit(model, token_limit(values), rollout)) is not None:
        require_room(model, limit, sampling)


def require_disk(plan: RunPlan, run_dir: str, storage: str | None = None) -> None:
    """Raise UserError where the file system of `run_dir` has too little room for what a new run writes there. With
    `storage` on another file system, that is everything except the checkpoints."""
    if plan.disk_gib is None or plan.checkpoint_gib is None:
        return
    place = _nearest(Path(run_dir))
    free_gib = shutil.disk_usage(place).free / 2**30
    needed_gib = plan.disk_gib if _is_on(place, storage) else plan.disk_gib - plan.checkpoint_gib
    if needed_gib > free_gib and not any((Path(run_dir) / name).exists() for name in ("checkpoints", "snapshots")):
        raise UserError(
            f"this run writes about {needed_gib:.1f} GiB of checkpoints and {place} has {free_gib:.1f} GiB free: make room, choose "
            "another place with --set run_dir=..., or lower checkpoint.keep"
        )


def _is_on(place: Path, storage: str | None) -> bool:
    if storage is None:
        return True
    local = storage.removeprefix("file://")
    return "://" not in local and _nearest(Path(local)).stat().st_dev == place.stat().st_dev


def _nearest(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
