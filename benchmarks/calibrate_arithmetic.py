"""How hard the arithmetic task is for a model: pass@1 and pass@8 of each kind and of the default mixture.

    python -m benchmarks.calibrate_arithmetic --problems 40

The pass@8 of the default mixture should lie between 20 and 80 % for the embedded model: a harder one gives no signal,
and an easier one leaves nothing to gain.
"""

from __future__ import annotations

import argparse
import asyncio
import json

from actors.config import RolloutConfig, SamplingConfig
from actors.rollout import RolloutWorker
from buffers.records import GroupRequest, Problem
from jobs.evaluate import pass_at_k
from learners.models import resolve_model
from tasks.arithmetic import Arithmetic, ArithmeticConfig, ArithmeticWeights
from tasks.config import TaskConfig

KINDS = tuple(ArithmeticWeights.model_fields)
MIX = "mix"
NUM_RESPONSES = 8


def only(kind: str) -> ArithmeticConfig:
    weights = ArithmeticWeights(**{name: float(name == kind) for name in KINDS})
    return ArithmeticConfig(weights=weights, held_out_share=0)  # one kind alone has too few questions to hold some out


async def correct_counts(worker: RolloutWorker, task: Arithmetic, problems: list[Problem], first_id: int) -> list[int]:
    """Return the number of correct responses, out of NUM_RESPONSES, for each problem."""

    async def count(group_id: int, problem: Problem) -> int:
        request = GroupRequest(group_id=group_id, problem=problem, num_responses=NUM_RESPONSES, admitted_version=0)
        batch, _ = await worker.generate(request, task.prompt(problem))
        return sum(task.verify(problem, text).reward == 1.0 for text in batch.column("response_text").to_pylist())

    return list(await asyncio.gather(*(count(first_id + i, problem) for i, problem in enumerate(problems))))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--problems", type=int, default=40, help="problems of each kind")
    parser.add_argument("--kinds", default=",".join((*KINDS, MIX)), help="which, separated by commas")
    parser.add_argument("--tokens", type=int, default=20, help="max_response_tokens")
    options = parser.parse_args()
    sampling = SamplingConfig(max_response_tokens=options.tokens)
    model = resolve_model(options.model)
    worker = RolloutWorker(worker_id="calibrate", run_id="calibrate", model=model, config=RolloutConfig(), sampling=sampling, seed=0)
    await worker.start()
    for number, kind in enumerate(options.kinds.split(",")):
        config = TaskConfig().arithmetic if kind == MIX else only(kind)
        task = Arithmetic(config, seed=1)
        problems = [task.problem("train", index) for index in range(options.problems)]
        counts = await correct_counts(worker, task, problems, number * 100_000)
        scores = {f"pass@{k}": sum(pass_at_k(NUM_RESPONSES, c, k) for c in counts) / len(counts) for k in (1, NUM_RESPONSES)}
        print(
            json.dumps({"kind": kind, "problems": len(problems), **{name: round(value, 3) for name, value in scores.items()}}), flush=True
        )
    await worker.close()


if __name__ == "__main__":
    asyncio.run(main())
