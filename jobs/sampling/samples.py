"""The responses of an evaluation as it leaves them: which table they are in, and how it is read. Importing this module
starts neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from jobs.analysis.candidate_table import Candidates, candidates_by_problem
from jobs.sampling.candidates import CandidateKey, CandidateStore

SAMPLES = "samples.parquet"
MODEL = "model"
MODEL_AND_PROBLEM = (MODEL, "problem_id")
"""The columns that tell one model's responses to a problem from all others."""
BASE_COLUMN = "base_mean_logprob"
REPORT_COLUMNS = (
    *("model", "task", "problem_id", "question", "reference_answer", "index", "response_ids", "response_text", "finish_reason"),
    *("mean_logprob", "verdict_status", "final_answer", BASE_COLUMN),
)


def read_responses(store: CandidateStore, label: str | None, problem_ids: Collection[str] | None = None) -> Iterator[Candidates]:
    """Yield the responses of the model `label` (None: of all models), one problem at a time: of all problems, or of
    those named. With its store given, this is what a report reads (`jobs.reports.evaluate.report.ReadResponses`)."""

    def is_wanted(key: CandidateKey) -> bool:
        return label in (None, key[0]) and (problem_ids is None or key[1] in problem_ids)

    for table in store.read_each(is_wanted, REPORT_COLUMNS):
        yield from candidates_by_problem(table)


def read_only_model(directory: Path) -> Iterator[Candidates]:
    """Yield the responses of the only model of the evaluation in `directory`, one problem at a time."""
    return read_responses(CandidateStore(directory, {}, file=SAMPLES, key=MODEL_AND_PROBLEM), None)
