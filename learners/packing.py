"""Lay responses out so that what they have in common is computed once, without padding.

    for branches in micro_batches(prefix_tree(groups), max_tokens=2048, cost=cost):
        packed = pack(branches)

Axes: T computed tokens, N response tokens, M positions whose next token is asked for, K responses of a group, L tokens
of a branch.

A branch is a prompt followed by one of its responses. The branches of a forward pass are sorted, and a token is
computed only where its branch leaves the one before: a chat template that all prompts begin with, a prompt that eight
responses share, answers that start alike or are alike. What remains is a forest in preorder. A token's position id is
its depth, and it sees itself and its ancestors:

    query q sees key k   if   k ≤ q < end_k          end_k: one past the last token below k

so hidden states, log-probs and gradients equal those of a row a response. Attention is never given more than that
(`learners.attention`). A response's last token predicts nothing, so unless its state is asked for it is not computed
either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GroupTokens:
    """Token ids of one group: its prompt (P,), P > 0, and its K responses, each (T_k,), T_k = 0 allowed. All int64."""

    prompt_ids: np.ndarray
    responses: Sequence[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One response behind its prompt, ids_L; `response` is its flat index. Of the ids the first `num_computed` go
    through the model."""

    ids_L: np.ndarray
    prompt_length: int
    num_computed: int
    response: int

    def shared_with(self, other: Branch) -> int:
        """How many computed tokens the two have in common."""
        length = min(self.num_computed, other.num_computed)
        differ = self.ids_L[:length] != other.ids_L[:length]
        return int(differ.argmax()) if differ.any() else length


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """What a forward pass costs, in operations: per computed token, per (query, key) pair, per position with logits.

    A backward pass costs twice that, so the ratios between passes are those of training, too.
    """

    token: float = 1.0
    pair: float = 0.0
    logits: float = 0.0

    @classmethod
    def of(cls, model: Any) -> PassCost:
        """Of a Hugging Face model: 2 operations a weight and token, 4·H a pair and layer (scores, and the mean of the
        values)."""
        config = model.config
        vocabulary = model.get_output_embeddings().weight.numel()
        embedding = model.get_input_embeddings().weight.numel()
        inside = sum(parameter.numel() for parameter in model.get_decoder().parameters()) - embedding
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(token=2.0 * inside, pair=4.0 * config.num_hidden_layers * config.num_attention_heads * width, logits=2.0 * vocabulary)

    def of_pass(self, branches: Sequence[Branch]) -> float:
        """Of one pass over sorted `branches`."""
        return sum(self.of_branch(branch, common) for branch, common in zip(branches, shared_tokens(branches), strict=True))

    def of_branch(self, branch: Branch, shared: int) -> float:
        """Of the branch after one with which it shares its first `shared` tokens."""
        num_new = branch.num_computed - shared
        pairs = num_new * (branch.num_computed + shared + 1) / 2
        logits = len(branch.ids_L) - 1 - max(branch.prompt_length - 1, shared)
        return self.token * num_new + self.pair * pairs + self.logits * max(0, logits)


@dataclass(frozen=True, kw_only=True)
class PackedTokens:
    """One forward pass over T tokens in preorder. Response token n belongs to response `response_N[n]` at
    `offset_N[n]`.

    The state at `predicts_M[state_N[n]]` predicts the token; the one at `own_N[n]` is its own (empty unless asked for).
    A response's tokens are adjacent and in order."""

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
        """Tokens computed."""
        return len(self.input_ids_T)

    def to(self, device: torch.device) -> PackedTokens:
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).pin_memory().to(device, non_blocking=True) for name in self.__dataclass_fields__}
        return PackedTokens(**moved)


def prefix_tree(groups: Sequence[GroupTokens], *, own_states: bool = False) -> list[Branch]:
    """A branch for every non-empty response, sorted. The flat index of response k of group g is Σ_{h<g} K_h + k.

    `own_states`: every token's own state is wanted, the last one's of each response included.
    """
    branches = []
    response = 0
    for group in groups:
        for ids in group.responses:
            if len(ids):
                ids_L = np.concatenate([group.prompt_ids, ids])
                num_computed = len(ids_L) if own_states else len(ids_L) - 1
                branches.append(Branch(ids_L=ids_L, prompt_length=len(group.prompt_ids), num_computed=num_computed, response=response))
            response += 1
    return sorted(branches, key=lambda branch: branch.ids_L[: branch.num_computed].astype(">u4").tobytes())


def shared_tokens(branches: Sequence[Branch]) -> list[int]:
    """How many tokens each of the sorted `branches` has in common with those before it."""
    return [0] * min(1, len(branches)) + [after.shared_with(before) for before, after in pairwise(branches)]


def micro_batches(branches: Sequence[Branch], *, max_tokens: int, cost: PassCost = PassCost()) -> list[list[Branch]]:
    """Cut sorted branches into runs of at most `max_tokens` computed tokens: as few as possible, and of those cuts the
    most even in cost.

    One branch may exceed `max_tokens` alone. The cost of the dearest run is minimal to within a thousandth.
    """
    if not branches:
        return []
    shared = shared_tokens(branches)
    tokens = [(branch.num_computed, branch.num_computed - common) for branch, common in zip(branches, shared, strict=True)]
    costs = [(cost.of_branch(branch, 0), cost.of_branch(branch, common)) for branch, common in zip(branches, shared, strict=True)]

    def cut(max_cost: float) -> list[int]:
        """Where runs begin. The first branch of a run shares nothing with what is before it."""
        starts = [0]
        run_tokens, run_cost = tokens[0][0], costs[0][0]
        for i in range(1, len(branches)):
            run_tokens, run_cost = run_tokens + tokens[i][1], run_cost + costs[i][1]
            if run_tokens > max_tokens or run_cost > max_cost:
                starts.append(i)
                run_tokens, run_cost = tokens[i][0], costs[i][0]
        return starts

    best = cut(float("inf"))
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
    """The forward pass over sorted `branches`."""
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("ids_T", "depth_T", "predicts_N", "own_N", "target_N", "response_N", "offset_N")
    }
    ends: list[tuple[np.ndarray, int]] = []
    path_L, before, num_tokens = np.zeros(0, np.int64), None, 0
    for branch in branches:
        shared = branch.shared_with(before) if before is not None else 0
        ends.append((path_L[shared:], num_tokens))
        path_L = np.concatenate([path_L[:shared], np.arange(num_tokens, num_tokens + branch.num_computed - shared)])
        num_tokens += branch.num_computed - shared
        first, num_response = branch.prompt_length, len(branch.ids_L) - branch.prompt_length
        columns["ids_T"].append(branch.ids_L[shared : branch.num_computed])
        columns["depth_T"].append(np.arange(shared, branch.num_computed))
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
    predicts_M, state_N = np.unique(found["predicts_N"], return_inverse=True)
    return PackedTokens(
        input_ids_T=torch.from_numpy(found["ids_T"]),
        position_ids_T=torch.from_numpy(found["depth_T"]),
        end_T=torch.from_numpy(end_T),
        predicts_M=torch.from_numpy(predicts_M),
        state_N=torch.from_numpy(state_N),
        **{name: torch.from_numpy(found[name]) for name in ("own_N", "target_N", "response_N", "offset_N")},
    )
