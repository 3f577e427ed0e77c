"""Lay responses out so that a prefix they share is computed once, without padding.

    for branches in micro_batches(prefix_tree(groups), max_tokens=2048, cost=cost):
        packed = pack(branches)

Axes: T computed tokens, N response tokens, M positions whose next token is asked for, K responses of a group, L tokens
of a branch.

The prompts and responses form a prefix tree. A branch is a path from its root: a prompt followed by one of its
responses. The branches of a forward pass are sorted, so that those with a long common prefix are adjacent, and a token
is computed only where its branch leaves the branch before. A chat template that all prompts begin with, a prompt that
eight responses share, and answers that start alike are computed once. The computed tokens are the nodes of the tree in
preorder. A token's position id is its depth, and it sees itself and its ancestors:

    query q sees key k   if   k ≤ q < end_k          end_k: one past the last token below k

So hidden states, log-probs and gradients equal those of one row per response. Attention computes little else
(`learners.attention`). A response's last token predicts nothing, so it is computed only if its own state is wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GroupTokens:
    """Token ids of one group, all int64: its prompt (P,) with P > 0, and its K responses, each (T_k,) with T_k >= 0."""

    prompt_ids: np.ndarray
    responses: Sequence[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A path of the prefix tree: one response behind its prompt. `response` is its flat index. The first `num_computed`
    of the ids go through the model."""

    ids_L: np.ndarray
    prompt_length: int
    num_computed: int
    response: int

    def shared_with(self, other: Branch) -> int:
        """Return the number of computed tokens that the two branches have in common."""
        length = min(self.num_computed, other.num_computed)
        differ = self.ids_L[:length] != other.ids_L[:length]
        return int(differ.argmax()) if differ.any() else length


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """The cost of a forward pass, in operations: per computed token, per (query, key) pair, per position with logits. A
    backward pass costs twice as much, so ratios between passes are those of training too."""

    token: float = 1.0
    pair: float = 0.0
    logits: float = 0.0

    @classmethod
    def of(cls, model: Any) -> PassCost:
        """Return the cost for `model`: 2 per weight and token, 4·H per pair and layer (scores, and means of values)."""
        config = model.config
        vocabulary = model.get_output_embeddings().weight.numel()
        embedding = model.get_input_embeddings().weight.numel()
        inside = sum(parameter.numel() for parameter in model.get_decoder().parameters()) - embedding
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(token=2.0 * inside, pair=4.0 * config.num_hidden_layers * config.num_attention_heads * width, logits=2.0 * vocabulary)

    def of_pass(self, branches: Sequence[Branch]) -> float:
        """Return the cost of one pass over sorted `branches`."""
        return sum(self.of_branch(branch, common) for branch, common in zip(branches, shared_tokens(branches), strict=True))

    def of_branch(self, branch: Branch, shared: int) -> float:
        """Return the cost of the branch behind one that shares its first `shared` tokens."""
        num_new = branch.num_computed - shared
        pairs = num_new * (branch.num_computed + shared + 1) / 2
        logits = len(branch.ids_L) - 1 - max(branch.prompt_length - 1, shared)
        return self.token * num_new + self.pair * pairs + self.logits * max(0, logits)


