"""What a start refuses before it starts anything."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from buffers.replay import ReplayTooSmall
from jobs import train
from jobs.config import LogsConfig, RunConfig
from jobs.configuration.user_error import UserError
from jobs.directory.events import EventKind
from jobs.directory.metrics import evaluations_of
from jobs.directory.run_dir import RunDirectory
from jobs.directory.run_state import read_status
from jobs.processes.environment import prepare_environment
from jobs.processes.failures import details
from jobs.run.history import lacks_evaluation, require_saved_stream
from jobs.run.session import TrainSession, _problem_stream, _say, console_of, run_session
from learners.checkpoint import CheckpointManager


def start(config: RunConfig) -> int:
    return run_session(config, config_path="x.toml", resume="auto", synchronous=False)


def test_data_that_are_not_there_are_refused_before_anything_is_written(tmp_path: Path, tiny_model: str) -> None:
    task = {"name": "parquet", "parquet": {"path": str(tmp_path / "nothing.jsonl")}}
    config = RunConfig.model_validate({"model": tiny_model, "run_dir": str(tmp_path / "run"), "task": task})
    with pytest.raises(UserError, match=r"task parquet: no file .*nothing\.jsonl"):
        start(config)
    assert not (tmp_path / "run").exists()


def test_a_task_without_a_verifier_cannot_be_trained_on(tmp_path: Path, tiny_model: str) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": "Write a poem."}) + "\n")
    task = {"name": "parquet", "parquet": {"path": str(tmp_path / "mine.jsonl"), "verifier": "none", "answer_column": None}}
    config = RunConfig.model_validate({"model": tiny_model, "run_dir": str(tmp_path / "run"), "task": task})
    with pytest.raises(UserError, match="has no verifier, and training needs rewards"):
        start(config)


def test_storage_of_another_run_is_refused_and_its_own_is_not(tmp_path: Path, tiny_model: str) -> None:
    storage = tmp_path / "storage"
    manager = CheckpointManager(str(storage), keep=1)
    manager.commit(3, manager.save(3, "learner", lambda directory: None), {"run_id": "theirs"})
    config = RunConfig.model_validate({"model": tiny_model, "run_dir": str(tmp_path / "ours"), "checkpoint": {"storage": str(storage)}})
    with pytest.raises(UserError, match=r"holds the checkpoints of run 'theirs': give this run an address of its own"):
        start(config)
    assert not (tmp_path / "ours").exists()


def test_a_run_whose_checkpoints_are_elsewhere_does_not_begin_again_at_step_0(tmp_path: Path, tiny_model: str) -> None:
    """It would forget what it has logged, only because an address was changed or left out."""
    old, run_dir = tmp_path / "old", tmp_path / "run"
    values = {"model": tiny_model, "run_dir": str(run_dir), "checkpoint": {"storage": str(old)}}
    manager = CheckpointManager(str(old), keep=1)
    manager.commit(3, manager.save(3, "learner", lambda directory: None), {"run_id": "run"})
    with RunDirectory(RunConfig.model_validate(values)) as directory:
        directory.metrics.write_text('{"step": 3}\n')
    for other in ({}, {"storage": str(tmp_path / "new")}):
        with pytest.raises(UserError, match=rf"has its checkpoints in \S*{old}, up to step 3, .* or leave checkpoint\.storage as it was"):
            start(RunConfig.model_validate(values | {"checkpoint": other}))
    assert directory.metrics.read_text() == '{"step": 3}\n'
    assert json.loads((run_dir / "config.json").read_text())["checkpoint"]["storage"] == str(old)


def test_a_run_whose_problems_are_others_is_refused_before_anything_is_started(tmp_path: Path, tiny_model: str) -> None:
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(4)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "parquet", "parquet": {"path": str(tmp_path / "mine.jsonl"), "verifier": "number"}}
    config = RunConfig.model_validate({"model": tiny_model, "run_dir": str(tmp_path / "run"), "task": task})
    stream = _problem_stream(config)
    with RunDirectory(config) as directory:
        manager = directory.checkpoints
        meta = {"run_id": "run", "stream": stream.state_dict()}
        manager.commit(3, manager.save(3, "learner", lambda directory: None), meta)
        require_saved_stream(directory, 3, stream)
    with (tmp_path / "mine.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "5?", "answer": "5"}) + "\n")
    with pytest.raises(
        UserError, match=r"cannot go on from step 3: .* num_problems = 5, but the saved one has 4: give the run the problems"
    ):
        start(config)


def test_a_last_evaluation_that_was_cut_off_is_no_finished_run(tmp_path: Path, tiny_model: str) -> None:
    evaluation: Any = SimpleNamespace(is_due=lambda step: step % 2 == 0)
    with RunDirectory(RunConfig.model_validate({"model": tiny_model, "run_dir": str(tmp_path / "run")})) as directory:
        assert lacks_evaluation(directory, 4, evaluation) and not lacks_evaluation(directory, 3, evaluation)
        assert not lacks_evaluation(directory, 4, None)
        evaluations_of(directory.metrics).write_text('{"step": 4, "eval/pass@1": 0.5}\n')
        assert not lacks_evaluation(directory, 4, evaluation)


def test_metrics_that_cannot_be_written_are_told_and_end_nothing(tmp_path: Path) -> None:
    config, told = RunConfig(run_dir=str(tmp_path / "run")), list[str]()
    with RunDirectory(config) as directory:
        console: Any = SimpleNamespace(warn=told.append, step=lambda step, metrics: None, note=lambda text: None)
        session = TrainSession(config, "x.toml", directory, None, console, synchronous=False, evaluation=None)  # type: ignore[arg-type]

        def full(*arguments: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        session._writer = SimpleNamespace(write=full, write_evaluation=full)  # type: ignore[assignment]
        session._report(3, {})
        session._evaluated(3, {"eval/pass@1": 0.5})
    assert told == ["the metrics cannot be written, and are kept for the next step: No space left on device"] * 2


def test_problems_are_read_as_the_verifier_section_says() -> None:
    config = RunConfig.model_validate({"verifier": {"reasoning_from_start": True}})
    assert _problem_stream(config).task.judging.reasoning_from_start


def test_a_local_model_does_not_keep_the_problems_from_the_hub(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE is set for the sake of the model, and only once the problems are read."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("REPEXP_DATA", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[str | None] = []

    def fetched(*arguments: Any) -> Path:
        asked.append(os.environ.get("HF_HUB_OFFLINE"))
        raise OSError("no route")

    monkeypatch.setattr("tasks.data.sources._fetched", fetched)
    monkeypatch.setattr("tasks.data.sources._cached", lambda *arguments: None)
    (tmp_path / "run.toml").write_text(f'run_dir = "{tmp_path / "run"}"\nmodel = "{tiny_model}"\n[task]\nname = "gsm8k"\n')
    assert train.main([str(tmp_path / "run.toml")]) == 2
    assert asked == [None] and not constants.HF_HUB_OFFLINE
    prepare_environment(tiny_model)
    assert os.environ["HF_HUB_OFFLINE"] == "1" and constants.HF_HUB_OFFLINE
    monkeypatch.delenv("HF_HUB_OFFLINE")


def test_a_full_disk_is_one_line(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: Any, **options: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"^run_dir .*/run cannot be used: No space left on device; "):
        RunDirectory(RunConfig.model_validate({"model": tiny_model, "run_dir": str(tmp_path / "run")})).__enter__()


def test_storage_that_is_no_address_is_refused(tmp_path: Path, tiny_model: str) -> None:
    config = RunConfig.model_validate({"model": tiny_model, "run_dir": str(tmp_path / "ours"), "checkpoint": {"storage": "nowhere://x"}})
    with pytest.raises(UserError, match=r"checkpoint\.storage = 'nowhere://x'"):
        start(config)


def test_a_model_that_packed_rows_would_compute_wrongly_is_refused_before_ray_is_started(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.run.session.ray_session", lambda *args, **options: pytest.fail("Ray was started"))
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    settings = json.loads((model / "config.json").read_text())
    settings["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    (model / "config.json").write_text(json.dumps(settings))
    config = RunConfig.model_validate({"model": str(model), "run_dir": str(tmp_path / "run")})
    with pytest.raises(UserError, match=r'^LlamaForCausalLM takes its position embeddings \("dynamic"\) from the longest sequence'):
        start(config)


@pytest.mark.parametrize("place", ["a_file", "a_file/below", "/proc/nobody-writes-here"])
def test_storage_that_cannot_be_used_is_refused_before_anything_is_started(tmp_path: Path, tiny_model: str, place: str) -> None:
    (tmp_path / "a_file").write_text("")
    storage = str(tmp_path / place)
    config = RunConfig.model_validate({"model": tiny_model, "run_dir": str(tmp_path / "ours"), "checkpoint": {"storage": storage}})
    with pytest.raises(UserError, match=r"^checkpoint\.storage = .* choose another place$") as refused:
        start(config)
    assert "\n" not in str(refused.value) and not (tmp_path / "ours").exists()


def test_storage_that_was_tried_is_left_empty(tmp_path: Path, tiny_model: str) -> None:
    storage = tmp_path / "new" / "storage"
    CheckpointManager(str(storage), keep=1).require_writable()
    assert list(storage.iterdir()) == []


def test_an_event_log_that_cannot_be_read_is_named_with_the_mend(tmp_path: Path) -> None:
    config = RunConfig(run_dir=str(tmp_path / "run"))
    with RunDirectory(config) as directory:
        console: Any = SimpleNamespace(warn=print)
        session = TrainSession(config, "x.toml", directory, None, console, synchronous=False, evaluation=None)  # type: ignore[arg-type]
        directory.events.write_text("half\nan event\n")
        with pytest.raises(UserError, match=r"events\.jsonl, line 1 is no event: .*: move .*events\.jsonl away to continue") as refused:
            session._open_events(3)
    assert "\n" not in str(refused.value)


def test_the_status_has_the_newest_checkpoint_from_the_start_and_of_every_trainer(tmp_path: Path) -> None:
    config = RunConfig(run_dir=str(tmp_path / "run"))
    with RunDirectory(config) as directory:
        console: Any = SimpleNamespace(warn=print, event=lambda kind, fields: None)
        session = TrainSession(config, "x.toml", directory, None, console, synchronous=True, evaluation=None)  # type: ignore[arg-type]
        session.control.checkpointed(4)
        session.control.enter("starting", step=4)
        status = read_status(directory.path)
        assert status is not None and (status.last_checkpoint, status.checkpoint_time) == (4, None)
        session._events = session._open_events(4)
        session._note(EventKind.CHECKPOINT, step=6, seconds=0.5)
        session.control.write()
        status = read_status(directory.path)
        assert status is not None and status.last_checkpoint == 6 and status.checkpoint_time is not None


def test_logs_as_json_lines_have_the_warnings_and_events_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig.model_validate({"run_dir": str(tmp_path / "mine"), "logs": {"format": "json"}})
    with RunDirectory(config) as directory, console_of(config, directory.run_id) as console:
        session = TrainSession(config, "x.toml", directory, None, console, synchronous=False, evaluation=None)  # type: ignore[arg-type]
        session._events = session._open_events(0)
        session._note(EventKind.CHECKPOINT, step=3, seconds=0.5)
        session.control._warn("a disk is full")
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["run"], record["level"], record["message"]) for record in records] == [
        ("mine", "info", "checkpoint"),
        ("mine", "warning", "a disk is full"),
    ]


def test_what_is_said_before_a_console_is_up_is_a_json_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig.model_validate({"run_dir": str(tmp_path / "mine"), "logs": {"format": "json"}})
    _say(config, "model x: loading")
    record = json.loads(capsys.readouterr().out)
    assert (record["run"], record["message"]) == ("mine", "model x: loading")
    _say(config.model_copy(update={"logs": LogsConfig()}), "model x: loading")
    assert capsys.readouterr().out == "model x: loading\n"


def test_a_replay_too_small_for_what_a_checkpoint_holds_needs_no_traceback() -> None:
    assert details(ReplayTooSmall("the saved groups take 9 bytes, but replay.max_bytes = 8: raise it")) == ""


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        ({"targets": ["q_proj", "wq"]}, r"learner\.lora\.targets: wq is no linear layer of this model's body; there are: down_proj, "),
        ({}, r"needs the package peft"),
    ],
)
def test_adapters_that_cannot_be_had_are_refused_before_ray_is_started(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch, lora: dict, named: str
) -> None:
    if not lora:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("jobs.run.session.ray_session", lambda *args, **options: pytest.fail("Ray was started"))
    learner = {"lora": {"enabled": True, **lora}}
    config = RunConfig.model_validate({"model": tiny_model, "run_dir": str(tmp_path / "run"), "learner": learner})
    with pytest.raises(UserError, match=named):
        start(config)
