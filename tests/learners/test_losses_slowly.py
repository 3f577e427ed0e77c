"""Every loss compared with `slow_reference`, which follows the equations only: values, gradients, splits, order. All
in float64."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch

from learners import config as configs
from learners import facts, loss_terms
from learners.config import LossConfig
from learners.loss.aggregation import AGGREGATIONS
from learners.loss.corrections import CORRECTIONS
from learners.loss.kl import KL_ESTIMATORS
from learners.loss.surrogates import SURROGATES
from learners.losses import LossInputs, LossOutput, policy_loss
from tests.learners import slow_reference as slow

SURROGATE_SETTINGS: dict[str, list[dict[str, Any]]] = {
    "clip": [{}, {"clip_high": 0.2, "dual_clip": 1.5}],
    "gspo": [{"gspo_clip_low": 0.02, "gspo_clip_high": 0.05}],
    "cispo": [{"cispo_cap": 1.4}],
    "reinforce": [{}],
}
CORRECTION_SETTINGS: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "truncated_is": [{"is_cap": 1.3}],
    "masked_is": [{}, {"mask_band": (0.8, 1.3)}],
    "sequence_truncated_is": [{"is_cap": 1.1}, {"is_cap": 1.1, "sequence_ratio": "geometric"}],
    "sequence_masked_is": [{"mask_band": (0.6, 1.25)}, {"mask_band": (0.9, 1.1), "sequence_ratio": "geometric"}],
    "decoupled": [{}],
    "trust_region_mask": [{"trust_region_max": 0.15, "trust_region_mean": 0.06}],
}
AGGREGATION_SETTINGS: dict[str, dict[str, Any]] = {"token_mean": {}, "sequence_mean": {}, "constant": {"constant_tokens": 6}}
EXTRAS: list[dict[str, Any]] = [
    {"kl": {"where": "loss", "estimator": "k2", "coefficient": 0.3}},
    {"kl": {"where": "loss", "estimator": "k3", "coefficient": 0.3}},
    {"entropy_coefficient": 0.2},
    {"covariance": {"term": "kl_cov", "coefficient": 0.3}},
    {"covariance": {"term": "clip_cov"}},
]


def every_loss() -> list[LossConfig]:
    """Return every surrogate with every correction and every aggregation, and every addition with every aggregation."""
    parts = itertools.product(
        [{"surrogate": name, **settings} for name, given in SURROGATE_SETTINGS.items() for settings in given],
        [{"correction": name, **settings} for name, given in CORRECTION_SETTINGS.items() for settings in given],
        [{"aggregation": name, **settings} for name, settings in AGGREGATION_SETTINGS.items()],
    )
    combined = [{**surrogate, **correction, **aggregation} for surrogate, correction, aggregation in parts]
    combined += [{**extra, "aggregation": name, **settings} for extra in EXTRAS for name, settings in AGGREGATION_SETTINGS.items()]
    return [LossConfig.model_validate(values) for values in combined]


def label(config: LossConfig) -> str:
    return "-".join(str(value) for value in config.model_dump(exclude_defaults=True).values()) or "default"


def draw_batch(seed: int, lengths: tuple[int, ...] = (6, 1, 7, 3, 5)) -> list[list[slow.Token]]:
    """Return responses whose policies differ by about 0.2 per token, with no two equal values. One response has
    advantage 0, and about a third of the tokens are chosen to be restrained."""
    rng, choice = np.random.default_rng(seed), np.random.default_rng(seed + 100)

    def token(advantage: float, spread: float) -> slow.Token:
        proximal = -2 + 0.5 * rng.standard_normal()
        return slow.Token(
            logprob=proximal + 0.35 * rng.standard_normal(),
            proximal=proximal,
            behavior=proximal + spread * rng.standard_normal(),
            reference=proximal + 0.3 * rng.standard_normal(),
            entropy=float(rng.uniform(0.5, 2)),
            advantage=advantage,
            chosen=bool(choice.random() < 0.3),
        )

    advantages = [1.3, -0.7, 0.0, -1.1, 0.9]
    return [
        [token(advantage, 0.1 + 0.1 * i) for _ in range(length)]
        for i, (advantage, length) in enumerate(zip(advantages, lengths, strict=True))
    ]


def inputs_of(batch: slow.Batch, *, num_tokens: int, num_responses: int, first_response: int = 0) -> LossInputs:
    tokens = [token for response in batch for token in response]

    def column(name: str, *, gradient: bool = False) -> torch.Tensor:
        return torch.tensor([getattr(token, name) for token in tokens], dtype=torch.float64, requires_grad=gradient)

    return LossInputs(
        logprob_N=column("logprob", gradient=True),
        proximal_logprob_N=column("proximal"),
        behavior_logprob_N=column("behavior"),
        advantage_N=column("advantage"),
        num_tokens=num_tokens,
        response_N=torch.tensor([first_response + i for i, response in enumerate(batch) for _ in response]),
        num_responses=num_responses,
        reference_logprob_N=column("reference"),
        entropy_N=column("entropy", gradient=True),
        chosen_N=torch.tensor([token.chosen for token in tokens]),
    )


def whole(batch: slow.Batch, config: LossConfig) -> tuple[LossInputs, LossOutput]:
    inputs = inputs_of(batch, num_tokens=sum(map(len, batch)), num_responses=sum(len(response) > 0 for response in batch))
    output = policy_loss(inputs, config)
    output.loss.backward()
    return inputs, output


def gradient_of(values: torch.Tensor | None) -> list[float]:
    assert values is not None
    return torch.zeros_like(values).tolist() if values.grad is None else values.grad.tolist()


# --- nothing is forgotten --------------------------------------------------------------------------------------------


def test_every_named_part_has_a_function_and_is_tested_here() -> None:
    assert SURROGATES.keys() == facts.SURROGATES.keys() == SURROGATE_SETTINGS.keys()
    assert CORRECTIONS.keys() == facts.CORRECTIONS.keys() == CORRECTION_SETTINGS.keys()
    assert AGGREGATIONS.keys() == set(get_args(configs.Aggregation)) == AGGREGATION_SETTINGS.keys()
    assert KL_ESTIMATORS.keys() == set(get_args(loss_terms.KlEstimator))
    assert len(every_loss()) == 5 * 10 * 3 + 5 * 3


def test_every_named_part_states_its_source_or_equation() -> None:
    functions = [*SURROGATES.values(), *CORRECTIONS.values(), *AGGREGATIONS.values()]
    silent = [
        function.__name__
        for function in functions
        if not function.__doc__ or ("arXiv" not in function.__doc__ and "20" not in function.__doc__)
    ]
    assert silent == []


# --- against the slow reference --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", every_loss(), ids=label)
def test_value_and_gradient_are_those_of_the_slow_reference(config: LossConfig) -> None:
    batch = draw_batch(11)
    inputs, output = whole(batch, config)
    assert output.loss.item() == pytest.approx(slow.loss(batch, config), rel=1e-12, abs=1e-14)
    assert gradient_of(inputs.logprob_N) == pytest.approx(slow.gradient(batch, config, "logprob"), rel=1e-6, abs=1e-8)
    assert gradient_of(inputs.entropy_N) == pytest.approx(slow.gradient(batch, config, "entropy"), rel=1e-6, abs=1e-8)
    assert np.abs(gradient_of(inputs.logprob_N)).max() > 1e-3
    weights = [slow.weight_of(response, t, config) for response in batch for t in range(len(response))]
    assert output.is_weight_N.tolist() == pytest.approx(weights, rel=1e-12)


@pytest.mark.parametrize("seed", range(2, 4))
def test_on_other_batches_too(seed: int) -> None:
    batch = draw_batch(seed, (2, 9, 1, 3, 4))
    for config in every_loss():
        _, output = whole(batch, config)
        assert output.loss.item() == pytest.approx(slow.loss(batch, config), rel=1e-12, abs=1e-14), label(config)


def test_the_batch_shows_both_sides_of_every_limit() -> None:
    """Some tokens are clipped and others not, some weights are cut and others not. Otherwise the test above would
    say little."""

    def is_some(which_N: torch.Tensor) -> bool:
        return 0 < which_N.double().mean() < 1

    batch = draw_batch(11)
    for config in every_loss():
        _, output = whole(batch, config)
        if config.surrogate != "reinforce":
            assert is_some(output.clipped_N), label(config)
        if config.mask_band != "auto" or config.correction == "trust_region_mask":
            assert is_some(output.is_weight_N == 0), label(config)
        if config.correction.endswith("truncated_is") and config.is_cap < 2:
            assert is_some(output.is_weight_N == config.is_cap), label(config)
    plain, dual = (whole(batch, LossConfig(clip_high=0.2, dual_clip=bound))[1].clipped_N.sum() for bound in (0, 1.5))
    assert dual > plain


# --- however a batch is laid out -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [(1, 1, 1, 1, 1), (2, 3), (4, 1)], ids=str)
def test_losses_and_gradients_of_micro_batches_add_up_to_those_of_the_batch(split: tuple[int, ...]) -> None:
    batch = draw_batch(7)
    num_tokens, ends = sum(map(len, batch)), np.cumsum(split)
    for config in every_loss():
        inputs, output = whole(batch, config)
        parts = [
            inputs_of(batch[end - size : end], num_tokens=num_tokens, num_responses=5, first_response=10 * int(end))
            for size, end in zip(split, ends, strict=True)
        ]
        losses = [policy_loss(part, config).loss for part in parts]
        for loss in losses:
            loss.backward()
        assert sum(loss.item() for loss in losses) == pytest.approx(output.loss.item(), rel=1e-12, abs=1e-15), label(config)
        found = [value for part in parts for value in gradient_of(part.logprob_N)]
        assert found == pytest.approx(gradient_of(inputs.logprob_N), rel=1e-12, abs=1e-15), label(config)


def test_neither_the_order_of_tokens_nor_the_numbers_of_responses_matter() -> None:
    """The tokens of a response need not be adjacent."""
    inputs, _ = whole(draw_batch(8), LossConfig())
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(inputs.logprob_N)))
    assert inputs.response_N is not None
    for config in every_loss():
        moved = LossInputs(
            **{
                name: value.detach()[order].requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value
                for name, value in vars(inputs).items()
                if name != "response_N"
            },
            response_N=(3 * (7 - inputs.response_N))[order],
        )
        again, expected = whole(draw_batch(8), config)
        output = policy_loss(moved, config)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12, abs=1e-15), label(config)
        shuffled = torch.tensor(gradient_of(again.logprob_N), dtype=torch.float64)[order].tolist()
        assert gradient_of(moved.logprob_N) == pytest.approx(shuffled, rel=1e-12, abs=1e-15), label(config)


# --- what was, still is ----------------------------------------------------------------------------------------------


def loss_before_there_were_strategies(inputs: LossInputs, config: LossConfig) -> torch.Tensor:
    """Return the loss by the formula of the first version, which had only this one."""
    anchor_N = inputs.behavior_logprob_N if config.correction == "none" else inputs.proximal_logprob_N
    ratio_N = torch.exp(inputs.logprob_N - anchor_N)
    clipped_ratio_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate_N = torch.minimum(ratio_N * inputs.advantage_N, clipped_ratio_N * inputs.advantage_N)
    if config.correction == "none":
        is_weight_N = torch.ones_like(anchor_N)
    else:
        is_weight_N = torch.exp(inputs.proximal_logprob_N - inputs.behavior_logprob_N).clamp(max=config.is_cap).detach()
    return -(is_weight_N * surrogate_N).sum() / inputs.num_tokens


@pytest.mark.parametrize("correction", ["truncated_is", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_default_the_loss_is_what_it_was_before_bit_for_bit(correction: str, dtype: torch.dtype) -> None:
    config = LossConfig.model_validate({"correction": correction})
    generator = torch.Generator().manual_seed(0)
    columns = {
        name: torch.randn(400, generator=generator, dtype=dtype)
        for name in ("logprob_N", "proximal_logprob_N", "behavior_logprob_N", "advantage_N")
    }
    found, expected = (columns["logprob_N"].clone().requires_grad_() for _ in range(2))
    loss = policy_loss(LossInputs(**{**columns, "logprob_N": found}, num_tokens=517), config).loss
    before = loss_before_there_were_strategies(LossInputs(**{**columns, "logprob_N": expected}, num_tokens=517), config)
    assert torch.equal(loss, before)
    loss.backward()
    before.backward()
    assert found.grad is not None and expected.grad is not None and torch.equal(found.grad, expected.grad)


# --- far out ---------------------------------------------------------------------------------------------------------

FAR: list[dict[str, Any]] = [
    *({"surrogate": name, "correction": "none"} for name in SURROGATE_SETTINGS),
    *({"correction": name} for name in CORRECTION_SETTINGS if name != "none"),
    {"correction": "sequence_masked_is", "sequence_ratio": "geometric"},
    *({"kl": {"where": "loss", "estimator": name, "coefficient": 0.1}} for name in ("k2", "k3")),
]


@pytest.mark.parametrize("values", FAR, ids=str)
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_token_that_the_sampler_found_all_but_impossible_leaves_loss_and_gradient_finite(
    values: dict[str, Any], advantage: float
) -> None:
    """In float32 exp overflows at 89. The values are those of the slow reference."""
    config = LossConfig.model_validate(values)
    far = {"proximal": -1.0, "entropy": 0.0, "advantage": advantage}
    batch = [
        [slow.Token(logprob=-1.0, behavior=-200.0, reference=-0.1, **far), slow.Token(logprob=-95.0, behavior=-1.0, reference=-0.1, **far)]
    ]
    logprob_N = torch.tensor([token.logprob for token in batch[0]]).requires_grad_()
    inputs = LossInputs(
        logprob_N=logprob_N,
        proximal_logprob_N=torch.tensor([token.proximal for token in batch[0]]),
        behavior_logprob_N=torch.tensor([token.behavior for token in batch[0]]),
        advantage_N=torch.full((2,), advantage),
        num_tokens=2,
        response_N=torch.zeros(2, dtype=torch.int64),
        num_responses=1,
        reference_logprob_N=torch.tensor([token.reference for token in batch[0]]),
    )
    output = policy_loss(inputs, config)
    output.loss.backward()
    assert logprob_N.grad is not None and logprob_N.grad.isfinite().all()
    assert float(output.loss.detach()) == pytest.approx(slow.loss(batch, config), rel=1e-5, abs=1e-6)
