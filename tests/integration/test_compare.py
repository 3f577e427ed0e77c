"""`python -m jobs.compare` as a person starts it: real Ray in every command, the tiny model, the reference engine."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.runs import is_alive, owner
from tests.integration.processes import Job, steps_of, wait_until
from tests.integration.test_explore import RAYS_OWN_AGENTS
from tests.jobs.comparison.test_session import without_times
from tests.jobs.comparison_fixture import write_comparison

pytestmark = [pytest.mark.ray, pytest.mark.timeout(580)]


def start(file: Path, *settings: str) -> Job:
    return Job(file.parent / "compare", "jobs.compare", str(file), *(word for one in settings for word in ("--set", one)))


def report_of(file: Path) -> dict[str, Any]:
    return json.loads((file.parent / file.stem / "report.json").read_text())


def test_a_stopped_comparison_ends_gracefully_and_continues(tmp_path: Path, tiny_model: str) -> None:
    file = write_comparison(tmp_path, tiny_model)
    run = tmp_path / "small" / "runs" / "small-grpo-0"
    with start(file, "seeds=[0]", "steps=[600]") as job:
        wait_until(lambda: (run / "metrics.jsonl").exists() and len(steps_of(run)) >= 2, timeout_s=200, what="two steps")
        job.signal(signal.SIGTERM)
        assert job.exit_code(timeout_s=90) == 143, job.output()
        assert "the same command continues" in job.output()
        job.assert_no_process_left(but=RAYS_OWN_AGENTS)
    trained = steps_of(run)
    assert 2 <= len(trained) < 600
    assert (run / "checkpoints" / f"step_{len(trained):06d}" / "manifest.json").is_file()
    assert (tmp_path / "small" / "evaluations" / "base" / "report.json").is_file()


@pytest.mark.long
def test_a_comparison_that_is_killed_ends_with_the_report_of_one_that_was_not(tmp_path: Path, tiny_model: str) -> None:
    straight, killed = (write_comparison(tmp_path, tiny_model, out=name) for name in ("straight", "killed"))
    with start(straight, "seeds=[0]") as job:
        assert job.exit_code(timeout_s=280) == 0, job.output()
        assert "repexp" in job.output() and "report.html" in job.output()
        job.assert_no_process_left()

    runs = tmp_path / "killed" / "runs"
    with start(killed, "seeds=[0]") as job:
        run = runs / "killed-grpo-0"
        wait_until(lambda: is_alive(run), timeout_s=120, what="the first training")
        os.kill(job.process.pid, signal.SIGKILL)  # the training continues by itself
        assert job.exit_code(timeout_s=30) == -9
        with start(killed, "seeds=[0]") as again:
            wait_until(lambda: is_alive(runs / "killed-repexp-0"), timeout_s=200, what="the second training")
            assert "of an earlier start is at work on this: waiting for it" in again.output()
            trainer = owner(runs / "killed-repexp-0")
            assert trainer is not None
            os.kill(again.process.pid, signal.SIGKILL)
            os.kill(trainer, signal.SIGKILL)
            assert again.exit_code(timeout_s=30) == -9
    with start(killed, "seeds=[0]") as job:
        assert job.exit_code(timeout_s=280) == 0, job.output()
    one, other = (without_times(report_of(file)) for file in (straight, killed))
    names = json.dumps(other).replace("killed-", "straight-")
    assert json.loads(names) == one
