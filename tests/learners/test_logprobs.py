from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import learners.logprobs
from learners.logprobs import head_logprobs

M, N, H, V = 7, 12, 5, 11
CHUNKS = (1, 2, 3, 7, 100)


def draw(*, bias: bool = True, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "hidden_MH": torch.randn(M, H, dtype=dtype, requires_grad=True),
        "weight_VH": torch.randn(V, H, dtype=dtype, requires_grad=True),
        "bias_V": torch.randn(V, dtype=dtype, requires_grad=True) if bias else None,
        "state_N": torch.randint(0, M, (N,)),
        "target_N": torch.randint(0, V, (N,)),
    }


def plain(inputs: dict[str, Any], temperature: float) -> tuple[Tensor, Tensor]:
    logits_MV = torch.nn.functional.linear(inputs["hidden_MH"], inputs["weight_VH"], inputs["bias_V"]) / temperature
    logprob_MV = logits_MV.log_softmax(-1)
    entropy_M = -(logprob_MV.exp() * logprob_MV).sum(-1)
    return logprob_MV[inputs["state_N"], inputs["target_N"]], entropy_M[inputs["state_N"]]


def parameters_of(inputs: dict[str, Any]) -> list[Tensor]:
    return [inputs[name] for name in ("hidden_MH", "weight_VH", "bias_V") if inputs[name] is not None]


@pytest.mark.parametrize("slab_bytes", [1, 200, 8 << 20])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_those_of_whole_logits(
    chunk: int, temperature: float, slab_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learners.logprobs, "SLAB_BYTES", slab_bytes)
    for bias in (True, False):
        inputs = draw(bias=bias)
        found, expected = head_logprobs(**inputs, temperature=temperature, chunk=chunk), plain(inputs, temperature)
        weights = torch.randn(2, N, dtype=torch.float64)
        for value, other in zip(found, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=0.0, atol=1e-12)
        of_found, of_expected = (
            torch.autograd.grad(sum((w * v).sum() for w, v in zip(weights, values, strict=True)), parameters_of(inputs))
            for values in (found, expected)
        )
        for gradient, other in zip(of_found, of_expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=0.0, atol=1e-9)
            assert float(other.abs().max()) > 0.1


@pytest.mark.parametrize("which", [0, 1])
def test_log_probs_and_entropy_have_gradients_of_their_own(which: int) -> None:
    inputs = draw()
    found = torch.autograd.grad(head_logprobs(**inputs, temperature=1.3, chunk=3)[which].sum(), parameters_of(inputs))
    expected = torch.autograd.grad(plain(inputs, 1.3)[which].sum(), parameters_of(inputs))
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0.0, atol=1e-9)


def test_gradcheck_agrees() -> None:
    inputs = draw()

    def run(hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> tuple[Tensor, Tensor]:
        changed = {**inputs, "hidden_MH": hidden_MH, "weight_VH": weight_VH, "bias_V": bias_V}
        return head_logprobs(**changed, temperature=0.9, chunk=4)

    assert torch.autograd.gradcheck(run, parameters_of(inputs))


@pytest.mark.parametrize("frozen", ["hidden_MH", "weight_VH", "bias_V"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    inputs = draw()
    inputs[frozen].requires_grad_(False)
    rest = [parameter for parameter in parameters_of(inputs) if parameter.requires_grad]
    found = torch.autograd.grad(head_logprobs(**inputs, temperature=1.0, chunk=3)[0].sum(), rest)
    expected = torch.autograd.grad(plain(inputs, 1.0)[0].sum(), rest)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0.0, atol=1e-9)
    assert inputs[frozen].grad is None


@pytest.mark.parametrize(("chunk", "made_forward", "made_backward"), [(100, 1, 0), (7, 1, 0), (3, 3, 2)])
def test_no_more_than_a_chunk_of_logits_is_made_and_the_last_one_not_again(
    chunk: int, made_forward: int, made_backward: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make = learners.logprobs._logits

    def watched(hidden_CH: Tensor, *others: Any) -> Tensor:
        made.append(len(hidden_CH))
        return make(hidden_CH, *others)

    monkeypatch.setattr(learners.logprobs, "_logits", watched)
    logprob_N, _ = head_logprobs(**draw(), temperature=1.0, chunk=chunk)
    assert len(made) == made_forward and max(made) <= chunk and sum(made) == M
    logprob_N.sum().backward()
    assert len(made) == made_forward + made_backward


def test_uniform_logits_have_the_entropy_of_their_number() -> None:
    inputs = {**draw(bias=False), "weight_VH": torch.zeros(V, H, dtype=torch.float64)}
    logprob_N, entropy_N = head_logprobs(**inputs, temperature=0.5, chunk=2)
    assert logprob_N.tolist() == pytest.approx([-math.log(V)] * N, abs=1e-12)
    assert entropy_N.tolist() == pytest.approx([math.log(V)] * N, abs=1e-12)


def test_extreme_logits_stay_finite() -> None:
    inputs = {**draw(), "bias_V": torch.tensor([1e4] + [0.0] * (V - 1), dtype=torch.float64, requires_grad=True)}
    logprob_N, entropy_N = head_logprobs(**inputs, temperature=1.0, chunk=3)
    for gradient in torch.autograd.grad((logprob_N + entropy_N).sum(), parameters_of(inputs)):
        assert gradient.isfinite().all()
    assert entropy_N.detach().abs().max() < 1e-9


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    inputs = draw(dtype=torch.bfloat16)
    logprob_N, entropy_N = head_logprobs(**inputs, temperature=1.0, chunk=4)
    assert logprob_N.dtype == entropy_N.dtype == torch.float32
    logits_MV = torch.nn.functional.linear(inputs["hidden_MH"], inputs["weight_VH"], inputs["bias_V"]).detach().float()
    expected_N = logits_MV.log_softmax(-1)[inputs["state_N"], inputs["target_N"]]
    torch.testing.assert_close(logprob_N.detach(), expected_N, rtol=0.0, atol=1e-6)
    logprob_N.sum().backward()
    assert inputs["hidden_MH"].grad.dtype == torch.bfloat16


def test_bfloat16_gradients_of_the_head_do_not_get_worse_with_the_number_of_chunks() -> None:
    torch.manual_seed(0)
    hidden_MH, weight_VH = torch.randn(512, 32), 0.1 * torch.randn(100, 32)
    fixed = {"state_N": torch.arange(512), "target_N": torch.randint(0, 100, (512,)), "temperature": 1.0}

    def gradients(dtype: torch.dtype, chunk: int) -> list[Tensor]:
        leaves = [weight_VH.bfloat16().to(dtype).requires_grad_(), torch.zeros(100, dtype=dtype, requires_grad=True)]
        logprob_N, _ = head_logprobs(hidden_MH.bfloat16().to(dtype), *leaves, chunk=chunk, **fixed)
        return [gradient.double() for gradient in torch.autograd.grad(logprob_N.mean(), leaves)]

    exact = gradients(torch.float64, 512)
    for chunk in (512, 16, 1):
        for found, expected in zip(gradients(torch.bfloat16, chunk), exact, strict=True):
            assert float((found - expected).norm() / expected.norm()) < 0.01, chunk


def test_without_response_tokens_there_is_nothing_and_no_gradient_either() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    inputs = {**draw(), "hidden_MH": torch.zeros(0, H, dtype=torch.float64, requires_grad=True), "state_N": none, "target_N": none}
    logprob_N, entropy_N = head_logprobs(**inputs, temperature=1.0, chunk=3)
    assert len(logprob_N) == len(entropy_N) == 0
    logprob_N.sum().backward()
