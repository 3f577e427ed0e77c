"""Methods of your own: a surrogate, a correction and an advantage estimator named by an import path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from buffers.extensions import ExtensionError
from jobs.config import RunConfig
from learners import facts, methods
from learners.advantages import AdvantageInputs, group_advantages
from learners.config import AdvantageConfig, LearnerConfig, LossConfig
from learners.estimators import ESTIMATORS
from learners.loss.corrections import CORRECTIONS, Correction
from learners.loss.surrogates import SURROGATES, RatioInputs
from learners.losses import LossInputs, policy_loss
from learners.methods import correction_of, estimated_advantages, estimator_of, require_methods, surrogate_of
from learners.policy_learner import PolicyLearner
from tests.learners.samples import ragged_batch

MODULE = '''
import torch
from learners.advantages import group_advantages
from learners.loss.surrogates import SurrogateOutput, clip
made = []

def soft(inputs, config):
    """The log-sigmoid of the ratio, weighed by the advantage."""
    value_N = torch.nn.functional.logsigmoid(inputs.logprob_N - inputs.anchor_logprob_N) * inputs.advantage_N
    return SurrogateOutput(value_N=value_N, clipped_N=torch.zeros_like(value_N, dtype=torch.bool))
soft.reads = set()

class Scaled:
    """PPO's objective times a factor."""
    reads = ("clip_low", "clip_high", "dual_clip")
    def __init__(self, factor=1.0):
        made.append(factor)
        self.factor = factor
    def __call__(self, inputs, config):
        output = clip(inputs, config)
        return SurrogateOutput(value_N=self.factor * output.value_N, clipped_N=output.clipped_N)

def half(difference_N, response_N, config):
    return torch.full_like(difference_N, 0.5)

class Floored:
    def __init__(self, floor):
        self.floor = floor
    def __call__(self, difference_N, response_N, config):
        return difference_N.exp().clamp(min=self.floor)

def signs(inputs, config):
    return torch.nan_to_num(inputs.rewards_GK - 0.5).sign().float()
signs.reads = ["beta"]

def of_answers(inputs, config):
    return torch.tensor([[float(answer == "1") for answer in group] for group in inputs.answers_GK])
of_answers.needs = {"answers"}

class Times:
    def __init__(self, factor):
        self.factor = factor
    def __call__(self, inputs, config):
        return self.factor * group_advantages(inputs.rewards_GK, inputs.bonuses_GK, config)

