"""Every seam takes a method of one's own by import path: a tiny run trains with each, and what is wrong is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pyarrow.parquet as pq
import pytest

from actors.verifier import VerifierPool
from jobs import explore, train
from tests.integration.processes import REPOSITORY, Training, metrics_of
from tests.jobs.components_fixture import LocalRun, small_config

OUTSIDE = "tests.extensions.outside"
MODULE = REPOSITORY / "tests" / "extensions" / "outside.py"
PRODUCT = ("actors", "bonus", "buffers", "jobs", "learners", "tasks")
SEAMS: dict[str, dict[str, Any]] = {
    "surrogate": {"learner": {"loss": {"surrogate": f"{OUTSIDE}:soft"}}},
    "correction": {"learner": {"loss": {"correction": f"{OUTSIDE}:Smooth", "correction_options": {"limit": 2.0}}}},
    "estimator": {"learner": {"advantage": {"estimator": f"{OUTSIDE}:relative"}}},
    "bonus from features": {"bonus": {"kind": f"{OUTSIDE}:Far"}},
    "bonus from answers": {"bonus": {"kind": f"{OUTSIDE}:Rare"}},
    "sampler": {"replay": {"sampler": f"{OUTSIDE}:Freshest"}},
    "task": {"task": {"name": f"{OUTSIDE}:Letters", "options": {"first": "c"}}},
    "engine": {"rollout": {"engine": f"{OUTSIDE}:Uniform", "engine_options": {"seed": 3}}},
}


def test_one_module_of_under_250_lines_has_them_all_and_no_product_file_knows_it():
    assert len(MODULE.read_text().splitlines()) < 250
    files = [file for folder in PRODUCT for file in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > 100
    assert not [file for file in files if "tests.extensions" in file.read_text()]


@pytest.mark.whole
@pytest.mark.parametrize("seam", SEAMS)
def test_a_tiny_run_trains_with_each(tiny_model, tmp_path, seam):
    settings = small_config(tiny_model, tmp_path, steps=3, **SEAMS[seam])
    with VerifierPool(settings.task, settings.verifier, final_answers=settings.bonus.needs_answers) as pool:
        run = LocalRun(settings, judge=pool)
        assert run.train() == 3
    run.check_valid()
    assert ("encoder" in run.parts) == (seam != "bonus from answers")
    rows = run.logged()
    if seam == "bonus from features":
        assert len({row["bonus"] for row in rows}) > 2
    if seam == "bonus from answers":  # no problem comes twice in so short a run
        times = Counter((row["group_id"], row["final_answer"]) for row in rows)
        assert [row["bonus"] for row in rows] == pytest.approx([times[row["group_id"], row["final_answer"]] ** -0.5 for row in rows])
    if seam == "task":
        assert {row["task"] for row in rows} == {"letters"}
    if seam == "engine":
        assert {round(logprob, 4) for row in rows for logprob in row["behavior_logprobs"]} == {-4.6444}
    if seam not in ("task", "bonus from answers"):  # an untrained model hardly ever states an answer
        assert any(metrics.get("learner/grad_norm", 0) > 0 for _, metrics in run.reports)


TOGETHER = f"""
steps = 3
model = "MODEL"
prompts_per_step = 2
responses_per_prompt = 4
wait_timeout_s = 60
trackers = ["{OUTSIDE}:Lines"]
tracker_options."{OUTSIDE}:Lines" = {{ file = "mine.jsonl" }}
[task]
name = "{OUTSIDE}:Letters"
[sampling]
max_response_tokens = 6
[rollout]
engine = "{OUTSIDE}:Uniform"
dtype = "float32"
[bonus]
kind = "{OUTSIDE}:Rare"
[replay]
sampler = "{OUTSIDE}:Freshest"
max_bytes = 1000000
[learner]
dtype = "float32"
loss = {{ surrogate = "{OUTSIDE}:soft", correction = "{OUTSIDE}:Smooth", correction_options.limit = 2.0 }}
advantage = {{ estimator = "{OUTSIDE}:relative", beta = 0.5 }}
"""


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_run_with_all_of_them_in_real_processes_trains_and_resumes(tiny_model, tmp_path):
    config, run_dir = tmp_path / "together.toml", tmp_path / "run"
    config.write_text(TOGETHER.replace("MODEL", tiny_model))
    with Training(config, run_dir) as training:
        assert training.exit_code() == 0, training.output()
    with Training(config, run_dir, "--set", "steps=4") as training:
        assert training.exit_code() == 0, training.output()
        training.assert_no_process_left()
    records = metrics_of(run_dir)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert any(record.get("learner/grad_norm", 0) > 0 for record in records), "the bonus is a signal of its own"
    assert records[-1]["bonus/num_answers"] > records[0]["bonus/num_answers"], "it remembers, also over the resume"
    lines = [json.loads(line) for line in (run_dir / "mine.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert not (run_dir / "tensorboard").exists()
    table = pq.read_table(run_dir / "rollouts")
    assert set(table.column("task").to_pylist()) == {"letters"}
    assert table.column("feature").null_count == table.num_rows, "nothing was encoded"


# ---- what is wrong is one line, exit code 2, and nothing is touched ----

MISSING, LACKING = "nowhere.module:thing", "collections:Counter"
WRONG = {
    "learner.loss.surrogate": (MISSING, f"{OUTSIDE}:Far"),
    "learner.loss.correction": (MISSING, f"{OUTSIDE}:soft"),
    "learner.advantage.estimator": (MISSING, f"{OUTSIDE}:Letters"),
    "bonus.kind": (MISSING, LACKING),
    "replay.sampler": (MISSING, LACKING),
    "task.name": (MISSING, LACKING),
    "rollout.engine": (MISSING, LACKING),
}


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("which", [0, 1], ids=["a wrong path", "a class that lacks a method"])
@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry run"])
def test_what_cannot_be_used_is_one_line_that_names_the_key(capsys, tmp_path, key, which, dry):
    run_dir = tmp_path / "run"
    arguments = ["configs/quickstart.toml", "--set", f"run_dir={run_dir}", "--set", f"{key}={WRONG[key][which]}"]
    assert train.main([*arguments, *(["--dry-run"] if dry else [])]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and key in line and WRONG[key][which] in line
    assert not captured.out and not run_dir.exists()


def test_a_tracker_that_cannot_be_used_is_one_line(capsys, tmp_path):
    overrides = ["--set", f"run_dir={tmp_path}/run", "--set", f'trackers=["{MISSING}"]']
    assert train.main(["configs/quickstart.toml", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tracker" in line and "there is no module nowhere" in line


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["deterministic=true", f"rollout.engine={OUTSIDE}:Uniform"], ["deterministic = true", "rollout.engine"]),
        (["bonus.source=policy", f"bonus.kind={OUTSIDE}:Far", f"rollout.engine={OUTSIDE}:Uniform"], ["hidden states", "bonus.source"]),
        (["max_policy_lag=0", f"replay.sampler={OUTSIDE}:Freshest"], ["max_policy_lag = 0", "replay.sampler"]),
        ([f"bonus.kind={OUTSIDE}:Far", 'bonus.options={"power"=2}'], ["bonus.options", "power"]),
        (["bonus.kind=elipptical"], ["bonus.kind", "did you mean 'elliptical'?"]),
    ],
    ids=str,
)
def test_a_need_that_is_not_met_is_one_line(capsys, tmp_path, overrides, named):
    arguments = [f"run_dir={tmp_path}/run", *overrides]
    assert train.main(["configs/quickstart.toml", *(part for text in arguments for part in ("--set", text))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(name in line for name in named), line


def test_explore_takes_the_same_paths_and_refuses_the_same_way(capsys, tmp_path):
    arguments = ["--out", str(tmp_path / "out"), "--set", f"rollout.engine={LACKING}"]
    assert explore.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "rollout.engine" in line and "Counter has no start" in line


def test_a_broken_module_is_named_with_its_line(capsys, tmp_path):
    (tmp_path / "broken_extension.py").write_text("import torch\nx = undefined_name\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "jobs.train",
            f"{REPOSITORY}/configs/quickstart.toml",
            "--set",
            "bonus.kind=broken_extension:X",
            "--dry-run",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "NameError: name 'undefined_name' is not defined" in line and "broken_extension.py, line 2" in line
