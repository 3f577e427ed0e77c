"""Mismatch, worked by hand, and every fault that the alarm tells apart, injected into an engine that samples from
the tiny model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from buffers.schema import concat_groups
from learners.config import LearnerConfig
from learners.mismatch import MIN_TOKENS, Cause, Floor, MismatchMonitor, MismatchTokens, diagnose, effective_sample_share, mismatch_metrics
from learners.policy_learner import PolicyLearner
from tests.learners.samples import make_group

GROUP_SIZE, NUM_GROUPS, LENGTH = 4, 12, 12
TEMPERATURE = 0.9


def tokens_of(ratios: list[float], *, lags: list[int] | None = None, logprob: float = -1.0, entropy: float = 1.0) -> MismatchTokens:
    count = len(ratios)
    lag_N = np.array(lags or [0] * count, np.float64)
    return MismatchTokens(
        logprob_N=np.full(count, logprob),
        difference_N=np.log(ratios),
        entropy_N=np.full(count, entropy),
        lag_N=lag_N,
        oldest_lag_N=lag_N,
    )


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_by_lag_worked_by_hand() -> None:
    found = mismatch_metrics(tokens_of([1.05, 0.5, 2.0, 4.0, 1.0], lags=[0, 0, 1, 3, 7], logprob=-1.5, entropy=1.2))
    logs = [math.log(1.05), math.log(2), math.log(2), math.log(4), 0.0]
    assert found["mismatch/mean"] == pytest.approx(sum(logs) / 5)
    assert found["mismatch/max"] == pytest.approx(math.log(4))
    assert found["mismatch/p95"] == pytest.approx(0.2 * math.log(2) + 0.8 * math.log(4))  # position 0.95·4 = 3.8 of the sorted five
    assert found["mismatch/outside_band"] == pytest.approx(3 / 5)
    assert found["mismatch/ess"] == pytest.approx(8.55**2 / (5 * (1.05**2 + 0.25 + 4 + 16 + 1)))
    assert found["mismatch/surprise"] == pytest.approx(0.3)
    shares = {name: value for name, value in found.items() if name.endswith("/share")}
    assert shares == pytest.approx({"mismatch_lag0/share": 2 / 5, "mismatch_lag1/share": 1 / 5, "mismatch_lag3/share": 2 / 5})
    assert found["mismatch_lag0/ess"] == pytest.approx(1.55**2 / (2 * (1.05**2 + 0.25)))
    assert found["mismatch_lag1/mean"] == pytest.approx(math.log(2))
    assert found["mismatch_lag3/max"] == pytest.approx(math.log(4))  # 3 and older together
    assert found["mismatch_lag1/ess"] == 1.0


def test_there_are_no_figures_of_what_is_not_there() -> None:
    assert mismatch_metrics(tokens_of([])) == {}
    assert "mismatch/surprise" not in mismatch_metrics(tokens_of([1.0], lags=[2]))


@pytest.mark.parametrize(("weights", "share"), [([1, 1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([3, 1], 0.8), ([6, 2], 0.8)])
def test_effective_samples_worked_by_hand(weights: list[float], share: float) -> None:
    with np.errstate(divide="ignore"):
        assert effective_sample_share(np.log(weights)) == pytest.approx(share)


def test_effective_samples_of_weights_beyond_what_floats_hold() -> None:
    assert effective_sample_share(np.array([2000.0, 2000.0])) == 1.0


# --- an engine with a fault ------------------------------------------------------------------------------------------


class Engine:
    """Samples from a model at a temperature and reports log-probs. A fault, if any, is put into `model`."""

    def __init__(self, learner: PolicyLearner, seed: int) -> None:
        self.model = copy.deepcopy(learner._model)
        self.temperature = TEMPERATURE
        self.version = 0
        self._generator = torch.Generator().manual_seed(seed)

    def load(self, learner: PolicyLearner) -> None:
        self.model.load_state_dict(learner._model.state_dict())
        self.version = learner.version

    def drop_tensor(self, name: str) -> None:
        dict(self.model.named_parameters())[name].data.zero_()

    @torch.no_grad()
    def sample(self, prompts_GP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return responses and their log-probs, both (G·K, T)."""
        ids, logprobs = prompts_GP.repeat_interleave(GROUP_SIZE, dim=0), []
        for _ in range(LENGTH):
            logits = self.model(input_ids=ids, use_cache=False).logits[:, -1].double()
            distribution = (logits / self.temperature).log_softmax(-1)
            chosen = torch.multinomial(distribution.exp(), 1, generator=self._generator)
            logprobs.append(distribution.gather(-1, chosen))
            ids = torch.cat([ids, chosen], dim=1)
        return ids[:, -LENGTH:], torch.cat(logprobs, dim=1)

    def batch(self, tamper: Callable[[list[int], list[float]], tuple[list[int], list[float]]] | None = None) -> pa.RecordBatch:
        """Return the groups of a step, each with contrast. `tamper(ids, logprobs)` returns what is recorded instead
        of a response."""
        prompts_GP = torch.randint(4, 100, (NUM_GROUPS, 5), generator=self._generator)
        ids, logprobs = self.sample(prompts_GP)
        groups = []
        for g in range(NUM_GROUPS):
            rows = range(g * GROUP_SIZE, (g + 1) * GROUP_SIZE)
            said = [(ids[r].tolist(), logprobs[r].tolist()) for r in rows]
            said = [tamper(*one) for one in said] if tamper else said
            responses, recorded = [list(column) for column in zip(*said, strict=True)]
            versions = [[self.version] * len(response) for response in responses]
            groups.append(make_group(g, prompts_GP[g].tolist(), responses, [1.0, 0.0, 0.0, 1.0], behavior=recorded, versions=versions))
        return concat_groups(groups)


