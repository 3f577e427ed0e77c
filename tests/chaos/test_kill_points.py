"""The whole run is gone before some call of a component, over and over: what its restarts do together is what one start
does."""

import asyncio
import random
from collections import Counter

import pytest

from jobs.config import RunConfig
from jobs.directory.run_dir import RunDirectory
from tests.chaos.chaos_fixture import POLICIES, quick_config
from tests.jobs.components_fixture import BOUND_S, PROMPTS, Around, LocalRun, random_delays

pytestmark = pytest.mark.chaos

RUNS, DEATHS, MOST_STEPS = 10, 10, 26
OF_THEIR_KIND = (3, 4, 6, 9)  # seeds whose lag and order others have, too: for make chaos


class KilledRun:
    """A start that is gone before its n-th call of a component; threads in a call still finish it, as processes of
    their own would."""

    def __init__(self, config: RunConfig, *, calls: int, delays: Around) -> None:
        self._left = calls
        self._delays = delays
        self._killed = asyncio.Event()
        self.run = LocalRun(config, around=self._around)

    async def _around(self, name, method, args, proceed):
        self._left -= 1
        if self._left <= 0 and method != "close":
            self._killed.set()
            await asyncio.Event().wait()
        return await self._delays(name, method, args, proceed)

    def dies(self) -> bool:
        """False where it comes to an end of its own."""
        return asyncio.run(self._train())

    async def _train(self) -> bool:
        training = asyncio.create_task(self.run.train_async())
        killed = asyncio.create_task(self._killed.wait())
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait({training, killed}, return_when=asyncio.FIRST_COMPLETED)
        died = not training.done()
        training.cancel()
        killed.cancel()
        await asyncio.wait({training, killed})
        if not died:
            training.result()  # a failure of its own is a failure of this test
        return died


@pytest.fixture(scope="module")
def uninterrupted(tiny_model, tmp_path_factory):
    """uninterrupted(lag): a start that goes on for longer than any of those that die, in the fixed order."""
    runs: dict[int, LocalRun] = {}

    def at(lag: int) -> LocalRun:
        if lag not in runs:
            directory = tmp_path_factory.mktemp("uninterrupted")
            values = {"steps": MOST_STEPS, "max_policy_lag": lag, "deterministic": lag > 0, "sampling": {"max_response_tokens": 4}}
            runs[lag] = LocalRun(quick_config(tiny_model, directory, **values))
            runs[lag].train()
            runs[lag].check_valid()
        return runs[lag]

    return at


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.long if seed in OF_THEIR_KIND else ()) for seed in range(RUNS)])
def test_every_problem_is_trained_once_however_often_the_run_dies(config, seed, uninterrupted):
    rng = random.Random(f"deaths/{seed}")
    lag, in_fixed_order = seed % 3, seed % 3 == 0 or seed >= RUNS // 2
    settings = config(
        steps=1000,
        max_policy_lag=lag,
        late=POLICIES[seed // 3 % 3],
        deterministic=in_fixed_order and lag > 0,  # at a lag of 0 nothing can overtake
        sampling={"max_response_tokens": 4},
        checkpoint={"every": rng.choice([1, 1, 2]), "learner_every": rng.choice([0, 1])},
    )
    delays = random_delays(rng, most_s=0.002)
    deaths = [KilledRun(settings, calls=rng.randint(3, 80), delays=delays).dies() for _ in range(DEATHS)]
    assert deaths == [True] * DEATHS
    steps = (RunDirectory(settings).checkpoints.latest() or 0) + 2
    run = LocalRun(settings.model_copy(update={"steps": steps}))
    assert run.train() == steps
    run.check_valid()
    outcomes = run.outcomes()
    assert set(outcomes.values()) == {1}
    assert {problem for problem, _ in outcomes} == set(uninterrupted(0).problems_handed_out()[: run.stream.cursor])
    assert Counter(outcome for _, outcome in outcomes)["trained"] == steps * PROMPTS
    if in_fixed_order:  # the very same problems, and the very same samples of them
        assert steps <= MOST_STEPS
        assert run.samples() == uninterrupted(lag).samples()[: len(run.samples())]
