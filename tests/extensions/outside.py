"""One of each extension, in one module that no file of the product knows: as a person outside writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.engine import EngineSetup, NewTokens, SampleRequest, require_held
from actors.engines import EngineFacts, Repeats
from bonus.base import Need, Scores, StepRows
from buffers.records import FinishReason
from buffers.samplers import HeldGroup
from jobs.directory.trackers import RunInfo
from learners.advantages import AdvantageInputs
from learners.config import AdvantageConfig, LossConfig
from learners.forward import load_causal_lm
from learners.loss.surrogates import RatioInputs, SurrogateOutput
from learners.weights import HEAD, WeightSnapshot
from tasks.base import Problem, Task, Verdict, judge


def soft(inputs: RatioInputs, config: LossConfig) -> SurrogateOutput:
    """A surrogate: A times tanh(r − 1), which no ratio can push far."""
    ratio_N = (inputs.logprob_N - inputs.anchor_logprob_N).exp()
    return SurrogateOutput(value_N=inputs.advantage_N * torch.tanh(ratio_N - 1), clipped_N=ratio_N > 2)


class Smooth:
    """A correction with a setting: w = exp(d) / (1 + exp(d) / limit)."""

    def __init__(self, limit: float = 4.0) -> None:
        self._limit = limit

    def __call__(self, difference_N: Tensor, response_N: Tensor, config: LossConfig) -> Tensor:
        ratio_N = difference_N.exp()
        return ratio_N / (1 + ratio_N / self._limit)


def relative(inputs: AdvantageInputs, config: AdvantageConfig) -> Tensor:
    """An advantage estimator: (r − mean) / (mean + ε) of the group, plus the bonus's part; 0 without a score."""
    scored_GK = ~inputs.rewards_GK.isnan()
    reward_GK = inputs.rewards_GK.nan_to_num() + config.beta * inputs.bonuses_GK
    mean_G1 = (reward_GK * scored_GK).sum(1, keepdim=True) / scored_GK.sum(1, keepdim=True).clamp(min=1)
    return (reward_GK - mean_G1) / (mean_G1.abs() + 1e-6) * scored_GK


class Far:
    """A bonus from features: the distance to the center of the group."""

    needs = frozenset({Need.FEATURES})

    def init_state(self) -> dict[str, Any]:
        return {}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        assert step.features_GKD is not None
        distance_GK = (step.features_GKD - step.features_GKD.mean(1, keepdim=True)).norm(dim=2)
        return Scores(bonus_GK=distance_GK * step.valid_GK), state


class Rare:
    """A bonus from final answers: 1 / sqrt(N), where N counts this answer to this problem over the whole run."""

    needs = frozenset({Need.ANSWERS})

    def init_state(self) -> dict[str, Any]:
        return {"counts": {}}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        assert step.answers_GK is not None
        counts = dict(state["counts"])
        keys_GK = [[f"{key} {answer}" for answer in answers] for key, answers in zip(step.keys_G, step.answers_GK, strict=True)]
        for key in (key for keys in keys_GK for key in keys):
            counts[key] = counts.get(key, 0) + 1
        bonus_GK = torch.tensor([[counts[key] ** -0.5 for key in keys] for keys in keys_GK])
        return Scores(bonus_GK=bonus_GK, metrics={"num_answers": float(len(counts))}), {"counts": counts}


class Freshest:
    """A sampler: the groups that the newest policies sampled."""

    def choose(self, held: Sequence[HeldGroup], num_groups: int) -> Sequence[int]:
        newest_first = sorted(held, key=lambda group: (-group.oldest_version, group.group_id))
        return [group.group_id for group in newest_first[:num_groups]]


class Letters(Task):
    """A task with its verifier: name the letter that follows. The answer is the first letter of the reply."""

    name = "letters"

    def __init__(self, first: str = "a") -> None:
        self._first = first

    def problems(self, split: str) -> Iterator[Problem]:
        letters = [chr(code) for code in range(ord(self._first), ord("z"))]
        for letter in letters[::2] if split == "train" else letters[1::2]:
            question = f"Which letter follows {letter}?"
            yield Problem(task=self.name, problem_id=f"letters/{letter}", question=question, answer=chr(ord(letter) + 1))

    def verify(self, problem: Problem, response: str) -> Verdict:
        found = next((character for character in response.lower() if character.isalpha()), None)
        return judge(found, problem.answer)


class Uniform:
    """An engine: every token is drawn evenly from the vocabulary. It holds the weights, and proves it."""

    facts = EngineFacts(repeats=Repeats.NEVER)

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def start(self, setup: EngineSetup) -> None:
        self._model = load_causal_lm(setup.model, dtype=setup.config.dtype)
        self._num_tokens = self._model.config.vocab_size
        self._generator = torch.Generator().manual_seed(self._seed + setup.seed)
        self._sampling, self._left = setup.sampling, dict[str, int]()

    def add(self, request: SampleRequest) -> None:
        self._left[request.key] = request.num_left(self._sampling)

    def step(self) -> list[NewTokens]:
        new = []
        for key in list(self._left):
            token_id = int(torch.randint(self._num_tokens, (1,), generator=self._generator))
            self._left[key] -= 1
            reason = None if self._left[key] else FinishReason.LENGTH
            logprob = -float(torch.tensor(self._num_tokens).log())
            new.append(NewTokens(key=key, token_ids=[token_id], logprobs=[logprob], finish_reason=reason))
            if reason is not None:
                del self._left[key]
        return new

    def abort(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self._left[key]

    @torch.no_grad()
    def load(self, snapshot: WeightSnapshot) -> None:
        own = dict(self._model.named_parameters())
        for name, tensor in snapshot.tensors():
            own[name].copy_(tensor)
        require_held(snapshot, {**own, HEAD: self._model.get_output_embeddings().weight})

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        self._generator.manual_seed(seed)


class Lines:
    """A tracker: one line of JSON a step, in a file of the run's directory."""

    def __init__(self, file: str = "lines.jsonl") -> None:
        self._name = file

    def start(self, info: RunInfo) -> None:
        self._file = (info.run_dir / self._name).open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "reward": metrics.get("reward/mean")}) + "\n")

    def close(self) -> None:
        self._file.close()
