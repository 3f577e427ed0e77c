"""Tests of a program. Calls run in the sandbox, and their results are compared outside it.

    tests = ProgramTests(reference=text, calls=("f(*[1, 2])", ...))
    verdict = judge_program(program, tests, limit_s=5.0, isolation=Isolation.NAMESPACES)

A test expects what its expression gives in the namespace of the reference program, which runs in a sandbox of its own
once a process. The program under test runs in another sandbox, which receives only the calls. All that is believed of
it is what its calls give, as data (`tasks.programs.program_driver`). So there is no expected result to find, no counter
to raise, no assert to patch, no success to claim and no exit code to fake: a program can only answer. It can still
answer just the calls that are asked, by a table; only tests that are not shown help against that.

A program may use `limit_s` seconds of processor time beyond what the reference took. By the field's convention it is
wrong if it uses more, uses more memory than its limit, or prints more than twice what the reference prints. The verdict
is `error`, and the program is not judged, only if the sandbox or the reference fails."""

import json
import math
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.base import Verdict, VerdictStatus
from tasks.programs import program_driver, sandbox
from tasks.programs.program_driver import decode
from tasks.programs.sandbox import Isolation, Limits, Outcome, ProgramStatus, SandboxError

__all__ = ["ProgramTests", "deadline_s", "judge_program", "read_tests", "write_tests"]

_DRIVER = Path(program_driver.__file__).read_text(encoding="utf-8")
_REFERENCE_CPU_S = 20
_WALL_OF_CPU = 5  # on a busy machine a program gets a share of a processor only
_LIMITS = Limits(memory_bytes=1 << 30, output_bytes=64 << 20, cpu_s=_REFERENCE_CPU_S, wall_s=_WALL_OF_CPU * _REFERENCE_CPU_S)
_SPARE_OUTPUT_BYTES = 64 << 10
_MARGIN_S = 20.0
_NUM_CACHED = 16
_FLOAT_ATOL, _RTOL = 1e-6, 1e-7
_MAX_SHOWN_CHARS = 80
_MAX_ERROR_CHARS = 200
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _MAX_SHOWN_CHARS


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramTests:
    """Tests of one problem: expressions to evaluate in a program's namespace, and what they must give. The results of
    `expected`, evaluated in the reference's namespace, are right; if it is empty, those of `calls` are. The results of
    the programs in `alternatives` are right as well. `setup` runs after every program, in its namespace. Values are
    compared by ==, and an integer is equal to the float that it rounds to. Floats, and lists and tuples of floats, are
    equal within `atol` or 1e-6, whichever is larger. With an `atol`, so are numbers anywhere in lists and tuples."""

    reference: str
    calls: tuple[str, ...]
    expected: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    setup: str = ""
    atol: float = 0.0

    def __post_init__(self) -> None:
        if self.expected and len(self.expected) != len(self.calls):
            raise ValueError(f"{len(self.calls)} calls but {len(self.expected)} expected results")


def write_tests(tests: ProgramTests) -> str:
    """Return the tests as JSON text."""
    return json.dumps(asdict(tests), ensure_ascii=False)


def read_tests(text: str) -> ProgramTests:
    """Return the tests that `write_tests` wrote. Raises ValueError for any other text."""
    try:
        fields: dict[str, Any] = json.loads(text)
        lists: dict[str, Any] = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return ProgramTests(**(fields | lists))
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def deadline_s(limit_s: float) -> float:
    """Return a bound on the seconds that `judge_program` takes. Its own deadlines pass long before."""
    return _LIMITS.wall_s + _WALL_OF_CPU * (limit_s + _REFERENCE_CPU_S) + _MARGIN_S


def judge_program(program: str, tests: ProgramTests, *, limit_s: float, isolation: Isolation) -> Verdict:
    """Give reward 1.0 if every call gives what is expected. `detail` names the first failing test. Never raises."""
    try:
        accepted = [_results(reference, tests, isolation) for reference in (tests.reference, *tests.alternatives)]
        limits = replace(
            _LIMITS,
            cpu_s=math.ceil(limit_s + accepted[0].cpu_s),
            wall_s=_WALL_OF_CPU * (limit_s + accepted[0].cpu_s),
            output_bytes=2 * max(result.num_bytes for result in accepted) + _SPARE_OUTPUT_BYTES,
        )
        outcome = _evaluate(program, tests.setup, tests.calls, limits, isolation)
    except SandboxError as error:
        return Verdict(status=VerdictStatus.ERROR, reward=None, detail=str(error))
    lines = outcome.stdout.split("\n")
    for number, call in enumerate(tests.calls):
        said = lines[number] if number < len(lines) - 1 else None  # a line without its end was cut off
        verdict = _failure(said, [result.lines[number] for result in accepted], tests.atol, outcome, limits)
        if verdict is not None:
            where = f"test {number + 1} of {len(tests.calls)}, {_shorten(call)}"
            return verdict if verdict.status is VerdictStatus.MALFORMED else replace(verdict, detail=f"{where}: {verdict.detail}")
    return Verdict(status=VerdictStatus.CORRECT, reward=1.0)


