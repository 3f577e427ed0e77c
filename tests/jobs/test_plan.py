"""The plan's numbers, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyarrow import fs
from safetensors.torch import save_file

from actors.engines import ENGINES
from bonus.base import Need
from bonus.kinds import KINDS
from buffers.rollout_log import RolloutLog
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.explore_config import ExploreConfig
from jobs.machine.look import available_memory_gib
from jobs.plan import (
    BASE_PROCESS_GIB,
    DRIVER_GIB,
    LOG_ROW_BYTES,
    LOG_TOKEN_BYTES,
    RAY_GIB,
    _num_parameters,
    explore_lines,
    make_plan,
    require_disk,
    require_memory,
)
from tests.learners.samples import make_group


@pytest.fixture
def giant(tmp_path) -> str:
    """A model directory with 2**30 parameters of two bytes each (a hole on disk)."""
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(2 * 2**30)
    return str(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_counted_whatever_bytes_each_has(tmp_path, dtype):
    save_file({"a": torch.zeros(100, 70, dtype=getattr(torch, dtype)), "b": torch.zeros(30)}, tmp_path / "model.safetensors")
    assert _num_parameters(str(tmp_path)) == 7030


def test_old_candidates_are_planned_without_engines():
    config = ExploreConfig()
    text = "\n".join(explore_lines(config, "a/pools.parquet", encodes=False))
    assert "the candidates of a/pools.parquet; nothing is sampled" in text and "those of the file" in text
    assert "engine" not in text and "encoder" not in text and "processes: 1 verifier process" in text
    again = "\n".join(explore_lines(config, "a/pools.parquet", encodes=True))
    assert "features: an encoder" in again and "1 encoder" in again


def plan_of(**values):
    return make_plan(RunConfig.model_validate(values))


def test_encoders_are_planned_for_a_bonus_that_needs_features_and_for_no_other():
    for name, processes in (("Distance", {"bonus", "encoder"}), ("AnswerCounts", {"bonus"}), ("Surprise", {"bonus"})):
        plan = plan_of(bonus={"kind": f"tests.bonus.outside:{name}"})
        assert {"bonus", "encoder"} & plan.processes.keys() == processes
    less, more = (plan_of(bonus={"kind": f"tests.bonus.outside:{name}"}).memory_gib for name in ("Surprise", "Distance"))
    assert less < more == plan_of().memory_gib


def test_a_known_bonus_without_features_plans_no_encoder():
    for kind, needs in KINDS.items():
        assert ("encoder" in plan_of(bonus={"kind": kind}).processes) == (Need.FEATURES in needs), kind
    assert "encoder" not in plan_of(bonus={"terms": [{"kind": "random"}, {"kind": "outcome_ucb"}]}).processes
    assert "encoder" in plan_of(bonus={"terms": [{"kind": "random"}, {"kind": "cosine"}]}).processes


def test_sizes_of_a_step():
    plan = plan_of(
        steps=4,
        prompts_per_step=3,
        responses_per_prompt=5,
        max_policy_lag=2,
        sampling={"max_prompt_tokens": 10, "max_response_tokens": 7},
        learner={"mini_batches": 2},
        rollout={"workers": 2},
        verifier={"num_workers": 3},
    )
    assert plan.prompts_per_step == 3
    assert plan.responses_per_step == 15
    assert plan.max_tokens_per_step == 3 * (10 + 5 * 7)  # a group's prompt counts once
    assert plan.optimiser_steps_per_step == 2
    assert plan.total_responses == 60
    assert plan.max_groups_in_flight == 9
    assert plan.processes == {
        "rollout worker": 2,
        "learner": 1,
        "replay": 1,
        "verifier pool": 1,
        "bonus": 1,
        "encoder": 1,
        "verifier process": 3,
    }


def test_plan_says_its_sizes():
    text = "\n".join(plan_of(steps=4, prompts_per_step=3, responses_per_prompt=5, max_policy_lag=2, model="someone/unknown").lines())
    assert "3 prompts x 5 responses = 15 responses" in text
    assert "4 steps, 60 responses" in text
    assert "at most 9 groups" in text
    assert "memory: unknown" in text


def test_a_plan_says_where_long_prompts_will_be_computed_once_a_response():
    sampling = {"max_prompt_tokens": 2000, "max_response_tokens": 100}
    learner = {"tokens_per_micro_batch": 2048}
    lines = plan_of(sampling=sampling, responses_per_prompt=4, learner=learner).lines()
    assert lines[-1].startswith("learner.tokens_per_micro_batch = 2048 has no room for a prompt of 2000 tokens and two responses of 100")
    assert lines[-1].endswith("2400 holds the group")
    for fits in ({"learner": {"tokens_per_micro_batch": 2400}}, {"sampling": {**sampling, "max_prompt_tokens": 99}}, {}):
        assert not [line for line in plan_of(**{"sampling": {}, **fits}).lines() if "has no room" in line]


def test_no_encoder_without_the_bonus():
    assert not {"encoder", "bonus"} & plan_of(bonus={"enabled": False}).processes.keys()


def test_no_encoder_where_the_policy_gives_the_features():
    assert "encoder" not in plan_of(bonus={"source": "policy"}).processes
    assert plan_of(encoder={"replicas": 3}).processes["encoder"] == 3


def test_memory_of_a_model_with_known_size(giant, monkeypatch):
    monkeypatch.setattr("learners.precision.cpu_has_bfloat16", lambda: True)
    learner = 2 + 16 + 2.048 + BASE_PROCESS_GIB  # bfloat16 weights; float32 masters, gradients, two moments; activations; process
    rollout = 4 + 1.0 + BASE_PROCESS_GIB + ENGINES["vllm"].facts.memory_gib  # weights and a loaded snapshot; KV cache; process
    encoder = 2 + BASE_PROCESS_GIB + BASE_PROCESS_GIB  # and the process that owns the bonus
    rest = 4 + 0.1 + RAY_GIB + DRIVER_GIB  # two published versions; a tenth of replay's cap
    assert plan_of(model=giant).memory_gib == pytest.approx(learner + rollout + encoder + rest)
    assert plan_of(model=giant, bonus={"enabled": False}).memory_gib == pytest.approx(learner + rollout + rest)
    assert plan_of(model=giant, rollout={"workers": 3}).memory_gib == pytest.approx(learner + 3 * rollout + encoder + rest)
    reference = {"loss": {"kl": {"where": "loss", "coefficient": 0.1}}}
    assert plan_of(model=giant, learner=reference).memory_gib == pytest.approx(2 + learner + rollout + encoder + rest)
    assert plan_of(model=giant, learner={"dtype": "float32"}).memory_gib == pytest.approx(2 + learner + rollout + encoder + rest)


def test_ranks_of_an_engine_share_weights_and_cache_and_are_processes(giant):
    alone, divided = (plan_of(model=giant, rollout={"tensor_parallel": ranks, "kv_cache_gib": 4}) for ranks in (1, 2))
    process_gib = BASE_PROCESS_GIB + ENGINES["vllm"].facts.memory_gib
    assert divided.memory_gib - alone.memory_gib == pytest.approx(2 * process_gib)
    assert "rollout worker (2 ranks)" in divided.processes and "1 rollout worker (2 ranks)" in "\n".join(divided.lines())


def test_ranks_of_the_learner_share_its_state(giant, monkeypatch):
    monkeypatch.setattr("learners.precision.cpu_has_bfloat16", lambda: True)
    one, two = plan_of(model=giant), plan_of(model=giant, learner={"ranks": 2})
    assert (one.processes["learner"], two.processes["learner rank"]) == (1, 2)
    assert two.memory_gib - one.memory_gib == pytest.approx(2.048 + BASE_PROCESS_GIB)  # activations and process of the second
    loading = 10 * 2 + 4  # ten times the weights, and the masters once, exceed what is trained with
    assert plan_of(model=giant, learner={"ranks": 10}).memory_gib - one.memory_gib == pytest.approx(
        loading - (2 + 16) + 9 * (2.048 + BASE_PROCESS_GIB)
    )


def test_what_a_gpu_holds_the_host_does_not(giant, monkeypatch):
    monkeypatch.setattr("learners.precision.cpu_has_bfloat16", lambda: True)
    on_cpu, on_gpus = plan_of(model=giant), plan_of(model=giant, learner={"ranks": 2, "num_gpus": 1})
    on_host = 2 * (2 + BASE_PROCESS_GIB)  # each loads the weights
    assert on_gpus.memory_gib - on_cpu.memory_gib == pytest.approx(on_host - (2 + 16 + 2.048 + BASE_PROCESS_GIB))


def test_memory_is_required_only_where_it_is_known(giant):
    plan = plan_of(model=giant)
    require_memory(plan, plan.memory_gib)
    with pytest.raises(UserError, match=rf"about {plan.memory_gib:.1f} GiB of memory and 3\.0 GiB are available"):
        require_memory(plan, 3.0)
    unknown = plan_of(model="someone/unknown")
    assert unknown.memory_gib is None
    require_memory(unknown, 0.0)


@pytest.mark.parametrize(("has_bfloat16", "limit_gib"), [(True, 12), (False, 13)])
def test_quick_start_fits_into_a_laptop(monkeypatch, has_bfloat16, limit_gib):
    monkeypatch.setattr("learners.precision.cpu_has_bfloat16", lambda: has_bfloat16)
    assert 4 < plan_of().memory_gib < limit_gib


def test_memory_of_this_machine_is_plausible(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert 0.1 < available_memory_gib() < 100_000


def test_disk_counts_every_checkpoint_that_will_be_kept(giant, monkeypatch):
    monkeypatch.setattr("learners.precision.cpu_has_bfloat16", lambda: True)
    policy, checkpoint = 2, 2 + 12  # bfloat16 weights; masters and two moments

    def disk(steps: int = 100, **values: int) -> float | None:
        return plan_of(model=giant, steps=steps, checkpoint={"every": 10, "keep": 2, **values}).disk_gib

    assert disk() == pytest.approx(3 * checkpoint + policy)
    assert disk(keep_every=20) == pytest.approx((3 + 5 - 2) * checkpoint + policy)
    assert disk(keep_every=15) == pytest.approx((3 + 3 - 2) * checkpoint + policy)  # steps 30, 60, 90
    assert disk(keep_every=200) == pytest.approx(3 * checkpoint + policy)
    assert disk(learner_every=2) == pytest.approx(5 * checkpoint + policy)


def test_disk_is_required_only_for_what_lies_on_the_run_directory_s_file_system(giant, monkeypatch, tmp_path):
    """Three checkpoints of 14 GiB, two snapshots of as much, the policy of 2."""
    monkeypatch.setattr("learners.precision.cpu_has_bfloat16", lambda: True)
    plan = plan_of(model=giant, checkpoint={"keep": 2, "learner_every": 1})
    run_dir, free = str(tmp_path / "new" / "run"), [72]
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free[0] * 2**30))
    for storage in (None, str(tmp_path / "elsewhere"), f"file://{tmp_path}/x", "s3://bucket/run", "/proc/another/file/system"):
        require_disk(plan, run_dir, storage)
    free[0] = 71
    for storage in (None, str(tmp_path / "elsewhere"), f"file://{tmp_path}/x"):
        with pytest.raises(UserError, match=r"about 72\.0 GiB .* 71\.0 GiB free"):
            require_disk(plan, run_dir, storage)
    require_disk(plan, run_dir, "s3://bucket/run")
    require_disk(plan, run_dir, "/proc/another/file/system")
    free[0] = 29
    with pytest.raises(UserError, match=r"about 30\.0 GiB .* 29\.0 GiB free"):
        require_disk(plan, run_dir, "s3://bucket/run")
    (tmp_path / "new" / "run" / "snapshots").mkdir(parents=True)
    require_disk(plan, run_dir, "s3://bucket/run")


def test_memory_of_a_cluster_is_not_this_machine_s(giant, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    require_memory(plan_of(model=giant, rollout={"workers": 1000}), available_memory_gib())


def test_plan_says_what_logs_may_take():
    caps = {"replay": {"log_max_mib": 2048}, "logs": {"events_max_mib": 512, "metrics_max_mib": 512}}
    endless = {"steps": 10**7, "sampling": {"max_prompt_tokens": 1000, "max_response_tokens": 1000}}
    assert plan_of(**endless, **caps).log_gib == 3.0
    assert plan_of(**endless, **{**caps, "replay": {"log_max_mib": 2048, "log_rollouts": False}}).log_gib == 1.0
    assert plan_of(steps=1, sampling={"max_response_tokens": 10}, **caps).log_gib == pytest.approx(2.0, abs=0.01)  # any prompt
    short = plan_of(steps=40, sampling={"max_prompt_tokens": 96, "max_response_tokens": 20})
    assert short.log_gib == 0.1
    assert "for logs about 0.1 GiB" in short.lines()[-1]


def test_a_row_of_the_rollout_log_takes_no_more_than_is_planned(tmp_path):
    """Of long responses that do not compress: random tokens and log-probs."""
    rng = np.random.default_rng(0)
    length, dim = 2000, 32
    responses = [[int(token) for token in rng.integers(0, 100_000, length)] for _ in range(8)]
    group = make_group(0, responses[0][:500], responses, [1.0] * 8, behavior=(-rng.random((8, length))).tolist())
    RolloutLog(fs.LocalFileSystem(), str(tmp_path)).append(1, [group])
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size / 8 < LOG_ROW_BYTES + LOG_TOKEN_BYTES * (500 + length) + 8 * dim


def test_adapters_need_neither_masters_nor_a_reference_and_hardly_room_for_checkpoints(giant):
    kl = {"loss": {"kl": {"where": "loss", "coefficient": 0.1}}, "dtype": "bfloat16"}
    full, adapters = (plan_of(model=giant, learner=kl | lora) for lora in ({}, {"lora": {"enabled": True}}))
    assert full.memory_gib - adapters.memory_gib == pytest.approx(16 + 2)  # masters, gradients, two moments; the reference
    assert adapters.disk_gib == pytest.approx(2)  # the final policy


def test_a_plan_without_a_limit_of_prompts_counts_responses_alone():
    plan = plan_of(prompts_per_step=3, responses_per_prompt=5, sampling={"max_response_tokens": 7})
    assert plan.max_tokens_per_step == 3 * 5 * 7 and "at most 105 response tokens" in plan.lines()[0]
    assert (
        "at most 135 tokens"
        in plan_of(prompts_per_step=3, responses_per_prompt=5, sampling={"max_prompt_tokens": 10, "max_response_tokens": 7}).lines()[0]
    )
