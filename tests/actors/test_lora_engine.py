"""Adapters with a real vLLM engine: they are trained on its samples and merged, and the engine loads and proves
the merged weights and samples from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.config import SamplingConfig
from actors.engine import Sample, SampleRequest
from learners.config import LearnerConfig
from learners.models import resolve_model
from learners.policy_learner import PolicyLearner
from tests.actors.real_engine import vllm_engine
from tests.learners.samples import make_group, plain_logprobs

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

RESPONSES = 4
TOLERANCE = 1e-3
"""Bound of mean log-prob differences, float32 against float32."""
QUESTION = "Name two animals that live in the sea."


@pytest.fixture(scope="module")
def model_path() -> str:
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="module")
def engine(model_path: str) -> Iterator[Any]:
    with vllm_engine(model_path, SamplingConfig(max_prompt_tokens=60, max_response_tokens=8)) as engine:
        yield engine


def sampled(engine: Any, prompt: list[int], tag: str) -> list[Sample]:
    for response in range(RESPONSES):
        engine.add(SampleRequest(key=f"{tag}/{response}", prompt_ids=prompt))
    found = []
    for _ in range(200):
        found += [sample for _, sample in engine.step()]
        if not engine.has_unfinished:
            return found
    pytest.fail("not finished after 200 steps")


def batch_of(samples: Sequence[Sample], prompt: list[int]) -> Any:
    """Return one group, with a reward for half of its responses."""
    return make_group(
        0,
        prompt,
        [sample.token_ids for sample in samples],
        [float(index % 2) for index in range(RESPONSES)],
        behavior=[sample.logprobs for sample in samples],
        versions=[[sample.version_values[0]] * len(sample.token_ids) for sample in samples],
    )


def mean_difference(samples: Sequence[Sample], prompt: list[int], model: Any) -> float:
    """Return the mean |log-prob of the engine − log-prob of `model`| over all tokens."""
    with torch.no_grad():
        differences = [plain_logprobs(model, prompt, sample.token_ids).numpy() - np.array(sample.logprobs) for sample in samples]
    return float(np.abs(np.concatenate(differences)).mean())


def test_a_policy_of_adapters_is_sampled_trained_merged_and_sampled_from(engine: Any, model_path: str, tmp_path: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    config = LearnerConfig.model_validate({"dtype": "float32", "lr": 2e-3, "warmup_steps": 0, "lora": {"enabled": True, "rank": 8}})
    learner = PolicyLearner(model_path, config, temperature=1.0, group_size=RESPONSES)
    for version in (0, 1):
        engine.load(learner.snapshot())
        samples = sampled(engine, prompt, f"version {version}")
        metrics = learner.step(batch_of(samples, prompt)).metrics
        assert metrics["policy/lag_max"] == 0
        assert metrics["mismatch_lag0/mean"] < TOLERANCE, f"version {version} is not what the engine computes with"
    engine.load(learner.snapshot())
    samples = sampled(engine, prompt, "version 2")
    learner.save_policy(str(tmp_path))
    policy = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert mean_difference(samples, prompt, policy) < TOLERANCE
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    assert mean_difference(samples, prompt, base) > 20 * TOLERANCE, "training has moved the policy by more than that"
    by_peft = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert mean_difference(samples, prompt, by_peft) < TOLERANCE
