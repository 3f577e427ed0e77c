"""Bonuses as somebody outside of the project writes them: one from each need, and some that are wrong."""

from __future__ import annotations

from typing import Any

import torch

from bonus.base import Need, Scores, StepRows


class Distance:
    """From features: the distance to the center of the group. Needs no state."""

    needs = frozenset({Need.FEATURES})

    def init_state(self) -> dict[str, Any]:
        return {}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        assert step.features_GKD is not None
        distance_GK = (step.features_GKD - step.features_GKD.mean(dim=1, keepdim=True)).norm(dim=2)
        return Scores(bonus_GK=distance_GK * step.valid_GK), state


class AnswerCounts:
    """From final answers: 1 / sqrt(N), N the times that this problem got this answer so far, in the whole run."""

    needs = frozenset({Need.ANSWERS})

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale

    def init_state(self) -> dict[str, Any]:
        return {"counts": {}}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        assert step.answers_GK is not None
        counts = {key: dict(of_key) for key, of_key in state["counts"].items()}
        for key, answers in zip(step.keys_G, step.answers_GK, strict=True):
            of_problem = counts.setdefault(key, {})
            for answer in answers:
                if answer is not None:
                    of_problem[answer] = of_problem.get(answer, 0) + 1
        pairs = zip(step.keys_G, step.answers_GK, strict=True)
        times_GK = torch.tensor([[counts[key].get(answer, 0) for answer in answers] for key, answers in pairs])
        bonus_GK = torch.where(times_GK > 0, self._scale / times_GK.clamp(min=1).sqrt(), 0.0)
        scores = Scores(bonus_GK=bonus_GK, metrics={"num_answers": sum(map(len, counts.values()))}, detail={"times": times_GK})
        return scores, {"counts": counts}


class Surprise:
    """From log-probs: the mean surprise of a response's tokens, less its running mean, a tensor of the state."""

    needs = frozenset({Need.LOGPROBS})

    def init_state(self) -> dict[str, Any]:
        return {"mean": torch.zeros(()), "steps": 0}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        assert step.logprobs_GKT is not None
        surprise_GK = -step.logprobs_GKT.sum(dim=2) / step.lengths_GK.clamp(min=1)
        mean = state["mean"] + (surprise_GK[step.valid_GK].mean() - state["mean"]) / (state["steps"] + 1)
        return Scores(bonus_GK=torch.where(step.valid_GK, surprise_GK - mean, 0.0)), {"mean": mean, "steps": state["steps"] + 1}


class Told:
    """Needs nothing, keeps a state of its own, and returns what the test tells it to."""

    needs: Any = frozenset()
    scores: Any = None
    state: Any = None

    def init_state(self) -> Any:
        return self.state

    def score(self, step: StepRows, state: Any) -> Any:
        return self.scores if not isinstance(self.scores, Scores) else (self.scores, self.state)


class NeedsLogits(Told):
    needs = frozenset({"logits"})


class NeedsNumber(Told):
    needs = 3


class WithoutScore:
    needs = frozenset()

    def init_state(self) -> dict[str, Any]:
        return {}
