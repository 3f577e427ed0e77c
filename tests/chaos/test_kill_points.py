"""The whole run is gone before some call of a component, over and over: what its restarts do together is what one start does."""

import asyncio
import random
from collections import Counter

import pytest

from jobs.config import RunConfig
from tests.jobs.components_fixture import BOUND_S, PROMPTS, Around, LocalRun, random_delays

pytestmark = pytest.mark.chaos

RUNS, DEATHS, STEPS = 12, 9, 8


class KilledRun:
    """A start that is gone before its n-th call of a component; threads in a call still finish it, as processes of their own would."""

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
        """False where it came to its end before."""
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
    """What one start is trained on, by lag."""
    from tests.chaos.chaos_fixture import quick_config

    runs = {}
    for lag in range(3):
        runs[lag] = LocalRun(quick_config(tiny_model, tmp_path_factory.mktemp(f"lag-{lag}"), steps=STEPS, max_policy_lag=lag))
        runs[lag].train()
        runs[lag].check_valid()
    return runs


@pytest.mark.parametrize("seed", range(RUNS))
def test_every_problem_is_trained_once_however_often_the_run_dies(config, seed, uninterrupted):
    rng = random.Random(f"deaths/{seed}")
    lag = seed % 3
    settings = config(steps=STEPS, max_policy_lag=lag, checkpoint={"every": rng.choice([1, 1, 2, 3]), "learner_every": rng.choice([0, 1])})
    delays = random_delays(rng, most_s=0.002)
    deaths = [KilledRun(settings, calls=rng.randint(3, 60), delays=delays).dies() for _ in range(DEATHS)]
    assert sum(deaths) >= DEATHS - 2, "it came to its end before it could die so often"
    run = LocalRun(settings)
    run.train()
    run.check_valid()
    outcomes, expected = run.outcomes(), uninterrupted[lag].outcomes()
    assert set(outcomes.values()) == {1}
    assert Counter(outcome for _, outcome in outcomes.elements())["trained"] == STEPS * PROMPTS
    stream = run.problems_handed_out()
    assert {problem for problem, _ in outcomes} == set(stream)
    if lag == 0:  # nothing can overtake: the very same problems, and the very same samples of them
        trained = Counter({key: num for key, num in outcomes.items() if key[1] == "trained"})
        assert trained == Counter({key: num for key, num in expected.items() if key[1] == "trained"})
        assert run.samples() == uninterrupted[0].samples()
