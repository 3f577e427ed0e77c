"""Pools from problems to rows: what is in them, the same after any interruption, and ordered again without sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from bonus.orders import ORDERS
from buffers.records import Verdict, VerdictStatus
from jobs.explore_config import ExploreConfig
from jobs.processes.handles import Deadline
from jobs.processes.verdict_counter import VerifierFailure
from jobs.sampling.candidates import SAMPLED_COLUMNS, split_by_problem
from jobs.sampling.reselect import needs_encoder
from learners.forward import load_causal_lm
from tests.jobs.explore_fixture import LocalExplore, small_explore
from tests.learners.samples import plain_hidden_states

pytestmark = pytest.mark.whole

HIDDEN = 32


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> Any:
    """config(pool=8, selection={...}): a small job in this test's directory."""
    return lambda **values: small_explore(tiny_model, tmp_path, **values)


@pytest.fixture(scope="module")
def sampled(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The table of a whole small job, shared by the tests that only read it."""
    return LocalExplore(small_explore(tiny_model, tmp_path_factory.mktemp("sampled"))).run()


def test_all_candidates_of_every_problem_are_ordered_and_judged(sampled: pa.Table) -> None:
    tables = list(split_by_problem(sampled))
    assert [candidates.num_rows for candidates in tables] == [6, 6, 6]
    assert len(set(sampled["problem_id"].to_pylist())) == 3
    for candidates in tables:
        assert candidates["index"].to_pylist() == list(range(6))
        for name in ORDERS:
            assert sorted(candidates[f"rank_{name}"].to_pylist()) == list(range(6)), name
        assert candidates["verdict_status"].null_count == 0
        assert all(len(row["response_logprobs"]) == len(row["response_ids"]) for row in candidates.to_pylist())
        by_rank = sorted(zip(candidates["rank_repexp"].to_pylist(), candidates["score_repexp"].to_pylist(), strict=True))
        scores = [score for _, score in by_rank]
        assert scores == sorted(scores, reverse=True), "a later pick was more novel than an earlier one"
    assert {VerdictStatus(status) for status in sampled["verdict_status"].to_pylist()} == {VerdictStatus.CORRECT, VerdictStatus.INCORRECT}


def test_mean_log_prob_is_that_of_the_tokens(sampled: pa.Table) -> None:
    for row in sampled.to_pylist():
        assert row["mean_logprob"] == pytest.approx(np.mean(row["response_logprobs"]), rel=1e-12)


def test_engine_features_are_the_states_of_all_tokens_but_the_last(sampled: pa.Table, tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float64")
    rows = [row for row in sampled.to_pylist() if len(row["response_ids"]) > 1]
    assert len(rows) > 5
    for row in rows:
        with torch.no_grad():
            expected = plain_hidden_states(model, row["prompt_ids"], row["response_ids"])[:-1].mean(0)
        np.testing.assert_allclose(row["feature"], expected, rtol=0, atol=2e-5)


def test_encoder_features_are_the_states_of_all_tokens(config: Any, tiny_model: str) -> None:
    table = LocalExplore(config(features="encoder")).run()
    model = load_causal_lm(tiny_model, dtype="float64")
    for row in table.to_pylist():
        with torch.no_grad():
            expected = plain_hidden_states(model, row["prompt_ids"], row["response_ids"]).mean(0)
        np.testing.assert_allclose(row["feature"], expected, rtol=0, atol=2e-5)


def test_candidates_depend_on_their_problem_and_the_seed_only(config: Any, sampled: pa.Table, tmp_path: Path) -> None:
    two_workers = LocalExplore(config(rollout={"workers": 2}, out=str(tmp_path / "two"))).run()
    assert two_workers.equals(sampled)
    fewer = LocalExplore(config(problems=1, out=str(tmp_path / "fewer"))).run()
    assert fewer.equals(sampled.slice(0, 6))
    other = LocalExplore(config(seed=1, out=str(tmp_path / "other"))).run()
    assert other["response_ids"] != sampled["response_ids"]


@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_job_goes_on_and_ends_with_the_same_table(config: Any, sampled: pa.Table, stop_after: int) -> None:
    class Killed(BaseException):
        pass

    first = LocalExplore(config())

    def stop() -> None:
        if len(first.usages) == stop_after:
            raise Killed

    first.on_finished = stop
    with pytest.raises(Killed):
        first.run()
    finished = first.store.finished()
    assert stop_after <= len(finished) < 3
    second = LocalExplore(config())
    table = second.run()
    assert len(second.usages) == 3 - len(finished), "a finished prompt was sampled again"
    assert table.equals(sampled)


def test_a_finished_job_samples_nothing_more(config: Any) -> None:
    LocalExplore(config()).run()
    again = LocalExplore(config())
    again.run()
    assert again.usages == []


def test_half_written_files_are_not_taken_for_candidates(config: Any, sampled: pa.Table) -> None:
    explore = LocalExplore(config())
    parts = Path(explore.config.out) / "parts"
    parts.mkdir()
    (parts / "abc.parquet.partial-17").write_bytes(b"PAR1")
    assert explore.run().equals(sampled)


def test_only_the_chosen_are_verified_in_production(config: Any) -> None:
    explore = LocalExplore(config(verify="selected", select=[1, 2]))
    table = explore.run()
    assert len(explore.verifier.asked) == 3 * 2
    judged = [(row["rank_repexp"] < 2, row["verdict_status"] is not None) for row in table.to_pylist()]
    assert all(chosen is verified for chosen, verified in judged)


def test_quality_decides_who_is_chosen_where_it_is_asked_for(config: Any) -> None:
    table = LocalExplore(config(verify="selected", select=[2], selection={"quality": "logprob"})).run()
    assert all((row["rank_quality"] < 2) is (row["verdict_status"] is not None) for row in table.to_pylist())


def test_without_a_verifier_nothing_is_judged(config: Any) -> None:
    explore = LocalExplore(config(verify="none"))
    assert explore.run()["verdict_status"].null_count == 18
    assert explore.verifier.asked == []


# ---- ordered again ----


def test_ordering_again_with_the_same_settings_changes_nothing(config: Any, sampled: pa.Table, tmp_path: Path) -> None:
    again = LocalExplore(config(out=str(tmp_path / "again")))
    assert again.reselect(sampled).equals(sampled)
    assert again.verifier.asked == [], "verdicts that there are were asked for again"


def test_other_settings_give_other_orders_of_the_same_answers(config: Any, sampled: pa.Table, tmp_path: Path) -> None:
    other = LocalExplore(config(out=str(tmp_path / "again"), selection={"center": "pool", "ridge": "auto"})).reselect(sampled)
    assert other.select(list(SAMPLED_COLUMNS)).equals(sampled.select(list(SAMPLED_COLUMNS)))
    assert other["rank_repexp"] != sampled["rank_repexp"]
    assert other["rank_likeliest"] == sampled["rank_likeliest"]


def test_verdicts_that_are_missing_are_asked_for(config: Any, tmp_path: Path) -> None:
    table = LocalExplore(config(verify="selected", select=[2])).run()
    judge_all = LocalExplore(config(out=str(tmp_path / "again")))
    judged = judge_all.reselect(table)
    assert judged["verdict_status"].null_count == 0
    assert len(judge_all.verifier.asked) == 18 - 6


def test_another_layer_or_pooling_is_encoded_again(config: Any, sampled: pa.Table, tmp_path: Path, tiny_model: str) -> None:
    settings = config().model_dump(mode="json")
    other = config(out=str(tmp_path / "again"), encoder={"layer": 1, "pooling": "last"})
    assert needs_encoder(other, settings)
    assert not needs_encoder(config(selection={"dim": 4}), settings)
    assert needs_encoder(config(features="encoder"), settings)
    table = LocalExplore(other).reselect(sampled, encode=True)
    model = load_causal_lm(tiny_model, dtype="float64")
    row = table.to_pylist()[0]
    with torch.no_grad():
        states = model(torch.tensor([row["prompt_ids"] + row["response_ids"]]), output_hidden_states=True).hidden_states[1]
    np.testing.assert_allclose(row["feature"], states[0, -1], rtol=0, atol=2e-5)


# ---- what goes wrong ----


def test_verifiers_that_cannot_score_end_the_job(config: Any) -> None:
    explore = LocalExplore(config(pool=30, problems=2))
    error = Verdict(status=VerdictStatus.ERROR, reward=None, detail="broken")
    explore.verifier.verify = lambda problem, responses: [error] * len(responses)  # type: ignore[method-assign]
    with pytest.raises(VerifierFailure, match="60 of 60 responses could not be scored"):
        explore.run()


def test_a_worker_that_never_returns_is_named_with_its_problem(config: Any) -> None:
    import asyncio

    explore = LocalExplore(config(pool_timeout_s=0.3))

    async def never(*arguments: Any) -> None:
        await asyncio.Event().wait()

    explore.workers[0].sample_pool = never  # type: ignore[method-assign,assignment]
    with pytest.raises(
        Deadline, match=r"rollout-0.sample_pool took over 0\.3 s: waited for the candidates of arithmetic/test/\S+ on rollout-0"
    ):
        explore.run()


def test_novel_sampling_gives_whole_candidates_too(config: Any) -> None:
    table = LocalExplore(config(novel_sampling={"enabled": True, "chunk_tokens": 3, "candidates": 2, "dim": 4})).run()
    assert table.num_rows == 18
    assert all(1 <= len(row["response_ids"]) <= 8 and len(row["feature"]) == HIDDEN for row in table.to_pylist())


# ---- configuration ----


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"select": [4, 2]}, r"select = \[4, 2\] must be increasing"),
        ({"select": [1, 100]}, r"asks for 100 of a pool of 64"),
        ({"select": []}, "must be increasing numbers"),
        ({"features": "engine", "encoder": {"layer": 3}}, r"encoder.layer = 3"),
        ({"features": "encoder", "novel_sampling": {"enabled": True}}, "novel_sampling.enabled"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExploreConfig.model_validate(values)


def test_features_come_from_the_engine_where_it_has_them() -> None:
    assert ExploreConfig().from_engine
    assert not ExploreConfig.model_validate({"encoder": {"pooling": "last"}}).from_engine
    assert not ExploreConfig.model_validate({"features": "encoder"}).from_engine
