"""Tables of candidates for tests: made by hand, or with the structure of real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

COLUMNS = {
    "task": pa.string(),
    "problem_id": pa.string(),
    "question": pa.string(),
    "reference_answer": pa.string(),
    "index": pa.int32(),
    "response_ids": pa.list_(pa.int32()),
    "response_text": pa.string(),
    "finish_reason": pa.string(),
    "mean_logprob": pa.float64(),
    "feature": pa.list_(pa.float32()),
    "verdict_status": pa.string(),
    "reward": pa.float64(),
    "verdict_answer": pa.string(),
    "score_repexp": pa.float64(),
    "score_quality": pa.float64(),
}
STATUSES = {"1": "correct", "0": "incorrect", "?": "no_answer", "t": "timeout", "e": "error", ".": None}


def row(problem: int, index: int, ranks: Mapping[str, int], **values: Any) -> dict[str, Any]:
    """One candidate of problem `problem`, with values of no importance where none are given."""
    return {
        "task": "sums",
        "problem_id": f"p{problem}",
        "question": f"What is {problem} + 1?",
        "reference_answer": str(problem + 1),
        "index": index,
        "response_ids": [1, 2, 3],
        "response_text": f"answer {index}",
        "finish_reason": "stop",
        "mean_logprob": -1.0,
        "feature": None,
        "verdict_status": None,
        "reward": None,
        "verdict_answer": None,
        "score_repexp": None,
        "score_quality": None,
        **{f"rank_{order}": rank for order, rank in ranks.items()},
        **values,
    }


def as_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = list(rows[0])
    return pa.table({name: pa.array([r[name] for r in rows], COLUMNS.get(name, pa.int32())) for name in names})


def small_table(*verdicts: str, orders: Sequence[str] = ("repexp", "quality"), **values: Any) -> pa.Table:
    """A problem for each string, a candidate for each letter of `STATUSES`. `repexp` takes them as they stand, every
    other order from the end."""
    rows = []
    for problem, letters in enumerate(verdicts):
        for index, letter in enumerate(letters):
            ranks = {order: index if order == "repexp" else len(letters) - 1 - index for order in orders}
            rows.append(row(problem, index, ranks, verdict_status=STATUSES[letter], **values))
    return as_table(rows)


def realistic_table(num_prompts: int = 60, num_candidates: int = 64, *, seed: int = 0, dim: int = 16) -> pa.Table:
    """Answers in a few clusters (one of them right), some incoherent: far from all others, long and unlikely."""
    rng = np.random.default_rng(seed)
    rows = []
    for problem in range(num_prompts):
        rows += _realistic_problem(rng, problem, num_candidates, dim)
    return as_table(rows)


def _realistic_problem(rng: np.random.Generator, problem: int, num: int, dim: int) -> list[dict[str, Any]]:
    hardness = rng.beta(1.2, 1.6)
    incoherent = rng.random(num) < 0.15
    weights = rng.dirichlet(np.full(6, 0.7))
    weights[0] = 0.12 * (1 - hardness) ** 3
    cluster = rng.choice(6, size=num, p=weights / weights.sum())
    centers = rng.normal(size=(6, dim)) * 2.0
    features = centers[cluster] + rng.normal(size=(num, dim)) * np.where(incoherent, 3.0, 0.7)[:, None] + 5.0
    logprob = -0.4 - 1.6 * incoherent - 0.3 * rng.random(num) - 0.08 * (cluster != 0)
    lengths = np.where(incoherent, 120, 40) + rng.integers(0, 60, num)
    correct = (cluster == 0) & ~incoherent
    quality = np.exp(logprob - logprob.max())
    unit = features - features.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    novelty_order, novelty = _greedy(features)
    quality_order, weighted = _greedy(unit * quality[:, None])
    orders = {
        "repexp": novelty_order,
        "quality": quality_order,
        "random": rng.permutation(num),
        "likeliest": np.argsort(-logprob),
        "unlikeliest": np.argsort(logprob),
        "longest": np.argsort(-lengths, kind="stable"),
        "kmeans": np.argsort(cluster + 6 * rng.random(num)),
        "determinantal": _greedy(unit)[0],
        "distinct_answers": np.argsort([int((cluster[:i] == cluster[i]).sum()) for i in range(num)], kind="stable"),
    }
    ranks = {order: np.argsort(picks) for order, picks in orders.items()}
    return [
        row(
            problem,
            i,
            {order: int(rank[i]) for order, rank in ranks.items()},
            response_ids=list(range(lengths[i])),
            response_text=f"Step 1: we take {cluster[i]}.\n"
            + ("lorem <b>ipsum</b> " * 40 if incoherent[i] else f"The answer is {cluster[i]}."),
            finish_reason="length" if lengths[i] > 160 else "stop",
            mean_logprob=float(logprob[i]),
            feature=features[i].tolist(),
            verdict_status="correct" if correct[i] else "no_answer" if incoherent[i] else "incorrect",
            reward=float(correct[i]),
            verdict_answer=None if incoherent[i] else str(cluster[i]),
            score_repexp=float(novelty[i]),
            score_quality=float(weighted[i]),
        )
        for i in range(num)
    ]


def _greedy(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Most novel first: the order, and each candidate's x'Λx when it was picked."""
    precision = np.eye(features.shape[1])
    left, order, scores = list(range(len(features))), [], np.zeros(len(features))
    while left:
        novelty = ((features[left] @ precision) * features[left]).sum(axis=1)
        pick = left.pop(int(np.argmax(novelty)))
        direction = precision @ features[pick]
        scores[pick] = features[pick] @ direction
        precision -= np.outer(direction, direction) / (1 + scores[pick])
        order.append(pick)
    return np.array(order), scores
