"""What a learner of several ranks takes: memory and seconds of each rank to load, train, publish and save.

    python -m benchmarks.ranks --ranks 1,2                         # the embedded model, on this machine's CPU, float32
    python -m benchmarks.ranks --ranks 2 --model DIR --dtype bfloat16

The output is a line for each rank and phase, and one JSON object. A line has the seconds, the memory resident
afterwards and the peak in between, beyond what the process had before it loaded the model. Neither Ray nor vLLM is
needed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

GROUPS, GROUP_SIZE, PROMPT_TOKENS, RESPONSE_TOKENS = 4, 4, 40, 24
TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A phase of one rank, in MiB beyond what the process had before the first phase."""

    ranks: int
    rank: int
    name: str
    seconds: float
    after_mib: float
    peak_mib: float


def make_batch(
    vocabulary: int,
    *,
    groups: int = GROUPS,
    group_size: int = GROUP_SIZE,
    prompt_tokens: int = PROMPT_TOKENS,
    response_tokens: int = RESPONSE_TOKENS,
) -> pa.RecordBatch:
    """Return groups of random tokens in which half of the responses are right."""
    from buffers.records import FinishReason, GroupRequest, Problem, Rollout, Verdict, VerdictStatus
    from buffers.schema import concat_groups, to_record_batch, with_scores, with_verdicts

    rng = np.random.default_rng(0)
    batches = []
    for number in range(groups):
        problem = Problem(task="random", problem_id=str(number), question="?", answer="!")
        request = GroupRequest(group_id=number, problem=problem, num_responses=group_size, admitted_version=0, attempt=0)
        prompt = tuple(rng.integers(0, vocabulary, prompt_tokens).tolist())
        rollouts = [
            Rollout(
                prompt_ids=prompt,
                response_ids=tuple(rng.integers(0, vocabulary, response_tokens).tolist()),
                behavior_logprobs=(-10.0,) * response_tokens,
                version_starts=(0,),
                version_values=(0,),
                finish_reason=FinishReason.LENGTH,
                response_text="",
            )
            for _ in range(group_size)
        ]
        verdicts = [
            Verdict(status=VerdictStatus.CORRECT if k % 2 else VerdictStatus.INCORRECT, reward=float(k % 2)) for k in range(group_size)
        ]
        batch = to_record_batch("benchmark", request, rollouts, worker_id="none")
        batches.append(with_scores(with_verdicts(batch, verdicts), [0.0] * group_size))
    return concat_groups(batches)


def memory_mib(field: str) -> float:
    """Return VmRSS (resident) or VmHWM (its peak) of this process, in MiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) / 1024


def run_rank(rank: int, size: int, model: str, dtype: str, directory: str, connection: Connection) -> None:
    """Run one rank in a process of its own, and send its phases."""
    from transformers import AutoConfig

    from learners.config import LearnerConfig
    from learners.fsdp import Rendezvous, ShardedRanks
    from learners.policy_learner import PolicyLearner
    from learners.ranks import OneRank, Ranks

    ranks: Ranks = OneRank()
    if size > 1:
        if rank == 0:
            rendezvous = Rendezvous.open(timeout_s=TIMEOUT_S)
            connection.send(rendezvous.address)
        else:
            rendezvous = Rendezvous.at(connection.recv(), timeout_s=TIMEOUT_S)
        ranks = ShardedRanks.join(rendezvous, rank=rank, size=size, device="cpu", collective_timeout_s=TIMEOUT_S)
    batch = make_batch(AutoConfig.from_pretrained(model).vocab_size)
    config = LearnerConfig.model_validate({"dtype": dtype, "threads": 1, "ranks": size})
    before_mib, phases = memory_mib("VmRSS"), []

    def measure(name: str, function: Callable[[], Any]) -> Any:
        ranks.gather(None)  # all begin together
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        began = time.monotonic()
        result = function()
        seconds = time.monotonic() - began
        after, peak = (memory_mib(field) - before_mib for field in ("VmRSS", "VmHWM"))
        phases.append(Phase(ranks=size, rank=rank, name=name, seconds=round(seconds, 2), after_mib=round(after), peak_mib=round(peak)))
        return result

    def load() -> PolicyLearner:
        return PolicyLearner(model, config, temperature=1.0, group_size=GROUP_SIZE, reuse_snapshot_buffer=True, ranks=ranks)

    learner = measure("load", load)
    measure("first step", lambda: learner.step(batch))
    measure("step", lambda: learner.step(batch))
    measure("publish", learner.snapshot if learner.is_first else learner.give_weights)
    measure("publish again", learner.snapshot if learner.is_first else learner.give_weights)
    measure("save", lambda: learner.save(Path(directory)))
    connection.send(phases)
    connection.recv()


def run_ranks(size: int, model: str, dtype: str) -> list[Phase]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        started = []
        try:
            for rank in range(size):
                ours, theirs = context.Pipe()
                process = context.Process(target=run_rank, args=(rank, size, model, dtype, directory, theirs), daemon=True)
                process.start()
                started.append((process, ours))
            if size > 1:
                address = started[0][1].recv()
                for _, connection in started[1:]:
                    connection.send(address)
            return [phase for _, connection in started for phase in connection.recv()]
        finally:
            for process, _ in started:
                process.kill()
                process.join()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks, one after the other")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args(arguments)

    from learners.models import resolve_model

    model = resolve_model(options.model)
    phases = [phase for size in options.ranks.split(",") for phase in run_ranks(int(size), model, options.dtype)]
    for phase in phases:
        print(
            f"{phase.ranks} rank(s), rank {phase.rank}: {phase.name:14} {phase.seconds:7.2f} s   "
            f"{phase.after_mib:6.0f} MiB after, {phase.peak_mib:6.0f} at most"
        )
    print(json.dumps([asdict(phase) for phase in phases]))


if __name__ == "__main__":
    main()
