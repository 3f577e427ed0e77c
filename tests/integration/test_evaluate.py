"""`python -m jobs.evaluate` as a person starts it: real Ray, tiny models and the reference engine; once, the real
engine and model."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.integration.processes import Job, Training, tiny_settings, wait_until
from tests.integration.test_explore import RAYS_OWN_AGENTS
from tests.tiny_model import make_tiny_model

PROBLEMS, SAMPLES = 4, 6


@pytest.fixture(scope="module")
def models(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A run of four steps, evaluated beside its training after every second; and another model."""
    directory = tmp_path_factory.mktemp("models")
    config, run_dir = directory / "config.toml", directory / "run"
    evaluation = "[evaluation]\nevery = 2\nproblems = 3\nsamples = 4\n"
    config.write_text(f"steps = 4\n{tiny_settings(tiny_model)}\n{evaluation}")
    with Training(config, run_dir) as training:
        assert training.exit_code(timeout_s=150) == 0, training.output()
        training.assert_no_process_left()
        assert "evaluation of step" in training.output()
    return str(run_dir), make_tiny_model(directory / "other", seed=1)


def evaluate(out: Path, models: tuple[str, str], *more: str) -> Job:
    flags = ("--problems", str(PROBLEMS), "--samples", str(SAMPLES), "--out", str(out), "--set", "scorer.dtype=float32")
    named = [part for model in models for part in ("--model", model)]
    return Job(out, "jobs.evaluate", *named, "--base-model", models[0], *flags, *more)


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_a_run_has_its_evaluations_beside_its_metrics(models: tuple[str, str]) -> None:
    run_dir = Path(models[0])
    records = [json.loads(line) for line in (run_dir / "eval.jsonl").read_text().splitlines()]
    assert records and {record["step"] for record in records} <= {2, 4}
    for record in records:
        assert {"eval/pass@1", "eval/pass@4", "eval/maj@4", "eval/entropy"} <= set(record)
        rows = pq.read_table(run_dir / "eval" / f"step_{record['step']:06d}.parquet").to_pylist()
        assert len(rows) == 12
        assert record["eval/pass@1"] == pytest.approx(np.mean([row["verdict_status"] == "correct" for row in rows]))


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "samples.parquet").to_pylist()


def parts_of(out: Path) -> int:
    return len(list(out.glob("parts/*.parquet")))


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_killed_job_ends_with_the_same_samples_as_an_undisturbed_one(tmp_path: Path, models: tuple[str, str]) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    with evaluate(straight, models) as job:
        assert job.exit_code(timeout_s=150) == 0, job.output()
        job.assert_no_process_left()
        output = job.output()
    rows = rows_of(straight)
    assert [row["model"] for row in rows] == ["run step 4"] * PROBLEMS * SAMPLES + ["other"] * PROBLEMS * SAMPLES
    assert {row["verdict_status"] for row in rows} <= {"correct", "incorrect", "no_answer"}
    assert "What is" in rows[0]["question"]

    # The run's policy is the base model: it finds its own responses as likely as it sampled them, and those of the
    # other less.
    own, others = (
        np.array([[row["mean_logprob"], row["base_mean_logprob"]] for row in rows if row["model"] == m]) for m in ("run step 4", "other")
    )
    np.testing.assert_allclose(own[:, 1], own[:, 0], atol=1e-4)
    assert others[:, 1].mean() < own[:, 1].mean() - 0.5

    record = json.loads((straight / "report.json").read_text())
    assert record["comparisons"][0]["model"] == "other"
    assert record["models"]["run step 4"]["ks"] == [1, 2, 4, 6]
    assert "pass@6" in output and "other less run step 4" in output
    assert not (straight / "policies").exists() and not (straight / "parts").exists()

    with evaluate(killed, models) as job:
        wait_until(lambda: parts_of(killed) > PROBLEMS, timeout_s=120, what="a pool of the second model")
        job.signal(signal.SIGKILL)
        job.exit_code(timeout_s=30)
        job.assert_no_process_left(but=RAYS_OWN_AGENTS)
    with evaluate(killed, models, "--samples", "7") as job:
        assert job.exit_code(timeout_s=60) == 2
        assert "samples (6 -> 7)" in job.output()
    with evaluate(killed, models) as job:
        assert job.exit_code(timeout_s=150) == 0, job.output()
    assert rows_of(killed) == rows

    with evaluate(killed, models, "--k", "1,3") as job:  # nothing is left to sample
        assert job.exit_code(timeout_s=60) == 0, job.output()
        assert "pass@3" in job.output() and "starting the engine" not in job.output()
    assert rows_of(killed) == rows


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_sigterm_keeps_what_is_finished_and_ends_every_process(tmp_path: Path, models: tuple[str, str]) -> None:
    out = tmp_path / "out"
    with evaluate(out, models, "--problems", "5000") as job:
        wait_until(lambda: parts_of(out) >= 2, timeout_s=90, what="two pools")
        job.signal(signal.SIGTERM)
        assert job.exit_code(timeout_s=60) == 143, job.output()
        assert "problems are finished in" in job.output() and "the same command continues" in job.output()
        job.assert_no_process_left()


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_the_real_engine_and_model_give_a_report_and_likelihoods_that_agree(tmp_path: Path) -> None:
    """vLLM and the embedded model, which is its own base model: three problems, sixteen samples of each."""
    out = tmp_path / "out"
    flags = ("--task", "arithmetic", "--problems", "3", "--samples", "16", "--set", "sampling.max_response_tokens=12", "--out", str(out))
    with Job(out, "jobs.evaluate", "--model", "smollm2-135m", "--base-model", "smollm2-135m", *flags) as job:
        assert job.exit_code(timeout_s=300) == 0, job.output()
        job.assert_no_process_left()
    rows = rows_of(out)
    assert len(rows) == 48
    gaps = [row["base_mean_logprob"] - row["mean_logprob"] for row in rows]
    assert abs(np.mean(gaps)) < 0.05, "the engine and the scorer disagree on how likely the responses are"
    record = json.loads((out / "report.json").read_text())["models"]["smollm2-135m"]
    assert record["entropy"]["value"] > 0.1
    assert sum(record["verdicts"].values()) == 48
    assert (out / "report.html").stat().st_size > 10_000
