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


PYDANTIC = (
    "1 validation error for ModelConfig\n"
    "  Value error, User-specified max_model_len (9000) is greater than the derived max_model_len (max_position_embeddings=8192) "
    "[type=value_error, input_value=ArgsKwargs((), {'model': 'm'}), input_type=ArgsKwargs]\n"
    "    For further information visit https://errors.pydantic.dev/2.13/v/value_error"
)
TOLD = "1 validation error for ModelConfig: Value error, User-specified max_model_len (9000) is greater than the derived max_model_len "


def nameless(text: str) -> RayTaskError:
    """The error as Ray raises it where the cause cannot be sent."""
    error = RayTaskError("start", "", ValueError("unused"), pid=1, ip="127.0.0.1", actor_repr=None)
    error.traceback_str = f'ray::rollout.start()\n  File "worker.py", line 9, in start\n    raise error\n{text}'
    error.cause = None
    return error


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"pydantic_core._pydantic_core.ValidationError: {PYDANTIC}", f"pydantic_core._pydantic_core.ValidationError: {TOLD}"),
        ("RuntimeError: engine died\nSee https://example.org/help", "RuntimeError: engine died"),
        ("vllm.exceptions.EngineDeadError: core is gone\n  https://example.org", "vllm.exceptions.EngineDeadError: core is gone"),
        ("ValueError: first\nsecond line\nthird line", "ValueError: first"),
        ("the engine says nothing\nFor more information, visit http://x.org", "the engine says nothing"),
        ("https://example.org/only", "https://example.org/only"),
    ],
    ids=["pydantic", "see", "bare address", "several lines", "no name", "nothing else"],
)
def test_a_line_that_is_only_an_address_tells_nothing(text: str, line: str) -> None:
    found = reason(nameless(text))
    assert found.startswith(line) if "validation" in line else found in (line, "raise error")


def test_a_remote_error_of_pydantic_tells_what_is_wrong_and_not_how_many() -> None:
    class ValidationError(ValueError):
        pass

    found = reason(remote(ValidationError(PYDANTIC)))
    assert TOLD in found and "http" not in found and "[type=" not in found


def test_a_local_error_of_pydantic_tells_it_too() -> None:
    assert reason(ValueError(PYDANTIC)).startswith(TOLD)
    with_field = "2 validation errors for Config\na.b\n  Input should be 1 [type=x, input_value=2, input_type=int]\nc\n  Too long"
    assert reason(ValueError(with_field)) == "2 validation errors for Config: a.b: Input should be 1"
