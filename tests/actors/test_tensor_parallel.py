"""Real vLLM engines that divide a model among two ranks, each a process: what they sample, weights in flight, the proof
over both ranks, and what is left when a process is killed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineError, EngineSetup, Sample, SampleRequest, WeightMismatch
from actors.rollout import RolloutWorker
from jobs.processes.build import launch, ray_session
from jobs.processes.description import rollout_worker
from learners.forward import load_causal_lm
from learners.weights import HEAD, WeightSnapshot
from tests.actors.real_engine import EMBEDDING, MAX_SEQUENCES, perturbed_model, snapshot_of, vllm_engine
from tests.actors.test_vllm_engine import differences, finish
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RANKS = 2
CACHE = {"kv_cache_memory_bytes": 32 << 20}
SAMPLING = SamplingConfig(max_prompt_tokens=80, max_response_tokens=12)
PROMPTS = {str(n): list(range(4 + n, 50 + n)) for n in range(6)}
TOLERANCE = 1e-4
"""Bound of mean log-prob differences, float32 against float32."""
WAIT_S = 240.0  # bounds every wait


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("divisible"), head_dim=32)


@pytest.fixture(scope="module")
def engine(model_path: str) -> Iterator[Any]:
    with vllm_engine(model_path, SAMPLING, rollout={"tensor_parallel": RANKS, "engine_args": CACHE}, pool_states=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def original(model_path: str) -> Any:
    return load_causal_lm(model_path, dtype="float32")


@pytest.fixture(scope="module")
def changed(model_path: str) -> Any:
    """The model with every weight changed."""
    return perturbed_model(model_path, 0.05)


def sampled(engine: Any, tag: str, *, seed: int) -> dict[str, Sample]:
    engine.reset(seed)
    for key, prompt_ids in PROMPTS.items():
        engine.add(SampleRequest(key=f"{tag}/{key}", prompt_ids=prompt_ids))
    return finish(engine)


def whole(samples: dict[str, Sample]) -> dict[str, slice]:
    return {key: slice(0, len(sample.token_ids)) for key, sample in samples.items()}


# --- killed processes, before the engine that the other tests share -------------------------------------------------


def setup_of(model_path: str, engine: str) -> tuple[RolloutConfig, SamplingConfig]:
    config = RolloutConfig(engine=engine, dtype="float32", max_sequences=MAX_SEQUENCES, tensor_parallel=RANKS, engine_args=CACHE)
    return config, SamplingConfig(max_prompt_tokens=80, max_response_tokens=400)


@pytest.fixture
def environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def ranks_among(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if "Worker_TP" in process.name()]


def test_async_llm_takes_weights_in_flight_and_says_when_a_rank_died(
    environment: None, model_path: str, original: Any, changed: Any
) -> None:
    async def main() -> list[psutil.Process]:
        from actors.vllm_engine import AsyncVllmEngine

        config, sampling = setup_of(model_path, "vllm-async")
        others = psutil.Process().children(recursive=True)
        engine = AsyncVllmEngine()
        await engine.start(EngineSetup(model=model_path, config=config, sampling=sampling, seed=0))
        processes = [process for process in psutil.Process().children(recursive=True) if process not in others]
        try:
            assert len(ranks_among(processes)) == RANKS
            await engine.load(snapshot_of(original, 1))
            running = asyncio.create_task(engine.sample("a", PROMPTS["0"]))
            await engine.wait_for_tokens(3)
            await engine.load(snapshot_of(changed, 2))
            await engine.wait_for_tokens(engine.sampled_tokens + 3)
            progress = await engine.partials(["a"])
            assert progress.samples["a"].version_values == (1, 2)
            ranks_among(processes)[1].kill()
            with pytest.raises(EngineError, match="the engine failed"):
                await running
        finally:
            engine.close()
        return processes

    processes = asyncio.run(asyncio.wait_for(main(), WAIT_S))
    assert not psutil.wait_procs([process for process in processes if is_of_an_engine(process)], timeout=WAIT_S)[1]


def is_of_an_engine(process: psutil.Process) -> bool:
    try:
        return "VLLM" in process.name()
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("engine", ["vllm", "vllm-async"])
def test_the_ranks_end_with_an_actor_that_is_killed(model_path: str, engine: str) -> None:
    config, sampling = setup_of(model_path, engine)

    async def main() -> None:
        handle = launch(rollout_worker("rollout-0", config, sampling, model=model_path, run_id="run", seed=0))
        await handle.call(RolloutWorker.start, timeout_s=WAIT_S, waiting_for="the worker to start")
        actor = next(process for process in psutil.Process().children(recursive=True) if "RolloutWorker" in " ".join(process.cmdline()))
        processes = actor.children(recursive=True)
        assert len(ranks_among(processes)) == RANKS
        actor.kill()
        alive = (await asyncio.to_thread(psutil.wait_procs, processes, timeout=60))[1]
        assert not alive, f"{[process.name() for process in alive]} outlive their actor"

    with ray_session("test-ranks", []):
        asyncio.run(asyncio.wait_for(main(), WAIT_S + 90))


# --- what the ranks sample and hold together -------------------------------------------------------------------------


def test_two_ranks_sample_what_one_samples(engine: Any, model_path: str, original: Any) -> None:
    with vllm_engine(model_path, SAMPLING, rollout={"engine_args": CACHE}) as alone:
        alone.load(snapshot_of(original, 1))
        expected = sampled(alone, "one", seed=3)
    engine.load(snapshot_of(original, 1))
    found = sampled(engine, "two", seed=3)
    assert {key: sample.token_ids for key, sample in found.items()} == {key: sample.token_ids for key, sample in expected.items()}
    for key, sample in found.items():
        np.testing.assert_allclose(sample.logprobs, expected[key].logprobs, atol=TOLERANCE)
        assert sample.state_mean is not None and sample.state_mean.shape == (128,)
    assert differences(found, PROMPTS, original, whole(found)).mean() < TOLERANCE


def test_requests_go_on_under_weights_that_both_ranks_have_taken_in_flight(engine: Any, original: Any, changed: Any) -> None:
    engine.load(snapshot_of(original, 2))
    engine.reset(5)
    for key, prompt_ids in PROMPTS.items():
        engine.add(SampleRequest(key=f"in flight/{key}", prompt_ids=prompt_ids))
    for _ in range(7):
        engine.step()
    before = {key: len(sample.token_ids) for key, sample in engine.partials([f"in flight/{key}" for key in PROMPTS]).items()}
    assert len(PROMPTS) <= MAX_SEQUENCES and sum(map(bool, before.values())) > 1  # what had ended by then is not among them
    engine.load(snapshot_of(changed, 3))
    found = {key: sample for key, sample in finish(engine).items() if f"in flight/{key}" in before}
    assert len(found) == len(before)
    for key, sample in found.items():
        starts, versions = ((0, before[f"in flight/{key}"]), (2, 3)) if before[f"in flight/{key}"] else ((0,), (3,))
        assert (sample.version_starts, sample.version_values) == (starts, versions)
    old = {key: slice(0, before[f"in flight/{key}"]) for key in found}
    assert differences(found, PROMPTS, original, old).mean() < TOLERANCE
    engine.load(snapshot_of(changed, 4))
    after = sampled(engine, "after", seed=6)
    assert differences(after, PROMPTS, changed, whole(after)).mean() < TOLERANCE
    assert differences(after, PROMPTS, original, whole(after)).mean() > 0.1


def held(engine: Any, snapshot: WeightSnapshot) -> list[dict[str, Any]]:
    shapes = {spec.name: spec.shape for spec in snapshot.index}
    return engine._engine._engine.collective_rpc("held_weights", args=(shapes, True, snapshot.version))


def test_each_rank_shows_its_part_of_every_tensor(engine: Any, original: Any) -> None:
    snapshot = snapshot_of(original, 5)
    engine.load(snapshot)
    first, second = held(engine, snapshot)
    assert first.keys() == second.keys() == snapshot.fingerprint.keys() >= {HEAD, EMBEDDING}
    places = {name: [[part[:2] for part in rank[name]] for rank in (first, second)] for name in first}
    layer = "model.layers.1."
    assert places[EMBEDDING] == places[HEAD] == [[(0, 0)], [(64, 0)]]
    assert places[f"{layer}self_attn.q_proj.weight"] == [[(0, 0)], [(64, 0)]]
    assert places[f"{layer}self_attn.v_proj.weight"] == places[f"{layer}mlp.up_proj.weight"] == [[(0, 0)], [(32, 0)]]
    assert places[f"{layer}self_attn.o_proj.weight"] == [[(0, 0)], [(0, 64)]]
    assert places["model.norm.weight"] == [[(0, 0)], [(0, 0)]] and first["model.norm.weight"] == second["model.norm.weight"]


# --- a rank that does not take the weights ---------------------------------------------------------------------------


def let_rank_1_miss_the_update(worker: Any) -> None:
    if worker.rank == 1:
        worker.load_weights_from = lambda source: None


def let_rank_1_spoil_a_row(worker: Any) -> None:
    load = worker.load_weights_from

    def load_and_spoil(source: str) -> None:
        load(source)
        worker.model_runner.get_model().model.embed_tokens.weight[7] += 1.0

    if worker.rank == 1:
        worker.load_weights_from = load_and_spoil


def let_both_load(worker: Any) -> None:
    vars(worker).pop("load_weights_from", None)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (let_rank_1_miss_the_update, r"the engine \(rank 1\) does not hold tensor model\.layers\.0\.input_layernorm\.weight"),
        (let_rank_1_spoil_a_row, rf"the engine \(its 2 ranks together\) does not hold tensor {EMBEDDING}"),
    ],
)
def test_a_rank_without_the_new_weights_is_found(engine: Any, original: Any, changed: Any, fault: Any, named: str) -> None:
    vllm = engine._engine._engine
    engine.load(snapshot_of(original, 6))
    vllm.collective_rpc(fault)
    try:
        with pytest.raises(WeightMismatch, match=f"after loading version 7 {named}") as found:
            engine.load(snapshot_of(changed, 7))
        print(found.value)
    finally:
        vllm.collective_rpc(let_both_load)
    engine.load(snapshot_of(changed, 8))
