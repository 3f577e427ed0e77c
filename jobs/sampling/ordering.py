"""The ranks of a problem's candidates in every order of `bonus.orders`, from the columns of the table. Axes: N
candidates, V of them with a feature, H hidden size, D projected size."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bonus.orders import ORDERS, Pool, order_pool, scored_order
from bonus.projection import sparse_projection
from jobs.explore_config import ExploreConfig
from jobs.sampling.candidates import with_columns

_projection = lru_cache(maxsize=4)(sparse_projection)


def rank_candidates(candidates: pa.Table, config: ExploreConfig) -> pa.Table:
    """Return `candidates` with a column rank_<order> (0: verified first) for every order. The orders repexp and quality
    also get a column score_<order>: the novelty of each candidate when it was picked."""
    pool = pool_of(candidates, dim=config.selection.dim, seed=config.seed)
    selection = config.selection.model_copy(update={"dim": pool.features_ND.shape[1]})
    columns: dict[str, Any] = {f"rank_{name}": _ranks(order_pool(name, pool, selection)).numpy() for name in ORDERS}
    for name in ("repexp", "quality"):
        order_N, score_N = scored_order(name, pool, selection)
        columns[f"score_{name}"] = [None if np.isnan(score) else score for score in score_N[_ranks(order_N)].tolist()]
    return with_columns(candidates, columns)


def pool_of(candidates: pa.Table, *, dim: int, seed: int) -> Pool:
    """Return what the orders look at. Features of more than `dim` numbers are projected to `dim`."""
    features = candidates["feature"].combine_chunks()
    valid = features.is_valid().to_numpy(zero_copy_only=False)
    states_VH = features.flatten().to_numpy().astype(np.float64).reshape(int(valid.sum()), -1) if valid.any() else np.zeros((0, 1))
    hidden_size = states_VH.shape[1]
    states_NH = torch.zeros(len(valid), hidden_size, dtype=torch.float64)
    states_NH[torch.from_numpy(valid)] = torch.from_numpy(states_VH)
    features_ND = states_NH @ _projection(hidden_size, dim, seed=seed) if dim < hidden_size else states_NH
    logprobs = [0.0 if value is None else value for value in candidates["mean_logprob"].to_pylist()]
    return Pool(
        features_ND=features_ND,
        valid_N=torch.from_numpy(valid),
        mean_logprob_N=torch.tensor(logprobs, dtype=torch.float64),
        lengths_N=torch.tensor([len(ids) for ids in candidates["response_ids"].to_pylist()]),
        answers=candidates["final_answer"].to_pylist(),
    )


def _ranks(order_N: Tensor) -> Tensor:
    """Return the inverse permutation: rank_N[order_N[t]] = t."""
    rank_N = torch.empty_like(order_N)
    rank_N[order_N] = torch.arange(len(order_N))
    return rank_N.to(torch.int32)
