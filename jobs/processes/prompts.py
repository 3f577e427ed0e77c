"""The prompts of a job, made and measured in the driver before anything starts.

look = PromptLook(facts, config.prompt, config.sampling, task.prompt)
fit = look.at(problems, is_all=True)             # raises UserError where problems cannot be posed
fit.sampling                                     # max_prompt_tokens is set: engines get room for the longest prompt
fit.unusable, fit.warnings                       # ids of the problems to leave out, and what to tell people
look.may_pose(problem)                           # for problems that are drawn later"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from actors.config import PromptConfig, SamplingConfig
from actors.prompts import Messages, PromptRefused, Prompts
from buffers.records import Problem
from jobs.configuration.user_error import UserError
from jobs.processes.models import room_for_prompts
from learners.model_check import ModelFacts

LOOKED_AT = 20_000
"""Of more problems than this, those with the longest questions are looked at."""
DRAWN = 256
"""The number of problems that are looked at where a task has no end."""
SHOWN = 3
BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How the problems of a job fit a model."""

    sampling: SamplingConfig
    """The job's settings with a number in place of an unset `max_prompt_tokens`."""
    unusable: frozenset[str] = frozenset()
    """The ids of problems that cannot be posed."""
    warnings: tuple[str, ...] = ()


class PromptLook:
    """Makes the prompts of one model and judges them."""

    def __init__(
        self, facts: ModelFacts, config: PromptConfig, sampling: SamplingConfig, messages_of: Callable[[Problem], Messages]
    ) -> None:
        """Raises ModelError for a model without a chat template where one is needed, and for one that is not Jinja."""
        self._model, self._config, self._sampling = facts.path, config, sampling
        self._messages_of = messages_of
        self._prompts = Prompts(facts.path, config)
        self._limit = room_for_prompts(facts, sampling)
        self._room = self._limit  # what an engine is given room for, which is known after `at`

    def at(self, problems: Sequence[Problem], *, is_all: bool) -> Fit:
        """Look at `problems`: all that the job may pose with `is_all`, else the first of a task without end. Raises
        UserError where a prompt is too long and such problems are not to be left out, and where none can be posed."""
        looked = sorted(problems, key=lambda problem: -len(problem.question))[:LOOKED_AT] if len(problems) > LOOKED_AT else problems
        refused: dict[str, str] = {}
        lengths: dict[str, int] = {}
        for name, length in self._measured(looked, refused):
            lengths[name] = max(length, lengths.get(name, 0))  # two splits may have problems of one id
        limit = self._limit
        too_long = {name: length for name, length in lengths.items() if limit is not None and length > limit}
        of = f"of {len(looked)} problems" if is_all else f"of the first {len(looked)} problems"
        warnings = []
        if refused:
            first = [f"{name} ({why})" for name, why in islice(refused.items(), SHOWN)]
            warnings.append(f"{len(refused)} {of} cannot be posed: {_listed(first, len(refused))}")
        if too_long:
            first = [f"{name} ({length} tokens)" for name, length in islice(too_long.items(), SHOWN)]
            text = f"the prompts of {len(too_long)} {of} are longer than {self._limit_in_words()}: {_listed(first, len(too_long))}"
            if self._config.too_long == "refuse":
                raise UserError(f'{text}: {self._remedy()}set prompt.too_long = "leave_out" to do without them')
            warnings.append(text)
        usable = [length for name, length in lengths.items() if name not in too_long]
        if not usable:
            raise UserError(f"no problem can be posed: {'; '.join(warnings)}")
        sampling = self._resolved(max(usable), is_all and len(looked) == len(problems))
        self._room = sampling.max_prompt_tokens
        return Fit(sampling=sampling, unusable=frozenset({*refused, *too_long}), warnings=tuple(warnings))

    def may_pose(self, problem: Problem) -> bool:
        """Return whether the problem can be posed."""
        refused: dict[str, str] = {}
        lengths = [length for _, length in self._measured([problem], refused)]
        return bool(lengths) and (self._room is None or lengths[0] <= self._room)

    def _measured(self, problems: Iterable[Problem], refused: dict[str, str]) -> Iterable[tuple[str, int]]:
        """Yield id and number of tokens of each prompt. Those that cannot be made go to `refused`, with the reason."""
        texts: list[tuple[str, str]] = []
        for problem in problems:
            name = problem.problem_id
            try:
                texts.append((name, self._prompts.text(self._messages_of(problem))))
            except PromptRefused as error:
                refused[name] = str(error)
        for begin in range(0, len(texts), BATCH):
            part = texts[begin : begin + BATCH]
            for (name, _), ids in zip(part, self._prompts.tokens_of([text for _, text in part]), strict=True):
                if ids:
                    yield name, len(ids)
                else:
                    refused[name] = "its prompt has no tokens"

    def _resolved(self, longest: int, is_all: bool) -> SamplingConfig:
        if self._sampling.max_prompt_tokens is not None:
            return self._sampling
        room = longest if is_all else 2 * longest
        return self._sampling.model_copy(update={"max_prompt_tokens": room if self._limit is None else min(room, self._limit)})

    def _limit_in_words(self) -> str:
        if self._sampling.max_prompt_tokens is not None:
            return f"sampling.max_prompt_tokens = {self._limit}"
        return f"the {self._limit} tokens that model {self._model} leaves beside sampling.max_response_tokens"

    def _remedy(self) -> str:
        return "raise that, or " if self._sampling.max_prompt_tokens is not None else "lower that, or "


def _listed(names: Collection[str], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")