class Uncallable: ...
def one_argument(inputs): ...
def reads_a_typo(inputs, config): ...
reads_a_typo.reads = {"clip_lo"}
def reads_a_word(inputs, config): ...
reads_a_word.reads = "clip_low"
def reads_a_number(inputs, config): ...
reads_a_number.reads = 3
def needs_a_word(inputs, config): ...
needs_a_word.needs = "answers"
def needs_log_probs(inputs, config): ...
needs_log_probs.needs = {"logprobs"}
def needs_a_number(inputs, config): ...
needs_a_number.needs = 3
def a_number(inputs, config): return 1.0
def one_value(inputs, config): return SurrogateOutput(value_N=inputs.logprob_N.sum(), clipped_N=inputs.logprob_N > 0)
def one_weight(difference_N, response_N, config): return torch.ones(1)
def of_groups(inputs, config): return inputs.rewards_GK.mean(-1)
def of_unscored(inputs, config): return inputs.rewards_GK
'''
GROUP_SIZE = 4


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "peoples_methods.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(methods, "_LOADED", {})
    yield "peoples_methods"
    sys.modules.pop("peoples_methods", None)


def config_of(**settings: Any) -> LearnerConfig:
    return LearnerConfig.model_validate({"dtype": "float32", "lr": 1e-3, "warmup_steps": 0, **settings})


def trained(model: str, **settings: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the metrics of a step and the parameters after it."""
    learner = PolicyLearner(model, config_of(**settings), temperature=0.8, group_size=GROUP_SIZE)
    metrics = learner.step(ragged_batch(3)).metrics
    return metrics, {name: parameter.detach() for name, parameter in learner._model.named_parameters()}


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# --- what they do in a step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": {"surrogate": "peoples_methods:soft"}},
        {"loss": {"surrogate": "peoples_methods:Scaled", "surrogate_options": {"factor": 2.0}}},
        {"loss": {"correction": "peoples_methods:half"}},
        {"loss": {"correction": "peoples_methods:Floored", "correction_options": {"floor": 3.0}}},
        {"advantage": {"estimator": "peoples_methods:signs"}},
        {"advantage": {"estimator": "peoples_methods:Times", "estimator_options": {"factor": 2.0}}},
    ],
    ids=str,
)
def test_a_step_trains_with_a_method_of_your_own(tiny_model: str, module: str, settings: dict[str, Any]) -> None:
    metrics, weights = trained(tiny_model, **settings)
    usual_metrics, usual_weights = trained(tiny_model)
    assert metrics["learner/grad_norm"] > 0 and metrics["learner/loss"] != usual_metrics["learner/loss"]
    assert not are_equal(weights, usual_weights)


def test_a_method_that_does_what_a_known_one_does_is_that_one_bit_for_bit(tiny_model: str, module: str) -> None:
    metrics, weights = trained(
        tiny_model,
        loss={
            "surrogate": "learners.loss.surrogates:clip",
            "clip_high": 0.3,
            "correction": "learners.loss.corrections:truncated_is",
            "is_cap": 1.5,
        },
        advantage={"estimator": "peoples_methods:Times", "estimator_options": {"factor": 1.0}},
    )
    usual_metrics, usual_weights = trained(tiny_model, loss={"clip_high": 0.3, "is_cap": 1.5})
    assert are_equal(weights, usual_weights)
    assert metrics["learner/loss"] == usual_metrics["learner/loss"]
    assert metrics["advantage/bonus_alone"] == usual_metrics["advantage/bonus_alone"]


def test_a_class_is_made_once_for_all_micro_batches_and_steps(tiny_model: str, module: str) -> None:
    settings = {"loss": {"surrogate": "peoples_methods:Scaled", "surrogate_options": {"factor": 2.0}}, "tokens_per_micro_batch": 1}
    trained(tiny_model, **settings)
    trained(tiny_model, **settings)
    other = config_of(loss={"surrogate": "peoples_methods:Scaled", "surrogate_options": {"factor": 3.0}})
    assert surrogate_of(other.loss) is not surrogate_of(config_of(**settings).loss)
    assert sys.modules[module].made == [2.0, 3.0]


def test_the_anchor_of_a_correction_of_your_own_is_the_proximal_policy(module: str) -> None:
    config = LossConfig(surrogate="peoples_methods:soft", correction="peoples_methods:half")
    inputs = LossInputs(
        logprob_N=torch.tensor([-1.0]),
        proximal_logprob_N=torch.tensor([-2.0]),
        behavior_logprob_N=torch.tensor([-9.0]),
        advantage_N=torch.ones(1),
        num_tokens=1,
        response_N=torch.zeros(1, dtype=torch.int64),
        num_responses=1,
    )
    assert policy_loss(inputs, config).loss.item() == pytest.approx(-0.5 * torch.nn.functional.logsigmoid(torch.tensor(1.0)).item())
    assert config.is_corrected and config.is_by_response


def test_a_configuration_with_methods_of_your_own_survives_being_written_down(module: str) -> None:
    config = config_of(advantage={"estimator": "peoples_methods:Times", "estimator_options": {"factor": 2.0, "deep": {"list": [1, 2]}}})
    assert LearnerConfig.model_validate_json(config.model_dump_json()) == config


# --- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"surrogate": "nowhere:soft"}}, 'learner.loss.surrogate = "nowhere:soft": there is no module nowhere'),
        ({"loss": {"correction": "peoples_methods:hlaf"}}, "did you mean 'half'?"),
        ({"loss": {"surrogate": "peoples_methods:Uncallable"}}, "Uncallable cannot be called; it is called with (inputs, config)"),
        ({"loss": {"surrogate": "peoples_methods:one_argument"}}, "called with (inputs, config), but too many positional arguments"),
        ({"loss": {"correction": "peoples_methods:soft"}}, "called with (difference_N, response_N, config), but too many positional"),
        ({"loss": {"correction": "peoples_methods:Floored"}}, "missing a required argument: 'floor'"),
        ({"loss": {"surrogate": "peoples_methods:Scaled", "surrogate_options": {"fctor": 2}}}, "unexpected keyword argument 'fctor'"),
        ({"loss": {"surrogate": "peoples_methods:soft", "surrogate_options": {"x": 1}}}, "surrogate_options are for a class"),
        ({"advantage": {"estimator": "peoples_methods:Times"}}, "learner.advantage.estimator"),
        ({"loss": {"surrogate": "peoples_methods:reads_a_typo"}}, "reads names clip_lo, and [learner.loss] has no such key"),
        ({"loss": {"surrogate": "peoples_methods:reads_a_word"}}, "reads must be a set of names of keys, and it is 'clip_low'"),
        ({"loss": {"surrogate": "peoples_methods:reads_a_number"}}, "reads must be a set of names of keys, and it is 3"),
        (
            {"loss": {"surrogate": "peoples_methods:Scaled", "cispo_cap": 3.0}},
            'loss.cispo_cap = 3.0 contradicts surrogate = "peoples_methods:Scaled": it has an effect with surrogate = "cispo" alone',
        ),
        (
            {"advantage": {"estimator": "peoples_methods:signs", "normalise": "mean"}},
            'learner.advantage.normalise = "mean" contradicts estimator = "peoples_methods:signs"',
        ),
    ],
    ids=str,
)
def test_a_method_that_cannot_be_used_is_one_line_before_a_model_is_loaded(module: str, settings: dict[str, Any], message: str) -> None:
    config = config_of(**settings)
    for attempt in (lambda: require_methods(config), lambda: PolicyLearner("no model", config, temperature=1.0, group_size=4)):
        with pytest.raises(ExtensionError) as refusal:
            attempt()
        assert message in str(refusal.value) and str(refusal.value).startswith("learner.") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": {"surrogate": "peoples_methods:Scaled", "clip_low": 0.1}},
        {"loss": {"surrogate": "peoples_methods:soft", "is_cap": 3.0}},
        {"loss": {"correction": "peoples_methods:half", "is_cap": 3.0, "mask_band": (0.5, 2.0)}},
        {"advantage": {"estimator": "peoples_methods:signs", "beta": 0.0}},
        {"advantage": {"estimator": "peoples_methods:Times", "estimator_options": {"factor": 1}, "normalise": "mean"}},
    ],
    ids=str,
)
def test_a_key_that_the_method_reads_or_may_read_is_taken(module: str, settings: dict[str, Any]) -> None:
    require_methods(config_of(**settings))


def test_known_methods_take_no_options() -> None:
    for section, seam in (("loss", "surrogate"), ("loss", "correction"), ("advantage", "estimator")):
        with pytest.raises(ValidationError, match=rf"{seam}_options = .* contradicts {seam} = "):
            LearnerConfig.model_validate({section: {f"{seam}_options": {"factor": 1}}})


def test_what_an_estimator_ignores_is_not_held_against_it() -> None:
    weights = {"alpha": 0.0, "beta": 0.0}
    assert AdvantageConfig.model_validate({"estimator": "package.module:name", **weights}).beta == 0
    loss = {"kl": {"where": "reward", "estimator": "k1", "coefficient": 0.1}}
    assert LearnerConfig.model_validate({"loss": loss, "advantage": {"estimator": "package.module:name"}})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"surrogate": "peoples_methods:a_number"},
            r'surrogate = "peoples_methods:a_number" returned float: it must return a SurrogateOutput',
        ),
        ({"surrogate": "peoples_methods:one_value"}, r'"peoples_methods:one_value" returned value_N of shape \(\).* \(N,\) = \(\d+,\)'),
        ({"correction": "peoples_methods:one_weight"}, r'"peoples_methods:one_weight" returned weights of shape \(1,\)'),
    ],
    ids=str,
)
def test_a_result_that_is_not_one_value_a_token_is_refused(tiny_model: str, module: str, loss: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(tiny_model, loss=loss)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_number", r'estimator = "peoples_methods:a_number" returned a result of type float'),
        ("of_groups", r'"peoples_methods:of_groups" returned a result of shape \(2,\): .* \(G, K\) = \(2, 3\)'),
        ("of_unscored", r"returned nan for response 2 of group 1, whose reward is nan: every advantage must be finite"),
    ],
)
def test_advantages_that_are_not_one_finite_number_a_response_are_refused(module: str, name: str, message: str) -> None:
    rewards_GK = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, float("nan")]], dtype=torch.float64)
    inputs = AdvantageInputs(rewards_GK=rewards_GK, bonuses_GK=torch.zeros_like(rewards_GK))
    with pytest.raises(ValueError, match=message):
        estimated_advantages(inputs, AdvantageConfig(estimator=f"peoples_methods:{name}"))


# --- known methods and their facts -----------------------------------------------------------------------------------


def test_every_known_method_has_facts_and_is_found_by_its_name() -> None:
    assert facts.SURROGATES.keys() == SURROGATES.keys()
    assert facts.CORRECTIONS.keys() == CORRECTIONS.keys()
    assert facts.ESTIMATORS.keys() == ESTIMATORS.keys()
    assert [surrogate_of(LossConfig(surrogate=name)) for name in SURROGATES] == list(SURROGATES.values())
    assert [correction_of(LossConfig(correction=name)) for name in CORRECTIONS] == list(CORRECTIONS.values())
    assert [estimator_of(AdvantageConfig(estimator=name)) for name in ESTIMATORS] == list(ESTIMATORS.values())


OTHER_VALUES: dict[str, Any] = {
    **{"clip_low": 0.05, "clip_high": 0.9, "dual_clip": 1.1, "gspo_clip_low": 0.01, "gspo_clip_high": 0.3, "cispo_cap": 1.2},
    **{"is_cap": 1.05, "mask_band": (0.95, 1.04), "sequence_ratio": "geometric", "trust_region_max": 3.0, "trust_region_mean": 0.05},
}
"""For every key that only some methods read: a value that changes a result below."""


def altered(config: LossConfig, key: str) -> LossConfig:
    """Return `config` with another value of `key`. It is not validated, because a key that the method does not read
    is refused."""
    return config.model_copy(update={key: OTHER_VALUES[key]})


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_reads_the_keys_that_its_facts_name_and_no_others(name: str) -> None:
    config = LossConfig(surrogate=name)
    logprob_N = torch.linspace(-1.0, 1.0, 12)
    inputs = RatioInputs(
        logprob_N=logprob_N,
        anchor_logprob_N=torch.zeros(12),
        advantage_N=torch.tensor([1.0, -1.0] * 6),
        response_N=torch.tensor([0, 1, 2] * 4),
    )

    def differs(config: LossConfig = config, **others: Tensor) -> bool:
        value_N = SURROGATES[name](replace(inputs, **others), config).value_N
        return not value_N.equal(SURROGATES[name](inputs, LossConfig(surrogate=name)).value_N)

    known = facts.SURROGATES[name]
    assert {key for key in OTHER_VALUES if differs(altered(config, key))} == known.reads
    assert differs(response_N=torch.zeros(12, dtype=torch.int64)) is known.by_response
    assert differs(anchor_logprob_N=torch.full((12,), -0.5)) is known.has_ratio


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_correction_reads_the_keys_that_its_facts_name_and_no_others(name: str) -> None:
    correction: Correction = CORRECTIONS[name]
    config = LossConfig(correction=name, **({"mask_band": (0.2, 4.0)} if "mask_band" in (facts.CORRECTIONS[name].reads or ()) else {}))
    config = config.model_copy(update={"trust_region_max": 0.5, "trust_region_mean": 1.0, "is_cap": 1.5})
    difference_N, response_N = torch.tensor([0.03, 0.6, -0.4, 0.9, -1.2]), torch.tensor([0, 0, 1, 1, 2])
    usual_N = correction(difference_N, response_N, config)
    read = {key for key in OTHER_VALUES if not correction(difference_N, response_N, altered(config, key)).equal(usual_N)}
    assert read == facts.CORRECTIONS[name].reads
    regrouped_N = correction(difference_N, torch.zeros(5, dtype=torch.int64), config)
    assert facts.CORRECTIONS[name].by_response is not regrouped_N.equal(usual_N)
    assert facts.CORRECTIONS[name].corrects is not usual_N.equal(torch.ones(5))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_reads_the_keys_that_its_facts_name_and_no_others(name: str) -> None:
    others = {"normalise": "mean", "combine": "advantage", "alpha": 0.0, "beta": 0.7, "unlikeliness": 0.5, "diversity_product": 0.5}
    others |= {"pass_k": 1, "cluster_by": "features", "max_clusters": 2, "rarity": 0.3}
    rewards_GK = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0] * 4], dtype=torch.float64)
    inputs = AdvantageInputs(
        rewards_GK=rewards_GK,
        bonuses_GK=torch.tensor([[0.3, 0.1, 0.4, 0.1], [0.5, 0.9, 0.2, 0.6], [0.1, 0.3, 0.2, 0.1]], dtype=torch.float64),
        features_GKD=torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [5.0, 1.0]]] * 3),
        answers_GK=[["1", "2", "1", None], ["1", "1", "3", "2"], ["1", "1", "1", "2"]],
    )
    settings = {"estimator": name, "pass_k": 2} | ({"cluster_by": "features"} if name == "uniqueness" else {})

    def made(**changed: Any) -> Tensor:
        """Return advantages. The configuration is not validated, because a key that is not read is refused."""
        return ESTIMATORS[name](inputs, AdvantageConfig().model_copy(update={**settings, **changed}))

    read = {key for key, value in others.items() if not made(**{key: value}).equal(made())}
    if name == "uniqueness":
        read |= {"cluster_by"} if not made(cluster_by="answers").equal(made()) else set()
    assert read == facts.ESTIMATORS[name].reads


def test_the_default_estimator_is_that_of_groups() -> None:
    inputs = AdvantageInputs(rewards_GK=torch.tensor([[1.0, 0.0, 0.5]]), bonuses_GK=torch.tensor([[0.3, 0.2, 0.7]]))
    usual_GK = group_advantages(inputs.rewards_GK, inputs.bonuses_GK, AdvantageConfig())
    assert torch.equal(estimated_advantages(inputs, AdvantageConfig()), usual_GK)


def test_an_estimator_of_your_own_says_what_it_needs(module: str) -> None:
    def needs(name: str) -> frozenset[str]:
        return AdvantageConfig(estimator=f"peoples_methods:{name}").needs

    assert (needs("signs"), needs("of_answers")) == (frozenset(), {"answers"})
    for name in ("needs_a_word", "needs_log_probs", "needs_a_number"):
        with pytest.raises(ExtensionError, match=rf'"peoples_methods:{name}": needs = .* is not a set of: answers, features'):
            needs(name)
        with pytest.raises(ExtensionError, match="is not a set of"):
            require_methods(config_of(advantage={"estimator": f"peoples_methods:{name}"}))


def test_a_correction_of_your_own_counts_as_one_at_a_lag() -> None:
    loss = {"correction": "package.module:name"}
    assert RunConfig.model_validate({"max_policy_lag": 2, "learner": {"loss": loss}}).learner.loss.is_corrected
    with pytest.raises(ValidationError, match=r'accept_uncorrected = true contradicts correction = "package\.module:name"'):
        LossConfig.model_validate({**loss, "accept_uncorrected": True})
