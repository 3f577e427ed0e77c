"""Configuration of the tasks: which problems are posed, and how hard they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from tasks.countdown import CountdownConfig
from tasks.curriculum import CurriculumConfig
from tasks.game24 import Game24Config
from tasks.reasoning_gym_task import ReasoningGymConfig

__all__ = [
    "PATH_KEYS",
    "AimeConfig",
    "AmcConfig",
    "ArithmeticConfig",
    "ArithmeticWeights",
    "DapoMathConfig",
    "DataSetConfig",
    "Gsm8kConfig",
    "MathConfig",
    "MbppConfig",
    "MbppPlusConfig",
    "MixtureConfig",
    "ParquetConfig",
    "PartConfig",
    "SourceConfig",
    "TaskConfig",
    "TaskName",
    "TaskSections",
]

_STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
_MAX_OPERAND = 10**9


class ArithmeticWeights(BaseModel):
    """How often each kind is drawn, in proportion. 0 leaves a kind out; not all may be 0."""

    model_config = _STRICT

    sum: float = Field(default=4.0, ge=0)
    """a + b."""
    difference: float = Field(default=2.0, ge=0)
    """a - b."""
    product: float = Field(default=1.0, ge=0)
    """a times b."""
    equation: float = Field(default=0.5, ge=0)
    """x + a = b or x - a = b, solved for x."""
    reverse: float = Field(default=0.0, ge=0)
    """A short common word spelt backwards. Not in the easy default mix."""
    count: float = Field(default=0.0, ge=0)
    """How often a letter occurs in a word. Not in the easy default mix."""

    @model_validator(mode="after")
    def _some_kind_is_drawn(self) -> Self:
        if not any(weight > 0 for _, weight in self):
            raise ValueError(f"all weights are 0: give at least one of {', '.join(name for name, _ in self)} a positive weight")
        return self


class ArithmeticConfig(BaseModel):
    """The mixture of kinds, and one set of difficulty knobs a kind."""

    model_config = _STRICT

    weights: ArithmeticWeights = ArithmeticWeights()
    """How often each kind is drawn."""
    sum_max: int = Field(default=9, ge=0, le=_MAX_OPERAND)
    """Largest operand of a sum; both operands are uniform in 0..sum_max."""
    difference_max: int = Field(default=9, ge=0, le=_MAX_OPERAND)
    """Largest operand of a difference."""
    difference_negative: bool = False
    """Whether the answer of a difference may be below 0. False: the larger operand comes first."""
    product_max: int = Field(default=5, ge=0, le=_MAX_OPERAND)
    """Largest factor of a product; 9 is the whole one-digit table."""
    equation_max: int = Field(default=5, ge=1, le=_MAX_OPERAND)
    """Largest number added or subtracted in an equation, and largest x (of x + a = b) or b (of x - a = b)."""
    reverse_min_length: int = Field(default=3, ge=3, le=8)
    """Shortest word to reverse, in letters."""
    reverse_max_length: int = Field(default=4, ge=3, le=8)
    """Longest word to reverse, in letters."""
    count_word_length: int = Field(default=5, ge=3, le=8)
    """Longest word whose letters are counted."""
    count_max: int = Field(default=2, ge=1, le=4)
    """Largest count asked for. Counts 1..count_max are equally frequent where a word has such a letter, so that no
    constant guess pays."""
    held_out_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the distinct questions that only "test" asks and "train" never does, whatever the seed. At 0 the splits
    differ by seed only, and questions as few as one-digit sums are then asked in both."""
    number_instruction: str = "Answer with the number only."
    """Appended to every question whose answer is a number. Part of the question, hence of the problem id."""
    word_instruction: str = "Answer with the word only."
    """Appended to every question whose answer is a word."""

    @model_validator(mode="after")
    def _lengths_are_ordered(self) -> Self:
        if self.reverse_min_length > self.reverse_max_length:
            raise ValueError(f"reverse_min_length {self.reverse_min_length} exceeds reverse_max_length {self.reverse_max_length}")
        return self


