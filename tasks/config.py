"""Configuration of the tasks: which problems are posed, and how hard they are."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "ArithmeticConfig",
    "ArithmeticWeights",
    "DataSetConfig",
    "Gsm8kConfig",
    "MbppPlusConfig",
    "ParquetConfig",
    "SourceConfig",
    "TaskConfig",
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
    """Largest count asked for. Counts 1..count_max are equally frequent where a word has such a letter, so that no constant guess pays."""
    held_out_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the distinct questions that only "test" asks and "train" never does, whatever the seed. At 0 the splits differ by seed
    only, and questions as few as one-digit sums are then asked in both."""
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
    """Where the files of a published data set come from (`tasks.sources`)."""

    model_config = _STRICT

    path: str | None = None
    """A directory of the files, or the one file that is needed. Unset: the task's folder in the directory that the environment variable
    REPEXP_DATA names, then the hub."""
    hub: str | None = None
    """A data set of the Hugging Face hub, OWNER/NAME, for what is not on this machine. None: the hub is never asked."""
    revision: str = "main"
    """Commit, branch or tag of `hub`. A commit never changes, so its files are used from the local cache without a look at the hub."""

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Self:
        if "hub" in self.model_fields_set and self.hub is not None and "revision" not in self.model_fields_set:
            raise ValueError(f'hub = "{self.hub}" needs a revision of its own: the default, {self.revision}, is of the default hub')
        return self


class DataSetConfig(SourceConfig):
    """A published data set, and how its questions are put."""

    instruction: str = ""
    """Appended to every question, on a line of its own. Not part of the problem id."""


class Gsm8kConfig(DataSetConfig):
    """GSM8K: train.parquet and test.parquet, as the hub publishes them (columns question and answer) or with columns prompt and answer."""

    hub: str | None = "openai/gsm8k"
    """A data set of the Hugging Face hub with the same files."""
    revision: str = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    """Commit, branch or tag of `hub`."""
    instruction: str = "Let's think step by step and put the final answer within \\boxed{}."
    """Appended to every question, on a line of its own. Not part of the problem id."""


class MbppPlusConfig(DataSetConfig):
    """MBPP+: test.parquet, as the hub publishes it or with columns prompt, answer and extra. And how programs are run."""

    hub: str | None = "evalplus/mbppplus"
    """A data set of the Hugging Face hub with the same file."""
    revision: str = "b2d74c91837c3f2a20c1299ae98133cbe7cfa077"
    """Commit, branch or tag of `hub`."""
    instruction: str = "Answer with the whole program in one ```python block."
    """Appended to every question with wording "plain". Not part of the problem id."""
    wording: Literal["plain", "evalplus"] = "plain"
    """How a problem is put: what is asked, an assert that must hold, and the instruction; or as EvalPlus asks chat models."""
    mbpp: SourceConfig = SourceConfig(hub="google-research-datasets/mbpp", revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c")
    """MBPP, which is trained on: train.parquet and validation.parquet. Unset path: the folder mbpp of REPEXP_DATA, then the hub."""
    limit_s: float = Field(default=5.0, gt=0, le=600)
    """Seconds of processor time for all tests of a response, beyond what the reference program takes. One that needs more is wrong."""
    isolation: Literal["namespaces", "rlimits"] = "namespaces"
    """How programs are kept apart from the machine (docs/sandbox.md). "rlimits" is for hosts that forbid namespaces and does not
    protect files, processes or the network: NOT safe against a program that means harm."""


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
    """A column of distinct names for the problems. Unset: the row's number, counted over all files, and a digest of its prompt; rows put
    in before others then change their ids."""
    split_column: str | None = None
    """The column that says which split a row belongs to. Unset: "train" and "test" are both all rows."""
    instruction: str = ""
    """Appended to every question, or to the last user message, on a line of its own. Not part of the problem id."""
    verifier: Literal["number", "exact", "none"] = "number"
    """How an answer is judged. "number": by value, read as GSM8K's are. "exact": the last box or line of the reply is the answer, but for
    case and spacing. "none": there is nothing to judge by; jobs that need verdicts refuse the task."""

    @model_validator(mode="after")
    def _verifier_has_answers(self) -> Self:
        if self.verifier != "none" and self.answer_column is None:
            raise ValueError(f'verifier = "{self.verifier}" needs an answer_column, which is None: name it, or set the verifier to "none"')
        return self


class TaskConfig(BaseModel):
    """The task a run trains on."""

    model_config = _STRICT

    name: Literal["arithmetic", "gsm8k", "mbpp-plus", "parquet"] = "arithmetic"
    """Which task of `tasks.registry.TASKS`."""
    seed: int = 0
    """Seed of the arithmetic task's streams; every split draws its own numbers from it. Which questions are held out does not depend on it.
    Tasks of files have no use for it."""
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    """The arithmetic task; ignored by other tasks."""
    gsm8k: Gsm8kConfig = Gsm8kConfig()
    """The GSM8K task; ignored by other tasks."""
    mbpp_plus: MbppPlusConfig = MbppPlusConfig()
    """The MBPP+ task; ignored by other tasks."""
    parquet: ParquetConfig = ParquetConfig()
    """The task of your own files; ignored by other tasks."""
