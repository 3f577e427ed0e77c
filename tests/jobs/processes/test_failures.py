"""What a failed job says in its last line."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from jobs.processes.failures import reason


def remote(cause: Exception) -> RayTaskError:
    """The error as Ray raises it: a traceback, and at its end what the cause says."""
    trace = f'ray::learner.step()\n  File "learner.py", line 1, in step\n    raise error\n{type(cause).__name__}: {cause}'
    return RayTaskError("step", trace, cause, pid=1, ip="127.0.0.1", actor_repr=None)


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        (ValueError("one line"), "ValueError: one line"),
        (
            TypeError("clamp() received an invalid combination\n * (Number min, Number max)\n\n"),
            "TypeError: clamp() received an invalid combination",
        ),
        (ValueError("too long\nSee https://example.org/why"), "ValueError: too long"),
    ],
    ids=["one line", "two lines", "an address at the end"],
)
def test_the_telling_line_of_a_remote_error_is_the_one_that_names_it(cause, line):
    assert reason(remote(cause)) == line


def test_a_local_error_is_told_by_its_first_line():
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"
