"""Engines by name and by import path: what is refused, and two engines that no product file knows."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import BaseModel, ValidationError

import actors.config
from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineError, EngineSetup, StartableAsyncEngine, StepEngine, WeightMismatch
from actors.engines import ENGINES, EngineFacts, Repeats, engine_of, environment_of, facts_of, require_methods
from actors.rollout import PooledFeatures, RolloutWorker
from actors.step_loop import start_engine
from buffers.extensions import ExtensionError
from buffers.schema import validate_groups
from jobs.config import RunConfig
from tests.actors.coroutines import run
from tests.actors.test_reference_engine import changed_model, snapshot_of
from tests.actors.test_rollout import GROUP_SIZE, MESSAGES, request_of, without_timing

REPOSITORY = Path(__file__).resolve().parents[2]

CONSTANT = '''
from actors.engine import NewTokens, require_held
from actors.engines import EngineFacts, Repeats
from buffers.records import FinishReason
from learners.forward import load_causal_lm
from learners.weights import HEAD


class Constant:
    """Answers every prompt with the same token."""

    facts = EngineFacts(repeats=Repeats.ALWAYS)

    def __init__(self, token: int = 5, forgets: str = "") -> None:
        self._token, self._forgets = token, forgets

    def start(self, setup):
        self._model = load_causal_lm(setup.model, dtype=setup.config.dtype)
        self._sampling, self._left = setup.sampling, {}

    def add(self, request):
        self._left[request.key] = request.num_left(self._sampling)

    def step(self):
        new = []
        for key in list(self._left):
            self._left[key] -= 1
            reason = None if self._left[key] else FinishReason.LENGTH
            new.append(NewTokens(key=key, token_ids=[self._token], logprobs=[0.0], finish_reason=reason))
            if reason:
                del self._left[key]
        return new

    def abort(self, keys):
        for key in keys:
            del self._left[key]

    def load(self, snapshot):
        own = dict(self._model.named_parameters())
        for name, tensor in snapshot.tensors():
            if name != self._forgets:
                own[name].data.copy_(tensor)
        require_held(snapshot, {**own, HEAD: self._model.get_output_embeddings().weight})

    def reset(self, seed, *, keep_cache=False):
        pass


class Mute(Constant):
    step = property()


def function(token):
    return token
'''

SERVED = '''
import asyncio

from actors.reference_engine import ReferenceEngine
from actors.step_loop import StepLoop


class Served(StepLoop):
    """An engine that is awaited: the reference engine, behind its own loop."""

    def __init__(self) -> None:
        self.is_started = False

    def environment(self, config):
        return {"SERVED_THREADS": str(config.threads)}

    async def start(self, setup):
        def build():
            engine = ReferenceEngine()
            engine.start(setup)
            return engine

        await asyncio.to_thread(super().__init__, build)
        self.is_started = True
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules of somebody else's, `outside_constant` and `outside_served`."""
    (tmp_path / "outside_constant.py").write_text(CONSTANT)
    (tmp_path / "outside_served.py").write_text(SERVED)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("outside_constant", "outside_served"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def config_of(engine: str, **settings: Any) -> RolloutConfig:
    return RolloutConfig(engine=engine, dtype="float32", **settings)


def make_worker(model: str, config: RolloutConfig, **options: Any) -> RolloutWorker:
    sampling = SamplingConfig(max_response_tokens=12)
    return RolloutWorker(worker_id="w", run_id="run", model=model, config=config, sampling=sampling, seed=0, **options)


# --- an engine of one's own ------------------------------------------------------------------------------------------


def test_an_outside_engine_samples_groups_resumes_them_takes_weights_and_proves_them(outside: None, tiny_model: str) -> None:
    config = config_of("outside_constant:Constant", engine_options={"token": 9})
    request = request_of(5)

    async def main() -> None:
        worker = make_worker(tiny_model, config)
        await worker.start()
        update = await worker.update(snapshot_of(changed_model(tiny_model), version=3))
        assert update.version == 3
        batch, _ = await worker.generate(request, MESSAGES)
        validate_groups(batch, GROUP_SIZE)
        assert batch.column("response_ids").to_pylist() == [[9] * 12] * GROUP_SIZE
        assert batch.column("version_values").to_pylist() == [[3]] * GROUP_SIZE
        pool, _ = await worker.sample_pool(request, MESSAGES, 7)
        assert pool.column("response_ids").equals(batch.column("response_ids"))

        unfinished = batch.slice(0, 1)
        cut = {"response_ids": [[9] * 5], "behavior_logprobs": [[0.0] * 5], "finish_reason": ["aborted"]}
        for name, values in cut.items():
            field = batch.schema.field(name)
            unfinished = unfinished.set_column(batch.schema.get_field_index(name), field, pa.array(values, field.type))
        _, usage = await worker.generate(request, MESSAGES, unfinished)
        assert (usage.resumed_tokens, usage.response_tokens) == (5, 12 * GROUP_SIZE)
        await worker.close()

    run(main())


def test_an_outside_engine_that_keeps_an_old_tensor_is_found_out(outside: None, tiny_model: str) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    config = config_of("outside_constant:Constant", engine_options={"forgets": name})

    async def main() -> None:
        worker = make_worker(tiny_model, config)
        await worker.start()
        with pytest.raises(WeightMismatch, match=f"version 1 the engine does not hold tensor {name}"):
            await worker.update(snapshot_of(changed_model(tiny_model)))
        with pytest.raises(EngineError):
            await worker.generate(request_of(5), MESSAGES)

    run(main())


def test_an_outside_engine_that_is_awaited_is_started_in_the_event_loop(outside: None, tiny_model: str) -> None:
    async def sampled(engine: str) -> pa.RecordBatch:
        worker = make_worker(tiny_model, config_of(engine), features=PooledFeatures())
        await worker.start()
        batch, _ = await worker.generate(request_of(5), MESSAGES)
        await worker.close()
        return without_timing(batch)

    assert run(sampled("outside_served:Served")).equals(run(sampled("transformers")))
    assert environment_of(config_of("outside_served:Served", threads=3)) == {"SERVED_THREADS": "3"}


# --- what is refused, in one line ------------------------------------------------------------------------------------


def refusal(engine: str, *, asks: dict[str, bool] | None = None, **settings: Any) -> str:
    with pytest.raises(ExtensionError) as refused:
        require_methods(config_of(engine, **settings), **(asks or {}))
    line = str(refused.value)
    assert "\n" not in line and engine in line
    return line


def test_a_wrong_path_or_class_or_option_is_one_line_with_the_key(outside: None) -> None:
    assert "there is no module nowhere" in refusal("nowhere:Engine")
    assert "has no Constand; did you mean 'Constant'?" in refusal("outside_constant:Constand")
    assert "Mute has no step; an engine needs start, add, step, abort, load, reset" in refusal("outside_constant:Mute")
    assert "function has no start" in refusal("outside_constant:function")
    line = refusal("outside_constant:Constant", engine_options={"tokens": 5})
    assert "rollout.engine_options = {'tokens': 5}: got an unexpected keyword argument 'tokens'" in line
    for found in (refusal("nowhere:Engine"), line):
        assert found.startswith('rollout.engine = "')


def test_a_misspelt_name_is_refused_with_the_nearest_and_a_known_engine_takes_no_options() -> None:
    with pytest.raises(
        ValidationError, match=r"did you mean 'vllm-async'\? Known: vllm, vllm-async, transformers, prefix-tree; or an import path"
    ):
        RolloutConfig(engine="vllm-asynk")
    with pytest.raises(ValidationError, match=r'engine_options are for an engine of your own, and engine = "vllm" takes none'):
        RolloutConfig(engine_options={"token": 5})


def test_what_an_engine_does_not_promise_is_refused_where_it_is_needed(outside: None) -> None:
    require_methods(config_of("outside_constant:Constant"), deterministic=True)
    require_methods(config_of("outside_served:Served"))
    line = refusal("outside_served:Served", asks={"deterministic": True})
    assert "deterministic = true contradicts" in line and 'set the engine to "vllm" or "transformers" or "prefix-tree"' in line
    assert "returns no hidden states" in refusal("outside_constant:Constant", asks={"pool_states": True})
    line = refusal("outside_constant:Constant", weight_transfer="nccl", num_gpus=1)
    assert 'it needs rollout.engine = "vllm-async" and rollout.num_gpus above 0, here "outside_constant:Constant" and 1' in line


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_of_known_engines_need_neither_torch_nor_an_engine() -> None:
    code = (
        "import sys; from actors.config import RolloutConfig; from actors.engines import ENGINES, facts_of\n"
        "[facts_of(RolloutConfig(engine=name)) for name in ENGINES]\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "vllm", "transformers", "ray", "numpy"} & set(done.stdout.split())


def test_facts_of_an_outside_engine_are_its_own_or_promise_nothing(outside: None) -> None:
    assert facts_of(config_of("outside_constant:Constant")).repeats is Repeats.ALWAYS
    assert facts_of(config_of("outside_served:Served")) == EngineFacts()
    assert EngineFacts().repeats is Repeats.NEVER and not EngineFacts().pools_states


def test_groups_are_isolated_unless_the_engine_always_repeats(outside: None) -> None:
    def isolates(engine: str, *, deterministic: bool = True) -> bool:
        return RunConfig.model_validate({"deterministic": deterministic, "rollout": {"engine": engine}}).isolates_groups

    assert isolates("vllm") and not isolates("transformers") and not isolates("outside_constant:Constant")
    assert not isolates("vllm", deterministic=False)
    assert not isolates("nowhere:Engine", deterministic=False), "nothing is imported where nothing is asked"


@pytest.mark.parametrize("name", ENGINES)
def test_a_known_engine_has_the_methods_that_its_facts_promise(name: str) -> None:
    config = config_of(name, threads=3)
    require_methods(config)
    engine: Any = engine_of(config)
    if isinstance(engine, StepEngine):
        assert hasattr(engine, "take_states") == facts_of(config).pools_states
        assert facts_of(config).weight_transfers == {"object_store"}, "a StepLoop takes weights from host memory only"
    else:
        expected = {name for name, _ in inspect.getmembers(StartableAsyncEngine) if not name.startswith("_")}
        assert expected <= set(dir(engine))


def test_each_vllm_engine_says_whether_its_process_has_children() -> None:
    in_process, own_process = (environment_of(config_of(name, threads=3)) for name in ("vllm", "vllm-async"))
    assert (in_process["VLLM_ENABLE_V1_MULTIPROCESSING"], own_process["VLLM_ENABLE_V1_MULTIPROCESSING"]) == ("0", "1")
    assert in_process["OMP_NUM_THREADS"] == own_process["OMP_NUM_THREADS"] == "3"
    assert environment_of(config_of("transformers")) == {}


def test_the_sockets_of_an_engine_have_short_names_however_long_tmpdir_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Unix socket's name 107 characters are allowed, and vLLM calls its sockets by an id of 36."""
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 120)
    assert all(len(environment_of(config_of(name))["VLLM_RPC_BASE_PATH"]) <= 107 - 37 for name in ("vllm", "vllm-async"))


def test_an_engine_that_cannot_start_says_why(outside: None, tmp_path: Path) -> None:
    setup = EngineSetup(model=str(tmp_path), config=config_of("outside_constant:Constant"), sampling=SamplingConfig(), seed=0)
    with pytest.raises(Exception, match=str(tmp_path)):
        run(start_engine(setup))


def test_every_key_of_the_actors_has_a_text_in_the_schema() -> None:
    models = [
        model for _, model in inspect.getmembers(actors.config, inspect.isclass) if issubclass(model, BaseModel) and model is not BaseModel
    ]
    assert len(models) > 5
    assert [f"{model.__name__}.{key}" for model in models for key, field in model.model_fields.items() if not field.description] == []
