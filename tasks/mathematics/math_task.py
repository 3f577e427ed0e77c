"""What the tasks of published mathematics share: the prompt, and verdicts by the ladder of
`tasks.mathematics.verify`."""

from __future__ import annotations

from tasks.base import Message, Problem, Verdict, with_instruction
from tasks.mathematics.verify import final_math, math_verdict, warm_up

__all__ = ["LAYOUTS", "MathTask"]

LAYOUTS = (("prompt", "answer"), ("problem", "answer"), ("question", "answer"))
"""Columns of questions and of their bare answers, ours first."""


class MathTask:
    """A question with a mathematical answer of any form. Subclasses know where the problems are."""

    has_verifier: bool = True
    deadline_s: float = 5.0

    def __init__(self, instruction: str) -> None:
        self._instruction = instruction

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": with_instruction(problem.question, self._instruction)}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """The stated answer in one spelling a value, as far as that is known without sympy
        (`tasks.mathematics.verify`)."""
        return final_math(response)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Reward 1.0 where the stated answer is the right one in any of its forms, else 0.0 (docs/verifiers.md)."""
        return math_verdict(response, problem.answer)

    def warm_up(self) -> None:
        warm_up()
