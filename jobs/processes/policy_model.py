"""The model that training begins with."""

from __future__ import annotations

from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from learners.forward import check_supported
from learners.lora import LoraError, check_lora
from learners.models import ModelError, resolve_model
from learners.supported import ModelUnsupported


def policy_model(config: RunConfig) -> str:
    """Return the path of a model that can be trained as configured. The embedded model is unpacked once. Raise
    UserError."""
    try:
        model = resolve_model(config.model)
        check_supported(model, longest=config.sampling.max_tokens)
        if config.learner.lora.enabled:
            check_lora(model, config.learner.lora)
    except (ModelError, ModelUnsupported, LoraError) as error:
        raise UserError(str(error)) from None
    return model
