from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.forward import load_causal_lm, response_logprobs
from learners.packing import build_rows, pack
from tests.learners.samples import assert_equal_gradients, gradients, group_tokens, plain_logprobs

PROMPT, RESPONSES = [5, 6, 7], [[8, 9, 10, 11], [12], [13, 14]]


class TableModel:
    """A language model whose next-token logits depend on the last token alone: row `token` of a table."""

    config = SimpleNamespace(_attn_implementation="sdpa")

    def __init__(self, table_VV: Tensor) -> None:
        self._table_VV = table_VV

    def get_decoder(self) -> Any:
        def decode(*, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, use_cache: bool) -> Any:
            num_rows, length = input_ids.shape
            assert attention_mask.shape == (num_rows, 1, length, length) and position_ids.shape == input_ids.shape and not use_cache
            return SimpleNamespace(last_hidden_state=torch.nn.functional.one_hot(input_ids, len(self._table_VV)).to(self._table_VV.dtype))

        return decode

    def get_output_embeddings(self) -> Any:
        return lambda hidden_NV: hidden_NV @ self._table_VV


def pack_response(prompt: list[int], response: list[int]) -> Any:
    return pack(build_rows([group_tokens(prompt, [response])]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probs_equal_a_plain_forward_with_temperature(tiny_model: str, temperature: float) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    with torch.no_grad():
        logprob_N, _ = response_logprobs(model, pack(build_rows([group_tokens(PROMPT, RESPONSES)])), temperature=temperature)
        expected = torch.cat([plain_logprobs(model, PROMPT, response, temperature=temperature) for response in RESPONSES])
        other = torch.cat([plain_logprobs(model, PROMPT, response, temperature=2 * temperature) for response in RESPONSES])
    torch.testing.assert_close(logprob_N, expected, rtol=0.0, atol=1e-5)
    assert (logprob_N - other).abs().max() > 0.1


def test_written_out_attention_gives_what_the_fused_kernel_gives(tiny_model: str) -> None:
    """bfloat16 on CPU computes attention written out, with an additive mask; compared here in float32."""
    assert load_causal_lm(tiny_model, dtype="bfloat16").config._attn_implementation == "eager"
    model = load_causal_lm(tiny_model, dtype="float32")
    packed = pack(build_rows([group_tokens(PROMPT, RESPONSES), group_tokens([3], [[4]])]))
    found = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        assert model.config._attn_implementation == attention
        logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
        model.zero_grad()
        logprob_N.sum().backward()
        found[attention] = (logprob_N.detach(), gradients(model))
    torch.testing.assert_close(found["eager"][0], found["sdpa"][0], rtol=0.0, atol=1e-5)
    assert_equal_gradients(found["eager"][1], found["sdpa"][1], atol=1e-4)


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


def test_only_the_log_prob_has_a_gradient() -> None:
    table_VV = torch.zeros(3, 3, requires_grad=True)
    logprob_N, entropy_N = response_logprobs(TableModel(table_VV), pack_response([0], [1]), temperature=1.0)
    assert logprob_N.requires_grad and not entropy_N.requires_grad


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    table_VV = torch.tensor([[0.0, 3.0, 7.0]] * 3, dtype=torch.bfloat16)
    logprob_N, entropy_N = response_logprobs(TableModel(table_VV), pack_response([0], [1]), temperature=1.0)
    assert logprob_N.dtype == entropy_N.dtype == torch.float32
    assert logprob_N.item() == pytest.approx(3 - math.log(1 + math.exp(3) + math.exp(7)), rel=1e-6)
