"""`python -m jobs.explore` as a person starts it: real Ray, the tiny model and the reference engine; once, the real
engine and model."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.explore import main
from tests.integration.processes import REPOSITORY, Job, wait_until

RAYS_OWN_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
POOLS, CANDIDATES = 4, 6


def tiny(model: str, out: Path, *more: str) -> tuple[str, ...]:
    settings = ("rollout.engine=transformers", "rollout.dtype=float32", "sampling.max_response_tokens=8", "selection.dim=8")
    flags = ("--model", model, "--task", "arithmetic", "--pool", str(CANDIDATES), "--select", "1,2,4", "--out", str(out))
    return (*flags, *(part for setting in settings for part in ("--set", setting)), "--problems", str(POOLS), *more)


def explore(out: Path, *arguments: str) -> Job:
    return Job(out, "jobs.explore", *arguments)


def refusal(*arguments: str) -> str:
    """The one line of a start that is refused, in this process: what is refused has started nothing."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main(arguments) == 2, said.getvalue()
    return only_line(said.getvalue())


def only_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), text
    return lines[0]


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "pools.parquet").to_pylist()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_killed_job_ends_with_the_same_pools_as_an_undisturbed_one(tmp_path: Path, tiny_model: str) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    with explore(straight, *tiny(tiny_model, straight)) as job:
        assert job.exit_code(timeout_s=120) == 0, job.output()
        job.assert_no_process_left()
    rows = rows_of(straight)
    assert len(rows) == POOLS * CANDIDATES
    assert (straight / "report.html").stat().st_size > 10_000
    assert json.loads((straight / "report.json").read_text())
    chosen = [json.loads(line) for line in (straight / "selected.jsonl").read_text().splitlines()]
    assert [line["rank"] for line in chosen] == [0, 1, 2, 3] * POOLS

    with explore(killed, *tiny(tiny_model, killed)) as job:
        wait_until(lambda: len(list(killed.glob("parts/*.parquet"))) >= 1, timeout_s=90, what="the first pool")
        job.signal(signal.SIGKILL)
        job.exit_code(timeout_s=30)
        job.assert_no_process_left(but=RAYS_OWN_AGENTS)
    with explore(killed, *tiny(tiny_model, killed)) as job:
        assert job.exit_code(timeout_s=120) == 0, job.output()
    assert rows_of(killed) == rows


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_ctrl_c_keeps_what_is_finished_and_pools_can_be_ordered_again(tmp_path: Path, tiny_model: str) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    with explore(out, *tiny(tiny_model, out, "--problems", "5000")) as job:
        wait_until(lambda: len(list(out.glob("parts/*.parquet"))) >= 2, timeout_s=90, what="two pools")
        job.signal(signal.SIGINT)
        assert job.exit_code(timeout_s=60) == 130, job.output()
        assert "the same command continues" in job.output()
        job.assert_no_process_left()
    finished = len(list(out.glob("parts/*.parquet")))
    order_again = tiny(tiny_model, again, "--from-pools", str(out), "--center", "pool", "--quality", "logprob")
    with explore(again, *order_again) as job:
        assert job.exit_code(timeout_s=120) == 0, job.output()
        job.assert_no_process_left()
    assert len(rows_of(again)) == finished * CANDIDATES
    with explore(again, *order_again) as job:
        assert job.exit_code(timeout_s=120) == 0, job.output()
    assert len(rows_of(again)) == finished * CANDIDATES
    of_another_task = refusal("--out", str(tmp_path / "x"), "--from-pools", str(out), "--task", "gsm8k")
    assert "these are answers to problems of arithmetic, not of gsm8k" in of_another_task
    changed = pq.read_table(again / "pools.parquet")
    ids, place = changed["response_ids"].to_pylist(), changed.schema.get_field_index("response_ids")
    changed = changed.set_column(place, changed.field(place), pa.array([ids[1], *ids[1:]], changed.field(place).type))
    pq.write_table(changed, tmp_path / "other.parquet")
    other = [str(tmp_path / "other.parquet") if word == str(out) else word for word in order_again]
    with explore(again, *other) as job:
        assert job.exit_code(timeout_s=120) == 2, job.output()
        assert "already: choose another with --out DIR" in job.output()


def test_a_mistake_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "jobs.explore", "--set", "selection.rige=1"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2, result.stderr
    assert "did you mean 'selection.ridge'" in only_line(result.stderr)


def test_mistakes_are_refused_in_one_line(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPEXP_DATA", raising=False)
    out = str(tmp_path / "out")
    assert "did you mean 'selection.ridge'" in refusal("--out", out, "--set", "selection.rige=1")
    assert "select = [8, 4]" in refusal("--out", out, "--select", "8,4")
    assert "no such model" in refusal("--out", out, "--model", "./no such model")
    assert "gsm8k" in refusal("--out", out, "--task", "gsm8k") and not Path(out).exists()
    assert "train" in refusal("--out", out, "--split", "nowhere", "--model", tiny_model)
    assert "has no end" in refusal("--out", out, "--problems", "0", "--model", tiny_model)
    assert "there are no pools" in refusal("--out", out, "--from-pools", str(tmp_path / "nothing.parquet"))
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(_any_parquet(tmp_path)), other)
    assert "not a table of pools" in refusal("--out", out, "--from-pools", str(other))
    assert "does not exist" in refusal("nothing.toml")
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.tex").write_text("")
    assert "is not empty" in refusal("--out", str(used), "--model", tiny_model)


def _any_parquet(directory: Path) -> Path:
    import pyarrow as pa

    file = directory / "any.parquet"
    pq.write_table(pa.table({"a": [1]}), file)
    return file


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(400)
def test_the_real_engine_gives_the_same_pools_after_a_kill(tmp_path: Path) -> None:
    """vLLM and the embedded model, sixteen answers to each of three problems."""
    arguments = ("--task", "arithmetic", "--pool", "16", "--problems", "3", "--select", "1,2,4", "--set", "sampling.max_response_tokens=12")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    with explore(straight, *arguments, "--out", str(straight)) as job:
        assert job.exit_code(timeout_s=150) == 0, job.output()
        job.assert_no_process_left()
    with explore(killed, *arguments, "--out", str(killed)) as job:
        wait_until(lambda: len(list(killed.glob("parts/*.parquet"))) >= 1, timeout_s=120, what="the first pool")
        job.signal(signal.SIGKILL)
        job.exit_code(timeout_s=30)
    with explore(killed, *arguments, "--out", str(killed)) as job:
        assert job.exit_code(timeout_s=150) == 0, job.output()
    assert rows_of(killed) == rows_of(straight)
