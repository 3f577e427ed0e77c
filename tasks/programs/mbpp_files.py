"""The rows of MBPP and MBPP+ as problems with tests, from the layouts in which they are published.

    rows = plus_rows(file)      # MBPP+ (Liu et al. 2023, arXiv:2305.01210)
    rows = mbpp_rows(file)      # MBPP (Austin et al. 2021, arXiv:2108.07732)

MBPP+ is read from EvalPlus' release or from evalplus/mbppplus on the hub, and MBPP from our own layout or from
google-research-datasets/mbpp.

MBPP+ publishes arguments and a reference program: a test expects what that gives. EvalPlus' release has the arguments
as JSON, so its table of their types is applied (`_ARGUMENTS`); the hub has them as Python. MBPP publishes asserts.

If the reference is not the only right answer, EvalPlus' evaluator says what else is (version 0.3.1), and so do
`_COMPARED` and `_ALTERNATIVES`. Arguments that make two references run (almost) forever are left out: five of Mbpp/255,
whose answers take up to a gigabyte, and sixteen of Mbpp/599, about 10^8, up to which its reference counts for half a
minute in all. With them these two references fail; without them, all 378 pass."""

import ast
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.data.files import DataFile, Row
from tasks.programs.program_tests import ProgramTests

__all__ = ["MbppRow", "mbpp_rows", "plus_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MbppRow:
    """A problem: MBPP's number for it, the question, the assert that is shown with it, and the tests."""

    number: int
    text: str
    shown: str
    tests: ProgramTests


def mbpp_rows(file: DataFile) -> list[MbppRow]:
    """Read the rows. Raises TaskError for another layout, and for a row that cannot be read."""
    if "extra" in file.columns():
        return [_read(row, _our_row) for row in file.rows(["prompt", "answer", "extra"])]
    rows = file.rows(["task_id", "text", "code", "test_list", "test_setup_code"])
    return [_read(row, lambda row: _mbpp_row(row.values["text"], row.values["code"], row.values)) for row in rows]


def plus_rows(file: DataFile) -> list[MbppRow]:
    """Read the rows. Raises TaskError for another layout, and for a row that cannot be read."""
    if "extra" in file.columns():
        return [_read(row, _release_row) for row in file.rows(["prompt", "answer", "extra"])]
    return [_read(row, _hub_plus_row) for row in file.rows(["task_id", "prompt", "code", "test_list", "test"])]


def _read(row: Row, read: Callable[[Row], MbppRow]) -> MbppRow:
    try:
        return read(row)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, SyntaxError) as error:
        raise row.error(f"is no problem of MBPP: {type(error).__name__}: {str(error)[:160]}") from None


def _extra(row: Row) -> dict[str, Any]:
    extra = json.loads(row.values["extra"])
    if not isinstance(extra, dict):
        raise ValueError("column 'extra' is no JSON object")
    return extra


# ---- MBPP ----
def _our_row(row: Row) -> MbppRow:
    return _mbpp_row(row.values["prompt"], row.values["answer"], _extra(row))


def _mbpp_row(text: str, code: str, more: Mapping[str, Any]) -> MbppRow:
    asserts = [str(line).strip() for line in more["test_list"]]
    pairs = [_sides(line) for line in asserts]
    tests = ProgramTests(
        reference=_lines(code),
        calls=tuple(call for call, _ in pairs),
        expected=tuple(expected for _, expected in pairs),
        setup=_lines(more["test_setup_code"] or ""),
    )
    return MbppRow(number=int(more["task_id"]), text=text.strip(), shown=asserts[0], tests=tests)


def _sides(line: str) -> tuple[str, str]:
    """Return both sides of "assert CALL == EXPECTED"."""
    (statement,) = ast.parse(line).body
    if isinstance(statement, ast.Assert) and isinstance(compared := statement.test, ast.Compare) and isinstance(compared.ops[0], ast.Eq):
        (expected,) = compared.comparators
        return ast.unparse(compared.left), ast.unparse(expected)
    raise ValueError(f"not of the form assert CALL == EXPECTED: {line}")


def _lines(code: str) -> str:
    return code.replace("\r\n", "\n")


# ---- MBPP+ ----
def _release_row(row: Row) -> MbppRow:
    """Read a row of EvalPlus' release. Its prompt is a docstring: the question, then an assert."""
    extra = _extra(row)
    text, _, shown = row.values["prompt"].strip().strip('"').strip().rpartition("\nassert ")
    number = int(str(extra["task_id"]).rpartition("/")[2])
    arguments = [repr(_converted(number, given)) for given in (*extra["base_input"], *(extra["plus_input"] or ()))]
    return _plus_row(number, text, f"assert {shown}", row.values["answer"], extra["entry_point"], arguments, float(extra["atol"]))


