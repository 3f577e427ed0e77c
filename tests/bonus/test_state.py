import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bonus.config import BonusConfig
from bonus.scoring import StepBonus, score_step
from bonus.state import BonusState, check_valid, from_state_dict, init_state, merge, state_dict

MEMORIES = ["none", "prompt", "run"]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(state: BonusState, seed: int, memory: str = "prompt") -> tuple[StepBonus, BonusState]:
    config = BonusConfig(dim=6, memory=memory, gate="always")
    all_GK = torch.ones(3, 4, dtype=torch.bool)
    return score_step(draw(seed, 3, 4, 6), all_GK, all_GK, state, config, keys_G=["a", f"b{seed % 2}", f"c{seed}"])


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("num_steps", [0, 3])
def test_a_state_saved_to_files_and_restored_gives_the_next_bonuses_bit_for_bit(tmp_path: Path, memory: str, num_steps: int) -> None:
    state = init_state(6)
    for seed in range(num_steps):
        _, state = step(state, seed, memory)
    saved = state_dict(state)
    tensors = {name: value for name, value in saved.items() if isinstance(value, Tensor)}
    save_file(tensors, tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text(json.dumps({name: value for name, value in saved.items() if name not in tensors}))
    restored = from_state_dict(load_file(tmp_path / "state.safetensors") | json.loads((tmp_path / "state.json").read_text()))
    for seed in range(10, 13):
        (expected, state), (actual, restored) = step(state, seed, memory), step(restored, seed, memory)
        assert torch.equal(actual.bonus_GK, expected.bonus_GK)
        assert (actual.ridge, actual.diagnostics) == (expected.ridge, expected.diagnostics)


def test_a_saved_state_is_a_copy() -> None:
    _, state = step(init_state(6), 0, "run")
    for value in state_dict(step(state, 1)[1]).values():
        if isinstance(value, Tensor):
            value.zero_()
    assert state.covariance.second_moment_DD.any()


def test_merging_merges_both_parts() -> None:
    (_, a), (_, b) = step(init_state(6), 0), step(init_state(6), 1)
    merged = merge(a, b)
    assert merged.covariance.groups == 6
    assert {key: stats.count for key, stats in merged.prompts.stats.items()} == {"b0": 4, "c0": 4, "a": 8, "b1": 4, "c1": 4}


def test_a_state_whose_parts_are_missing_unknown_or_of_different_sizes_is_refused() -> None:
    saved = state_dict(step(init_state(6), 0)[1])
    with pytest.raises(ValueError, match=r"unknown \['verifier\.x'\]"):
        from_state_dict(saved | {"verifier.x": 1})
    with pytest.raises(ValueError, match=r"missing \['steps'\]"):
        from_state_dict({name: value for name, value in saved.items() if name != "covariance.steps"})
    with pytest.raises(ValueError, match="covariance has D=5, the prompt memory D=6"):
        from_state_dict(saved | {"covariance.second_moment_DD": torch.zeros(5, 5).double()})
    with pytest.raises(ValueError, match="D=5, the prompt memory D=6"):
        check_valid(BonusState(covariance=init_state(5).covariance, prompts=init_state(6).prompts))


def test_every_state_that_scoring_makes_is_valid() -> None:
    state = init_state(6)
    check_valid(state)
    for seed, memory in enumerate(MEMORIES):
        _, state = step(state, seed, memory)
        check_valid(state)