@dataclass(frozen=True, kw_only=True)
class PackedTokens:
    """One forward pass over T tokens in preorder. Response token n is token `offset_N[n]` of response `response_N[n]`.
    The state at `predicts_M[state_N[n]]` predicts the token. The state at `own_N[n]` is its own; `own_N` is empty
    unless it is asked for. The tokens of a response are adjacent and in order."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    end_T: Tensor
    predicts_M: Tensor
    state_N: Tensor
    own_N: Tensor
    target_N: Tensor
    response_N: Tensor
    offset_N: Tensor

    @property
    def num_tokens(self) -> int:
        """The number of computed tokens."""
        return len(self.input_ids_T)

    def only(self, kept_N: np.ndarray) -> PackedTokens:
        """Return the pass that asks for some response tokens only: those where `kept_N` (N,) is true."""
        if kept_N.all():
            return self
        kept = torch.from_numpy(kept_N)
        predicts_M, state_N = torch.unique(self.predicts_M[self.state_N[kept]], return_inverse=True)
        of_tokens = {name: getattr(self, name)[kept] for name in ("target_N", "response_N", "offset_N")}
        own_N = self.own_N[kept] if len(self.own_N) else self.own_N
        return replace(self, predicts_M=predicts_M, state_N=state_N, own_N=own_N, **of_tokens)

    def to(self, device: torch.device) -> PackedTokens:
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).pin_memory().to(device, non_blocking=True) for name in self.__dataclass_fields__}
        return PackedTokens(**moved)


def prefix_tree(groups: Sequence[GroupTokens], *, own_states: bool = False) -> list[Branch]:
    """Return the prefix tree of all non-empty responses, as its sorted branches. The flat index of response k of group
    g is Σ_{h<g} K_h + k. With `own_states` the last token of each response is computed too, for its own state."""
    branches = []
    for response, (prompt_ids, ids) in enumerate((group.prompt_ids, ids) for group in groups for ids in group.responses):
        if len(ids):
            ids_L = np.concatenate([prompt_ids, ids])
            num_computed = len(ids_L) if own_states else len(ids_L) - 1
            branches.append(Branch(ids_L=ids_L, prompt_length=len(prompt_ids), num_computed=num_computed, response=response))
    # Big-endian bytes sort as the ids do, so branches with a long common prefix become neighbors.
    return sorted(branches, key=lambda branch: branch.ids_L[: branch.num_computed].astype(">u4").tobytes())


def shared_tokens(branches: Sequence[Branch]) -> list[int]:
    """Return, for each of the sorted `branches`, the number of tokens that it shares with the branch before."""
    return [0] * min(1, len(branches)) + [after.shared_with(before) for before, after in pairwise(branches)]


def micro_batches(branches: Sequence[Branch], *, max_tokens: int, cost: PassCost = PassCost()) -> list[list[Branch]]:
    """Cut sorted branches into as few runs as possible of at most `max_tokens` computed tokens, or a single branch. Of
    such cuts, this one has the lowest cost of its most expensive run, to within a thousandth."""
    if not branches:
        return []
    shared = shared_tokens(branches)
    tokens = [(branch.num_computed, branch.num_computed - common) for branch, common in zip(branches, shared, strict=True)]
    costs = [(cost.of_branch(branch, 0), cost.of_branch(branch, common)) for branch, common in zip(branches, shared, strict=True)]

    def cut(max_cost: float) -> list[int]:
        """Return where runs begin. The first branch of a run shares nothing with the run before."""
        starts = [0]
        run_tokens, run_cost = tokens[0][0], costs[0][0]
        for i in range(1, len(branches)):
            run_tokens, run_cost = run_tokens + tokens[i][1], run_cost + costs[i][1]
            if run_tokens > max_tokens or run_cost > max_cost:
                starts.append(i)
                run_tokens, run_cost = tokens[i][0], costs[i][0]
        return starts

    best = cut(float("inf"))  # fewest runs; then bisect for the lowest cost that still needs no more of them
    low, high = 0.0, sum(alone for alone, _ in costs)
    while len(best) > 1 and high - low > 1e-3 * high:
        middle = (low + high) / 2
        starts = cut(middle)
        if len(starts) <= len(best):
            best, high = starts, middle
        else:
            low = middle
    return [list(branches[start:stop]) for start, stop in zip(best, [*best[1:], len(branches)], strict=True)]


def pack(branches: Sequence[Branch]) -> PackedTokens:
    """Return the forward pass over sorted `branches`."""
    columns = defaultdict[str, list[np.ndarray]](list)
    ends: list[tuple[np.ndarray, int]] = []
    path_L, before, num_tokens = np.zeros(0, np.int64), None, 0  # path_L: the position of each token of the current branch
    for branch in branches:
        shared = branch.shared_with(before) if before is not None else 0
        ends.append((path_L[shared:], num_tokens))  # where a branch leaves the one before, the subtrees it leaves end
        path_L = np.concatenate([path_L[:shared], np.arange(num_tokens, num_tokens + branch.num_computed - shared)])
        num_tokens += branch.num_computed - shared
        first, num_response = branch.prompt_length, len(branch.ids_L) - branch.prompt_length
        columns["input_ids_T"].append(branch.ids_L[shared : branch.num_computed])
        columns["position_ids_T"].append(np.arange(shared, branch.num_computed))
        columns["predicts_N"].append(path_L[first - 1 : first - 1 + num_response])
        columns["own_N"].append(path_L[first:] if branch.num_computed == len(branch.ids_L) else path_L[:0])
        columns["target_N"].append(branch.ids_L[first:])
        columns["response_N"].append(np.full(num_response, branch.response))
        columns["offset_N"].append(np.arange(num_response))
        before = branch
    ends.append((path_L, num_tokens))
    end_T = np.zeros(num_tokens, np.int64)
    for closed, end in ends:
        end_T[closed] = end
    found = {name: np.concatenate(parts).astype(np.int64) for name, parts in columns.items()}
    predicts_M, state_N = np.unique(found.pop("predicts_N"), return_inverse=True)
    found |= {"end_T": end_T, "predicts_M": predicts_M, "state_N": state_N}
    return PackedTokens(**{name: torch.from_numpy(values) for name, values in found.items()})
