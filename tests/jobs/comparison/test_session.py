"""A whole comparison of two methods over two seeds in this process; killed, continued, added to, and with a failure."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from rich.console import Console

from jobs.analysis.pass_at_k import pass_at_k
from jobs.compare_config import CompareConfig
from jobs.comparison.experiment import Experiment, resolve
from jobs.comparison.forecast import forecast
from jobs.comparison.session import run_comparison
from jobs.comparison.units import Command
from jobs.configuration.files import load
from jobs.configuration.user_error import UserError
from jobs.directory.metrics import read_metrics
from jobs.reports.text import one_line
from tests.jobs.comparison_fixture import InProcess, write_comparison
from tests.jobs.reports.page_text import Text

pytestmark = pytest.mark.whole

REPOSITORY = Path(__file__).resolve().parents[3]
KILLS = (12, 28, 13, 75)
"""The number of moments that each start lives, in order: until within the first evaluation, before the first checkpoint
counts, before the policy is exported, and amid the removal of the first run's checkpoints."""
MORE_KILLS = [[rng.randint(1, 60) for _ in range(6)] for rng in map(random.Random, range(3))]


def compare(file: Path, *overrides: str, failing: dict[str, str] | None = None) -> tuple[int, list[str], Experiment]:
    """Start a comparison; returns its exit code, the commands that it gave, and what it was."""
    experiment = resolve(load(CompareConfig, str(file), overrides), source=file.name)
    executor = InProcess()
    executor.failing = failing or {}
    return run_comparison(experiment, executor, Console(quiet=True)), executor.commands, experiment


