from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from jobs.analysis.problem_counts import ProblemCounts, count
from tests.jobs.samples_fixture import candidates_of

RECORD = TypeAdapter(ProblemCounts)


def test_answers_are_counted_whichever_they_are() -> None:
    """Timeouts and errors have no part in answers."""
    (counts,) = (count(one) for one in candidates_of("11a?bamte"))
    assert counts.answers == ((2, 2), (2, 0), (1, 0))
    assert counts.without_answer == (2, 0)
    assert counts.verdicts == {"correct": 2, "incorrect": 3, "no_answer": 1, "malformed": 1, "timeout": 1, "error": 1}
    assert (counts.num_samples, counts.num_scored, counts.num_correct) == (9, 7, 2)
    assert (counts.tokens, counts.truncated, counts.entropy) == (3.0, 0.0, 1.0)


@pytest.mark.parametrize("letters", ["11a?bamte", "tt", "?", "1111"])
def test_a_record_is_the_same_counts_after_json(letters: str) -> None:
    for counts in (count(one) for one in candidates_of(letters, base_mean_logprob=[None] * (len(letters) - 1) + [-0.1])):
        assert RECORD.validate_json(RECORD.dump_json(counts)) == counts


@pytest.mark.parametrize(
    "change",
    [{"answers": [[1]]}, {"answers": 3}, {"verdicts": {"right": 1}}, {"tokens": None}, {"tokens": "many"}, {"without_answer": []}],
    ids=str,
)
def test_what_is_no_record_is_refused(change: dict[str, Any]) -> None:
    (counts,) = (count(one) for one in candidates_of("1a"))
    record = RECORD.dump_python(counts, mode="json")
    with pytest.raises(ValidationError):
        RECORD.validate_python(record | change)
    with pytest.raises(ValidationError):
        RECORD.validate_python({name: value for name, value in record.items() if name not in change})
