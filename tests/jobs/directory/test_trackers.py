"""Trackers by name and by import path; a tracker that fails is dropped and the run continues."""

from __future__ import annotations

import json
import resource
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from buffers.extensions import ExtensionError, Known
from jobs.config import RunConfig
from jobs.directory.metrics import MetricsWriter
from jobs.directory.trackers import KNOWN, RunInfo, Trackers, load_trackers, require_methods

MODULE = "tests_of_trackers"


class Recorder:
    """A tracker as a user would write it; `fails` names the method that raises."""

    def __init__(self, project: str = "none", fails: str = "") -> None:
        self.said: list[object] = [project]
        self.fails = fails

    def start(self, info: RunInfo) -> None:
        self._note("start", info)

    def write(self, step, metrics) -> None:
        self._note("write", (step, dict(metrics)))

    def close(self) -> None:
        self._note("close", "closed")

    def _note(self, method: str, what: object) -> None:
        if method == self.fails:
            raise ConnectionError("no network\nand more")
        self.said.append(what)


class WithoutClose:
    start = write = None


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    user = types.ModuleType(MODULE)
    user.Recorder, user.WithoutClose = Recorder, WithoutClose  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, user)


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    return RunInfo.of(tmp_path, RunConfig(steps=7))


def started(tracker: Recorder, info: RunInfo, warnings: list[str]) -> tuple[Trackers, Recorder]:
    other = Recorder()
    return Trackers({"mine": tracker, "other": other}, info, warn=warnings.append), other


def test_a_class_of_ones_own_gets_its_options_the_run_and_every_metric(tmp_path: Path, info: RunInfo) -> None:
    path = f"{MODULE}:Recorder"
    made = load_trackers([path], {path: {"project": "mine"}})
    writer = MetricsWriter(tmp_path / "metrics.jsonl", Trackers(made, info, warn=pytest.fail))
    writer.write(1, {"reward/mean": 0.5})
    writer.write_evaluation(1, {"eval/pass@1": 0.25})
    writer.close()
    (recorder,) = made.values()
    assert recorder.said == ["mine", info, (1, {"reward/mean": 0.5}), (1, {"eval/pass@1": 0.25}), "closed"]  # type: ignore[attr-defined]
    assert (info.run_id, info.resume_step, info.config["steps"]) == (tmp_path.name, 0, 7)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("fails", ["start", "write", "close"])
def test_a_tracker_that_raises_is_told_once_and_dropped_and_all_else_goes_on(tmp_path: Path, info: RunInfo, fails: str) -> None:
    warnings: list[str] = []
    trackers, other = started(Recorder(fails=fails), info, warnings)
    writer = MetricsWriter(tmp_path / "metrics.jsonl", trackers)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    assert warnings == ["tracker mine failed and gets no more metrics (ConnectionError: no network); metrics.jsonl has them all"]
    assert other.said[2:] == [(1, {"loss": 1.0}), (2, {"loss": 2.0}), (3, {"loss": 3.0}), "closed"]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_tensorboard_is_known_and_the_default(tmp_path: Path, info: RunInfo) -> None:
    assert RunConfig().trackers == ("tensorboard",)
    trackers = Trackers(load_trackers(RunConfig().trackers), info, warn=pytest.fail)
    trackers.write(3, {"reward/mean": 0.5})
    trackers.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("reward/mean")] == [(3, 0.5)]


def test_tensorboard_on_a_full_disk_is_given_up_and_blocks_nothing(tmp_path: Path, info: RunInfo) -> None:
    warnings: list[str] = []
    trackers = Trackers(load_trackers(["tensorboard"]), info, warn=warnings.append)
    file_size, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, most))  # beyond it, a file is as on a full disk: OSError
    try:
        for step in range(1, 61):
            trackers.write(step, {"reward/mean": 0.5, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, most))
    trackers.close()
    (warning,) = warnings
    assert warning.startswith("tracker tensorboard failed and gets no more metrics (OSError:")
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("reward/mean")][:10] == list(range(1, 11))


def test_without_trackers_there_is_metrics_jsonl_alone(tmp_path: Path, info: RunInfo) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", Trackers(load_trackers(RunConfig(trackers=[]).trackers), info, warn=pytest.fail))
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("no_such_module_here:Mine", {}, "there is no module no_such_module_here"),
        (f"{MODULE}:Recoder", {}, "did you mean 'Recorder'"),
        (f"{MODULE}:WithoutClose", {}, "WithoutClose has no close; it needs start, write, close"),
        (f"{MODULE}:Recorder", {"projct": "a"}, "projct"),
        ("tensorboard", {"projct": "a"}, "projct"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(name: str, options: dict[str, str], why: str) -> None:
    with pytest.raises(ExtensionError, match=why) as refused:
        require_methods([name], {name: options})
    assert "\n" not in str(refused.value) and name in str(refused.value).replace(KNOWN["tensorboard"], "tensorboard")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"trackers": ["tensorbord"]}, "did you mean 'tensorboard'"),
        ({"trackers": ["mine:"]}, "import path"),
        ({"trackers": [], "tracker_options": {"tensorboard": {"a": 1}}}, "'tensorboard', which is not among trackers"),
    ],
)
def test_a_configuration_names_trackers_that_can_be_found(values: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RunConfig.model_validate(values)


def test_the_configuration_knows_the_names_that_there_are() -> None:
    (known,) = [each.func for each in _metadata() if isinstance(each.func, Known)]
    assert set(known.names) == set(KNOWN)


def _metadata() -> list[Callable]:
    annotation = RunConfig.model_fields["trackers"].annotation
    return list(annotation.__args__[0].__metadata__)  # type: ignore[union-attr]