@pytest.fixture(scope="module")
def finished(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The file of a comparison that was never interrupted, and its commands."""
    file = write_comparison(tmp_path_factory.mktemp("comparison"), tiny_model)
    code, commands, _ = compare(file)
    assert code == 0
    return file, commands


def report_of(file: Path) -> dict[str, Any]:
    return json.loads((file.parent / file.stem / "report.json").read_text())


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """Return a report without what a clock says, and without the place that it was made in."""
    runs = [{name: value for name, value in run.items() if name != "seconds"} for run in record["runs"]]
    settings = {name: text for name, text in record["settings"].items() if name not in ("out", "config")}
    return record | {"runs": runs, "settings": settings}


def test_every_run_and_every_evaluation_is_done_once(finished: tuple[Path, list[str]]) -> None:
    runs = [f"small-{method}-{seed}" for seed in (0, 1) for method in ("grpo", "repexp")]
    assert finished[1] == ["base", *(name for run in runs for name in (run, f"{run}@1", f"{run}@2"))]


def test_the_report_has_the_numbers_of_the_samples(finished: tuple[Path, list[str]]) -> None:
    file = finished[0]
    record = report_of(file)
    assert list(record["statistics"]) == ["base", "grpo", "repexp"]
    assert [(one["step"], one["seeds"]) for one in record["statistics"]["repexp"]] == [(1, [0, 1]), (2, [0, 1])]
    for method in ("grpo", "repexp"):
        rates = [rates_of(file, f"small-{method}-{seed}@2") for seed in (0, 1)]
        curve = record["statistics"][method][-1]["pass_at_k"]
        for k in (1, 2, 4):
            expected = np.mean([pass_at_k(4, correct, k) for counts in rates for correct in counts])
            assert curve["value"][curve["ks"].index(k)] == pytest.approx(expected)
    (difference,) = record["differences"]
    assert (difference["method"], difference["against"], difference["seeds"]) == ("repexp", "grpo", [0, 1])
    ours, theirs = (record["statistics"][name][-1]["area"]["value"] for name in ("repexp", "grpo"))
    assert difference["tests"]["area"]["difference"]["value"] == pytest.approx(ours - theirs)
    assert record["base_difference"]["method"] == "base"
    assert {(run["method"], run["seed"], run["steps"]) for run in record["runs"]} == {(m, s, 2) for m in ("grpo", "repexp") for s in (0, 1)}
    assert all(run["tokens"] > 0 and run["seconds"] > 0 for run in record["runs"])
    assert record["failures"] == {} and not any("Not finished" in note for note in record["notes"])


def rates_of(file: Path, evaluation: str) -> list[int]:
    """Return the number of correct responses to each problem."""
    rows = pq.read_table(file.parent / file.stem / "evaluations" / evaluation / "samples.parquet").to_pylist()
    correct: Counter[str] = Counter({row["problem_id"]: 0 for row in rows})
    correct.update(row["problem_id"] for row in rows if row["verdict_status"] == "correct")
    return list(correct.values())


def test_the_same_responses_are_asked_of_all(finished: tuple[Path, list[str]]) -> None:
    file = finished[0]
    asked = {
        tuple(pq.read_table(path, columns=["problem_id"])["problem_id"].to_pylist())
        for path in (file.parent / file.stem / "evaluations").glob("*/samples.parquet")
    }
    assert len(asked) == 1
    trained = [
        [
            sorted({row["problem_id"] for row in pq.read_table(part, columns=["problem_id"]).to_pylist()})
            for part in sorted((file.parent / file.stem / "runs" / f"small-{method}-0" / "rollouts").glob("*.parquet"))
        ]
        for method in ("grpo", "repexp")
    ]
    assert trained[0] == trained[1] != []


def test_figures_and_tables_have_the_numbers_of_the_report(finished: tuple[Path, list[str]]) -> None:
    out, record = finished[0].parent / finished[0].stem, report_of(finished[0])
    for name in ("overview", "passk", "differences", "learning", "training"):
        pixels = imread(out / f"{name}.png")
        assert pixels.shape[0] > 200 and pixels.shape[1] > 500 and pixels.std() > 0.02, "an empty figure"
    overview = json.loads((out / "overview.json").read_text())
    assert {name: curve["value"] for name, curve in overview.items()} == {
        name: steps[-1]["pass_at_k"]["value"] for name, steps in record["statistics"].items()
    }
    learning = json.loads((out / "learning.json").read_text())
    assert learning["pass@1"]["grpo"]["ks"] == [0, 1, 2]
    training = json.loads((out / "training.json").read_text())
    assert len(training["reward/pass@1"]["repexp"]) == 2
    with open(out / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["step"]) for row in rows] == [("base", "0")] + [(m, s) for m in ("grpo", "repexp") for s in "12"]
    assert float(rows[-1]["pass@1"]) == record["statistics"]["repexp"][-1]["pass_at_k"]["value"][0]
    with open(out / "seeds.csv") as file:
        assert len(list(csv.DictReader(file))) == 9
    with open(out / "differences.csv") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["repexp", "base"]


def test_the_page_shows_every_method_and_figure(finished: tuple[Path, list[str]]) -> None:
    page = Text((finished[0].parent / finished[0].stem / "report.html").read_text())
    for words in ("Comparison of methods", "Differences to grpo", "Sample efficiency", "adjusted p", "2 seeds of each method", "area"):
        assert words in page.text
    assert page.text.count("repexp") > 5 and "base" in page.text
    assert page.images == 5 and "script" not in page.tags


def test_nothing_is_done_twice(finished: tuple[Path, list[str]]) -> None:
    overrides = (f"out={finished[0].parent / 'small'}", "evaluation.k=[1, 3]")
    code, commands, _ = compare(finished[0], *overrides)
    assert (code, commands) == (0, [])
    assert report_of(finished[0])["statistics"]["grpo"][0]["ks"] == [1, 3]
    assert compare(finished[0])[1] == []


def test_checkpoints_are_removed_and_results_stay(finished: tuple[Path, list[str]]) -> None:
    out = finished[0].parent / finished[0].stem
    for run in (out / "runs").iterdir():
        assert not list((run / "checkpoints").iterdir())
        assert (run / "policy" / "config.json").is_file() and (run / "metrics.jsonl").is_file()


def test_a_dry_run_of_what_is_finished_has_measured_seconds_and_nothing_left(finished: tuple[Path, list[str]]) -> None:
    lines = forecast(resolve(load(CompareConfig, str(finished[0])), source="x"))
    text = "\n".join(lines)
    assert "4 are trained" in text and "9 are done" in text and "0.0 of them left" in text
    assert "measured over 8 steps" in text


def test_a_signal_ends_the_comparison_after_the_command_under_way(tiny_model: str, tmp_path: Path) -> None:
    class Signalled(InProcess):
        stopped: ClassVar[threading.Event] = threading.Event()

        def execute(self, command: Command) -> str | None:
            self.commands.append(command.name)
            os.kill(os.getpid(), signal.SIGTERM)
            assert self.stopped.wait(10)
            return "ended by a signal"

        def stop(self, number: int) -> None:
            assert number == signal.SIGTERM
            self.stopped.set()

    file = write_comparison(tmp_path, tiny_model)
    experiment, executor, before = resolve(load(CompareConfig, str(file)), source="x"), Signalled(), signal.getsignal(signal.SIGTERM)
    assert run_comparison(experiment, executor, Console(quiet=True)) == 143
    assert executor.commands == ["base"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "small" / "report.json").exists()


def test_what_is_finished_keeps_its_configuration(finished: tuple[Path, list[str]]) -> None:
    with pytest.raises(UserError, match=r"small-repexp-0 was begun with another configuration: learner\.advantage\.beta \(1\.0 -> 2\.0\)"):
        compare(finished[0], "methods.repexp.learner.advantage.beta=2.0")
    with pytest.raises(UserError, match=r"base was begun with another configuration: samples \(4 -> 5\)"):
        compare(finished[0], "evaluation.samples=5")


def moved(file: Path, to: Path) -> Path:
    """Keep nothing of a comparison but its results, in another place; returns its file there."""
    results = to / file.stem / "results"
    results.parent.mkdir(parents=True)
    shutil.copytree(file.parent / file.stem / "results", results)
    shutil.copy(file.parent / file.stem / "config.json", results.parent)
    return Path(shutil.copy(file, to / file.name))


def test_results_alone_make_the_same_report_elsewhere(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    file = moved(finished[0], tmp_path / "elsewhere")
    out = f"out={file.parent / 'small'}"
    code, commands, experiment = compare(file, out)
    assert (code, commands) == (0, [])
    assert without_times(report_of(file)) == without_times(report_of(finished[0]))
    results = {one.stem: one for one in (experiment.out / "results").iterdir()}
    assert results.keys() == {"base", *(run.name for run in experiment.runs)}
    assert all(one.stat().st_size < 25_000 for one in results.values())

    results["small-repexp-1"].unlink()
    code, commands, _ = compare(file, out)
    assert (code, commands) == (0, ["small-repexp-1", "small-repexp-1@1", "small-repexp-1@2"]), "what has no result is done"
    assert without_times(report_of(file)) == without_times(report_of(finished[0]))


def test_results_without_their_run_are_not_added_to(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    """A run trained again may be another one, so its policies do not go with those of the first."""
    file = moved(finished[0], tmp_path / "elsewhere")
    code, commands, _ = compare(file, f"out={file.parent / 'small'}", "steps=[1, 2, 3]", "seeds=[0]")
    assert (code, commands) == (1, [])
    failures = report_of(file)["failures"]
    assert failures.keys() == {"small-grpo-0", "small-repexp-0"}
    assert failures["small-grpo-0"].endswith(
        f"runs/small-grpo-0 is not here, and what was found of it has no policy of step 3: to train it again, delete "
        f"{file.parent}/small/results/small-grpo-0.json"
    )


def test_a_result_and_its_training_come_from_one_place(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Another machine's result stands beside a run that this one has begun."""
    file = moved(finished[0], tmp_path / "elsewhere")
    out = f"out={file.parent / 'small'}"
    run = file.parent / "small/runs/small-grpo-0"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text((finished[0].parent / "small/runs/small-grpo-0/metrics.jsonl").read_text().splitlines()[0] + "\n")
    assert compare(file, out)[:2] == (0, [])
    assert without_times(report_of(file)) == without_times(report_of(finished[0]))


def test_fewer_steps_leave_what_was_found_of_the_others(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    file = moved(finished[0], tmp_path / "elsewhere")
    out = f"out={file.parent / 'small'}"
    kept = file.parent / "small/results/small-grpo-0.json"
    record = json.loads(kept.read_text())
    assert record["policies"].keys() == {"1", "2"}
    kept.write_text(json.dumps(record | {"policies": {"1": record["policies"]["1"]}}))
    shutil.copytree(finished[0].parent / "small/evaluations/small-grpo-0@2", one := file.parent / "small/evaluations/small-grpo-0@2")
    begun = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(begun | {"models": [str(file.parent / "small/runs/small-grpo-0@2")]}))
    assert compare(file, out, "steps=[2]")[:2] == (0, [])
    assert json.loads(kept.read_text())["policies"] == record["policies"]


def test_where_the_rate_decays_all_runs_of_a_method_have_as_many_steps(tiny_model: str, tmp_path: Path) -> None:
    file = write_comparison(tmp_path, tiny_model)
    decays = "common.learner.decay_steps=1"
    assert compare(file, "seeds=[0]", "steps=[1, 2]", decays)[0] == 0
    with pytest.raises(UserError, match=r"small-grpo-0 was begun with another configuration: steps \(2 -> 1\)"):
        compare(file, "steps=[1]", decays)
    with pytest.raises(UserError, match=r"another configuration: rollout\.max_sequences"):
        compare(file, "seeds=[0]", "steps=[1, 2]", decays, "methods.grpo.rollout.max_sequences=32")
    assert compare(file, "seeds=[0]", "steps=[2]", decays, "common.rollout.workers=2")[:2] == (0, [])


def test_results_speak_for_no_other_configuration(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    file = moved(finished[0], tmp_path / "elsewhere")
    out = f"out={file.parent / 'small'}"
    for change, named in {
        "methods.repexp.learner.advantage.beta=2.0": r"small-repexp-0\.json was begun with another configuration: learner\.advantage\.beta",
        "evaluation.samples=5": r"base\.json was begun with another configuration: samples \(4 -> 5\)",
        "common.model=smollm2-135m": r"json was begun with another configuration: model",
    }.items():
        with pytest.raises(UserError, match=named):
            compare(file, out, change)
    shutil.copy(file.parent / "small/results/small-grpo-0.json", file.parent / "small/results/base.json")
    with pytest.raises(UserError, match=r"base\.json was begun with another configuration: models"):
        compare(file, out)


@pytest.mark.parametrize(
    "damaged",
    [
        *("", '{"config"', "[]", "null"),
        *({"policies": None}, {"policies": {}}, {"policies": {"1": []}}, {"policies": {"1": [{}]}}, {"policies": {"one": []}}),
        *({"trained": {"steps": 2}}, {"trained": []}, {"evaluation": None}, {"config": 3}),
    ],
    ids=str,
)
def test_a_damaged_result_is_named_before_anything_is_done(
    finished: tuple[Path, list[str]], tmp_path: Path, damaged: str | dict[str, Any]
) -> None:
    file = moved(finished[0], tmp_path / "elsewhere")
    kept = file.parent / "small" / "results" / "small-grpo-1.json"
    kept.write_text(damaged if isinstance(damaged, str) else json.dumps(json.loads(kept.read_text()) | damaged))
    with pytest.raises(UserError, match=r"small-grpo-1\.json is damaged: delete it, and the same command makes it again$"):
        compare(file, f"out={file.parent / 'small'}")


def test_only_a_run_that_is_done_is_kept(tiny_model: str, tmp_path: Path) -> None:
    """A run may fail after its last step was logged, and then it begins again."""
    file = write_comparison(tmp_path, tiny_model)
    small = ("seeds=[0]", "steps=[1]")
    code, _, experiment = compare(file, *small, failing={"small-repexp-0@1": "the disk is full"})
    assert code == 1 and read_metrics(experiment.runs[1].directory.metrics)
    assert {one.name for one in (experiment.out / "results").iterdir()} == {"base.json", "small-grpo-0.json"}
    assert compare(file, *small)[1] == ["small-repexp-0@1"]
    assert (experiment.out / "results" / "small-repexp-0.json").is_file()


def test_a_run_without_checkpoints_is_not_trained_further(finished: tuple[Path, list[str]]) -> None:
    code, commands, _ = compare(finished[0], "steps=[1, 2, 3]", "seeds=[0]")
    assert (code, commands) == (1, [])
    failures = report_of(finished[0])["failures"]
    assert failures.keys() == {"small-grpo-0", "small-repexp-0"}
    assert "ended at step 2 and its checkpoints were removed, so it has no policy of step 3" in failures["small-grpo-0"]
    assert compare(finished[0])[0] == 0


def test_a_failure_is_named_and_the_others_continue_and_it_is_tried_again(tiny_model: str, tmp_path: Path) -> None:
    file = write_comparison(tmp_path, tiny_model)
    small = ("seeds=[0]", "steps=[2]", "keep_checkpoints=true")
    why = "the run failed: the disk is full \x1b[2J"
    code, commands, _ = compare(file, *small, failing={"small-grpo-0": why})
    assert (code, commands) == (1, ["base", "small-grpo-0", "small-repexp-0", "small-repexp-0@2"])
    record = report_of(file)
    assert record["failures"] == {"small-grpo-0": why}
    assert f"small-grpo-0 failed: {one_line(why)}" in record["notes"]
    assert "Not finished: 2 of 3 evaluations" in record["notes"][0]
    assert record["differences"] == []

    code, commands, _ = compare(file, *small)
    assert (code, commands) == (0, ["small-grpo-0", "small-grpo-0@2"])
    assert report_of(file)["failures"] == {} and len(report_of(file)["differences"]) == 1

    code, commands, _ = compare(file, "seeds=[0]", "steps=[2, 3]", "keep_checkpoints=true")  # trained further
    assert (code, commands) == (0, ["small-grpo-0", "small-grpo-0@3", "small-repexp-0", "small-repexp-0@3"])
    code, commands, _ = compare(file, "seeds=[0]", "steps=[1, 2, 3]", "keep_checkpoints=true")
    assert code == 1 and "is past step 1 and did not keep its policy" in report_of(file)["failures"]["small-grpo-0"]


def test_a_bonus_by_import_path_is_compared_like_any_other(tiny_model: str, tmp_path: Path) -> None:
    file = write_comparison(tmp_path, tiny_model)
    code, _, experiment = compare(file, "seeds=[0]", "steps=[1]", 'methods.repexp.bonus={kind="tests.bonus.outside:Distance"}')
    assert code == 0
    (record,) = read_metrics(experiment.runs[1].directory.metrics)
    assert record["bonus/mean"] > 0
    assert [one["method"] for one in report_of(file)["differences"]] == ["repexp"]


@pytest.mark.parametrize("kills", [KILLS, *(pytest.param(kills, marks=pytest.mark.long) for kills in MORE_KILLS)])
def test_killed_at_any_point_it_ends_with_the_same_report(
    finished: tuple[Path, list[str]], tiny_model: str, tmp_path: Path, kills: Sequence[int]
) -> None:
    file = write_comparison(tmp_path, tiny_model)
    output = ""
    for moment in (*kills, 0):
        done = start(file, *([str(moment)] if moment else []))
        output += done.stdout
        assert done.returncode == (-9 if moment else 0), done.stderr[-3000:]
    assert without_times(report_of(file)) == without_times(report_of(finished[0]))
    lines = output.splitlines()
    sampled = Counter(line for line in lines if line.startswith("sampled "))
    assert max(sampled.values()) == 1 and len(sampled) >= 27 - len(kills), "a problem was asked twice"
    for number, line in enumerate(lines):
        if line.startswith("finished "):
            name = line.split()[1]
            assert not [later for later in lines[number + 1 :] if later.split()[1] == name], f"{name} was done twice"


def start(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tests.jobs.comparison_process", str(file), *arguments]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=110)
