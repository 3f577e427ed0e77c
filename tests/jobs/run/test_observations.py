"""What the problem stream is told of the policy, and when."""

import json

from buffers.records import Problem, Verdict, VerdictStatus
from jobs.run.observations import Observations

RIGHT = Verdict(status=VerdictStatus.CORRECT, reward=1.0)
WRONG = Verdict(status=VerdictStatus.INCORRECT, reward=0.0)
UNSCORED = Verdict(status=VerdictStatus.TIMEOUT, reward=None)


def problem(number: int) -> Problem:
    return Problem(task="t", problem_id=f"p{number}", question="?", answer="!", meta={"kind": "easy"})


def observed() -> tuple[Observations, list[tuple[str, int, int]]]:
    told: list[tuple[str, int, int]] = []
    return Observations(lambda of, correct, scored: told.append((of.problem_id, correct, scored))), told


def judge(observations: Observations, *numbers: int) -> None:
    for number in numbers:
        observations.judged(number, problem(number), [RIGHT] * (number % 3) + [WRONG, UNSCORED])


def test_a_batch_is_told_of_when_the_weights_it_led_to_are_live_in_the_order_of_its_rows() -> None:
    observations, told = observed()
    judge(observations, 4, 1, 2, 3)
    observations.trained([2, 1], version=1)
    observations.trained([4, 3], version=2)
    assert not told
    observations.live(1)
    assert told == [("p2", 2, 3), ("p1", 1, 2)]
    observations.live(2)
    assert told[2:] == [("p4", 1, 2), ("p3", 0, 1)]
    observations.live(2)
    assert len(told) == 4


def test_filtered_groups_are_told_of_after_the_batch_by_their_ids_and_dropped_ones_never() -> None:
    observations, told = observed()
    judge(observations, 5, 4, 3, 2)
    observations.filtered(5)
    observations.filtered(3)
    observations.dropped(4)
    observations.trained([2], version=1)
    observations.live(1)
    assert [name for name, _, _ in told] == ["p2", "p3", "p5"]
    observations.filtered(9)  # nothing is known of it
    observations.live(2)
    assert len(told) == 3


def test_a_restored_one_tells_what_was_trained_at_once_and_goes_on_with_what_is_held() -> None:
    observations, _ = observed()
    judge(observations, 1, 2, 3, 4, 5)
    observations.trained([1], version=7)
    observations.filtered(2)
    restored, told = observed()
    restored.load_state_dict(json.loads(json.dumps(observations.state_dict())), held=[4])
    assert told == [("p1", 1, 2)]
    restored.trained([4, 3], version=8)  # group 3 was sampled again, and is not judged yet
    restored.live(8)
    assert told[1:] == [("p4", 1, 2), ("p2", 2, 3)]
