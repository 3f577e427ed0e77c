import pyarrow as pa
import pytest

from actors.config import ScorerConfig
from actors.scorer import ResponseScorer
from tests.jobs.evaluate_fixture import LocalEvaluate
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def sampled(tiny_model, tmp_path_factory) -> pa.Table:
    """Return six responses of the tiny model with their log-probs."""
    return LocalEvaluate(tmp_path_factory.mktemp("samples"), {"tiny": tiny_model}, num_problems=1).run()


def batch_of(table) -> pa.RecordBatch:
    return table.select(["prompt_ids", "response_ids"]).combine_chunks().to_batches()[0]


def test_a_model_finds_its_own_responses_as_likely_as_it_sampled_them(sampled, tiny_model):
    scorer = ResponseScorer(model=tiny_model, config=ScorerConfig(dtype="float32", tokens_per_batch=32))
    assert scorer.mean_logprobs(batch_of(sampled)) == pytest.approx(sampled["mean_logprob"].to_pylist(), abs=1e-5)


def test_another_model_finds_them_less_likely(sampled, tmp_path):
    other = ResponseScorer(model=make_tiny_model(tmp_path, seed=1), config=ScorerConfig(dtype="float32"))
    pairs = list(zip(other.mean_logprobs(batch_of(sampled)), sampled["mean_logprob"].to_pylist(), strict=True))
    assert sum(theirs for theirs, _ in pairs) < sum(own for _, own in pairs) - 1.0


def test_an_empty_response_has_no_likelihood(tiny_model):
    scorer = ResponseScorer(model=tiny_model, config=ScorerConfig(dtype="float32"))
    kind = pa.list_(pa.int32())
    batch = pa.record_batch({"prompt_ids": pa.array([[5, 6], [5, 6]], kind), "response_ids": pa.array([[], [7]], kind)})
    empty, one = scorer.mean_logprobs(batch)
    assert empty is None and one < 0
    assert scorer.ready() > 10_000
