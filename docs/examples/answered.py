"""The control of bonuses on final answers: 1 for a response that states an answer, whichever it is.

    bonus.kind = "docs.examples.answered:Answered"
    learner.advantage = { combine = "advantage", beta = 0.5 }

`outcome_batch` and `outcome_ucb` give a response without an answer the least value, so they also teach to state one.
What they gain over this bonus is due to which answers are rare. `configs/compare/sparse.toml` compares the two, and
docs/exploration.md has what was found.
"""

import torch

from bonus.base import Need, Scores, State, StepRows


class Answered:
    """b_i = 1 if response i is not empty and states a final answer, else 0."""

    needs = frozenset({Need.ANSWERS})

    def init_state(self) -> State:
        return {}

    def score(self, step: StepRows, state: State) -> tuple[Scores, State]:
        assert step.answers_GK is not None, "it needs final answers"
        has_answer_GK = torch.tensor([[answer is not None for answer in answers] for answers in step.answers_GK])
        bonus_GK = (has_answer_GK & step.valid_GK).to(torch.float64)
        return Scores(bonus_GK=bonus_GK, metrics={"answered": bonus_GK.mean().item()}), state
