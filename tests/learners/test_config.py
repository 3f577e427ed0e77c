"""Which configurations are refused, with the keys that contradict each other, and what the defaults are."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from jobs.config import RunConfig
from learners.config import AdvantageConfig, CheckpointConfig, LearnerConfig, LoraConfig, LossConfig, OptimiserConfig
from learners.loss_terms import CovarianceConfig, KlConfig

SECTIONS = [AdvantageConfig, KlConfig, CovarianceConfig, LossConfig, LoraConfig, OptimiserConfig, LearnerConfig, CheckpointConfig]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"loss": {"surrogate": "cispo", "dual_clip": 3.0}}, ["dual_clip = 3.0", 'surrogate = "cispo"']),
        ({"loss": {"dual_clip": 1.0}}, ["dual_clip = 1.0", "above 1"]),
        ({"loss": {"aggregation": "constant"}}, ['aggregation = "constant"', "constant_tokens = 0"]),
        ({"loss": {"constant_tokens": 9}}, ['aggregation = "token_mean"', "constant_tokens = 9"]),
        ({"loss": {"mask_band": (0.5, 2.0)}}, ["mask_band = [0.5, 2.0]", 'correction = "truncated_is"']),
        ({"loss": {"correction": "masked_is", "mask_band": (1.2, 2.0)}}, ["mask_band = [1.2, 2.0]", "low < 1 < high"]),
        ({"loss": {"correction": "masked_is", "mask_band": (0.5, 1.0)}}, ["mask_band = [0.5, 1.0]", "low < 1 < high"]),
        ({"loss": {"accept_uncorrected": True}}, ["accept_uncorrected = true", 'correction = "truncated_is"']),
        ({"loss": {"kl": {"where": "loss"}}}, ['kl.where = "loss"', "kl.coefficient = 0.0"]),
        ({"loss": {"kl": {"coefficient": 0.1}}}, ['kl.where = "off"', "kl.coefficient = 0.1"]),
        ({"loss": {"kl": {"where": "loss", "estimator": "k1", "coefficient": 0.1}}}, ['"k1"', 'kl.where = "loss"', '"k2"']),
        ({"loss": {"surrogate": "reinforce"}, "mini_batches": 2}, ['surrogate = "reinforce"', "mini_batches = 2"]),
        ({"loss": {"surrogate": "ppo"}}, ["surrogate", "clip", "gspo", "cispo", "reinforce"]),
        ({"advantage": {"unlikeliness": 1.0}}, ["unlikeliness", "less than 1"]),
        ({"lora": {"enabled": True}, "ranks": 2}, ["lora.enabled = true", "ranks = 2", "set ranks to 1"]),
        ({"lora": {"rank": 0}}, ["lora.rank", "greater than or equal to 1"]),
        ({"lora": {"alpha": 0}}, ["lora.alpha", "greater than 0"]),
        ({"lora": {"targets": []}}, ["lora.targets = []", '"all-linear"']),
        ({"lora": {"targets": "q_proj"}}, ["lora.targets", "'all-linear'"]),
        ({"lora": {"dropout": 0.1}}, ["lora.dropout = 0.1", "leave it at 0"]),
        ({"loss": {"surrogate": "gspo", "clip_high": 0.2}}, ["clip_high = 0.2", 'surrogate = "gspo"', '"clip" alone']),
        ({"loss": {"surrogate": "cispo", "clip_low": 0.1}}, ["clip_low = 0.1", 'surrogate = "cispo"']),
        ({"loss": {"gspo_clip_high": 0.1}}, ["gspo_clip_high = 0.1", 'surrogate = "clip"', '"gspo" alone']),
        ({"loss": {"cispo_cap": 3.0}}, ["cispo_cap = 3.0", 'surrogate = "clip"']),
        ({"loss": {"correction": "none", "is_cap": 3.0}}, ["is_cap = 3.0", 'correction = "none"', '"truncated_is" or "sequence_']),
        ({"loss": {"correction": "masked_is", "is_cap": 3.0}}, ["is_cap = 3.0", 'correction = "masked_is"']),
        ({"loss": {"sequence_ratio": "geometric"}}, ['sequence_ratio = "geometric"', 'correction = "truncated_is"']),
        ({"loss": {"correction": "none", "trust_region_max": 5.0}}, ["trust_region_max = 5.0", 'correction = "none"']),
        ({"loss": {"kl": {"estimator": "k1"}}}, ['kl.estimator = "k1"', 'kl.where = "off"']),
        ({"loss": {"is_cap": 0.5}}, ["is_cap", "greater than or equal to 1"]),
        ({"loss": {"is_cap": float("nan")}}, ["is_cap", "finite"]),
        ({"loss": {"surrogate": "cispo", "cispo_cap": 0.2}}, ["cispo_cap", "greater than or equal to 1"]),
        ({"lr": float("nan")}, ["lr", "finite"]),
        ({"lr": float("inf")}, ["lr", "finite"]),
        ({"betas": (0.9, 1.0)}, ["betas.1", "less than 1"]),
        ({"betas": (-0.1, 0.9)}, ["betas.0", "greater than or equal to 0"]),
        ({"advantage": {"alpha": 0.0, "beta": 0.0}}, ["advantage.alpha = 0", "advantage.beta = 0"]),
        ({"advantage": {"estimator": "maxrl", "normalise": "mean"}}, ['normalise = "mean"', 'estimator = "maxrl"', '"normalised" or "uni']),
        ({"advantage": {"estimator": "pass_at_k", "alpha": 0.5}}, ["alpha = 0.5", 'estimator = "pass_at_k"']),
        (
            {"advantage": {"estimator": "maxrl", "combine": "reward"}},
            ['combine = "reward"', 'estimator = "maxrl"', "at least 0", '"ties"'],
        ),
        ({"advantage": {"estimator": "pass_at_k", "combine": "reward"}}, ['combine = "reward"', 'estimator = "pass_at_k"', "0 or 1"]),
        ({"advantage": {"pass_k": 2}}, ["pass_k = 2", 'estimator = "normalised"', '"pass_at_k" alone']),
        ({"advantage": {"estimator": "pass_at_k", "pass_k": 0}}, ["pass_k", "greater than or equal to 1"]),
        ({"advantage": {"rarity": 0.5}}, ["rarity = 0.5", 'estimator = "normalised"', '"uniqueness" alone']),
        ({"advantage": {"cluster_by": "features"}}, ['cluster_by = "features"', 'estimator = "normalised"']),
        ({"advantage": {"estimator": "uniqueness", "max_clusters": 3}}, ["max_clusters = 3", 'cluster_by = "answers"', '"features" alone']),
        ({"advantage": {"estimator": "pass_at_k", "unlikeliness": 0.2}}, ["unlikeliness = 0.2", 'estimator = "pass_at_k"']),
        ({"advantage": {"estimator": "pass_at_k", "diversity_product": 0.9}}, ["diversity_product = 0.9", 'estimator = "pass_at_k"']),
        ({"advantage": {"diversity_product": 1.5}}, ["diversity_product", "less than or equal to 1"]),
        ({"advantage": {"estimator": "max_rl"}}, ["did you mean 'maxrl'?"]),
        (
            {"advantage": {"estimator": "maxrl"}, "loss": {"kl": {"where": "reward", "estimator": "k1", "coefficient": 0.1}}},
            ['loss.kl.where = "reward"', 'advantage.estimator = "maxrl"', "at least 0"],
        ),
        ({"loss": {"covariance": {"share": 0.1}}}, ["covariance.share = 0.1", 'covariance.term = "off"', '"kl_cov" or "clip_cov"']),
        ({"loss": {"covariance": {"term": "kl_cov", "band": (0.5, 2.0)}}}, ["covariance.band = [0.5, 2.0]", 'covariance.term = "kl_cov"']),
        ({"loss": {"covariance": {"term": "clip_cov", "coefficient": 2.0}}}, ["covariance.coefficient = 2.0", 'term = "clip_cov"']),
        ({"loss": {"covariance": {"term": "clip_cov", "band": (2.0, 1.0)}}}, ["covariance.band = [2.0, 1.0]", "low < high"]),
        ({"loss": {"covariance": {"term": "kl_cov"}}}, ['loss.covariance.term = "kl_cov"', "mini_batches = 1"]),
        (
            {"loss": {"kl": {"where": "reward", "estimator": "k1", "coefficient": 0.1}}},
            ['loss.kl.where = "reward"', 'advantage.normalise = "std"', '"leave_one_out"'],
        ),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused_and_both_keys_are_named(values: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        LearnerConfig.model_validate(values)
    assert not [name for name in named if name not in str(caught.value)]


@pytest.mark.parametrize(
    "values",
    [
        {"loss": {"surrogate": "reinforce"}},
        {"loss": {"aggregation": "constant", "constant_tokens": 20}},
        {"loss": {"kl": {"where": "reward", "estimator": "k1", "coefficient": 0.1}}, "advantage": {"normalise": "mean"}},
        {"lora": {"enabled": True, "rank": 8, "targets": ("q_proj", "v_proj")}},
        {"loss": {"surrogate": "gspo", "correction": "sequence_masked_is", "mask_band": (0.0, 1.5)}, "mini_batches": 4},
        {"advantage": {"estimator": "maxrl", "combine": "ties", "beta": 0.3, "unlikeliness": 0.2, "diversity_product": 0.9}},
        {"advantage": {"estimator": "pass_at_k", "pass_k": 8}},
        {"advantage": {"estimator": "uniqueness", "cluster_by": "features", "max_clusters": 3, "combine": "reward", "rarity": 0.5}},
        {"loss": {"covariance": {"term": "kl_cov", "share": 0.01, "coefficient": 0.5}}, "mini_batches": 2},
        {"loss": {"covariance": {"term": "clip_cov", "band": (0.5, 9.0)}}},
    ],
    ids=str,
)
def test_what_goes_together_is_taken_and_survives_being_written_down(values: dict[str, Any]) -> None:
    config = LearnerConfig.model_validate(values)
    assert LearnerConfig.model_validate_json(config.model_dump_json()) == config


def test_uncorrected_at_a_lag_is_refused_unless_it_is_said_to_be_meant() -> None:
    for correction in ("none",):
        with pytest.raises(ValidationError, match=r"max_policy_lag = 2 with learner\.loss\.correction = \"none\".*accept_uncorrected"):
            RunConfig.model_validate({"max_policy_lag": 2, "learner": {"loss": {"correction": correction}}})
    meant = {"max_policy_lag": 2, "learner": {"loss": {"correction": "none", "accept_uncorrected": True}}}
    assert RunConfig.model_validate(meant).learner.loss.correction == "none"
    assert RunConfig.model_validate({"max_policy_lag": 0, "learner": {"loss": {"correction": "none"}}})
    assert RunConfig().max_policy_lag > 0 and RunConfig().learner.loss.correction == "truncated_is"


def test_the_band_in_force_is_that_of_the_correction_unless_one_is_given() -> None:
    def band(**values: Any) -> tuple[float, float]:
        return LossConfig.model_validate(values).band

    assert band(correction="masked_is") == (0.5, 5.0)
    assert band(correction="sequence_masked_is") == (0.0, 2.0)
    assert band(correction="sequence_masked_is", sequence_ratio="geometric") == (0.98, 1.02)
    assert band(correction="masked_is", mask_band=(0.1, 3.0)) == (0.1, 3.0)


def test_what_a_run_has_must_suit_the_estimator() -> None:
    def refusal(**values: Any) -> str:
        with pytest.raises(ValidationError) as caught:
            RunConfig.model_validate(values)
        return str(caught.value)

    for name in ("maxrl", "pass_at_k"):
        learner = {"advantage": {"estimator": name}}
        for key, value in (("format_penalty", 0.1), ("overlong_tokens", 4)):
            assert f'reward.{key} = {value} contradicts learner.advantage.estimator = "{name}"' in refusal(
                learner=learner, reward={key: value}
            )
        RunConfig.model_validate({"learner": learner})
        counts_if_it_ends = {"overlong_tokens": 1, "overlong_of": "correct", "overlong_penalty": 1.0}
        RunConfig.model_validate({"learner": learner, "reward": counts_if_it_ends})
        assert 'set overlong_tokens to 0, or overlong_tokens and overlong_penalty to 1 and overlong_of to "correct"' in refusal(
            learner=learner, reward={**counts_if_it_ends, "overlong_penalty": 1.5}
        )
    half = {"overlong_tokens": 1, "overlong_of": "correct", "overlong_penalty": 0.5}
    RunConfig.model_validate({"learner": {"advantage": {"estimator": "maxrl"}}, "reward": half})
    assert "its rewards must be 0 or 1" in refusal(learner={"advantage": {"estimator": "pass_at_k"}}, reward=half)
    many = {"advantage": {"estimator": "pass_at_k", "pass_k": 5}}
    assert "learner.advantage.pass_k = 5 exceeds responses_per_prompt = 4" in refusal(learner=many, responses_per_prompt=4)


def test_what_the_advantages_need_is_computed_also_without_a_bonus() -> None:
    def needed(**advantage: Any) -> tuple[str | None, bool]:
        config = RunConfig.model_validate({"bonus": {"enabled": False}, "learner": {"advantage": advantage}})
        return config.feature_source, config.needs_answers

    assert needed() == needed(estimator="maxrl") == (None, False)
    assert needed(diversity_product=0.9) == ("encoder", False)
    assert needed(estimator="uniqueness") == (None, True)
    assert needed(estimator="uniqueness", cluster_by="features") == ("encoder", False)
    assert RunConfig().feature_source == "encoder" and not RunConfig().needs_answers
    policy = {"bonus": {"enabled": False, "source": "policy"}, "learner": {"advantage": {"diversity_product": 0.9}}}
    assert RunConfig.model_validate(policy).feature_source == "policy"


def test_a_divergence_in_the_reward_leaves_no_ties_for_a_bonus() -> None:
    learner = {"loss": {"kl": {"where": "reward", "estimator": "k1", "coefficient": 0.1}}}
    mean = {"normalise": "mean"}
    with pytest.raises(
        ValidationError, match=r'kl\.where = "reward" contradicts learner\.advantage\.combine = "ties".*set combine to "adv'
    ):
        RunConfig.model_validate({"learner": {**learner, "advantage": mean}})
    for bonus, advantage in (({"enabled": False}, mean), ({}, {**mean, "beta": 0.0}), ({}, {**mean, "combine": "advantage"})):
        assert RunConfig.model_validate({"bonus": bonus, "learner": {**learner, "advantage": advantage}})


@pytest.mark.parametrize(("key", "value"), [("unlikeliness", 0.25), ("diversity_product", 0.9)])
def test_a_reward_that_tells_right_answers_apart_leaves_no_ties_for_a_bonus(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=rf'{key} = {value} contradicts learner\.advantage\.combine = "ties".*"advantage", or bonus'):
        RunConfig.model_validate({"learner": {"advantage": {key: value}}})
    for bonus, more in (({"enabled": False}, {}), ({}, {"beta": 0.0}), ({}, {"combine": "advantage"}), ({}, {"combine": "reward"})):
        assert RunConfig.model_validate({"bonus": bonus, "learner": {"advantage": {key: value, **more}}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dynamic_sampling": {"enabled": True}}, r"dynamic_sampling\.enabled = true contradicts .*\"ties\""),
        ({"bonus": {"gate": "group_mixed"}}, r"bonus\.gate = \"group_mixed\" contradicts .*\"ties\""),
    ],
)
def test_what_leaves_no_tied_group_contradicts_a_bonus_that_waits_for_ties(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(values)
    added = {"learner": {"advantage": {"combine": "advantage"}}}
    off = {**values, "bonus": {**values.get("bonus", {}), "enabled": False}}
    assert RunConfig.model_validate({**values, **added}) and RunConfig.model_validate(off)


def test_a_precision_that_only_one_side_has_is_refused_where_auto_tells() -> None:
    one_sided = [
        {"learner": {"num_gpus": 1}, "rollout": {"dtype": "float32"}},
        {"rollout": {"num_gpus": 1}, "learner": {"dtype": "float32"}},
    ]
    for values in one_sided:
        with pytest.raises(ValidationError, match=r"make both bfloat16 or float32 \(auto is bfloat16 on a GPU\)"):
            RunConfig.model_validate(values)
    assert RunConfig.model_validate({"learner": {"num_gpus": 1}, "rollout": {"num_gpus": 1, "dtype": "bfloat16"}})


def test_adapters_that_are_off_have_no_rank() -> None:
    with pytest.raises(ValidationError, match=r"lora\.rank has no effect while lora\.enabled = false"):
        LearnerConfig.model_validate({"lora": {"rank": 64}})
    assert LearnerConfig.model_validate(LearnerConfig().model_dump())


def test_the_defaults_are_those_that_are_documented() -> None:
    loss, advantage = LossConfig(), AdvantageConfig()
    assert (loss.surrogate, loss.aggregation, loss.correction) == ("clip", "token_mean", "truncated_is")
    assert (loss.clip_low, loss.clip_high, loss.dual_clip, loss.is_cap) == (0.2, 0.28, 0.0, 2.0)
    assert (loss.kl.where, loss.entropy_coefficient, loss.trains_without_advantage, loss.is_by_response) == ("off", 0.0, False, False)
    assert (advantage.normalise, advantage.combine, advantage.alpha, advantage.beta) == ("std", "ties", 1.0, 1.0)
    assert (advantage.estimator, advantage.unlikeliness, advantage.diversity_product) == ("normalised", 0.0, 0.0)
    assert (loss.covariance.term, advantage.needs) == ("off", frozenset())


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_explained_in_the_schema_by_a_whole_sentence(section: type[BaseModel]) -> None:
    texts = {name: field.description or "" for name, field in section.model_fields.items()}
    assert [name for name, text in texts.items() if len(text) < 20 or not text.endswith(".")] == []


def test_a_configuration_of_before_the_seams_is_still_read() -> None:
    new = ("surrogate_options", "correction_options", "estimator", "estimator_options")
    saved = LearnerConfig(loss=LossConfig(clip_high=0.3)).model_dump(mode="json")
    for section in (saved["loss"], saved["advantage"]):
        for key in new:
            section.pop(key, None)
    assert LearnerConfig.model_validate(saved) == LearnerConfig(loss=LossConfig(clip_high=0.3))
    assert LearnerConfig().advantage.estimator == "normalised"