@pytest.fixture(params=range(2))
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


def make_learner(model: str, **settings: Any) -> PolicyLearner:
    config = LearnerConfig.model_validate({"dtype": "float32", "lr": 1e-3, "warmup_steps": 0, "advantage": {"beta": 0}, **settings})
    return PolicyLearner(model, config, temperature=TEMPERATURE, group_size=GROUP_SIZE)


def alarms(learner: PolicyLearner, batch: pa.RecordBatch) -> set[str]:
    return {name.removeprefix("mismatch/alarm_") for name in learner.step(batch).metrics if name.startswith("mismatch/alarm")}


@pytest.fixture
def learner(tiny_model: str) -> PolicyLearner:
    return make_learner(tiny_model)


def test_an_engine_in_order_raises_no_alarm_while_the_policy_is_trained(learner: PolicyLearner, seed: int) -> None:
    engine = Engine(learner, seed)
    for _ in range(4):
        metrics = learner.step(engine.batch()).metrics
        assert not [name for name in metrics if "alarm" in name]
        assert metrics["mismatch_lag0/mean"] < 1e-5 and metrics["mismatch_lag0/ess"] > 0.999
        assert abs(metrics["mismatch/surprise"]) < 0.2
        engine.load(learner)


def test_the_numeric_noise_of_bfloat16_raises_no_alarm(learner: PolicyLearner, seed: int) -> None:
    engine = Engine(learner, seed)
    engine.model.to(torch.bfloat16)
    metrics = learner.step(engine.batch()).metrics
    assert 1e-3 < metrics["mismatch_lag0/mean"] < 0.15 and not [name for name in metrics if "alarm" in name]


def test_numeric_noise_beyond_that_is_called_noise_and_stays_noise(learner: PolicyLearner, seed: int) -> None:
    engine, rng = Engine(learner, seed), np.random.default_rng(seed)

    def noisy(ids: list[int], logprobs: list[float]) -> tuple[list[int], list[float]]:
        return ids, (np.array(logprobs) + 0.3 * rng.standard_normal(len(ids))).tolist()

    for _ in range(3):
        assert alarms(learner, engine.batch(noisy)) == {Cause.NOISE}
        engine.load(learner)


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.25, 1.7])
def test_a_wrong_temperature_is_told_and_estimated(learner: PolicyLearner, seed: int, factor: float) -> None:
    engine = Engine(learner, seed)
    engine.temperature = TEMPERATURE * factor
    metrics = learner.step(engine.batch()).metrics
    assert [name for name in metrics if "alarm" in name] == ["mismatch/alarm_temperature"]
    assert metrics["mismatch/engine_temperature"] == pytest.approx(factor, rel=0.12)


def test_log_probs_of_before_the_temperature_show_as_surprise(learner: PolicyLearner) -> None:
    """The responses are sampled at another temperature than the log-probs say. Log-probs agree, but the answers are
    likelier than the learner's own."""
    engine = Engine(learner, 0)
    engine.temperature = 0.6
    batch = engine.batch()
    engine.temperature = TEMPERATURE
    logprobs = [learner_says(engine, row) for row in batch.to_pylist()]
    at = batch.schema.get_field_index("behavior_logprobs")
    metrics = learner.step(batch.set_column(at, batch.schema.field(at), pa.array(logprobs, pa.list_(pa.float32())))).metrics
    assert metrics["mismatch_lag0/mean"] < 1e-5 and metrics["mismatch/surprise"] < -0.4


def learner_says(engine: Engine, row: dict[str, Any]) -> list[float]:
    ids, prompt = torch.tensor([row["prompt_ids"] + row["response_ids"]]), len(row["prompt_ids"])
    with torch.no_grad():
        logprobs = (engine.model(input_ids=ids, use_cache=False).logits[0, prompt - 1 : -1].double() / engine.temperature).log_softmax(-1)
    return logprobs.gather(-1, ids[0, prompt:, None]).squeeze(-1).tolist()


