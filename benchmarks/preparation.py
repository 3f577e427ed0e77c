"""How long it takes to make the micro-batches of a step, beside the step itself.

    python -m benchmarks.preparation            # two shapes: that of the quick start, and one for a large GPU
    python -m benchmarks.preparation --step     # also times a step of the quick start, in float32 on one thread

It prints milliseconds, medians of some repetitions, and needs neither Ray nor vLLM.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa

from benchmarks.ranks import make_batch

QUICK_START = {"groups": 8, "group_size": 8, "prompt_tokens": 37, "response_tokens": 20}
SHAPES = {
    "quick start": (QUICK_START, 2048),
    "large": ({"groups": 64, "group_size": 8, "prompt_tokens": 200, "response_tokens": 1000}, 16384),
}
"""Of batches, and tokens of a micro-batch."""


def milliseconds(function: Callable[[], Any], repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def serialized(batch: pa.RecordBatch) -> pa.Buffer:
    """As it lies in the object store."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def prepare(learner: Any, batch: pa.RecordBatch, group_size: int, repetitions: int) -> dict[str, float]:
    """Milliseconds of each part, and MiB of what is moved to the device."""
    from learners.batches import TokenLookup, read_groups

    buffer, groups = serialized(batch), read_groups(batch, group_size)
    every = range(len(groups))
    passes = list(learner._own_micro_batches(groups, every))
    lookup = TokenLookup.of(batch)
    packed = [learner._pack(lookup, branches)[1] for branches in passes]
    found = {
        "out of Arrow": milliseconds(lambda: pa.ipc.open_stream(buffer).read_next_batch(), repetitions),
        "token ids": milliseconds(lambda: read_groups(batch, group_size), repetitions),
        "micro-batches": milliseconds(lambda: list(learner._own_micro_batches(groups, every)), repetitions),
        "packing": milliseconds(lambda: [learner._pack(lookup, branches) for branches in passes], repetitions),
        "columns": milliseconds(lambda: TokenLookup.of(batch), repetitions),
    }
    values = (getattr(one, field.name) for one in packed for field in fields(one))
    moved = sum(value.nbytes for value in values if hasattr(value, "nbytes")) / 2**20
    tokens = sum(len(ids) for group in groups for ids in (group.prompt_ids, *group.responses))
    return {"tokens": tokens, "passes": len(passes), **found, "all": sum(found.values()), "MiB moved": moved}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--step", action="store_true", help="take a step, too")
    options = parser.parse_args(arguments)

    from transformers import AutoConfig

    from learners.config import LearnerConfig
    from learners.models import resolve_model
    from learners.policy_learner import PolicyLearner

    model = resolve_model(options.model)
    vocabulary = AutoConfig.from_pretrained(model).vocab_size
    for name, (shape, max_tokens) in SHAPES.items():
        config = LearnerConfig.model_validate({"dtype": "float32", "tokens_per_micro_batch": max_tokens})
        learner = PolicyLearner(model, config, temperature=1.0, group_size=shape["group_size"])
        batch = make_batch(vocabulary, **shape)
        found = prepare(learner, batch, shape["group_size"], options.repetitions)
        print(f"{name}: " + ", ".join(f"{what} {value:.2f}" for what, value in found.items()), flush=True)
        if options.step and shape is QUICK_START:
            learner.step(batch)
            print(f"{name}: a step {milliseconds(lambda: learner.step(batch), 2):.0f} ms", flush=True)  # noqa: B023


if __name__ == "__main__":
    main()
