"""From the messages of a problem to the tokens of its prompt: the one place, for rollout workers and for the look at a
job's prompts before it starts.

    prompts = Prompts(model, PromptConfig())             # raises ModelError for a model without a chat template
    ids = prompts.token_ids("gsm8k/test/000001", [{"role": "user", "content": "What is 2 + 2?"}])"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateSyntaxError

from actors.config import PromptConfig
from learners.models import ModelError, load_tokenizer

Messages = Sequence[dict[str, str]]

BETWEEN_MESSAGES = "\n\n"
"""What plain completion writes between two messages."""
_TRIAL: Messages = ({"role": "user", "content": "Hello."},)


class DataError(ValueError):
    """The problem itself cannot be used, so that trying again is no use."""


class PromptRefused(ValueError):
    """No prompt can be made of messages. The message is one line that says why."""


class Prompts:
    """Makes prompts with the tokenizer of one model."""

    def __init__(self, model: str, config: PromptConfig) -> None:
        """Raises ModelError for a tokenizer that cannot be loaded, for a model without a chat template where one is
        needed, and for a template that is not Jinja."""
        self.tokenizer: Any = load_tokenizer(model)
        self._chat = config.chat
        self._template: str | None = _chat_template(self.tokenizer, config, model) if config.chat else None

    def text(self, messages: Messages) -> str:
        """Return the prompt as text. Raises PromptRefused."""
        text = BETWEEN_MESSAGES.join(message["content"] for message in messages) if self._template is None else self._rendered(messages)
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise PromptRefused("its prompt has half a character (a lone surrogate)")
        return text

    def token_ids(self, problem_id: str, messages: Messages) -> list[int]:
        """Return the tokens of the prompt. Raises DataError where there can be no prompt, or one without tokens."""
        try:
            ids = self.tokens_of([self.text(messages)])[0]
        except PromptRefused as error:
            raise DataError(f"problem {problem_id} cannot be posed: {error}") from None
        if not ids:
            raise DataError(f"the prompt of problem {problem_id} has no tokens")
        return ids

    def tokens_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each prompt. A template has written the special tokens already."""
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=self._template is None)["input_ids"]
        return ids

    def _rendered(self, messages: Messages) -> str:
        options = {"add_generation_prompt": True, "tokenize": False, "chat_template": self._template}
        try:
            text: str = self.tokenizer.apply_chat_template(list(messages), **options)
        except Exception as error:  # a seam: a template is a program of somebody else
            raise PromptRefused(f"the chat template refuses it: {_line(error)}") from None
        return text


def _chat_template(tokenizer: Any, config: PromptConfig, model: str) -> str:
    try:
        template: str = config.template or tokenizer.get_chat_template()
    except ValueError:  # there is none, or none of several is called "default"
        raise ModelError(
            f"model {model} has no chat template, as a base model has none: set prompt.chat = false for plain completion, or "
            "prompt.template to a file or text of your own"
        ) from None
    try:
        tokenizer.apply_chat_template(list(_TRIAL), add_generation_prompt=True, tokenize=False, chat_template=template)
    except TemplateSyntaxError as error:
        whose = "prompt.template" if config.template else f"the chat template of model {model}"
        raise ModelError(f"{whose}, line {error.lineno}, is not Jinja: {_line(error)}") from None
    except Exception:  # a seam: whether it refuses all problems or this one is seen with the problems
        pass
    return template


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
