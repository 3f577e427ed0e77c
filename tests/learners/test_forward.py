from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.attention import Layout, implementation
from learners.forward import load_causal_lm, response_logprobs
from learners.packing import grow, pack
from tests.learners.samples import group_tokens, plain_logprobs

PROMPT, RESPONSES = [5, 6, 7], [[8, 9, 10, 11], [12], [13, 14]]
CHUNKS = pytest.mark.parametrize("logit_chunk", [1, 2, 100])


class TableModel:
    """A language model whose next-token logits depend on the last token alone: row `token` of a table."""

    config = SimpleNamespace(_attn_implementation=implementation("blocks"))

    def __init__(self, table_VV: Tensor) -> None:
        self._table_VV = table_VV

    def get_decoder(self) -> Any:
        def decode(*, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, use_cache: bool, layout: Layout) -> Any:
            assert attention_mask.ndim == 4 and position_ids.shape == input_ids.shape and not use_cache and layout.longest
            return SimpleNamespace(last_hidden_state=torch.nn.functional.one_hot(input_ids, len(self._table_VV)).to(self._table_VV.dtype))

        return decode

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(weight=self._table_VV)

    def get_output_embeddings(self) -> Any:
        return SimpleNamespace(weight=self._table_VV.T, bias=None)


def pack_response(prompt: list[int], response: list[int]) -> Any:
    return pack(grow([group_tokens(prompt, [response])]))


@CHUNKS
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probs_equal_a_plain_forward_with_temperature(tiny_model: str, temperature: float, logit_chunk: int) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    packed = pack(grow([group_tokens(PROMPT, RESPONSES)]))
    with torch.no_grad():
        logprob_N, _ = response_logprobs(model, packed, temperature=temperature, logit_chunk=logit_chunk)
        expected = torch.cat([plain_logprobs(model, PROMPT, response, temperature=temperature) for response in RESPONSES])
        other = torch.cat([plain_logprobs(model, PROMPT, response, temperature=2 * temperature) for response in RESPONSES])
    found = torch.cat([logprob_N[packed.response_N == index] for index in range(len(RESPONSES))])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    assert (found - other).abs().max() > 0.1


def test_log_prob_and_entropy_of_known_probabilities() -> None:
    probabilities_VV = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [0.8, 0.1, 0.1]], dtype=torch.float64)
    logprob_N, entropy_N = response_logprobs(TableModel(probabilities_VV.log()), pack_response([0], [1, 2, 0]), temperature=1.0)
    expected_logprobs = [math.log(0.25), math.log(1 / 3), math.log(0.8)]
    expected_entropies = [1.5 * math.log(2), math.log(3), -0.8 * math.log(0.8) - 0.2 * math.log(0.1)]
    torch.testing.assert_close(logprob_N, torch.tensor(expected_logprobs, dtype=torch.float64), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(entropy_N, torch.tensor(expected_entropies, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_the_entropy_is_that_of_the_tempered_distribution() -> None:
    """Temperature 1/2 squares the probabilities: (4, 1, 1)/6."""
    probabilities_VV = torch.tensor([[0.5, 0.25, 0.25]] * 3, dtype=torch.float64)
    logprob_N, entropy_N = response_logprobs(TableModel(probabilities_VV.log()), pack_response([0], [0]), temperature=0.5)
    assert logprob_N.item() == pytest.approx(math.log(4 / 6), rel=1e-12)
    assert entropy_N.item() == pytest.approx(-4 / 6 * math.log(4 / 6) - 2 / 6 * math.log(1 / 6), rel=1e-12)


def test_the_entropy_has_a_gradient_only_where_asked_for() -> None:
    table_VV = torch.zeros(3, 3, requires_grad=True)
    logprob_N, entropy_N = response_logprobs(TableModel(table_VV), pack_response([0], [1]), temperature=1.0)
    assert logprob_N.requires_grad and not entropy_N.requires_grad
    _, entropy_N = response_logprobs(TableModel(table_VV), pack_response([0], [1]), temperature=1.0, entropy_gradient=True)
    assert entropy_N.requires_grad


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    table_VV = torch.tensor([[0.0, 3.0, 7.0]] * 3, dtype=torch.bfloat16)
    logprob_N, entropy_N = response_logprobs(TableModel(table_VV), pack_response([0], [1]), temperature=1.0)
    assert logprob_N.dtype == entropy_N.dtype == torch.float32
    assert logprob_N.item() == pytest.approx(3 - math.log(1 + math.exp(3) + math.exp(7)), rel=1e-6)