class SourceConfig(BaseModel):
    """Where the files of a published data set come from (`tasks.data.sources`)."""

    model_config = _STRICT

    path: str | None = None
    """A directory of the files, or the one file that is needed. Unset: the task's folder in the directory that the
    environment variable REPEXP_DATA names, then the hub."""
    hub: str | None = None
    """A data set of the Hugging Face hub, OWNER/NAME, for what is not on this machine. None: the hub is never asked."""
    revision: str = "main"
    """Commit, branch or tag of `hub`. A commit never changes, so its files are used from the local cache without a look
    at the hub."""

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Self:
        is_another = self.hub not in (None, type(self).model_fields["hub"].default)
        if is_another and "revision" not in self.model_fields_set:
            raise ValueError(f'hub = "{self.hub}" needs a revision of its own: the default, {self.revision}, is of the default hub')
        return self


class DataSetConfig(SourceConfig):
    """A published data set, and how its questions are put."""

    instruction: str = ""
    """Appended to every question, on a line of its own. Not part of the problem id."""


class Gsm8kConfig(DataSetConfig):
    """GSM8K: train.parquet and test.parquet, as the hub publishes them (columns question and answer) or with columns
    prompt and answer."""

    hub: str | None = "openai/gsm8k"
    """A data set of the Hugging Face hub with the same files."""
    revision: str = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    """Commit, branch or tag of `hub`."""
    instruction: str = "Let's think step by step and put the final answer within \\boxed{}."
    """Appended to every question, on a line of its own. Not part of the problem id."""


class MathConfig(DataSetConfig):
    """MATH: train.parquet (7500 rows) and test.parquet (5000), as the hub publishes them (columns problem and solution)
    or with columns prompt and answer. For split "dev", paper_dev.parquet or math500.parquet with the 500 rows of
    MATH-500 will do."""

    hub: str | None = "DigitalLearningGmbH/MATH-lighteval"
    """A data set of the Hugging Face hub with the same files."""
    revision: str = "0530c78699ea5e8eb5530600900e1f328b48acad"
    """Commit, branch or tag of `hub`."""
    instruction: str = "Let's think step by step and put the final answer within \\boxed{}."
    """Appended to every question, on a line of its own. Not part of the problem id."""


class AimeConfig(DataSetConfig):
    """AIME: 2024.parquet and 2025.parquet, or .jsonl, of 30 rows each (columns problem and answer, or prompt and
    answer)."""

    hub: str | None = "HuggingFaceH4/aime_2024"
    """A data set of the Hugging Face hub with the problems of 2024."""
    revision: str = "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"
    """Commit, branch or tag of `hub`."""
    hub_2025: str | None = "math-ai/aime25"
    """A data set of the hub with the problems of 2025."""
    revision_2025: str = "563bb8404243c5f09de6ec262f2db674fe5bce9b"
    """Commit, branch or tag of `hub_2025`."""
    instruction: str = "Let's think step by step and put the final answer within \\boxed{}."
    """Appended to every question, on a line of its own. Not part of the problem id."""


class AmcConfig(SourceConfig):
    """AMC 2023, whose questions are kept out of DAPO-Math: amc.parquet or amc.jsonl (a column question, problem or
    prompt)."""

    hub: str | None = "math-ai/amc23"
    """A data set of the Hugging Face hub with the same questions."""
    revision: str = "80815d37005feb82cd7f8fbc6901d5d3eff43057"
    """Commit, branch or tag of `hub`."""


class DapoMathConfig(DataSetConfig):
    """DAPO-Math-17k in its deduplicated English form: train.parquet (columns prompt and solution, or prompt and
    answer).

    Questions of the test sets of MATH and AMC and of AIME 2024 and 2025 are taken out, so those of `task.math`,
    `task.aime` and `amc` must be at hand."""

    hub: str | None = "open-r1/DAPO-Math-17k-Processed"
    """A data set of the Hugging Face hub with the same file."""
    revision: str = "31dd309567e3da778038cc87d868b6097a3ccf68"
    """Commit, branch or tag of `hub`."""
    instruction: str = "Let's think step by step and put the final answer within \\boxed{}."
    """Appended to every question, on a line of its own. Not part of the problem id."""
    num_train: int = Field(default=4096, ge=1)
    """How many of the rows that are left are trained on."""
    selection_seed: int = 0
    """Which rows these are: the first num_train in an order that this seed decides, so a smaller selection is part of a
    larger one."""
    amc: AmcConfig = AmcConfig()
    """Where AMC's questions are."""


