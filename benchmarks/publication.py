"""What a training step loses to publishing its weights, and what publishing is made of.

    python -m benchmarks.publication                    # the embedded model on one thread

Measured are a step of the quick start's shape (8 prompts of 37 tokens, 8 responses of at most 20), the snapshot after
it, and the snapshot's parts. The same snapshot is also taken by a thread beside the step, which shows all that
overlapping the two could give. Then come Ray's part and a reader's check. All take turns in every repeat. The output is
the medians as one JSON object, in seconds.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from actors.learner import Learner
from benchmarks.encoder import GROUP_SIZE, SHAPES, make_group
from buffers.records import Verdict, VerdictStatus
from buffers.schema import concat_groups, with_scores, with_verdicts
from jobs.processes.build import ray_session
from learners.config import LearnerConfig
from learners.forward import causal_lm_shapes
from learners.models import resolve_model
from learners.weight_check import check_snapshot
from learners.weights import checksums, fingerprint

NUM_GROUPS = 8


def make_batch(seed: int) -> pa.RecordBatch:
    """Return a batch in which every other response is right."""
    rng = np.random.default_rng(seed)
    kinds = [(VerdictStatus.INCORRECT, 0.0), (VerdictStatus.CORRECT, 1.0)]
    verdicts = [Verdict(status=status, reward=reward) for status, reward in kinds] * (GROUP_SIZE // 2)
    groups = [with_verdicts(make_group(number, SHAPES[0], rng), verdicts) for number in range(NUM_GROUPS)]
    return concat_groups([with_scores(group, [0.0] * GROUP_SIZE) for group in groups])


class Stopwatch:
    """Collects seconds by name: `with watch("step"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)


def measure(learner: Learner, model: str, repeats: int) -> dict[str, Any]:
    watch, shapes = Stopwatch(), causal_lm_shapes(model)
    tensors = dict(learner.named_weights()[0])
    learner.step(make_batch(0))  # warms up
    learner.snapshot()
    for repeat in range(1, 1 + repeats):
        with watch("step_then_snapshot"):
            with watch("step"):
                learner.step(make_batch(repeat))
            with watch("snapshot"):
                snapshot = learner.snapshot()
        with watch("digests"):
            fingerprint(tensors, version=learner.version)
        with watch("checksums"):
            checksums(snapshot.buffer, snapshot.index)
        with watch("ray_put"):
            reference = ray.put(snapshot)
        with watch("ray_get"):
            read = ray.get(reference)
        with watch("check"):
            check_snapshot(read, shapes=shapes, dtype=read.index[0].dtype)
        del reference, read
        with watch("snapshot_beside_step"):  # the passes only read, and it ends long before the optimizer writes
            copying = threading.Thread(target=learner.snapshot)
            copying.start()
            learner.step(make_batch(repeat))
            copying.join()
    return {"mib": round(snapshot.nbytes / 2**20, 1), "repeats": repeats, **{name: middle(s) for name, s in watch.seconds.items()}}


def middle(seconds: Sequence[float]) -> float:
    return round(median(seconds), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model = resolve_model(options.model)
    config = LearnerConfig(threads=options.threads)
    learner = Learner(model, config, temperature=1.0, group_size=GROUP_SIZE, reuse_snapshot_buffer=True)
    with ray_session("benchmark-publication", []):
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(learner, model, options.repeats)))


if __name__ == "__main__":
    main()
