"""The judge of programs: right and wrong ones, and programs that want to pass without being right."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tasks.base import Verdict, VerdictStatus
from tasks.programs import program_tests
from tasks.programs.program_tests import ProgramTests, deadline_s, judge_program, read_tests, write_tests
from tasks.programs.sandbox import Isolation
from tests.tasks.cheating_programs import CHEATS

pytestmark = pytest.mark.usefixtures("sandboxed")

SQUARE = ProgramTests(reference="def f(x):\n    return x * x", calls=tuple(f"f(*[{x}])" for x in (2, 3, -4)))


def judge(program: str, tests: ProgramTests = SQUARE, limit_s: float = 10.0) -> Verdict:
    return judge_program(program, tests, limit_s=limit_s, isolation=Isolation.NAMESPACES)


def gives(value: str, *, expected: str, atol: float = 0.0) -> VerdictStatus:
    """The verdict on a program whose function gives `value`."""
    return judge(f"def f(): return {value}", ProgramTests(reference=f"def f(): return {expected}", calls=("f()",), atol=atol)).status


@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return x ** 2",
        "f = lambda x: float(x * x)",
        "class F:\n    def __call__(self, x): return x * x\nf = F()",
        "print('x' * 10**6)\ndef f(x):\n    print(x)\n    return x * x",
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\ndef f(x): return x * x",
        "def f(x): return x * x\nif __name__ == '__main__':\n    raise SystemExit(input())",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\ndef f(x): return A(x * x).x",
    ],
)
def test_right_program_is_correct(program: str) -> None:
    verdict = judge(program)
    assert (verdict.status, verdict.reward, verdict.detail) == (VerdictStatus.CORRECT, 1.0, None)


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("def f(x): return x + x", "test 2 of 3, f(*[3]): gave 6, not 9"),
        ("def f(x): return x * abs(x)", "test 3 of 3, f(*[-4]): gave -16, not 16"),
        ("def f(x): return [x] * 1000", "test 1 of 3, f(*[2]): gave [2, 2, 2, 2, 2, 2, ...], not 4"),
        ("def f(x): return 10**9999", "test 1 of 3, f(*[2]): gave what cannot be read (ValueError)"),
        ("def f(x): return 1 / (x - 3)", "test 1 of 3, f(*[2]): gave -1.0, not 4"),
        ("def f(x): return x * x // (x - 3)\n", "test 1 of 3, f(*[2]): gave -4, not 4"),
        ("def f(x):\n    if x == 3: raise KeyError('no')\n    return x * x", "test 2 of 3, f(*[3]): raised KeyError: 'no'"),
        ("def g(x): return x * x", "test 1 of 3, f(*[2]): raised NameError: name 'f' is not defined"),
        ("import numpy\ndef f(x): return x * x", "test 1 of 3, f(*[2]): raised ModuleNotFoundError: No module named 'numpy'"),
        ("held = []\ndef f(x):\n    while True: held.append(bytearray(1 << 24))", "test 1 of 3, f(*[2]): raised MemoryError: "),
        ("def f(x): return 'x' * 10**6", "test 1 of 3, f(*[2]): said too much"),
        ("import ctypes\ndef f(x): ctypes.string_at(0)", "test 1 of 3, f(*[2]): the program was ended by signal 11"),
        ("def f(x): return iter([])", "test 1 of 3, f(*[2]): raised TypeError: gave no plain value but list_iterator"),
        ("", "test 1 of 3, f(*[2]): raised NameError: name 'f' is not defined"),
    ],
)
def test_wrong_program_is_incorrect_and_its_first_failure_is_told(program: str, detail: str) -> None:
    verdict = judge(program)
    assert (verdict.status, verdict.reward, verdict.detail) == (VerdictStatus.INCORRECT, 0.0, detail)


@pytest.mark.parametrize(
    "program",
    ["def f(x) return x", "def f(x):\nreturn x", "f = 1 +", "\0", "def f(x): return " + "(" * 1000, "'\ud800", "x = " + "-" * 10**6 + "1"],
)
def test_what_does_not_compile_is_malformed(program: str) -> None:
    verdict = judge(program)
    assert (verdict.status, verdict.reward) == (VerdictStatus.MALFORMED, 0.0)
    assert verdict.detail and verdict.detail.partition(": ")[0].endswith("Error")


def test_program_that_does_not_end_is_incorrect() -> None:
    verdict = judge("def f(x):\n    while x == 3: pass\n    return x * x", limit_s=0.5)
    assert (verdict.status, verdict.reward) == (VerdictStatus.INCORRECT, 0.0)
    assert verdict.detail == "test 2 of 3, f(*[3]): ran over 1 s of processor time, or 3 s in all"


@pytest.mark.parametrize("program", CHEATS.values(), ids=list(CHEATS))
def test_program_that_does_not_compute_the_answers_does_not_pass(program: str) -> None:
    verdict = judge(program)
    assert verdict.status in (VerdictStatus.INCORRECT, VerdictStatus.MALFORMED), verdict
    assert verdict.reward == 0.0
    assert len(verdict.detail or "") < 500


@pytest.mark.parametrize(
    ("value", "expected", "atol", "is_right"),
    [
        ("True", "1", 0, True),  # as Python has it
        ("[1, 2]", "(1, 2)", 0, False),
        ("{1, 2}", "frozenset([2, 1])", 0, True),
        ("{2: 1, 1: 2}", "{1: 2, 2: 1}", 0, True),
        ("'1'", "1", 0, False),
        ("None", "False", 0, False),
        ("2 * 10**6 * (10**6 + 1) * (2 * 10**6 + 1) // 3", "2 * 10**6 * (10**6 + 1) * (2 * 10**6 + 1) / 3", 0, True),  # as Mbpp/287
        ("2**70 + 1", "float(2**70)", 0, True),
        ("2**70 + 2**20", "float(2**70)", 0, False),
        ("10**15 + 1", "1e15", 0, False),
        ("10**400", "1e308 * 10", 0, False),
        ("[2**70 + 1, 'a']", "[float(2**70), 'a']", 0, True),
        ("(2**70 + 1,)", "[float(2**70)]", 0, False),
        ("float(2**70)", "2**70 + 1", 0, False),  # the reference is exact
        ("0.1 + 0.2", "0.3", 0, True),
        ("0.30001", "0.3", 0, False),
        ("0.30001", "0.3", 1e-4, True),
        ("[0.1 + 0.2, 1.0]", "[0.3, 1.0]", 0, True),
        ("(0.1 + 0.2, 1.0)", "[0.3, 1.0]", 0, False),
        ("[0.1 + 0.2, 'a']", "[0.3, 'a']", 0, False),
        ("[0.1 + 0.2, 'a']", "[0.3, 'a']", 1e-4, True),
        ("[[0.1 + 0.2], [1, 2]]", "[[0.3], [1, 2]]", 1e-4, True),
        ("[[0.1 + 0.2], [1, 2]]", "[[0.3], [1]]", 1e-4, False),
        ("[]", "[]", 0, True),
        ("float('nan')", "float('nan')", 0, True),
        ("[float('nan'), 0.1 + 0.2]", "[float('nan'), 0.3]", 0, True),
        ("float('inf')", "float('inf')", 0, True),
        ("float('inf')", "1e300", 0, False),
        ("10**400 + 1.0 if False else 10**400", "1.5", 0, False),
        ("7**30000", "7**30000", 0, True),
        ("7**30000 + 1", "7**30000", 0, False),
        ("3 + 4j", "3 + 4j", 0, True),
        ("__import__('decimal').Decimal('1.0')", "__import__('decimal').Decimal('1.0')", 0, True),
        ("__import__('datetime').date(2026, 1, 2)", "__import__('datetime').date(2026, 1, 3)", 0, False),
    ],
)
def test_values_are_compared_as_the_field_does(value: str, expected: str, atol: float, is_right: bool) -> None:
    assert gives(value, expected=expected, atol=atol) is (VerdictStatus.CORRECT if is_right else VerdictStatus.INCORRECT)


def test_each_alternative_is_right_test_by_test() -> None:
    tests = replace(SQUARE, alternatives=("def f(x): return -x * x",))
    assert judge("def f(x): return x * abs(x)", tests).status is VerdictStatus.CORRECT
    assert judge("def f(x): return x", tests).status is VerdictStatus.INCORRECT


def test_expected_results_may_have_expressions_of_their_own_and_a_setup() -> None:
    tests = ProgramTests(
        reference="class Node:\n    def __init__(self, v): self.v = v\ndef f(node): return node.v",
        calls=("f(root)", "len([f(root)])"),
        expected=("7", "1"),
        setup="root = Node(7)",
    )
    assert judge(tests.reference, tests).status is VerdictStatus.CORRECT
    verdict = judge("def f(node): return 7", tests)
    assert verdict.detail == "test 1 of 2, f(root): raised NameError: name 'Node' is not defined"


def test_program_has_the_references_time_on_top_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_tests, "_WALL_OF_CPU", 50)  # of the processor's time
    spin = "import time\ndef f():\n    end = time.process_time() + {}\n    while time.process_time() < end: pass\n    return 1"
    tests = ProgramTests(reference=spin.format(0.6), calls=("f()",))
    assert judge(spin.format(1.2), tests, limit_s=0.5).status is VerdictStatus.CORRECT


def test_reference_that_fails_is_no_verdict_on_the_program() -> None:
    verdict = judge("def f(x): return 1", ProgramTests(reference="def f(x): return x[0]", calls=("f('a')", "f(1)")))
    assert (verdict.status, verdict.reward) == (VerdictStatus.ERROR, None)
    assert verdict.detail == ('the reference program gives 1 of 2 results: {"error": "TypeError: \'int\' object is not subscriptable"}')


def test_sandbox_that_fails_is_no_verdict_on_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.programs.sandbox._LAUNCH", "raise SystemExit")
    monkeypatch.setattr("tasks.programs.sandbox._launchers", {})
    verdict = judge("def f(x): return x * x")
    assert verdict.status is VerdictStatus.ERROR and verdict.reward is None


def test_reference_runs_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    program_tests._results.cache_clear()
    runs = []
    evaluate = program_tests._evaluate
    monkeypatch.setattr(program_tests, "_evaluate", lambda program, *rest: runs.append(program) or evaluate(program, *rest))
    for _ in range(3):
        assert judge("def f(x): return x ** 2").status is VerdictStatus.CORRECT
    assert runs.count(SQUARE.reference) == 1 and len(runs) == 4


def test_tests_travel_as_json() -> None:
    tests = replace(SQUARE, setup="x = 'é'", alternatives=("a", "b"), atol=1e-4)
    assert read_tests(write_tests(tests)) == tests


@pytest.mark.parametrize(
    "text", ["", "72", "[]", "{}", json.dumps({"reference": "", "calls": ["f()"], "expected": ["1", "2"]}), '{"a": 1}']
)
def test_other_text_is_no_tests(text: str) -> None:
    with pytest.raises(ValueError):
        read_tests(text)


def test_deadline_is_beyond_what_a_verification_may_take() -> None:
    assert deadline_s(5.0) > 100 + 5 * (5 + 20)
