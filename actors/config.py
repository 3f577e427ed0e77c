"""Settings of the actors: sampling, rollout workers, encoder, verifiers. Imports neither torch, Ray nor vLLM."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from actors.engines import ENGINES, VLLM, require_divisible
from actors.vllm_arguments import require_own
from buffers.extensions import Known
from buffers.paths import local_path
from learners.placement import Placement
from learners.precision import Dtype
from learners.threads import Threads
from tasks.base import JudgingConfig, Section

STRICT = Section.model_config

WeightTransfer = Literal["object_store", "nccl", "ipc"]
"""How the learner's weights reach an engine (`actors.weight_transfer`)."""


class SamplingConfig(Section):
    """How responses are sampled. The learner trains on exactly this distribution, so settings that it cannot reproduce
    are refused."""

    temperature: float = Field(1.0, gt=0)
    """Softmax temperature. The learner divides its logits by it too."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass. Training needs 1.0, because the learner's log-probs are those of the whole distribution."""
    top_k: int = Field(0, ge=0)
    """Sample from the k likeliest tokens only (0 = all). Training needs 0, for the same reason."""
    max_prompt_tokens: int | None = Field(None, gt=0)
    """A problem whose prompt is longer cannot be posed; `prompt.too_long` says what follows. Unset: what the model
    allows beside max_response_tokens. The prompts of a job are measured before it starts, and an unset limit then gives
    the engines room for the longest, or for twice the longest of the first 256 where a task has no end."""
    max_response_tokens: int = Field(20, gt=0)
    """Sampling stops here with finish_reason = "length"."""

    @property
    def max_tokens(self) -> int | None:
        """Upper bound of a prompt with its response; None: what the model allows."""
        return None if self.max_prompt_tokens is None else self.max_prompt_tokens + self.max_response_tokens


class AnswerSamplingConfig(SamplingConfig):
    """How answers are sampled that nothing is trained on: by default longer ones."""

    max_response_tokens: int = Field(256, gt=0)
    """Sampling stops here with finish_reason = "length"."""


class PromptConfig(Section):
    """How the messages of a problem become a prompt, and what is done with a problem that cannot be posed."""

    chat: bool = True
    """true: a chat template makes the prompt. false: plain completion, for a base model. The prompt is then the texts
    of the messages, one empty line between two, after what the tokenizer puts before any text."""
    template: str | None = None
    """A Jinja chat template that replaces the model's own: its text, or a file, which is read when the job begins. It
    is given `messages`, `add_generation_prompt`, and special tokens such as `bos_token`, which it must write itself."""
    too_long: Literal["refuse", "leave_out"] = "refuse"
    """What is done where prompts are too long. refuse: the job does not start, and says which they are. leave_out: it
    does without these problems, and without those that the template refuses."""

    @field_validator("template")
    @classmethod
    def _with_its_text(cls, template: str | None) -> str | None:
        """Return the text of a file, so that a job keeps its template wherever it runs."""
        if template is None or "{" in template:
            return template
        try:
            text = Path(local_path(template)).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("this file is not UTF-8 text") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ValueError(f"it is no template (there is no '{{' in it) and no file that can be read ({why})") from None
        if "{" not in text:
            raise ValueError("this file holds no template: there is no '{' in it, so all prompts would be the same")
        return text

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.template is not None and not self.chat:
            raise ValueError("template contradicts chat = false, which takes the messages' texts as they are: leave one of them out")
        return self