class MbppConfig(SourceConfig):
    """MBPP: train.parquet and validation.parquet. Unset path: the folder mbpp of REPEXP_DATA, then the hub."""

    hub: str | None = "google-research-datasets/mbpp"
    """A data set of the Hugging Face hub with the same files."""
    revision: str = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
    """Commit, branch or tag of `hub`."""


class MbppPlusConfig(DataSetConfig):
    """MBPP+: test.parquet, as the hub publishes it or with columns prompt, answer and extra. And how programs are
    run."""

    hub: str | None = "evalplus/mbppplus"
    """A data set of the Hugging Face hub with the same file."""
    revision: str = "b2d74c91837c3f2a20c1299ae98133cbe7cfa077"
    """Commit, branch or tag of `hub`."""
    instruction: str = "Answer with the whole program in one ```python block."
    """Appended to every question with wording "plain". Not part of the problem id."""
    wording: Literal["plain", "evalplus"] = "plain"
    """How a problem is put: what is asked, an assert that must hold, and the instruction; or as EvalPlus asks chat
    models."""
    mbpp: MbppConfig = MbppConfig()
    """MBPP, which is trained on."""
    limit_s: float = Field(default=5.0, gt=0, le=600)
    """Seconds of processor time for all tests of a response, beyond what the reference program takes. One that needs
    more is wrong."""
    isolation: Literal["namespaces", "rlimits"] = "namespaces"
    """How programs are kept apart from the machine (docs/sandbox.md). "rlimits" is for hosts that forbid namespaces and
    does not protect files, processes or the network: NOT safe against a program that means harm."""


class ParquetConfig(BaseModel):
    """Problems of your own, one a row, from .parquet or .jsonl files."""

    model_config = _STRICT

    path: str | None = None
    """A .parquet or .jsonl file, a directory (all of its .parquet and .jsonl files, by name) or a glob."""
    prompt_column: str = "prompt"
    """The question: a string, or a list of chat messages {role, content}."""
    answer_column: str | None = "answer"
    """The right answer: a string or a number. Not read with verifier "none"."""
    id_column: str | None = None
    """A column of distinct names for the problems. Unset: the row's number, counted over all files, and a digest of its
    prompt; rows put in before others then change their ids."""
    split_column: str | None = None
    """The column that says which split a row belongs to. Unset: "train" and "test" are both all rows."""
    instruction: str = ""
    """Appended to every question, or to the last user message, on a line of its own. Not part of the problem id."""
    verifier: Literal["number", "math", "exact", "none"] = "number"
    """How an answer is judged. "number": by value, read as GSM8K's are. "math": as MATH's are, any mathematics in any
    of its forms (docs/verifiers.md). "exact": the last box or line of the reply is the answer, but for case and
    spacing. "none": there is nothing to judge by; jobs that need verdicts refuse the task."""

    @model_validator(mode="after")
    def _verifier_has_answers(self) -> Self:
        if self.verifier != "none" and self.answer_column is None:
            raise ValueError(f'verifier = "{self.verifier}" needs an answer_column, which is None: name it, or set the verifier to "none"')
        return self


TaskName = Literal["aime", "arithmetic", "countdown", "dapo-math", "game24", "gsm8k", "math", "mbpp-plus", "parquet", "reasoning-gym"]
"""The tasks that are no mixture."""


