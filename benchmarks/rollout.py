"""Tokens a second of a rollout worker, against vLLM's own `LLM.generate` on the same requests.

    python -m benchmarks.rollout                                  # the quick start's shape, two minutes on two cores
    python -m benchmarks.rollout --tokens 64 --rounds 6 --threads 2

Both sample 8 responses to each of 8 problems of the default task, with log-probs and text, from the same engine
arguments. Ours does it as a run does: a group a call, all groups at once, watched for progress, and with Arrow rows as
the result. vLLM is given all prompts in one call, with its engine in the calling process, as ours has it, and once more
in a process of its own, which is vLLM's default.

Each has a process of its own and waits while another samples. They take turns, in an order that changes from round to
round, and meet new problems in every round, the same in each. A ratio is that of one round. Printed are the rounds, and
the median of the ratios with the range of its middle half, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from statistics import median, quantiles
from typing import Any

import psutil

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineSetup
from actors.rollout import RolloutWorker
from actors.vllm_engine import engine_arguments, engine_environment
from buffers.records import GroupRequest, Problem
from learners.models import resolve_model
from tasks.base import Task
from tasks.config import TaskConfig
from tasks.registry import make_task

GROUP_SIZE = 8
START_TIMEOUT_S, ROUND_TIMEOUT_S = 300.0, 300.0
HEARTBEAT_S = 5.0
Round = Sequence[tuple[int, Problem]]
Sample = Callable[[Round], int]
"""Samples the groups of a round and returns the number of their tokens."""


def ours(setup: EngineSetup, task: Task) -> Sample:
    """Return a rollout worker."""
    loop = asyncio.new_event_loop()
    worker = RolloutWorker(
        worker_id="rollout-0", run_id="benchmark", model=setup.model, config=setup.config, sampling=setup.sampling, seed=0
    )
    loop.run_until_complete(worker.start())

    async def watch() -> None:
        cursor = 0
        while True:
            _, beat = await worker.watch(cursor, HEARTBEAT_S)
            cursor = beat.sampled_tokens

    async def sample(groups: Round) -> int:
        watching = asyncio.ensure_future(watch())
        requests = [
            GroupRequest(group_id=group_id, problem=each, num_responses=GROUP_SIZE, admitted_version=0) for group_id, each in groups
        ]
        found = await asyncio.gather(*(worker.generate(request, task.prompt(request.problem)) for request in requests))
        watching.cancel()
        return sum(usage.response_tokens for _, usage in found)

    return lambda groups: loop.run_until_complete(sample(groups))


def bare(setup: EngineSetup, task: Task) -> Sample:
    """Return vLLM's own class."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer: Any = AutoTokenizer.from_pretrained(setup.model)
    engine = LLM(**engine_arguments(setup))
    limits = {"max_tokens": setup.sampling.max_response_tokens, "temperature": setup.sampling.temperature}
    params = SamplingParams(n=GROUP_SIZE, logprobs=0, **limits)

    def sample(groups: Round) -> int:
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        prompts = [{"prompt_token_ids": tokenizer.apply_chat_template(task.prompt(problem), **options)} for _, problem in groups]
        found = engine.generate(prompts, params, use_tqdm=False)
        return sum(len(response.token_ids) for request in found for response in request.outputs)

    return sample


SIDES: dict[str, tuple[Callable[[EngineSetup, Task], Sample], bool]] = {
    "ours": (ours, True),
    "vllm": (bare, True),
    "vllm, own process": (bare, False),
}
"""Who samples, and whether its engine is in the calling process."""


def serve(name: str, setup: EngineSetup, connection: Connection) -> None:
    """Sample round after round; the answer to each is its number of tokens and its seconds."""
    make, in_process = SIDES[name]
    os.environ.update(engine_environment(setup.config, in_process=in_process))
    task = make_task(TaskConfig())
    sample = make(setup, task)
    connection.send(name)
    while (groups := connection.recv()) is not None:
        started = time.perf_counter()
        tokens = sample(groups)
        connection.send((tokens, time.perf_counter() - started))
    for child in psutil.Process().children(recursive=True):  # an engine in a process of its own outlives its parent
        child.kill()
    os._exit(0)  # engines end by themselves only after a while


def receive(connection: Connection, timeout_s: float, what: str) -> Any:
    if not connection.poll(timeout_s):
        raise SystemExit(f"nothing came for {timeout_s:g} s: waited for {what}")
    return connection.recv()


def start(setup: EngineSetup) -> dict[str, Connection]:
    """Start every side, one after the other, in a process whose environment is right from the beginning."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for name, (_, in_process) in SIDES.items():
        connection, theirs = context.Pipe()
        os.environ.update(engine_environment(setup.config, in_process=in_process))
        context.Process(target=serve, args=(name, setup, theirs), name=name).start()
        theirs.close()
        receive(connection, START_TIMEOUT_S, f"{name} to start")
        found[name] = connection
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--groups", type=int, default=8, help=f"in a round, of {GROUP_SIZE} responses each")
    parser.add_argument("--tokens", type=int, default=20, help="limit of a response")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    config = RolloutConfig(threads=options.threads, max_sequences=options.groups * GROUP_SIZE)
    sampling = SamplingConfig(max_response_tokens=options.tokens)
    setup = EngineSetup(model=resolve_model(options.model), config=config, sampling=sampling, seed=0)
    problems = enumerate(make_task(TaskConfig()).problems("train"))
    sides = start(setup)
    speeds: list[dict[str, float]] = []
    for number in range(-1, options.rounds):  # the first one warms up
        groups = list(itertools.islice(problems, options.groups))
        speed = {}
        for name in sorted(sides, key=lambda name: (list(sides).index(name) + number) % len(sides)):
            sides[name].send(groups)
            tokens, seconds = receive(sides[name], ROUND_TIMEOUT_S, f"a round of {name}")
            speed[name] = tokens / seconds
        if number >= 0:
            speeds.append(speed)
            print(json.dumps({name: round(value, 1) for name, value in speed.items()}), flush=True)
    for connection in sides.values():
        connection.send(None)
    print(json.dumps({"groups": options.groups, "tokens": options.tokens, "threads": options.threads, **ratios(speeds)}))


def ratios(speeds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return tokens a second by side, and ours over those of the others."""
    found: dict[str, Any] = {"tokens_per_s": {name: round(median(speed[name] for speed in speeds), 1) for name in SIDES}}
    for other in [name for name in SIDES if name != "ours"]:
        of_rounds = [speed["ours"] / speed[other] for speed in speeds]
        low, _, high = quantiles(of_rounds, n=4) if len(of_rounds) > 1 else [of_rounds[0]] * 3
        found[f"ours / {other}"] = {"median": round(median(of_rounds), 3), "middle_half": [round(low, 3), round(high, 3)]}
    return found


if __name__ == "__main__":
    main()