class RolloutConfig(Section):
    """Rollout workers, each with one engine."""

    engine: Annotated[str, AfterValidator(Known(*ENGINES))] = "vllm"
    """A known engine or the import path of your own (`actors.engine`). "vllm" runs vLLM's LLMEngine inside the worker
    (CPU). "vllm-async" runs AsyncLLM in processes of its own (GPU). "transformers" is a plain, deterministic reference
    engine for tests and for machines without vLLM; it is slow. "prefix-tree" computes a prefix once that responses to a
    prompt share (CPU): for many short responses each, as in evaluations (`actors.tree_engine`)."""
    engine_options: dict[str, Any] = Field({})
    """Arguments of your own engine's class. The known engines take none."""
    engine_args: dict[str, Any] = Field({})
    """Arguments of vLLM itself, such as `kv_cache_dtype` or `attention_backend`. They are passed on as they are, and
    replace what the project would pass. A name that vLLM does not have is refused, and so is one with its own key."""
    tensor_parallel: int = Field(1, ge=1)
    """The ranks among which vLLM divides the model of one worker, each a process on one node. With GPUs each rank has
    one, so num_gpus is the same number. It must divide the attention heads of the model."""
    max_model_len: int | None = Field(None, gt=0)
    """The most tokens of a prompt with its response, where that is to be less than the model allows. Unset: what
    `sampling` allows, or what the longest prompt of the job needs."""
    workers: int = Field(1, ge=1)
    """Rollout workers at the start of the run."""
    max_sequences: int = Field(64, ge=1)
    """Responses that an engine decodes at once. A worker gets max_sequences // responses_per_prompt groups at a
    time."""
    dtype: Dtype = "auto"
    """Precision of the engine. auto: bfloat16 on a GPU and on a CPU with instructions for it, else float32."""
    kv_cache_gib: int = Field(1, ge=1)
    """Memory for keys and values on CPU, shared by the ranks of a worker."""
    block_size: int = Field(32, gt=0, multiple_of=32)
    """Tokens in a cache block on CPU, a multiple of 32 (vLLM's CPU attention). A prompt shorter than one block is never
    shared."""
    max_batched_tokens: int = Field(512, gt=0)
    """Prompt tokens that an engine step may take in. Small values keep steps, and so weight updates, short."""
    gpu_memory_fraction: float = Field(0.5, gt=0, le=1)
    """Share of a GPU's memory that the engine may take."""
    threads: Threads = "auto"
    """CPU threads of a worker. auto: the cores of the machine on which the job starts, shared by its workers, learner
    ranks and encoders without a GPU; at least 1, and 1 with a GPU. On a cluster of unequal machines set a number."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that a worker reserves, all on one node."""
    placement: Placement = Placement()
    """On which nodes of a cluster its processes may run."""
    weight_transfer: WeightTransfer = "object_store"
    """How the learner's weights reach the engines. object_store: through host memory, once to a node. nccl: from the
    learner's GPU to the engine's. ipc: the engine reads the memory of the GPU that it shares with the learner, so the
    shares of all must add up to 1 at most. nccl and ipc need engine = "vllm-async", GPUs on both sides, and room on the
    learner's GPU for its last max_policy_lag + 1 versions (one more with evaluation.every). They have not been run on a
    GPU yet."""
    start_timeout_s: float = Field(300.0, gt=0)
    """A worker that is not ready by then is replaced. If no worker has ever been ready, the run ends with a message
    that names it."""
    progress_tokens: int = Field(32, ge=1)
    """A worker reports the tokens of its groups once its running responses have grown by this many on average, and
    every supervision.heartbeat_s. A lost worker costs what it has sampled since. On a large cluster larger values spare
    the controller calls."""
    group_timeout_s: float = Field(300.0, gt=0)
    """A group may take as long as it grows. A worker that has sampled no token of it for this many seconds gives back
    what there is, and a worker continues from there. A group to which this happens supervision.max_group_tries times is
    dropped, and its problem counts an attempt. With --synchronous a whole group must end within these seconds."""

    @property
    def processes(self) -> int:
        """The processes of all workers that compute."""
        return self.workers * self.tensor_parallel

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.engine_options and self.engine in ENGINES:
            raise ValueError(f'engine_options are for an engine of your own, and engine = "{self.engine}" takes none: leave them out')
        if self.engine_args and self.engine not in VLLM:
            raise ValueError(f'engine_args are for vLLM, and engine = "{self.engine}" is another: leave them out')
        require_own(self.engine_args)
        if (known := ENGINES.get(self.engine)) is not None:  # an engine of your own is imported first: `require_methods`
            require_divisible(known.facts, self)
        return self

    @model_validator(mode="after")
    def _ranks_have_gpus(self) -> Self:
        if self.tensor_parallel == 1:
            return self
        if self.num_gpus not in (0, self.tensor_parallel):
            raise ValueError(
                f"num_gpus = {self.num_gpus:g} contradicts tensor_parallel = {self.tensor_parallel}: each rank has a GPU of its own, so "
                f"set num_gpus to {self.tensor_parallel}, or to 0 for ranks on CPU"
            )
        if self.weight_transfer != "object_store":
            raise ValueError(
                f'weight_transfer = "{self.weight_transfer}" sends to an engine on one GPU, and tensor_parallel = {self.tensor_parallel} '
                'needs as many: set weight_transfer to "object_store"'
            )
        return self