class TaskSections(BaseModel):
    """A section for every task; that of a task not named is ignored."""

    model_config = _STRICT

    arithmetic: ArithmeticConfig = ArithmeticConfig()
    """The arithmetic task."""
    countdown: CountdownConfig = CountdownConfig()
    """Countdown."""
    game24: Game24Config = Game24Config()
    """The Game of 24."""
    gsm8k: Gsm8kConfig = Gsm8kConfig()
    """The GSM8K task."""
    math: MathConfig = MathConfig()
    """MATH; of others, dapo-math reads its test set."""
    aime: AimeConfig = AimeConfig()
    """AIME; dapo-math's dev and test are its."""
    dapo_math: DapoMathConfig = DapoMathConfig()
    """DAPO-Math."""
    mbpp_plus: MbppPlusConfig = MbppPlusConfig()
    """MBPP+."""
    parquet: ParquetConfig = ParquetConfig()
    """The task of your own files."""
    reasoning_gym: ReasoningGymConfig = ReasoningGymConfig()
    """The generators of reasoning-gym."""


class PartConfig(TaskSections):
    """One part of a mixture. Only the section of its own task may be given."""

    name: TaskName | None = None
    """Which task it is. Unset: the one that the part is called by."""
    weight: float = Field(default=1.0, gt=0)
    """How often it is drawn from, in proportion to the other parts."""

    @property
    def sections(self) -> dict[str, BaseModel]:
        return {name: getattr(self, name) for name in TaskSections.model_fields}

    @model_serializer(mode="wrap")
    def _without_the_other_tasks(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return {key: value for key, value in values.items() if key not in TaskSections.model_fields or key in _sections_of(self.name)}


class MixtureConfig(BaseModel):
    """The parts of a mixture."""

    model_config = _STRICT

    parts: dict[str, PartConfig] = Field(default_factory=dict)
    """By label: what a part's problems are called by in ids, logs and metrics."""

    @field_validator("parts")
    @classmethod
    def _parts_have_names(cls, parts: dict[str, PartConfig]) -> dict[str, PartConfig]:
        return {label: _named(label, part) for label, part in parts.items()}


def _named(label: str, part: PartConfig) -> PartConfig:
    """`part` with its name. Raises ValueError where there is none, or what is given of it contradicts."""
    names = get_args(TaskName)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", label):
        raise ValueError(f"part '{label}': a label is made of up to 40 letters, digits, - and _")
    if part.name is None and label not in names:
        raise ValueError(f"part '{label}' is not called by a task: set its name to one of {', '.join(names)}")
    if label in names and part.name not in (None, label):
        raise ValueError(f"part '{label}' has the name \"{part.name}\": a part called by a task is that task; call it otherwise")
    named = part if part.name else part.model_copy(update={"name": label})
    others = part.model_fields_set & TaskSections.model_fields.keys() - _sections_of(named.name)
    if others:
        raise ValueError(f"part '{label}' is the task {named.name}, but has a section {min(others)}")
    return named


def _sections_of(name: str | None) -> set[str]:
    """The sections that a task reads."""
    own = (name or "").replace("-", "_")
    return {own, "math", "aime"} if own == "dapo_math" else {own}


class TaskConfig(TaskSections):
    """The task a run trains on."""

    name: Literal[TaskName, "mixture"] = "arithmetic"
    """Which task of `tasks.registry.TASKS`."""
    seed: int = 0
    """Seed of the tasks that draw their problems; every split draws its own numbers from it. Which questions are held
    out does not depend on it. Tasks of files have no use for it."""
    mixture: MixtureConfig = MixtureConfig()
    """Several tasks as one."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """Problems chosen by how often the policy solves them. In training only."""

    @model_validator(mode="after")
    def _mixture_has_parts(self) -> Self:
        if self.name == "mixture" and not self.mixture.parts:
            raise ValueError('name = "mixture" without parts: add sections [task.mixture.parts.LABEL]')
        return self


def _path_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name == "path":
            yield f"{prefix}.path"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _path_keys(field.annotation, f"{prefix}.{name}")


PATH_KEYS = tuple(_path_keys(TaskConfig, "task"))
"""Where the files of each task are: what may differ between two starts of one run."""
