"""Settings of the actors: sampling, rollout workers, encoder, verifiers. Imports neither torch, Ray nor vLLM."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from learners.precision import Dtype

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

WeightTransfer = Literal["object_store", "nccl", "ipc"]
"""How the learner's weights get into an engine: `actors.weight_transfer`."""


class SamplingConfig(BaseModel):
    """How responses are sampled. The learner trains on exactly this distribution, so what it cannot reproduce is
    refused."""

    model_config = STRICT

    temperature: float = Field(1.0, gt=0)
    """Softmax temperature; the learner divides its logits by it too."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass. Training needs 1.0: the learner's log-probs are those of the whole distribution."""
    top_k: int = Field(0, ge=0)
    """Only the k likeliest tokens (0 = all). Training needs 0, as above."""
    max_prompt_tokens: int = Field(128, gt=0)
    """A longer prompt is an error that names the problem."""
    max_response_tokens: int = Field(20, gt=0)
    """Sampling stops here with finish_reason = "length"."""

    @property
    def max_tokens(self) -> int:
        """The most of a prompt with its response."""
        return self.max_prompt_tokens + self.max_response_tokens


class RolloutConfig(BaseModel):
    """Rollout workers: one engine each."""

    model_config = STRICT

    engine: Literal["vllm", "vllm-async", "transformers"] = "vllm"
    """"vllm": LLMEngine inside the actor (CPU). "vllm-async": AsyncLLM in its own process (GPU). "transformers": a
    plain, deterministic reference engine for tests and machines without vLLM; slow."""
    workers: int = Field(1, ge=1)
    """Rollout workers at the start of the run."""
    max_sequences: int = Field(64, ge=1)
    """Responses an engine decodes at once. A worker is given max_sequences // responses_per_prompt groups at a time."""
    dtype: Dtype = "auto"
    """Precision of the engine. auto: bfloat16 on a GPU and on a CPU with instructions for it, else float32."""
    kv_cache_gib: int = Field(1, ge=1)
    """Memory for keys and values on CPU. vLLM takes whole GiB only."""
    block_size: int = Field(32, gt=0, multiple_of=32)
    """Tokens in a cache block on CPU, a multiple of 32 (vLLM's CPU attention); a prompt shorter than one block is never
    shared."""
    max_batched_tokens: int = Field(512, gt=0)
    """Prompt tokens an engine step may take in. Small values keep steps, and so weight updates, short."""
    gpu_memory_fraction: float = Field(0.5, gt=0, le=1)
    """Share of a GPU's memory the engine may take."""
    threads: int = Field(1, ge=1)
    """CPU threads of a worker."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs a worker reserves."""
    weight_transfer: WeightTransfer = "object_store"
    """How the learner's weights get into the engines. object_store: through host memory, once to a node. nccl: from the
    learner's GPU to the engine's. ipc: the engine reads the memory of the GPU that it shares with the learner, so the
    shares of all make 1 at most. The last two need engine = "vllm-async", GPUs for both sides, and on the learner's
    room for its last max_policy_lag + 1 versions, and for one more with evaluation.every; they have not been run on a
    GPU yet."""
    start_timeout_s: float = Field(300.0, gt=0)
    """A worker that is not ready by then is replaced; the run ends, with a message that names it, where none ever
    was."""
    progress_tokens: int = Field(32, ge=1)
    """Tokens a response may grow by before they are reported: what a lost worker can cost of it."""
    group_timeout_s: float = Field(300.0, gt=0)
    """A group that a worker has not finished by then is dropped, and its problem counts an attempt; the worker
    stays."""


class EncoderConfig(BaseModel):
    """The hidden-state encoder: a frozen copy of the initial policy."""

    model_config = STRICT

    tokens_per_batch: int = Field(2048, gt=0)
    """Upper bound of tokens in one forward pass, and of tokens taken from waiting groups at once. A longer response
    still goes alone."""
    dtype: Dtype = "auto"
    """Precision of the forward pass; features are averaged and projected in float32, scored in float64."""
    threads: int = Field(1, ge=1)
    """CPU threads of an encoder."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs an encoder reserves; above 0 it runs on one."""
    replicas: int = Field(1, ge=1)
    """Encoders that share the work. They are stateless: features do not depend on their number."""
    max_waiting: int = Field(64, ge=1)
    """Groups that may wait inside one encoder; more wait at its door."""
    layer: int = -1
    """Whose hidden states are features: −1 the last layer's after the final norm (the paper), 0 the embeddings, i the
    states after layer i; lower layers cost less."""
    pooling: Literal["mean", "last"] = "mean"
    """Over a response's own tokens: their mean (the paper; over twice as efficient there) or the last token's state."""


class ScorerConfig(BaseModel):
    """The scorer: a frozen model that says how likely it finds the responses of others."""

    model_config = STRICT

    tokens_per_batch: int = Field(1024, gt=0)
    """Upper bound of tokens in one forward pass. A longer response still goes alone."""
    dtype: Dtype = "auto"
    """Precision of the forward pass; log-probs are made in float32 and added up in float64."""
    threads: int = Field(1, ge=1)
    """CPU threads of the scorer."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs it reserves; above 0 it runs on one."""


class VerifierConfig(BaseModel):
    """How many processes verify, and what they may cost."""

    model_config = STRICT

    num_workers: int = Field(default=1, ge=1)
    """Verifier processes. Each holds one task and checks one response at a time."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Wall-clock seconds one response may take once a worker has picked it up; then the worker is killed and replaced.
    The clock is looked at every 0.1 s. Waiting in the queue does not count. None: the task's own (`deadline_s`): 2 s
    for numbers, 5 s for mathematics, minutes for programs, which end by limits of their own."""
    start_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds a worker may need to start: a fresh interpreter that imports the main module. A pool that finishes
    nothing for its deadline and start_timeout_s is taken to be stuck, and `verify` raises."""
    max_error_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of verdicts without a score (timeout, error), among the newest 1000, above which the run stops. The
    controller enforces it."""
    max_response_chars: int = Field(default=20_000, ge=1)
    """Longer responses are verified by their last so many characters: an answer comes at the end."""


class NovelSamplingConfig(BaseModel):
    """Experimental: steer the sampling of a pool towards novelty, chunk by chunk (`actors.novel_sampling`)."""

    model_config = STRICT

    enabled: bool = False
    """False: candidates are plain samples of the model."""
    chunk_tokens: int = Field(16, ge=1)
    """c, tokens between two choices. 1 re-ranks every next token."""
    candidates: int = Field(4, ge=2)
    """M, continuations sampled for each choice, of which one is kept: sampling costs M·(c + 1)/c times the tokens."""
    dim: int = Field(64, ge=1)
    """Size of the projected states that novelty is measured in."""
    ridge: float = Field(0.1, gt=0)
    """lam of the novelty x'(lam·I + Σ xx')⁻¹x, in units of the mean energy of the first continuations sampled."""
    quality_exponent: float = Field(1.0, ge=0)
    """a: novelty is weighted with exp(2a(l − l_max)), l a continuation's mean log-prob. 0 is novelty alone, which on a
    weak model prefers what is incoherent."""
