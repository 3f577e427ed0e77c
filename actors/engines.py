"""The inference engines: the known ones, the facts about each, and engines of your own.

    [rollout]
    engine = "vllm"                          # a known name
    engine = "mypackage.engines:MyEngine"    # a class of your own, with the methods of `actors.engine.StepEngine`
    engine_options = { token = 5 }           # the table that this class is made with

    require_methods(config)                  # in the driver, before anything starts
    engine = engine_of(config)               # in the worker: made, not yet started
    facts = facts_of(config)                 # what the rest of the system asks about it

This module imports neither torch nor any engine, so a configuration can be checked without them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from buffers.extensions import ExtensionError, load

if TYPE_CHECKING:
    from actors.config import RolloutConfig
    from actors.engine import StartableAsyncEngine, StepEngine

STEP_METHODS = ("start", "add", "step", "abort", "load", "reset")
ASYNC_METHODS = ("start", "sample", "sample_batch", "partials", "wait_for_tokens", "abort", "load", "take_idle_s", "close")


class Repeats(StrEnum):
    """When an engine samples the same responses again under the same weights."""

    NEVER = "never"  # samples depend on timing
    ALONE = "alone"  # a batch is the same each time if it has the engine to itself and follows `reset` with the same seed
    ALWAYS = "always"  # a response depends on the engine's seed and its own request only (`actors.rollout.request_keys`)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFacts:
    """What others must know about an engine before it runs. The defaults promise nothing. Your own may set `facts`."""

    repeats: Repeats = Repeats.NEVER  # `deterministic = true` needs ALONE or ALWAYS
    weight_transfers: frozenset[str] = frozenset({"object_store"})  # the values of `rollout.weight_transfer` that it supports
    divides: bool = False  # whether it can divide a model among several processes (`rollout.tensor_parallel`)
    pools_states: bool = False  # whether it can return hidden states (`actors.engine.StatePooling`)
    truncates: bool = False  # whether it knows `sampling.top_p` and `sampling.top_k`
    memory_gib: float = 0.7  # host memory that it takes beside weights and cache, over that of a process with torch


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownEngine:
    """An engine that comes with the project: the import path of its class, and its facts."""

    path: str
    facts: EngineFacts


ENGINES: dict[str, KnownEngine] = {
    "vllm": KnownEngine(
        path="actors.vllm_engine:VllmEngine",
        facts=EngineFacts(repeats=Repeats.ALONE, divides=True, pools_states=True, truncates=True),
    ),
    "vllm-async": KnownEngine(
        path="actors.vllm_engine:AsyncVllmEngine",
        facts=EngineFacts(weight_transfers=frozenset({"object_store", "nccl", "ipc"}), divides=True, pools_states=True, truncates=True),
    ),
    "transformers": KnownEngine(
        path="actors.reference_engine:ReferenceEngine", facts=EngineFacts(repeats=Repeats.ALWAYS, pools_states=True, memory_gib=0.0)
    ),
    "prefix-tree": KnownEngine(path="actors.tree_engine:TreeEngine", facts=EngineFacts(repeats=Repeats.ALONE, pools_states=True)),
}

VLLM = ("vllm", "vllm-async")
"""The engines that take `rollout.engine_args`."""


def engine_of(config: RolloutConfig) -> StepEngine | StartableAsyncEngine:
    """Import and make the engine that `config` names. It is cheap until it is started. Raises ExtensionError."""
    known = ENGINES.get(config.engine)
    engine: StepEngine | StartableAsyncEngine = load(known.path if known else config.engine, config.engine_options, key="rollout.engine")
    methods = ASYNC_METHODS if hasattr(engine, "sample") else STEP_METHODS
    if missing := [method for method in methods if not hasattr(engine, method)]:
        who = f'rollout.engine = "{config.engine}": {type(engine).__name__}'
        raise ExtensionError(f"{who} has no {missing[0]}; an engine needs {', '.join(methods)}")
    return engine


def facts_of(config: RolloutConfig) -> EngineFacts:
    """Return the facts about the configured engine. Only your own is imported for this. Raises ExtensionError."""
    known = ENGINES.get(config.engine)
    return known.facts if known else getattr(engine_of(config), "facts", EngineFacts())


def environment_of(config: RolloutConfig) -> dict[str, str]:
    """Return the environment variables that a worker's process needs before it imports torch or the engine."""
    engine = engine_of(config)
    return engine.environment(config) if hasattr(engine, "environment") else {}


def require_methods(config: RolloutConfig, *, deterministic: bool = False, pool_states: bool = False) -> None:
    """Import the engine that `config` names, and check its methods and that it can do what is asked of it.
    `pool_states` asks for hidden states. Raises ExtensionError with one line."""
    engine_of(config)
    require_facts(facts_of(config), config, deterministic=deterministic, pool_states=pool_states)


def require_facts(facts: EngineFacts, config: RolloutConfig, *, deterministic: bool = False, pool_states: bool = False) -> None:
    """Raise ExtensionError where an engine with these facts cannot do what is asked of it."""
    named = f'rollout.engine = "{config.engine}"'
    if deterministic and facts.repeats is Repeats.NEVER:
        able = " or ".join(f'"{name}"' for name, known in ENGINES.items() if known.facts.repeats is not Repeats.NEVER)
        advice = f"set the engine to {able}, or deterministic to false"
        raise ExtensionError(f"deterministic = true contradicts {named}, whose samples depend on timing: {advice}")
    transfer = config.weight_transfer
    if transfer != "object_store" and (transfer not in facts.weight_transfers or config.num_gpus == 0):
        able = " or ".join(f'"{name}"' for name, known in ENGINES.items() if transfer in known.facts.weight_transfers)
        raise ExtensionError(
            f'rollout.weight_transfer = "{transfer}" takes weights from GPU to GPU: it needs rollout.engine = {able} and '
            f'rollout.num_gpus above 0, here "{config.engine}" and {config.num_gpus:g}; or set it to "object_store"'
        )
    require_divisible(facts, config)
    if pool_states and not facts.pools_states:
        advice = 'take the features from an encoder (bonus.source = "encoder"; in repexp explore features = "encoder")'
        raise ExtensionError(f"{named} returns no hidden states: {advice}")


def require_divisible(facts: EngineFacts, config: RolloutConfig) -> None:
    """Raise ExtensionError where an engine with these facts is to be divided among ranks and cannot."""
    if config.tensor_parallel > 1 and not facts.divides:
        able = " or ".join(f'"{name}"' for name, known in ENGINES.items() if known.facts.divides)
        asked = f'rollout.tensor_parallel = {config.tensor_parallel} contradicts rollout.engine = "{config.engine}"'
        raise ExtensionError(f"{asked}, which does not divide a model: set the engine to {able}, or tensor_parallel to 1")
