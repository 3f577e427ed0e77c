"""The bonuses without the system: from NumPy arrays, torch tensors and lists."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bonus.config import BonusConfig, SelectionConfig
from bonus.elliptical import leverage
from bonus.kinds import KINDS
from bonus.library import pool_of, step_of
from bonus.methods import bonus_of
from bonus.orders import ORDERS, order_pool
from bonus.projection import sparse_projection

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/library.md"
RNG = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "rewards": np.array([[1.0, 0.0, 1.0], [0.0, 0.0, np.nan]]),
    "features": RNG.normal(size=(2, 3, 5)).astype(np.float32),
    "logprobs": -RNG.random((2, 3, 4)) * (np.arange(4) < np.array([[4, 2, 1], [3, 0, 4]])[..., None]),
}
ANSWERS = [["1", "2", "1"], ["3", None, "4"]]
RESPONSES = [[[5, 6, 7, 2], [5, 2], [2]], [[8, 9, 2], [], [5, 6, 7, 2]]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_bonus_is_the_same_from_arrays_tensors_and_lists(kind: str) -> None:
    found = []
    for form in (lambda array: array, torch.from_numpy, lambda array: array.tolist()):
        bonus = bonus_of(BonusConfig(kind=kind, dim=5))
        step = step_of(**{name: form(array) for name, array in ARRAYS.items()}, answers=ANSWERS, responses=RESPONSES)
        scores, _ = bonus.score(step, bonus.init_state())
        found.append(scores.bonus_GK.numpy())
    assert found[0].shape == (2, 3) and found[0][1, 1] == 0
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], rtol=1e-12)


def test_what_is_left_out_is_made_up() -> None:
    step = step_of(**ARRAYS, responses=RESPONSES)
    assert step.lengths_GK.tolist() == [[4, 2, 1], [3, 0, 4]]
    assert step.valid_GK.tolist() == [[True] * 3, [True, False, True]]
    assert step.correct_GK.tolist() == [[True, False, True], [False] * 3]
    assert len(set(step.keys_G)) == 2
    assert step_of(rewards=[[0.0, 1.0]]).lengths_GK.tolist() == [[1, 1]]
    assert step_of(rewards=ARRAYS["rewards"], responses=RESPONSES).lengths_GK.tolist() == [[4, 2, 1], [3, 0, 4]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rewards": [1.0, 2.0]}, r"rewards must be G x K, got \(2,\)"),
        ({"rewards": [[1.0, 2.0]], "features": np.zeros((2, 2, 3))}, r"features_GKD has shape \(2, 2, 3\), but rewards have \(1, 2\)"),
        ({"rewards": [[1.0, 2.0]], "keys": ["a", "b"]}, "2 keys for 1 groups"),
        ({"rewards": [[1.0, 2.0]], "answers": [["1"]]}, "answers must be 1 sequences of 2 answers"),
        ({"rewards": [[1.0, 2.0]], "responses": [[[1]]]}, "responses must be 1 sequences of 2 responses"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_of(**values)


def test_the_examples_of_the_page_print_what_the_page_says() -> None:
    blocks = re.findall(r"^```pycon\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    assert len(test.examples) > 40
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert "".join(report) == ""


def test_the_library_loads_torch_and_pydantic_and_nothing_else_of_weight() -> None:
    code = "import bonus.library, bonus.methods, bonus.orders, learners.estimators, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "vllm", "transformers", "pyarrow", "sklearn"} & set(loaded)


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_every_order_is_the_same_from_arrays_tensors_and_lists(name: str) -> None:
    features, logprobs = ARRAYS["features"].reshape(6, 5), np.linspace(-2.0, -1.0, 6)
    lengths, answers = np.array([3, 2, 0, 4, 1, 5]), ["1", "2", None, "1", "3", None]
    found = []
    for form in (lambda array: array, torch.from_numpy, lambda array: array.tolist()):
        pool = pool_of(features=form(features), mean_logprobs=form(logprobs), lengths=form(lengths), answers=answers)
        found.append(order_pool(name, pool, SelectionConfig(dim=5, max_clusters=2)).tolist())
    assert found[0] == found[1] == found[2]
    assert sorted(found[0]) == list(range(6)) and found[0][-1] == 2  # the empty one


def test_a_pool_of_features_alone_has_an_order() -> None:
    pool = pool_of(features=[[1.0, 0.0], [3.0, 0.0]])
    assert (pool.valid_N.tolist(), pool.lengths_N.tolist(), list(pool.answers)) == ([True, True], [1, 1], [None, None])
    assert order_pool("repexp", pool, SelectionConfig(dim=2)).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": [1.0, 2.0]}, r"features must be N x D, got \(2,\)"),
        ({"features": np.zeros((2, 3))}, r"features_ND must be 2 x 2 \(dim\), got \(2, 3\)"),
        ({"features": np.zeros((2, 2)), "lengths": [1]}, r"lengths must be of 2 candidates, got \(1,\)"),
        ({"features": np.zeros((2, 2)), "mean_logprobs": [0.0]}, "must be of 2 candidates"),
        ({"features": np.zeros((2, 2)), "answers": ["1"]}, "must be of 2 candidates"),
        ({"features": [[1.0, np.nan], [1.0, 2.0]]}, "the feature of candidate 0 is not finite"),
    ],
)
def test_pools_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order_pool("repexp", pool_of(**values), SelectionConfig(dim=2))


def test_a_certain_token_is_no_end_so_log_probs_need_lengths() -> None:
    with pytest.raises(ValueError, match="logprobs need lengths"):
        step_of(rewards=[[1.0, 0.0]], logprobs=[[[-1.0, 0.0], [0.0, 0.0]]])
    assert step_of(rewards=[[1.0, 0.0]], logprobs=[[[-1.0, 0.0], [0.0, 0.0]]], lengths=[[2, 1]]).valid_GK.all()


def test_what_a_bonus_returns_holds_no_graph() -> None:
    logprobs = torch.tensor([[[-1.0, -2.0], [-3.0, 0.0]]], requires_grad=True)
    bonus = bonus_of(BonusConfig(kind="surprise"))
    scores, _ = bonus.score(step_of(rewards=[[1.0, 1.0]], logprobs=logprobs, lengths=[[2, 1]]), bonus.init_state())
    assert scores.bonus_GK.numpy().shape == (1, 2)


def example() -> Any:
    """The module of the page's example, which is a script and no part of a package."""
    spec = importlib.util.spec_from_file_location("trl_bonus", ROOT / "docs/examples/trl_bonus.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reward_function_for_trl_gives_the_leverage_of_mean_states_where_an_answer_is_right(tiny_model: str) -> None:
    module = example()
    novelty = module.Novelty(tiny_model, 3, module.is_right)
    prompts = [[{"role": "user", "content": text}] for text in ("1+1?", "2+2?") for _ in range(3)]
    replies = ["2", "It is 2", "9", "3", "5", "It is 6"]
    completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    ids = [novelty.tokenizer(reply, add_special_tokens=False).input_ids for reply in replies]
    found = novelty(prompts, completions, ids, answer=["2"] * 3 + ["4"] * 3)
    with torch.no_grad():
        prompt_ids = novelty.tokenizer("<s>user: 1+1?</s><s>assistant: ", add_special_tokens=False).input_ids
        states = [novelty.encoder(torch.tensor([prompt_ids + one])).last_hidden_state[0, len(prompt_ids) :] for one in ids[:3]]
    features_KD = torch.stack([state.mean(dim=0) for state in states]).double() @ sparse_projection(32, module.DIM, seed=1)
    assert found[:3] == pytest.approx(leverage(features_KD[None], ridge=0.01)[0].tolist(), rel=1e-4)
    assert found[3:] == [0.0] * 3  # no right answer: the gate of the paper
    assert novelty(prompts, completions, ids, answer=["2"] * 3 + ["4"] * 3) != found  # another projection in the next step


def test_an_empty_reply_in_trl_is_not_new(tiny_model: str) -> None:
    module = example()
    novelty = module.Novelty(tiny_model, 2, module.is_right)
    prompts = [[{"role": "user", "content": "1+1?"}]] * 2
    completions = [[{"role": "assistant", "content": reply}] for reply in ("2", "")]
    assert novelty(prompts, completions, [[5, 6], []], answer=["2", "2"])[1] == 0.0
