import numpy as np
import torch

from learners.forward import load_causal_lm
from learners.packing import GroupTokens
from learners.scoring import response_loglikelihoods


def test_log_likelihoods_are_those_of_a_plain_forward_pass(tiny_model):
    model = load_causal_lm(tiny_model, dtype="float64")
    rng = np.random.default_rng(0)
    groups = [
        GroupTokens(prompt_ids=rng.integers(4, 100, 7), responses=[rng.integers(4, 100, length) for length in (5, 0, 1, 12)]),
        GroupTokens(prompt_ids=rng.integers(4, 100, 3), responses=[rng.integers(4, 100, 9)]),
    ]
    found_R, num_tokens_R = response_loglikelihoods(model, groups, tokens_per_batch=24)
    assert num_tokens_R.tolist() == [5, 0, 1, 12, 9]
    expected = [_plain(model, group.prompt_ids, ids) for group in groups for ids in group.responses]
    np.testing.assert_allclose(found_R, expected, rtol=0, atol=1e-9)
    assert found_R.dtype == torch.float64


def _plain(model, prompt_ids, response_ids) -> float:
    if not len(response_ids):
        return 0.0
    ids = torch.from_numpy(np.concatenate([prompt_ids, response_ids]))
    with torch.no_grad():
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
    start = len(prompt_ids)
    return float(sum(logprobs[start - 1 + t, token] for t, token in enumerate(response_ids)))
