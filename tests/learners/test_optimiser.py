from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from learners.config import OptimiserConfig
from learners.optimiser import MasterAdamW, share_of_rate

DTYPES = [torch.bfloat16, torch.float32]


def make_config(**settings: Any) -> OptimiserConfig:
    return OptimiserConfig(**{"lr": 1e-2, "warmup_steps": 0, "max_grad_norm": 1e9, **settings})


def make_model(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(dtype)


def make_scalar(value: float = 1.0, **settings: Any) -> tuple[nn.Module, MasterAdamW]:
    """Return one bfloat16 weight and its optimiser."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, value)
    return model, MasterAdamW(model.named_parameters(), make_config(**settings))


def draw_gradients(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return gradients that are exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator).bfloat16().float() for name, p in model.named_parameters()}


def backward(model: nn.Module, gradients: dict[str, Tensor]) -> None:
    """Run the backward pass of a loss whose gradient is exactly `gradients`."""
    total = torch.zeros(())
    for name, parameter in model.named_parameters():
        total = total + (parameter * gradients[name].to(parameter.dtype)).sum()
    total.backward()


def train(model: nn.Module, optimiser: MasterAdamW, steps: range) -> list[float]:
    norms = []
    for step in steps:
        backward(model, draw_gradients(model, seed=step))
        norms.append(optimiser.step())
    return norms


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and expected
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


def cloned(optimiser: MasterAdamW) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in optimiser.state_dict().items()}


def test_steps_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    model, optimiser = make_scalar(1.0, lr=1e-4)
    assert (torch.tensor(1.0) - 1e-4).bfloat16() == 1  # one step rounds away
    for step in range(100):
        backward(model, {"weight": torch.ones(1, 1)})
        optimiser.step()
        if step == 0:
            assert model.weight.item() == 1
            assert optimiser.state_dict()["master/weight"].item() == pytest.approx(1 - 1e-4, rel=1e-6)
    assert optimiser.state_dict()["master/weight"].item() == pytest.approx(0.99, abs=1e-5)
    assert model.weight.item() == torch.tensor(0.99).bfloat16().item() < 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_adamw_on_a_float32_copy_given_the_same_gradients(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    copy = {name: nn.Parameter(p.detach().float().clone()) for name, p in model.named_parameters()}
    optimiser = MasterAdamW(model.named_parameters(), make_config(weight_decay=0.1, warmup_steps=3, max_grad_norm=2.0))
    groups = [
        {"params": [p for p in copy.values() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in copy.values() if p.ndim == 1], "weight_decay": 0.0},  # decay is for matrices only
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)
    for step in range(10):
        gradients = draw_gradients(model, seed=step)
        for name, parameter in copy.items():
            parameter.grad = gradients[name].clone()
        norm = nn.utils.clip_grad_norm_(list(copy.values()), 2.0)
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 3)
        adamw.step()
        backward(model, gradients)
        assert optimiser.step() == float(norm) > 2.0
    state = optimiser.state_dict()
    assert_identical({name: state[f"master/{name}"] for name in copy}, {name: p.detach() for name, p in copy.items()})
    assert_identical(weights_of(model), {name: p.detach().to(dtype) for name, p in copy.items()})


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    model, optimiser = make_scalar()
    small = 2.0**-9
    assert (torch.tensor(1.0).bfloat16() + torch.tensor(small).bfloat16()).item() == 1  # bfloat16 would lose it
    for gradient in (1.0, *[small] * 8):
        backward(model, {"weight": torch.full((1, 1), gradient)})
        assert model.weight.grad is None
    assert optimiser.step() == 1 + 8 * small


def test_the_learning_rate_rises_linearly_and_then_stays() -> None:
    model, optimiser = make_scalar(lr=0.5, warmup_steps=4)
    rates, moves = [], []
    for _ in range(6):
        rates.append(optimiser.learning_rate())
        before = optimiser.state_dict()["master/weight"].item()
        backward(model, {"weight": torch.ones(1, 1)})
        optimiser.step()
        moves.append(before - optimiser.state_dict()["master/weight"].item())
    assert rates == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert moves == pytest.approx(rates, rel=1e-4)  # a constant gradient moves AdamW by its learning rate


def test_without_warm_up_the_first_step_has_the_whole_learning_rate() -> None:
    _, optimiser = make_scalar(lr=0.5, warmup_steps=0)
    assert optimiser.learning_rate() == 0.5


def test_a_share_of_the_learning_rate_is_a_share_of_the_move() -> None:
    model, optimiser = make_scalar(lr=0.5, warmup_steps=2)
    backward(model, {"weight": torch.ones(1, 1)})
    optimiser.step(0.5)
    assert optimiser.last_learning_rate == 0.5 * 0.25
    assert 1.0 - optimiser.state_dict()["master/weight"].item() == pytest.approx(0.125, rel=1e-4)


def test_the_rate_falls_over_the_last_steps_to_the_last_but_0() -> None:
    def shares(total_steps: int, decay_steps: int) -> list[float]:
        return [share_of_rate(step, total_steps=total_steps, decay_steps=decay_steps) for step in range(6)]

    assert shares(6, 3) == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert shares(6, 0) == [1.0] * 6
    assert shares(0, 3) == [1.0] * 6, "no total is known"
    assert shares(3, 10) == [0.75, 0.5, 0.25, 1.0, 1.0, 1.0], "a decay over the whole run, and steps beyond it"


@pytest.mark.parametrize(("max_norm", "applied"), [(1.0, [0.6, 0.8]), (5.5, [3.0, 4.0])])
def test_the_gradient_is_clipped_by_its_global_norm_and_the_norm_before_is_returned(max_norm: float, applied: list[float]) -> None:
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)}).to(torch.bfloat16)
    optimiser = MasterAdamW(model.named_parameters(), make_config(max_grad_norm=max_norm))
    backward(model, {"a.weight": torch.full((1, 1), 3.0), "b.weight": torch.full((1, 1), 4.0)})
    assert optimiser.step() == 5.0
    state = optimiser.state_dict()
    first_moments = [state[f"exp_avg/{name}"].item() / 0.1 for name in ("a.weight", "b.weight")]  # (1 − beta_1)·gradient
    assert first_moments == pytest.approx(applied, rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_raises_and_changes_nothing(dtype: torch.dtype, bad: float) -> None:
    model, twin = make_model(dtype), make_model(dtype)
    optimiser, twin_optimiser = (MasterAdamW(m.named_parameters(), make_config(weight_decay=0.1)) for m in (model, twin))
    for trained, its_optimiser in ((model, optimiser), (twin, twin_optimiser)):
        train(trained, its_optimiser, range(3))
    before = cloned(optimiser)
    gradients = draw_gradients(model, seed=99)
    gradients["0.bias"][2] = bad
    backward(model, gradients)
    with pytest.raises(FloatingPointError, match="optimiser step 4"):
        optimiser.step()
    assert_identical(optimiser.state_dict(), before)
    assert_identical(weights_of(model), weights_of(twin))
    assert train(model, optimiser, range(3, 5)) == train(twin, twin_optimiser, range(3, 5))  # nothing of it is left either
    assert_identical(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_without_any_gradient_changes_nothing(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    optimiser = MasterAdamW(model.named_parameters(), make_config(weight_decay=0.1))
    train(model, optimiser, range(2))
    state, weights = cloned(optimiser), weights_of(model)
    assert optimiser.step() is None
    assert_identical(optimiser.state_dict(), state)
    assert_identical(weights_of(model), weights)
    assert optimiser.num_steps == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_restored_into_a_fresh_object_the_next_five_steps_are_bit_for_bit_equal(dtype: torch.dtype, tmp_path: Path) -> None:
    config = make_config(weight_decay=0.1, warmup_steps=6, max_grad_norm=1.0)
    model = make_model(dtype)
    straight = MasterAdamW(model.named_parameters(), config)
    train(model, straight, range(4))
    save_file(straight.state_dict(), tmp_path / "state")
    fresh = make_model(dtype, seed=1)
    restored = MasterAdamW(fresh.named_parameters(), config)
    restored.load_state_dict(load_file(tmp_path / "state"))
    assert_identical(weights_of(fresh), weights_of(model))
    for step in range(4, 9):
        assert restored.learning_rate() == straight.learning_rate()
        assert train(fresh, restored, range(step, step + 1)) == train(model, straight, range(step, step + 1))
        assert_identical(weights_of(fresh), weights_of(model))
    assert_identical(restored.state_dict(), straight.state_dict())


def test_a_state_from_before_the_first_step_leaves_no_moments_behind() -> None:
    untrained = cloned(MasterAdamW(make_model().named_parameters(), make_config()))
    model = make_model(seed=1)
    optimiser = MasterAdamW(model.named_parameters(), make_config())
    train(model, optimiser, range(3))
    optimiser.load_state_dict(untrained)
    assert_identical(optimiser.state_dict(), untrained)


def test_a_state_that_lacks_a_parameter_is_refused() -> None:
    optimiser = MasterAdamW(make_model().named_parameters(), make_config())
    state = cloned(optimiser)
    del state["master/1.bias"]
    with pytest.raises(KeyError, match=r"master/1\.bias"):
        optimiser.load_state_dict(state)


def test_frozen_parameters_are_left_alone() -> None:
    model = make_model()
    frozen = model[0].requires_grad_(False)
    before = weights_of(frozen)
    optimiser = MasterAdamW(model.named_parameters(), make_config())
    backward(model, draw_gradients(model, seed=0))
    assert optimiser.step() > 0
    assert_identical(weights_of(frozen), before)
    assert not any("/0." in name for name in optimiser.state_dict())
