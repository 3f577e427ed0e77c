"""Answers that try to hang, crash or break out of a verifier of mathematics, in the real pool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import psutil
import pytest

from actors.config import VerifierConfig
from actors.verifier import VerifierPool
from buffers.records import Problem, VerdictStatus
from tasks.config import TaskConfig

pytestmark = pytest.mark.whole

DEADLINE_S = 2.0
MAX_WORKER_MIB = 400
MARKER = "was-here"
NUMBER, FUNCTION, CONSTANT = "5", "x^2+1", r"\sqrt{2}+e"

HOSTILE = {
    "power tower": (NUMBER, "9^{9^9}"),
    "power tower in Python": (NUMBER, "9**9**9"),
    "tower of tens": (NUMBER, "10^{10^{10}}"),
    "tower of six": (CONSTANT, "2^{2^{2^{2^{2^{2}}}}}"),
    "long base and exponent": (CONSTANT, "9" * 900 + "^{" + "9" * 900 + "}"),
    "factorials": (NUMBER, "((9!)!)!"),
    "factorial of a power": (CONSTANT, "100^{100}!"),
    "many exclamation marks": (NUMBER, "5" + "!" * 1500),
    "power of a factorial": (NUMBER, "3000!^{3000}"),
    "binomial": (NUMBER, r"\binom{10^9}{5\cdot 10^8}"),
    "hundred thousand digits": (NUMBER, "1" * 100_000),
    "hundred thousand letters": (NUMBER, "a" * 100_000),
    "nested parentheses": (NUMBER, "(" * 5000 + "1" + ")" * 5000),
    "a few too many parentheses": (NUMBER, "(" * 400 + "1" + ")" * 400),
    "nested braces": (NUMBER, "{" * 900 + "1" + "}" * 900),
    "braces that never close": (NUMBER, "{" * 9000),
    "nested fractions": (NUMBER, r"\frac{1}{" * 150 + "1" + "}" * 150),
    "fractions without arguments": (NUMBER, r"\frac" * 300),
    "nested roots": (NUMBER, r"\sqrt{" * 200 + "2" + "}" * 200),
    "minus signs": (NUMBER, "-" * 1500 + "1"),
    "quotients": (NUMBER, "1/" * 900 + "1"),
    "long sum": (FUNCTION, "x+" * 290 + "x"),
    "wide list": ("1,2", "1," * 290 + "1"),
    "huge matrix": (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}" + "1 & " * 400 + r"1 \end{pmatrix}"),
    "infinite sum": (NUMBER, r"\sum_{n=1}^{\infty} \frac{1}{n^2}"),
    "long product": (NUMBER, r"\prod_{k=1}^{10^9} k"),
    "integral": (NUMBER, r"\int_0^{\infty} \sin(x^{x^x}) dx"),
    "limit": (NUMBER, r"\lim_{n\to\infty} (1+\frac{1}{n})^{n^{n}}"),
    "zeta": (NUMBER, r"\zeta(\zeta(\zeta(3)))"),
    "nested exponentials": (CONSTANT, r"\exp(\exp(\exp(100)))"),
    "logarithm of a huge polynomial": (FUNCTION, r"\ln(-1-(x+y+z+w)^{12}(x-y)^{12}(x^2+y^2)^{12})"),
    "sine of a huge number": (CONSTANT, r"\sin(100^{100})"),
    "nested sines": (FUNCTION, r"\sin\sin\sin\sin\sin\sin\sin\sin x"),
    "large power of a sum": (FUNCTION, "(x+1)^{1000000}"),
    "greatest common divisor": (FUNCTION, r"\gcd(x^{100}-1, x^{99}-1)"),
    "code by import": (NUMBER, f"__import__('os').system('touch {MARKER}')"),
    "code in a function": (FUNCTION, f"\\exp(__import__('os').system('touch {MARKER}'))"),
    "code in text": (NUMBER, f"\\text{{__import__('os').system('touch {MARKER}')}}"),
    "code by lambda": (FUNCTION, f"(lambda: open('{MARKER}', 'w'))()"),
    "code in a symbol": (FUNCTION, f"x_{{open('{MARKER}','w')}}"),
    "exit": (NUMBER, "exit()"),
    "backtracking": (NUMBER, "a" * 64 + "!" + r"\text{" * 60),
    "unclosed boxes": (NUMBER, r"\boxed{" * 2000),
    "dollar signs": (NUMBER, "$" * 9000),
    "invisible and reversing characters": (NUMBER, "\u202e5\u200b5\u2066" * 100),
    "digits of other scripts": (NUMBER, "٣٤٥"),
    "a surrogate": (NUMBER, "\ud800"),
    "null characters": (NUMBER, "5\x00" * 500),
}


def problem(answer: str) -> Problem:
    return Problem(task="math", problem_id="math/test/000000", question="?", answer=answer)


def worker_mib() -> list[float]:
    return [
        child.memory_info().rss / 2**20 for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())
    ]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VerifierPool]:
    """A pool of one process, in a directory of its own."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("hostile"))
    try:
        with VerifierPool(TaskConfig(name="math"), VerifierConfig(num_workers=1, timeout_s=DEADLINE_S)) as pool:
            yield pool
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answer_is_over_by_its_deadline_and_leaves_pool_and_host_alone(pool: VerifierPool, name: str) -> None:
    gold, answer = HOSTILE[name]
    started = perf_counter()
    assert pool.verify(problem("1/2"), ["\\boxed{0.5}"])[0].status is VerdictStatus.CORRECT, "the process is ready"
    grace_s = max(1.0, 5 * (perf_counter() - started))  # 1 s on a machine at rest; a busy one takes longer for everything
    started = perf_counter()
    (verdict,) = pool.verify(problem(gold), [f"The answer is \\boxed{{{answer}}}."])
    assert perf_counter() - started < DEADLINE_S + grace_s
    assert verdict.status not in (VerdictStatus.CORRECT, VerdictStatus.ERROR), verdict
    assert verdict.elapsed_s <= DEADLINE_S + grace_s
    assert pool.verify(problem("1/2"), ["\\boxed{0.5}", "\\boxed{0.6}"])[0].status is VerdictStatus.CORRECT
    assert pool.num_workers == len(worker_mib()) == 1 and pool.stats().num_rebuilds == 0
    assert max(worker_mib()) < MAX_WORKER_MIB
    assert not list(Path.cwd().iterdir())


def test_all_of_them_at_once_cost_their_neighbours_nothing(tmp_path: Path) -> None:
    """Each stands between two honest answers of the same call, which keep their verdicts and their places."""
    texts = [f"\\boxed{{{answer}}}" for _, answer in HOSTILE.values()]
    responses = [text for hostile in texts for text in ("\\boxed{x^2+1}", hostile)] + ["\\boxed{1+x^2}"]
    with VerifierPool(TaskConfig(name="math"), VerifierConfig(num_workers=2, timeout_s=DEADLINE_S)) as pool:
        verdicts = pool.verify(problem(FUNCTION), responses)
        assert {verdict.status for verdict in verdicts[::2]} == {VerdictStatus.CORRECT}
        assert VerdictStatus.CORRECT not in {verdict.status for verdict in verdicts[1::2]}
        assert pool.stats().num_error == 0 and pool.stats().num_rebuilds == 0


def test_the_list_is_long_and_some_of_it_must_be_killed(pool: VerifierPool) -> None:
    assert len(HOSTILE) == 48  # as docs/verifiers.md says
    gold, answer = HOSTILE["nested exponentials"]
    assert pool.verify(problem(gold), [f"\\boxed{{{answer}}}"])[0].status is VerdictStatus.TIMEOUT
