"""The models of a job, found and looked at in the driver before anything starts.

facts = policy_model(config)                       # what training begins with; the embedded model is unpacked once
facts = sampled_model(path, config.sampling, computed=False)  # what only an engine runs
room = room_for_prompts(facts, config.sampling)    # raises UserError where a prompt and its response do not fit"""

from __future__ import annotations

from actors.config import SamplingConfig
from jobs.config import RunConfig
from jobs.configuration.user_error import refusing
from jobs.plan import require_room
from learners.forward import check_supported
from learners.lora import LoraError, check_lora
from learners.model_check import ModelFacts, look_at
from learners.models import ModelError, resolve_model
from learners.supported import ModelUnsupported

REFUSED = (ModelError, ModelUnsupported, LoraError)


def policy_model(config: RunConfig) -> ModelFacts:
    """Return the facts of a model that can be trained as configured. Raises UserError."""
    with refusing(*REFUSED):
        facts = look_at(resolve_model(config.model))
    require_trainable(facts, config)
    return facts


def require_trainable(facts: ModelFacts, config: RunConfig) -> None:
    """Raise UserError for a model that was looked at and that cannot be trained as configured."""
    room_for_prompts(facts, config.sampling)
    with refusing(*REFUSED):
        check_supported(facts.path, longest=config.sampling.max_tokens)
        if config.learner.lora.enabled:
            check_lora(facts.path, config.learner.lora)


def sampled_model(path: str, sampling: SamplingConfig, *, computed: bool, with_head: bool = False) -> ModelFacts:
    """Return the facts of a model in a directory that samples. `computed` and `with_head` say whether a pass of
    `learners.forward` runs on it too, and whether to its logits. Raises UserError."""
    with refusing(*REFUSED):
        facts = look_at(path, computed=computed)
        room_for_prompts(facts, sampling)
        if computed:
            check_supported(path, longest=sampling.max_tokens, with_head=with_head)
    return facts


def room_for_prompts(facts: ModelFacts, sampling: SamplingConfig) -> int | None:
    """Return the most tokens that a prompt may have: what the configuration says, else what the model leaves beside
    the response. None: neither bounds it. Raises UserError where there is no room."""
    if facts.limit is not None:
        require_room(facts.path, facts.limit, sampling)
    if sampling.max_prompt_tokens is not None or facts.limit is None:
        return sampling.max_prompt_tokens
    return facts.limit.tokens - sampling.max_response_tokens
