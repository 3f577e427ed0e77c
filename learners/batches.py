"""A batch of whole groups as the learner and the encoder read it.

    groups = read_groups(batch, group_size)                          # token ids
    lookup = TokenLookup.of(batch)                                   # columns with one value per response token
    for packed in prefetch(pack, micro_batches(...)):                # meanwhile a thread packs the next one
        tokens = lookup.gather(packed, like=logprob_N)

Axes: N response tokens of one micro-batch, R rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from buffers.groups import list_column_arrays, token_rows, token_versions, trained_tokens
from learners.packing import GroupTokens, PackedTokens

S = TypeVar("S")
T = TypeVar("T")


def read_groups(batch: pa.RecordBatch, group_size: int) -> list[GroupTokens]:
    """Return the token ids of the groups of `batch`, which has `group_size` adjacent rows per group."""

    def rows(name: str, step: int) -> list[np.ndarray]:
        values, offsets = list_column_arrays(batch, name)
        return [values[offsets[i] : offsets[i + 1]].astype(np.int64) for i in range(0, batch.num_rows, step)]

    prompts, responses = rows("prompt_ids", group_size), rows("response_ids", 1)
    firsts = range(0, batch.num_rows, group_size)
    return [GroupTokens(prompt_ids=ids, responses=responses[i : i + group_size]) for i, ids in zip(firsts, prompts, strict=True)]


def without_responses(group: GroupTokens) -> GroupTokens:
    """Return the group with all responses empty, so that the flat indices of other groups' responses stay the same."""
    return only_responses(group, kept=[False] * len(group.responses))


def only_responses(group: GroupTokens, kept: Sequence[bool]) -> GroupTokens:
    """Return the group with the responses empty that are not `kept`, for the same reason."""
    responses = [ids if keep else ids[:0] for ids, keep in zip(group.responses, kept, strict=True)]
    return GroupTokens(prompt_ids=group.prompt_ids, responses=responses)


@dataclass(frozen=True, kw_only=True)
class PassColumns:
    """One value for each response token of one micro-batch."""

    behavior_N: Tensor
    proximal_N: Tensor | None
    reference_N: Tensor | None
    version_N: Tensor
    oldest_N: Tensor
    chosen_N: Tensor | None


@dataclass(frozen=True, kw_only=True)
class TokenLookup:
    """Flat columns with one value per response token of a batch. Token t of row r is at starts[r] + t."""

    behavior: np.ndarray
    versions: np.ndarray
    trained: np.ndarray
    """Whether the token has a part in the loss (`buffers.groups.trained_tokens`)."""
    starts: np.ndarray
    oldest_R: np.ndarray
    """The oldest version of each row's tokens, those without a part in the loss among them."""
    proximal: np.ndarray | None = None
    reference: np.ndarray | None = None
    chosen: np.ndarray | None = None
    """Whether the token is restrained (`learners.loss.covariance`)."""

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> TokenLookup:
        """Return what `batch` itself holds, without log-probs of the proximal policy and of the reference."""
        behavior, offsets = list_column_arrays(batch, "behavior_logprobs")
        versions = token_versions(batch)
        oldest_R = np.full(batch.num_rows, np.iinfo(np.int64).max)
        np.minimum.at(oldest_R, token_rows(batch), versions)
        return cls(behavior=behavior, versions=versions, trained=trained_tokens(batch), starts=offsets[:-1], oldest_R=oldest_R)

    def of_all_tokens(self) -> TokenLookup:
        """Return the lookup in which every token has a part."""
        return replace(self, trained=np.ones_like(self.trained))

    def num_trained(self) -> np.ndarray:
        """Return the number of tokens of each row that have a part in the loss (R,)."""
        return np.bincount(self.rows()[self.trained], minlength=len(self.starts))

    def rows(self) -> np.ndarray:
        """Return the row of each token."""
        return np.repeat(np.arange(len(self.starts)), np.diff(np.append(self.starts, len(self.trained))))

    def trained_part(self, groups: Sequence[GroupTokens]) -> list[GroupTokens]:
        """Return the groups of the batch without the responses of which no token has a part in the loss."""
        has_part_R = iter((self.num_trained() > 0).tolist())
        return [only_responses(group, kept=[next(has_part_R) for _ in group.responses]) for group in groups]

    def positions(self, packed: PackedTokens) -> np.ndarray:
        """Return where the response tokens of `packed` are in the flat columns (N,)."""
        positions: np.ndarray = self.starts[packed.response_N.cpu().numpy()] + packed.offset_N.cpu().numpy()
        return positions

    def gather(self, packed: PackedTokens, like: Tensor) -> PassColumns:
        """Return the columns of the response tokens of `packed`, with the dtype and on the device of `like`."""
        at = self.positions(packed)

        def column(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values[at]).to(like)

        return PassColumns(
            behavior_N=torch.from_numpy(self.behavior[at]).to(like),
            proximal_N=column(self.proximal),
            reference_N=column(self.reference),
            version_N=torch.from_numpy(self.versions[at]),
            oldest_N=torch.from_numpy(self.oldest_R[packed.response_N.cpu().numpy()]),
            chosen_N=None if self.chosen is None else torch.from_numpy(self.chosen[at]).to(like.device),
        )


def sum_by_row(batch: pa.RecordBatch, values: np.ndarray) -> Tensor:
    """Return the float64 sum of the per-token `values` of each row (R,), in order: equal responses have equal sums."""
    return torch.from_numpy(np.bincount(token_rows(batch), weights=values, minlength=batch.num_rows))


def prefetch(prepare: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield `prepare(item)` for every item, in order. A thread prepares at most one more than is being used. The
    caller's own thread takes the `items`, so they may be made with collectives. An error of `prepare` is raised where
    its result is due, after those before it. A caller that stops early waits until the thread has ended."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        pending: Future[T] | None = None
        for item in items:
            ready, pending = pending, thread.submit(prepare, item)
            if ready is not None:
                yield ready.result()
        if pending is not None:
            yield pending.result()
