"""What all tasks of published mathematics share: the prompt, and verdicts by `tasks.mathematics.verify`."""

from tasks.base import Message, Problem, Task, Verdict, with_instruction

__all__ = ["LAYOUTS", "MathTask"]

LAYOUTS = (("prompt", "answer"), ("problem", "answer"), ("question", "answer"))
"""Pairs of columns that hold questions and their bare answers. Our own layout comes first."""


class MathTask(Task):
    """A question with a mathematical answer of any form. Subclasses say where the problems come from. Every job imports
    this module for the configuration of the tasks, so it imports the verifier only when it verifies."""

    def __init__(self, instruction: str) -> None:
        self._instruction = instruction

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": with_instruction(problem.question, self._instruction)}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """Return the stated answer. Equal values have one spelling as far as that is known without sympy."""
        from tasks.mathematics.verify import final_math

        return final_math(response, self.judging)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Give reward 1.0 if the stated answer is the right one in any of its forms, else 0.0 (docs/verifiers.md)."""
        from tasks.mathematics.verify import math_verdict

        return math_verdict(response, problem.answer, self.judging)

    def warm_up(self) -> None:
        from tasks.mathematics.verify import warm_up

        warm_up()
