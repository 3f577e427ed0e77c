"""Lay groups out as rows that hold each shared prompt once.

Axes: B rows, L row length, N response tokens of all rows, K responses of a group, P prompt tokens, T response tokens.

A row is one prompt followed by as many of its group's responses as fit: ``[prompt | r_0 | r_1 | …]``. Position ids restart
after the prompt for every response and a token attends to the prompt and to the earlier tokens of its own response only, so
hidden states, log-probs and gradients equal those of K separate rows while the prompt is computed once.
In the quick start two thirds of all tokens are prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PROMPT_SEGMENT = 0
PADDING_SEGMENT = -1
ROW_TOKENS = 512
"""Responses share a row up to this length: attention costs the row length squared, so long responses get rows of their own."""


@dataclass(frozen=True, kw_only=True)
class GroupTokens:
    """Token ids of one group: its prompt (P,) and its K responses, each (T_k,), T_k = 0 allowed. All int64."""

    prompt_ids: np.ndarray
    responses: Sequence[np.ndarray]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(ids) for ids in self.responses)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt with some of its responses; `responses` holds (flat response index, token ids)."""

    prompt_ids: np.ndarray
    responses: tuple[tuple[int, np.ndarray], ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + sum(len(ids) for _, ids in self.responses)


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """One forward pass. Token n belongs to response `response_N[n]` (flat index over all groups) at `offset_N[n]`.

    The hidden state at (`row_N`, `predicts_N`) predicts the token; the one at (`row_N`, `own_N`) is the token's own.
    """

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    segment_BL: Tensor
    row_N: Tensor
    predicts_N: Tensor
    own_N: Tensor
    target_N: Tensor
    response_N: Tensor
    offset_N: Tensor

    @property
    def num_tokens(self) -> int:
        """Padded tokens computed."""
        return self.input_ids_BL.numel()

    def attention_mask(self) -> Tensor:
        """Boolean (B, 1, L, L): query may see key if causal and the key is prompt or of the query's own response.

        A padding position sees itself only, so that no row of the softmax is empty.
        """
        query_B1L1 = self.segment_BL[:, None, :, None]
        key_B11L = self.segment_BL[:, None, None, :]
        length = self.segment_BL.shape[1]
        causal_LL = torch.ones(length, length, dtype=torch.bool, device=self.segment_BL.device).tril()
        same = (key_B11L == PROMPT_SEGMENT) | (key_B11L == query_B1L1)
        itself_LL = torch.eye(length, dtype=torch.bool, device=self.segment_BL.device)
        return (causal_LL & same & (query_B1L1 != PADDING_SEGMENT)) | itself_LL

    def to(self, device: torch.device) -> PackedRows:
        return PackedRows(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def build_rows(groups: Sequence[GroupTokens], *, row_tokens: int = ROW_TOKENS) -> list[Row]:
    """Rows of every non-empty response, in order. The flat index of response k of group g is Σ_{h<g} K_h + k."""
    rows: list[Row] = []
    flat = 0
    for group in groups:
        pending: list[tuple[int, np.ndarray]] = []
        length = len(group.prompt_ids)
        for ids in group.responses:
            if pending and length + len(ids) > row_tokens:
                rows.append(Row(prompt_ids=group.prompt_ids, responses=tuple(pending)))
                pending, length = [], len(group.prompt_ids)
            if len(ids):
                pending.append((flat, ids))
                length += len(ids)
            flat += 1
        if pending:
            rows.append(Row(prompt_ids=group.prompt_ids, responses=tuple(pending)))
    return rows


def micro_batches(rows: Sequence[Row], *, max_tokens: int) -> Iterator[list[Row]]:
    """Rows sorted by length (stable), cut so that rows × longest stays within `max_tokens`; one row may exceed it alone."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: row.length):
        if batch and (len(batch) + 1) * row.length > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def pack(rows: Sequence[Row], *, pad_id: int = 0) -> PackedRows:
    """Pad `rows` to the longest of them. Every response must be non-empty and every prompt have at least one token."""
    num_rows, length = len(rows), max(row.length for row in rows)
    input_ids_BL = np.full((num_rows, length), pad_id, dtype=np.int64)
    position_ids_BL = np.zeros((num_rows, length), dtype=np.int64)
    segment_BL = np.full((num_rows, length), PADDING_SEGMENT, dtype=np.int64)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("row_N", "predicts_N", "own_N", "target_N", "response_N", "offset_N")}
    for index, row in enumerate(rows):
        prompt_length = len(row.prompt_ids)
        input_ids_BL[index, :prompt_length] = row.prompt_ids
        position_ids_BL[index, :prompt_length] = np.arange(prompt_length)
        segment_BL[index, :prompt_length] = PROMPT_SEGMENT
        start = prompt_length
        for segment, (flat, ids) in enumerate(row.responses, start=PROMPT_SEGMENT + 1):
            stop = start + len(ids)
            own = np.arange(start, stop)
            input_ids_BL[index, start:stop] = ids
            position_ids_BL[index, start:stop] = prompt_length + np.arange(len(ids))
            segment_BL[index, start:stop] = segment
            columns["row_N"].append(np.full(len(ids), index))
            columns["predicts_N"].append(np.concatenate([[prompt_length - 1], own[:-1]]))
            columns["own_N"].append(own)
            columns["target_N"].append(ids)
            columns["response_N"].append(np.full(len(ids), flat))
            columns["offset_N"].append(np.arange(len(ids)))
            start = stop
    return PackedRows(
        input_ids_BL=torch.from_numpy(input_ids_BL),
        position_ids_BL=torch.from_numpy(position_ids_BL),
        segment_BL=torch.from_numpy(segment_BL),
        **{name: torch.from_numpy(np.concatenate(parts).astype(np.int64)) for name, parts in columns.items()},
    )
