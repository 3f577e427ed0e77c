"""The models of a job, found and looked at in the driver before anything starts.

facts = policy_model(config)                       # what training begins with; the embedded model is unpacked once
facts = sampled_model(path, config.sampling, config.rollout, computed=False)  # what only an engine runs
room = room_for_prompts(facts, config.sampling)    # raises UserError where a prompt and its response do not fit"""

from __future__ import annotations

from dataclasses import replace

from actors.config import RolloutConfig, SamplingConfig
from jobs.config import RunConfig
from jobs.configuration.user_error import refusing
from jobs.plan import engine_limit, require_divisible_model, require_room
from learners.forward import check_supported
from learners.lora import LoraError, check_lora
from learners.model_check import ModelFacts, look_at
from learners.model_files import read_config
from learners.models import ModelError, resolve_model
from learners.supported import ModelUnsupported

REFUSED = (ModelError, ModelUnsupported, LoraError)


def policy_model(config: RunConfig) -> ModelFacts:
    """Return the facts of a model that can be trained as configured. Raises UserError."""
    with refusing(*REFUSED):
        facts = _for_engine(look_at(resolve_model(config.model)), config.rollout)
    require_trainable(facts, config)
    return facts


def require_trainable(facts: ModelFacts, config: RunConfig) -> None:
    """Raise UserError for a model that was looked at and that cannot be trained as configured."""
    room_for_prompts(facts, config.sampling)
    with refusing(*REFUSED):
        check_supported(facts.path, longest=config.sampling.max_tokens)
        if config.learner.lora.enabled:
            check_lora(facts.path, config.learner.lora)


def sampled_model(path: str, sampling: SamplingConfig, rollout: RolloutConfig, *, computed: bool) -> ModelFacts:
    """Return the facts of a model in a directory that samples. `computed` says whether a pass of `learners.forward`
    runs on it too. Raises UserError."""
    with refusing(*REFUSED):
        facts = _for_engine(look_at(path, computed=computed), rollout)
        room_for_prompts(facts, sampling)
        if computed:
            check_supported(path, longest=sampling.max_tokens)
    return facts


def scoring_model(path: str, sampling: SamplingConfig) -> ModelFacts:
    """Return the facts of a model in a directory that finds the likelihood of responses. Raises UserError."""
    with refusing(*REFUSED):
        facts = look_at(path)
        room_for_prompts(facts, sampling)
        check_supported(path, longest=sampling.max_tokens, with_head=True)
    return facts


def _for_engine(facts: ModelFacts, rollout: RolloutConfig) -> ModelFacts:
    """Return the facts with the limit that the engine has. Raises UserError for a model that it cannot divide."""
    require_divisible_model(facts.path, read_config(facts.path), rollout.tensor_parallel)
    return replace(facts, limit=engine_limit(facts.path, facts.limit, rollout))


def room_for_prompts(facts: ModelFacts, sampling: SamplingConfig) -> int | None:
    """Return the most tokens that a prompt may have: what the configuration says, else what the model leaves beside
    the response. None: neither bounds it. Raises UserError where there is no room."""
    if facts.limit is not None:
        require_room(facts.path, facts.limit, sampling)
    if sampling.max_prompt_tokens is not None or facts.limit is None:
        return sampling.max_prompt_tokens
    return facts.limit.tokens - sampling.max_response_tokens
