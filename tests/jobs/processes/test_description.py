"""The one description of each component: it fits the class, and says what the process needs."""

from __future__ import annotations

import inspect
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from actors.config import ScorerConfig
from jobs.config import RunConfig
from jobs.processes.description import Component, TrainingComponents, needs_of_run, scorer
from learners.placement import Placement

MAKERS: dict[str, Callable[[TrainingComponents], Component[Any]]] = {
    "rollout worker": lambda components: components.rollout_worker(1),
    "evaluation worker": lambda components: components.evaluation_worker(),
    "encoder": lambda components: components.encoder(2),
    "learner": lambda components: components.learner(),
    "learner rank": lambda components: components.learner_rank(1),
    "bonus": lambda components: components.bonus(),
    "verifier": lambda components: components.verifier(),
    "replay": lambda components: components.replay(),
}


def described(name: str, **values: Any) -> Component[Any]:
    config = RunConfig.model_validate(values)
    return MAKERS[name](TrainingComponents(config, "a-model", run_id="r", log_directory="logs"))


@pytest.mark.parametrize("name", MAKERS)
def test_arguments_fit_the_class_in_this_process_and_across_processes(name):
    component = described(name)
    signature = inspect.signature(component.cls)
    signature.bind(*component.args, **component.kwargs)
    signature.bind(*component.args, **component.kwargs, **component.across_processes)
    assert not component.kwargs.keys() & component.across_processes.keys()


@pytest.mark.parametrize("name", MAKERS)
def test_a_description_can_be_sent_to_another_process(name):
    component = described(name)
    assert pickle.loads(pickle.dumps(component)) == component


def test_an_argument_that_a_class_no_longer_takes_is_found(monkeypatch):
    """The first test fails where class and description drift apart."""
    component = described("replay")
    broken = Component(cls=component.cls, name="replay", kwargs={**component.kwargs, "no_such_argument": 1})
    with pytest.raises(TypeError, match="no_such_argument"):
        inspect.signature(broken.cls).bind(*broken.args, **broken.kwargs)


@pytest.mark.parametrize(("role", "name"), [("learner", "learner"), ("encoder", "encoder")])
def test_a_role_gets_its_threads_and_its_device(role, name):
    on_cpu = described(name, **{role: {"threads": 3}})
    assert on_cpu.environment["OMP_NUM_THREADS"] == "3" and on_cpu.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert (on_cpu.needs.num_gpus, on_cpu.kwargs["device"]) == (0, "cpu")
    on_gpu = described(name, **{role: {"num_gpus": 1}})
    assert (on_gpu.needs.num_gpus, on_gpu.kwargs["device"]) == (1, "cuda")


def test_who_reads_the_run_directory_is_on_the_drivers_node():
    assert {name for name in MAKERS if described(name).needs.on_this_node} == {"bonus", "replay"}


def test_a_buffer_is_reused_only_where_results_are_copied():
    """A learner in this process would overwrite weights that others still hold."""
    assert "reuse_snapshot_buffer" not in described("learner").kwargs
    assert described("learner").across_processes == {"reuse_snapshot_buffer": True}


def test_workers_differ_by_seed_unless_samples_are_a_function_of_requests():
    def seeds(**values: Any) -> list[int]:
        components = TrainingComponents(RunConfig.model_validate(values), "m", run_id="r", log_directory="logs")
        return [components.rollout_worker(number).kwargs["seed"] for number in range(3)]

    assert len(set(seeds(rollout={"engine": "vllm"}))) == 3
    assert seeds(rollout={"engine": "transformers"}, seed=4) == [4, 4, 4]
    assert seeds(rollout={"engine": "vllm"}, deterministic=True, seed=4) == [4, 4, 4]


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("rollout", {"rollout worker", "evaluation worker"}),
        ("learner", {"learner", "learner rank"}),
        ("encoder", {"encoder"}),
        ("verifier", {"verifier"}),
    ],
)
def test_a_role_is_placed_as_its_section_says_and_no_other_is(section, names):
    placement = {"accelerator_type": "L4", "label_selector": {"zone": "a"}, "resources": {"fast_disk": 2}}
    found = {name: described(name, **{section: {"placement": placement}}).needs.placement.model_dump() for name in MAKERS}
    assert {name for name, placed in found.items() if placed == placement} == names
    assert all(placed == Placement().model_dump() for name, placed in found.items() if name not in names)


def test_a_run_needs_room_for_every_process_that_it_starts():
    def numbers(**values: Any) -> Counter[str]:
        return Counter(needs.role for needs in needs_of_run(RunConfig.model_validate(values)))

    alone = {"rollout": 1, "learner": 1, "encoder": 1, "verifier": 1, "replay and bonus": 2}
    assert numbers() == alone
    assert numbers(bonus={"enabled": False}) == {"rollout": 1, "learner": 1, "verifier": 1, "replay and bonus": 1}
    assert numbers(evaluation={"every": 5}, learner={"ranks": 3}) == {**alone, "rollout": 2, "learner": 3}


def test_the_scorer_is_described_too():
    component = scorer(ScorerConfig(threads=2), model="m")
    inspect.signature(component.cls).bind(*component.args, **component.kwargs)
    assert component.environment["OMP_NUM_THREADS"] == "2"
