"""`rollout.engine_args`, `rollout.tensor_parallel` and `rollout.max_model_len`: what reaches vLLM, and what is refused
in one line, whether or not vLLM is installed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineSetup
from actors.engines import EngineFacts, require_facts
from actors.vllm_arguments import GIVEN, OTHER_DIVISIONS, SET_BY_KEYS, require_known, vllm_arguments
from actors.vllm_engine import engine_arguments
from buffers.extensions import ExtensionError
from jobs import evaluate, explore, train
from jobs.config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[2]
needs_vllm = pytest.mark.skipif(vllm_arguments() is None, reason="vLLM is not installed")


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    vllm_arguments.cache_clear()
    monkeypatch.setattr(vllm_arguments.__wrapped__.__globals__["importlib"].util, "find_spec", lambda name: None)
    yield
    vllm_arguments.cache_clear()


def arguments_of(**settings: Any) -> dict[str, Any]:
    sampling = SamplingConfig(max_prompt_tokens=80, max_response_tokens=20)
    return engine_arguments(EngineSetup(model="m", config=RolloutConfig(**settings), sampling=sampling, seed=0))


def refusal(**settings: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        RolloutConfig(**settings)
    (error,) = refused.value.errors()
    assert "\n" not in error["msg"]
    return error["msg"]


# --- what reaches vLLM -----------------------------------------------------------------------------------------------


def test_arguments_reach_vllm_as_they_are_and_before_the_project_s_own() -> None:
    table = {"quantization": "fp8", "enforce_eager": False, "hf_overrides": {"rope_theta": 1e6}}
    found = arguments_of(engine_args=table)
    assert {name: found[name] for name in table} == table
    assert arguments_of()["enforce_eager"] is True and "quantization" not in arguments_of()


def test_one_rank_is_left_to_vllm_and_more_are_processes_of_the_worker_that_share_the_cache() -> None:
    alone, divided = arguments_of(kv_cache_gib=3), arguments_of(kv_cache_gib=3, tensor_parallel=3)
    assert "tensor_parallel_size" not in alone and alone["kv_cache_memory_bytes"] == 3 << 30
    assert (divided["tensor_parallel_size"], divided["distributed_executor_backend"]) == (3, "mp")
    assert divided["kv_cache_memory_bytes"] == 1 << 30
    assert arguments_of(tensor_parallel=2, num_gpus=2)["tensor_parallel_size"] == 2


def test_the_longest_sequence_is_what_sampling_allows_unless_it_is_given() -> None:
    assert (arguments_of()["max_model_len"], arguments_of(max_model_len=64)["max_model_len"]) == (100, 64)


@needs_vllm
def test_the_names_are_those_of_the_installed_vllm_and_reading_them_does_not_import_it() -> None:
    code = (
        "import sys; from actors.vllm_arguments import vllm_arguments as f; print(len(f()), 'vllm' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[1:] == ["False", "False"]
    known = vllm_arguments()
    assert known is not None and {*SET_BY_KEYS, *GIVEN, *arguments_of()} <= known
    assert all(any(name.startswith(division) for name in known) for division in OTHER_DIVISIONS)


@needs_vllm
@pytest.mark.engine
def test_the_names_that_are_read_are_those_that_the_class_has() -> None:
    from vllm import EngineArgs

    assert vllm_arguments() == {field.name for field in dataclasses.fields(EngineArgs)}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SET_BY_KEYS)
def test_what_a_key_says_is_not_said_twice(name: str) -> None:
    assert f"engine_args.{name}: this is what the key {SET_BY_KEYS[name]} says" in refusal(engine_args={name: 1})


@pytest.mark.parametrize("name", ["logprobs_mode", "worker_extension_cls", "pipeline_parallel_size", "data_parallel_rank", "nnodes"])
def test_what_the_proof_depends_on_is_not_given(name: str) -> None:
    assert f"engine_args.{name}: " in refusal(engine_args={name: 1})


def test_a_training_run_takes_no_quantized_engine() -> None:
    with pytest.raises(ValidationError, match=r"rollout\.engine_args\.quantization: an engine must hold the learner's weights"):
        RunConfig.model_validate({"rollout": {"engine_args": {"quantization": "fp8"}}})


def test_arguments_of_vllm_are_for_vllm() -> None:
    assert 'engine_args are for vLLM, and engine = "transformers"' in refusal(engine="transformers", engine_args={"quantization": "fp8"})


@pytest.mark.parametrize("engine", ["transformers", "prefix-tree"])
def test_an_engine_in_one_process_is_not_divided(engine: str) -> None:
    line = refusal(engine=engine, tensor_parallel=2)
    assert f'rollout.tensor_parallel = 2 contradicts rollout.engine = "{engine}"' in line and '"vllm" or "vllm-async"' in line
    with pytest.raises(ExtensionError, match=r"tensor_parallel = 2 contradicts rollout.engine = \"own:Engine\""):
        require_facts(EngineFacts(), RolloutConfig(engine="own:Engine", tensor_parallel=2))
    require_facts(EngineFacts(divides=True), RolloutConfig(engine="own:Engine", tensor_parallel=2))


def test_ranks_have_a_gpu_each_or_none_and_weights_that_reach_all_of_them() -> None:
    assert "set num_gpus to 4, or to 0" in refusal(tensor_parallel=4, num_gpus=1)
    line = refusal(engine="vllm-async", tensor_parallel=2, num_gpus=2, weight_transfer="nccl")
    assert 'set weight_transfer to "object_store"' in line


@needs_vllm
def test_a_name_that_vllm_does_not_have_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ExtensionError, match=r"^rollout\.engine_args\.quantisation: vLLM has no such argument; did you mean 'quantization'\?$"
    ):
        require_known({"quantisation": "fp8"})
    require_known({"quantization": "fp8"})


def test_without_vllm_here_a_name_is_left_to_the_engine(without_vllm: None) -> None:
    assert vllm_arguments() is None
    require_known({"quantisation": "fp8"})


def test_a_vllm_that_keeps_its_arguments_elsewhere_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm" / "engine").mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").touch()
    (tmp_path / "vllm" / "engine" / "arg_utils.py").write_text("from elsewhere import EngineArgs")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    assert vllm_arguments.__wrapped__() is None


COMMANDS = {
    "train": lambda model, out, sets: train.main(["configs/quickstart.toml", *sets, "--set", f"model={model}", "--set", f"run_dir={out}"]),
    "explore": lambda model, out, sets: explore.main(["--model", model, "--task", "arithmetic", "--out", out, *sets]),
    "evaluate": lambda model, out, sets: evaluate.main(["--model", model, "--task", "arithmetic", "--out", out, *sets]),
}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jobs.run.session", "jobs.sampling.explore_session", "jobs.sampling.evaluate_session"):
        monkeypatch.setattr(f"{module}.ray_session", lambda *args: pytest.fail("Ray was started"))


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["", "dry run"])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("rollout.tensor_parallel=3", "rollout.tensor_parallel = 3 does not divide num_attention_heads = 4 of model"),
        ("rollout.max_model_len=600", "rollout.max_model_len = 600 exceeds the 512 tokens that model"),
        ("rollout.max_model_len=8", "allows 8 (rollout.max_model_len)"),
        pytest.param("rollout.engine_args.quantisation=fp8", "did you mean 'quantization'?", marks=needs_vllm),
        ("rollout.engine_args.tensor_parallel_size=2", "what the key rollout.tensor_parallel says"),
    ],
)
def test_every_job_refuses_it_before_anything_starts(
    no_ray: None,
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    more: list[str],
    setting: str,
    line: str,
) -> None:
    monkeypatch.setattr("jobs.train.available_memory_gib", lambda: 1000.0)  # what this machine has to spare does not count
    assert COMMANDS[command](tiny_model, str(tmp_path / "out"), ["--set", setting, *more]) == 2
    (found,) = capsys.readouterr().err.strip().splitlines()
    assert found.startswith("error: ") and line in found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_heads_of_keys_and_values_may_be_fewer_than_ranks(num_ranks: int) -> None:
    from jobs.configuration.user_error import UserError
    from jobs.plan import require_divisible_model

    values = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 8}
    require_divisible_model("m", values, num_ranks)
    require_divisible_model("m", {"text_config": values}, num_ranks)
    with pytest.raises(UserError, match="does not divide num_key_value_heads = 3"):
        require_divisible_model("m", {**values, "num_key_value_heads": 3}, 2)