class EncoderConfig(Section):
    """The hidden-state encoder: a frozen copy of the initial policy."""

    tokens_per_batch: int = Field(2048, gt=0)
    """Upper bound of tokens in one forward pass, and of tokens taken from waiting groups at once. A longer response is
    encoded alone."""
    dtype: Dtype = "auto"
    """Precision of the forward pass. Features are averaged and projected in float32 and scored in float64."""
    threads: Threads = "auto"
    """CPU threads of an encoder. auto: as for `rollout.threads`."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that an encoder reserves. Above 0 it runs on one."""
    placement: Placement = Placement()
    """On which nodes of a cluster its processes may run."""
    replicas: int = Field(1, ge=1)
    """Encoders that share the work. They have no state, so features do not depend on their number."""
    max_waiting: int = Field(64, ge=1)
    """Groups that may wait inside one encoder. Further calls wait until there is room."""
    layer: int = -1
    """The layer whose hidden states are features: −1 the last, after the final norm (the paper); 0 the embeddings; i
    the output of layer i. Lower layers cost less."""
    pooling: Literal["mean", "last"] = "mean"
    """Over a response's own tokens: their mean (the paper, where it is over twice as efficient) or the last token's
    state."""


class ScorerConfig(Section):
    """The scorer: a frozen model that gives the likelihood of responses that others have sampled."""

    tokens_per_batch: int = Field(1024, gt=0)
    """Upper bound of tokens in one forward pass. A longer response is scored alone."""
    dtype: Dtype = "auto"
    """Precision of the forward pass. Log-probs are computed in float32 and summed in float64."""
    threads: Threads = "auto"
    """CPU threads of the scorer. auto: all cores of this machine, as nothing runs beside it."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that it reserves. Above 0 it runs on one."""
    placement: Placement = Placement()
    """On which nodes of a cluster its processes may run."""


class VerifierConfig(JudgingConfig):
    """How responses are read and judged, by how many processes, and what these may cost."""

    num_workers: int = Field(default=1, ge=1)
    """Verifier processes. Each holds one task and verifies one response at a time."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Wall-clock seconds that one response may take once a worker has begun it; then the worker is killed and replaced.
    Waiting in the queue does not count, and the clock is read every 0.1 s. None: the task's own deadline
    (`deadline_s`), which is 2 s for numbers, 5 s for mathematics, and minutes for programs, which end by limits of
    their own."""
    start_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that a worker may need to start: a fresh interpreter that imports the main module. A pool that finishes
    nothing within its deadline plus start_timeout_s counts as stuck, and `verify` raises."""
    max_error_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of verdicts without a score (timeout, error) among the newest 1000 above which the controller stops the
    run."""
    max_response_chars: int = Field(default=20_000, ge=1)
    """Of a longer response only this many characters at its end are verified, because an answer comes at the end."""
    placement: Placement = Placement()
    """On which nodes of a cluster its processes may run."""


VERIFIER_MEANS = tuple(
    f"verifier.{name}" for name in VerifierConfig.model_fields if name not in (*JudgingConfig.model_fields, "max_response_chars")
)
"""Keys that do not change how a response is judged."""


class NovelSamplingConfig(Section):
    """Experimental: steer the sampling of candidates towards novelty, chunk by chunk (`actors.novel_sampling`)."""

    enabled: bool = False
    """False: candidates are plain samples of the model."""
    chunk_tokens: int = Field(16, ge=1)
    """c, the tokens between two choices. 1 chooses every token."""
    candidates: int = Field(4, ge=2)
    """M, the continuations sampled for each choice, of which one is kept. Sampling costs M·(c + 1)/c times the
    tokens."""
    dim: int = Field(64, ge=1)
    """Size of the projected states in which novelty is measured."""
    ridge: float = Field(0.1, gt=0)
    """lam of the novelty x'(lam·I + Σ xx')⁻¹x, in units of the mean energy of the first continuations sampled."""
    quality_exponent: float = Field(1.0, ge=0)
    """a: novelty is weighted with exp(2a(l − l_max)), where l is a continuation's mean log-prob. 0 is novelty alone,
    which on a weak model prefers incoherent text."""
