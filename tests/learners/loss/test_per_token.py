from __future__ import annotations

import torch

from learners.loss.per_token import length_by_response, max_by_response, mean_by_response, sum_by_response

VALUES = torch.tensor([1.0, -5.0, 3.0, -7.0])
RESPONSES = torch.tensor([2, 0, 2, 0])


def test_every_token_is_given_the_figure_of_its_response() -> None:
    assert sum_by_response(VALUES, RESPONSES).tolist() == [4, -12, 4, -12]
    assert mean_by_response(VALUES, RESPONSES).tolist() == [2, -6, 2, -6]
    assert length_by_response(RESPONSES).tolist() == [2, 2, 2, 2]
    assert max_by_response(VALUES, RESPONSES).tolist() == [3, -5, 3, -5]
    assert max_by_response(VALUES.long(), RESPONSES).tolist() == [3, -5, 3, -5]


def test_without_tokens_there_are_no_figures() -> None:
    none, nobody = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert [len(f(none, nobody)) for f in (sum_by_response, mean_by_response, max_by_response)] == [0, 0, 0]
    assert len(length_by_response(nobody)) == 0


def test_sums_carry_the_gradient_to_all_tokens_of_the_response() -> None:
    values = VALUES.clone().requires_grad_()
    (sum_by_response(values, RESPONSES) * torch.tensor([1.0, 0.0, 10.0, 100.0])).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [11, 100, 11, 100]
