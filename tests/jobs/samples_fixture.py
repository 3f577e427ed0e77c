"""Samples of models for tests of evaluation: made by hand, or with a known law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.analysis.candidate_table import Candidates, candidates_by_problem
from jobs.analysis.outcomes import ProblemOutcomes, problem_outcomes
from jobs.sampling.candidates import CandidateStore
from jobs.sampling.samples import MODEL_AND_PROBLEM
from tests.jobs.candidates_fixture import COLUMNS

LETTERS = {"1": "correct", "0": "incorrect", "?": "no_answer", "m": "malformed", "t": "timeout", "e": "error"}
"""Of a response by its letter; "1" states the answer "right", any other letter a to z is an incorrect answer of that
name."""
TYPES = COLUMNS | {"model": pa.string(), "final_answer": pa.string(), "base_mean_logprob": pa.float64()}


def response_table(model: str, problem_id: str, letters: str, **values: Any) -> pa.Table:
    """Responses to one problem: one for each letter. `values` replace columns, as a list or one value for all."""
    num = len(letters)
    columns: dict[str, Any] = {
        "model": model,
        "task": "sums",
        "problem_id": problem_id,
        "question": f"What is {problem_id}?",
        "reference_answer": "right",
        "index": list(range(num)),
        "response_ids": [[1, 2, 3]] * num,
        "response_text": [f"text {letter}" for letter in letters],
        "finish_reason": "stop",
        "mean_logprob": -1.0,
        "verdict_status": [LETTERS.get(letter, "incorrect") for letter in letters],
        "final_answer": [_answer(letter) for letter in letters],
    } | values
    return pa.table({name: pa.array(v if isinstance(v, list) else [v] * num, TYPES.get(name, pa.int32())) for name, v in columns.items()})


def _answer(letter: str) -> str | None:
    return "right" if letter == "1" else None if letter in "?mte" else letter


def candidates_of(*letters: str, **values: Any) -> list[Candidates]:
    """Problems p0, p1, … of one model."""
    return [
        candidates
        for number, one in enumerate(letters)
        for candidates in candidates_by_problem(response_table("m", f"p{number}", one, **values))
    ]


def outcomes_of(*letters: str, max_k: int | None = None, **values: Any) -> ProblemOutcomes:
    return problem_outcomes(candidates_of(*letters, **values), max_k=max_k or max(map(len, letters)))


def binomial_outcomes(rate_P: np.ndarray, num: int, rng: np.random.Generator) -> ProblemOutcomes:
    """`num` responses to each problem, correct with its rate."""
    return outcomes_of(*("".join("1" if u < rate else "x" for u in rng.random(num)) for rate in rate_P))


def store_of(directory: Path, models: Mapping[str, Sequence[str]], **values: Any) -> CandidateStore:
    """A compacted store with problems p0, p1, … of every model."""
    directory.mkdir(parents=True, exist_ok=True)
    store = CandidateStore(directory, {}, file="samples.parquet", key=MODEL_AND_PROBLEM)
    order = []
    for model, letters in models.items():
        for number, one in enumerate(letters):
            store.add(response_table(model, f"p{number}", one, **values))
            order.append((model, f"p{number}"))
    store.compact(order)
    return store


def realistic_models(num_problems: int = 60, num: int = 64, *, seed: int = 0) -> dict[str, list[str]]:
    """A base model with many wrong answers, and a trained one that is surer: better at k = 1, no better at large k."""
    rng = np.random.default_rng(seed)
    hardness_P = rng.beta(0.8, 1.2, num_problems)
    models: dict[str, list[str]] = {"base": [], "trained": []}
    for hardness in hardness_P:
        base = 0.5 * (1 - hardness) ** 2
        trained = base**0.5 if base > 0.02 else base / 4
        for name, rate, wrong in (("base", base, "abcdfgh?"), ("trained", trained, "ab")):
            drawn = rng.random(num)
            models[name].append("".join("1" if u < rate else wrong[int(len(wrong) * rng.random() ** 2)] for u in drawn))
    return models