def _hub_plus_row(row: Row) -> MbppRow:
    """Read a row of the hub. Its "test" is a program: inputs = [...], then calls assertion(NAME(*inp), ..., ATOL)."""
    program = ast.parse(row.values["test"])
    (inputs,) = [step.value for step in program.body if isinstance(step, ast.Assign) and ast.unparse(step.targets[0]) == "inputs"]
    (check,) = [step for step in ast.walk(program) if isinstance(step, ast.Call) and ast.unparse(step.func) == "assertion"]
    called = next(step for step in ast.walk(check.args[0]) if isinstance(step, ast.Call) and isinstance(step.args[0], ast.Starred))
    if not isinstance(inputs, ast.List):
        raise ValueError("inputs is no list")
    arguments = [ast.unparse(given) for given in inputs.elts]
    atol = float(ast.literal_eval(check.args[2]))
    shown = row.values["test_list"][0].strip()
    number = int(row.values["task_id"])
    return _plus_row(number, row.values["prompt"], shown, row.values["code"], ast.unparse(called.func), arguments, atol)


def _plus_row(number: int, text: str, shown: str, code: str, name: str, arguments: Sequence[str], atol: float) -> MbppRow:
    """Make a problem. Each of `arguments` is a list or tuple in Python's notation."""
    kept = [given for given in arguments if number not in _LARGEST or _largest(given) <= _LARGEST[number]]
    tests = ProgramTests(
        reference=_lines(code).strip("\n"),
        calls=tuple(_COMPARED.get(number, "{}").format(f"{name}(*{given})") for given in kept),
        alternatives=_ALTERNATIVES.get(number, ()),
        atol=atol,
    )
    return MbppRow(number=number, text=text.strip(), shown=shown, tests=tests)


_LARGEST = {255: 50, 599: 10**7}  # with larger arguments the reference (almost) never ends


def _largest(given: str) -> int:
    """Return the largest integer among the arguments themselves, or 0 if there is none."""
    arguments = ast.parse(given, mode="eval").body
    assert isinstance(arguments, ast.List | ast.Tuple)
    numbers = [item.value for item in arguments.elts if isinstance(item, ast.Constant)]
    return max((value for value in numbers if isinstance(value, int)), default=0)


_COMPARED = {  # which part of a result counts
    **dict.fromkeys((2, 7, 111, 140, 232, 579, 769), "set({})"),  # the elements, in any order
    **dict.fromkeys((737, 787, 794), "(lambda found: found if found in (True, False) else found is not None)({})"),  # a match or none
}
_ALTERNATIVES = {
    558: (  # numbers of different length are aligned at their last digits
        "def digit_distance_nums(n1, n2):\n"
        "    width = max(len(str(n1)), len(str(n2)))\n"
        "    pairs = zip(str(n1).zfill(width), str(n2).zfill(width))\n"
        "    return sum(abs(int(a) - int(b)) for a, b in pairs)",
    ),
    581: (  # the height is that of the apex over the base, not of a side
        "def surface_Area(b, s):\n    slant = ((b / 2) ** 2 + s**2) ** 0.5\n    return round(b**2 + 2 * b * slant)",
    ),
}


# ---- the types of the arguments in EvalPlus' release ----
def _as_is(value: Any) -> Any:
    return value


def _tuples(value: Any) -> list[Any]:
    return [tuple(item) for item in value]


def _deep_tuple(value: Any) -> Any:
    return tuple(_deep_tuple(item) for item in value) if isinstance(value, list) else value


_Convert = Callable[[Any], Any]
_ARGUMENTS: Mapping[tuple[_Convert, ...], tuple[int, ...]] = {  # a converter for each argument; the last one also converts all that follow
    (tuple,): (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
    (lambda value: tuple(tuple(item) if isinstance(item, list) else item for item in value),): (259, 278, 401, 445),
    (_tuples,): (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780),
    (_deep_tuple,): (580, 615, 791),
    (tuple, _as_is): (250, 307, 405, 446, 617, 720, 763, 808),
    (_as_is, tuple): (106, 750),
    (_tuples, _as_is): (75, 413, 444, 753),
    (lambda value: [set(item) if item else {} for item in value],): (115,),  # as in EvalPlus, an empty set is an empty dict
    (lambda value: {key: tuple(item) for key, item in value.items()}, _as_is): (722,),
    (float, complex): (124,),
    (complex,): (252,),
}
_ARGUMENTS_OF = {number: converts for converts, numbers in _ARGUMENTS.items() for number in numbers}


def _converted(number: int, arguments: Iterable[Any]) -> list[Any]:
    converts = _ARGUMENTS_OF.get(number, (_as_is,))
    return [converts[min(place, len(converts) - 1)](value) for place, value in enumerate(arguments)]