def _failure(said: str | None, accepted: Sequence[str], atol: float, outcome: Outcome, limits: Limits) -> Verdict | None:
    """Return the verdict on one wrong line of a program, or None if the line is right."""
    if said is None:
        return _incorrect(_why_silent(outcome, limits))
    if said in accepted:
        return None
    try:
        answer = json.loads(said)
        if "malformed" in answer:
            return Verdict(status=VerdictStatus.MALFORMED, reward=0.0, detail=str(answer["malformed"])[:_MAX_ERROR_CHARS])
        if "error" in answer:
            return _incorrect(f"raised {str(answer['error'])[:_MAX_ERROR_CHARS]}")
        found = decode(answer["value"])
        wanted = [decode(json.loads(line)["value"]) for line in accepted]
        if any(_agree(found, each, atol) for each in wanted):
            return None
        return _incorrect(f"gave {_SHOWN.repr(found)}, not {_SHOWN.repr(wanted[0])}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # a forged line, or a number too long to show
        return _incorrect(f"gave what cannot be read ({type(error).__name__})")


def _why_silent(outcome: Outcome, limits: Limits) -> str:
    if outcome.status is ProgramStatus.TIMEOUT:
        return f"ran over {limits.cpu_s} s of processor time, or {limits.wall_s:.0f} s in all"
    if outcome.status is ProgramStatus.SIGNAL:
        return f"the program was ended by signal {outcome.signal}"
    return {ProgramStatus.MEMORY: "out of memory", ProgramStatus.OUTPUT: "said too much"}.get(outcome.status, "the program ended before it")


def _incorrect(detail: str) -> Verdict:
    return Verdict(status=VerdictStatus.INCORRECT, reward=0.0, detail=detail)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 1]}…"


# ---- running ----
@dataclass(frozen=True, kw_only=True, slots=True)
class _Results:
    """What a reference gives, as lines of the driver, and the resources that it used."""

    lines: tuple[str, ...]
    cpu_s: float
    num_bytes: int


@lru_cache(maxsize=_NUM_CACHED)  # the responses of a group are judged by the same references
def _results(reference: str, tests: ProgramTests, isolation: Isolation) -> _Results:
    """Run a reference. Raises SandboxError if it does not give a value for each test."""
    calls = (tests.expected if reference == tests.reference else ()) or tests.calls
    outcome = _evaluate(reference, tests.setup, calls, _LIMITS, isolation)
    lines = tuple(outcome.stdout.split("\n")[:-1])
    values = [line for line in lines if line.startswith('{"value": ')]
    if len(values) < len(calls):
        last = lines[-1] if lines else _why_silent(outcome, _LIMITS)
        raise SandboxError(f"the reference program gives {len(values)} of {len(calls)} results: {_shorten(last)}")
    return _Results(lines=lines, cpu_s=outcome.cpu_s, num_bytes=len(outcome.stdout.encode()))


def _evaluate(program: str, setup: str, calls: Sequence[str], limits: Limits, isolation: Isolation) -> Outcome:
    request = json.dumps({"program": f"{program}\n{setup}", "calls": list(calls)})
    return sandbox.run(_DRIVER, limits, stdin=request, isolation=isolation)


# ---- comparing ----
def _agree(found: Any, expected: Any, atol: float) -> bool:
    if found == expected or _rounds_to(found, expected):
        return True
    floats = expected if isinstance(expected, list | tuple) else [expected]
    if atol == 0 and not (floats and all(isinstance(item, float) for item in floats)):
        return False
    return type(found) is type(expected) and _are_close(found, expected, atol or _FLOAT_ATOL)


def _rounds_to(found: Any, expected: Any) -> bool:
    """Return whether the values are equal where exact integers are rounded to the floats that the reference gives."""
    if type(found) is int and type(expected) is float:
        try:
            return float(found) == expected
        except OverflowError:
            return False
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(_rounds_to, found, expected))
    return bool(found == expected)


def _are_close(found: Any, expected: Any, atol: float) -> bool:
    """Compare numbers within atol + 1e-7 · |expected|, and NaN as equal to NaN; also in lists and tuples."""
    if isinstance(expected, list | tuple):
        return (
            isinstance(found, list | tuple) and len(found) == len(expected) and all(map(_are_close, found, expected, [atol] * len(found)))
        )
    if not all(isinstance(value, int | float | complex) for value in (found, expected)):
        return bool(found == expected)
    if found == expected or (found != found and expected != expected):
        return True
    try:
        return bool(abs(found - expected) <= atol + _RTOL * abs(expected) < math.inf)
    except OverflowError:
        return False