def test_stale_weights_are_told_from_a_tensor_that_was_dropped(tiny_model: str, seed: int) -> None:
    """Both follow a step that shows the floor. With stale weights, tokens that claim lag 0 differ as those of lag 1
    do."""
    stale, broken = make_learner(tiny_model), make_learner(tiny_model)
    for learner in (stale, broken):
        engine = Engine(learner, seed)
        assert not alarms(learner, engine.batch())
        if learner is stale:
            engine.version = 1  # it says so, and has loaded nothing
        else:
            engine.load(learner)
            engine.drop_tensor("model.layers.1.mlp.down_proj.weight")
        report = learner.step(engine.batch()).metrics
        cause = Cause.STALE_WEIGHTS if learner is stale else Cause.DROPPED_TENSOR
        assert [name for name in report if "alarm" in name] == [f"mismatch/alarm_{cause}"]


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"]
)
def test_a_tensor_dropped_from_the_start_is_told(learner: PolicyLearner, seed: int, name: str) -> None:
    engine = Engine(learner, seed)
    if name == "model.embed_tokens.weight":
        weight = dict(engine.model.named_parameters())[name]
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * weight.data.std()
    else:
        engine.drop_tensor(name)
    assert alarms(learner, engine.batch()) == {Cause.DROPPED_TENSOR}


def merged(share: float, seed: int) -> Callable[[list[int], list[float]], tuple[list[int], list[float]]]:
    """Return a response as if it had been decoded and encoded again: two tokens become one, and later log-probs
    belong to other tokens."""
    rng = np.random.default_rng(seed)

    def tamper(ids: list[int], logprobs: list[float]) -> tuple[list[int], list[float]]:
        if rng.random() >= share:
            return ids, logprobs
        at = int(rng.integers(1, len(ids) - 3))
        return [*ids[:at], int(rng.integers(4, 100)), *ids[at + 2 :]], logprobs[:-1]

    return tamper


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_retokenised_responses_are_told_however_many_they_are(learner: PolicyLearner, seed: int, share: float) -> None:
    engine = Engine(learner, seed)
    assert alarms(learner, engine.batch(merged(share, seed))) == {Cause.RETOKENISATION}


def test_one_wrong_token_in_a_few_responses_is_told(learner: PolicyLearner, seed: int) -> None:
    engine, rng = Engine(learner, seed), np.random.default_rng(seed)

    def other_token(ids: list[int], logprobs: list[float]) -> tuple[list[int], list[float]]:
        at = int(rng.integers(0, len(ids)))
        return ([*ids[:at], int(rng.integers(4, 100)), *ids[at + 1 :]] if rng.random() < 0.2 else ids), logprobs

    assert alarms(learner, engine.batch(other_token)) == {Cause.RETOKENISATION}


# --- the monitor -----------------------------------------------------------------------------------------------------


def noise(level: float, *, count: int = 400, lag: int = 0, oldest: int = 0) -> MismatchTokens:
    rng = np.random.default_rng(3)
    return MismatchTokens(
        logprob_N=rng.normal(-2, 1, count),
        difference_N=rng.normal(0, level, count),
        entropy_N=np.full(count, 2.0),
        lag_N=np.full(count, float(lag)),
        oldest_lag_N=np.full(count, float(oldest)),
    )


def test_too_few_tokens_of_lag_zero_say_nothing() -> None:
    assert MismatchMonitor().observe(noise(1.0, count=MIN_TOKENS - 1)) == {}
    assert MismatchMonitor().observe(noise(1.0, lag=1, oldest=1)) == {}
    assert MismatchMonitor().observe(noise(1.0, count=MIN_TOKENS)) != {}


def test_tokens_whose_response_was_begun_by_an_older_policy_are_no_floor() -> None:
    """Their weights are new, but the engine's cache has older ones."""
    monitor = MismatchMonitor()
    assert monitor.observe(noise(1.0, lag=0, oldest=1)) == {}
    assert monitor.floor == Floor()


def test_what_is_normal_is_learnt_from_steps_in_order() -> None:
    monitor = MismatchMonitor()
    assert monitor.observe(noise(1e-5)) == {}
    assert monitor.floor.level == pytest.approx(np.abs(noise(1e-5).difference_N).mean())
    assert set(monitor.observe(noise(0.1))) == {"mismatch/alarm_stale_weights"}  # of float32 that is far too much
    assert monitor.floor.level < 1e-4
    assert MismatchMonitor().observe(noise(0.1)) == {}  # of bfloat16 it is not


def test_a_policy_that_was_seen_to_move_far_is_not_called_broken() -> None:
    tokens = noise(0.7)
    assert diagnose(tokens, Floor(level=1e-5)).cause is Cause.DROPPED_TENSOR
    assert diagnose(tokens, Floor(level=1e-5, movement=0.2)).cause is Cause.STALE_WEIGHTS


def test_its_state_is_restored() -> None:
    monitor, restored = MismatchMonitor(), MismatchMonitor()
    both = [noise(1e-5), noise(0.2, lag=1, oldest=1)]
    monitor.observe(MismatchTokens(**{f: np.concatenate([getattr(t, f) for t in both]) for f in MismatchTokens.__dataclass_fields__}))
    restored.load_state_dict(monitor.state_dict())
    assert restored.floor == monitor.floor and monitor.floor.movement > 0.01
    restored.load_state_dict({})  # of a checkpoint from before there was a monitor
    assert restored.floor == monitor.floor
