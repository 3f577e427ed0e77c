import subprocess
import sys

import pytest

from jobs import train
from jobs.config import RunConfig
from jobs.configuration.files import read_values
from jobs.directory.run_dir import RunDirectory
from jobs.screens.summary import summary_lines, tokens_line, window_means


@pytest.fixture(autouse=True)
def without_repexp(tmp_path, monkeypatch):
    """An environment that does not have the command: commands to paste are `PYTHON -m MODULE …`."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))


def history(*rewards: float) -> list[dict[str, float]]:
    names = ("reward/mean", "reward/pass@1", "reward/pass@K", "groups/all_correct")
    return [{"step": step, **dict.fromkeys(names, reward)} for step, reward in enumerate(rewards, start=1)]


def summary(tmp_path, records, total_steps=6) -> str:
    return "\n".join(summary_lines(RunDirectory(RunConfig(run_dir=str(tmp_path))), "configs/mine.toml", records, total_steps))


def test_window_means_are_of_the_first_and_last_three_steps():
    before, after = window_means(history(0.0, 0.25, 0.5, 9.0, 0.5, 1.0, 0.75), "reward/mean")
    assert (before, after) == (0.25, 0.75)


def test_window_means_leave_out_steps_without_the_metric():
    records = [{"step": 1}, {"step": 2, "x": 1.0}, {"step": 3, "x": 2.0}, {"step": 4}, {"step": 5, "x": 6.0}, {"step": 6, "x": 7.0}]
    assert window_means(records, "x") == (3.0, 5.0)


def test_summary_compares_first_and_last_steps(tmp_path):
    text = summary(tmp_path, history(0.0, 0.25, 0.5, 0.5, 1.0, 0.75))
    assert "6 of 6 steps trained" in text
    assert "0.25 -> 0.75  (+0.50" in text


def test_what_no_step_has_is_not_compared(tmp_path):
    assert window_means(history(0.1, 0.2), "bonus/mean") is None
    lines = summary(tmp_path, [{"step": float(step)} for step in range(1, 7)])
    assert "6 of 6 steps trained." in lines and "pass@1" not in lines


def test_summary_of_a_short_run_compares_nothing(tmp_path):
    text = summary(tmp_path, history(0.0, 1.0, 1.0, 1.0, 1.0))
    assert "->" not in text


@pytest.mark.parametrize(
    ("done", "where", "further"), [(6, "policy  (a Hugging Face directory)", 26), (5, "written when all steps are done", 25)]
)
def test_summary_says_where_things_are_and_how_to_go_on(tmp_path, done, where, further):
    text = summary(tmp_path, history(*[0.5] * done))
    assert where in text
    assert f"run directory   {tmp_path}" in text
    assert f" -m jobs.train configs/mine.toml --set run_dir={tmp_path} --set steps={further}\n" in text
    assert f" -m jobs.answers {tmp_path}\n" in text
    assert f"--logdir {tmp_path}/tensorboard" in text


def test_curves_are_named_where_there_are_any(tmp_path):
    run = RunDirectory(RunConfig(run_dir=str(tmp_path), trackers=[]))
    assert "tensorboard" not in "\n".join(summary_lines(run, "configs/mine.toml", history(0.5), 6))


def test_paths_below_the_current_directory_are_shown_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    assert f"run directory   {tmp_path.name}\n" in summary(tmp_path, history(0.5))


def test_summary_of_a_run_stopped_before_its_first_step(tmp_path):
    assert "0 of 6 steps trained" in summary(tmp_path, [])


def test_tokens_are_shown_as_a_sum_with_the_causes_there_were():
    record = {"step": 3, "tokens/generated": 1500.0, "tokens/trained": 1000.0, "tokens/in_flight": 300.0, "tokens/wasted_lost": 200.0}
    line = tokens_line(record | {"tokens/wasted_stale": 0.0})
    assert line.endswith("1,500 generated = 1,000 trained on + 300 in flight + 200 wasted (200 lost)")
    assert tokens_line(record | {"tokens/wasted_lost": 0.0}).endswith("+ 0 wasted")
    assert "= 1,000 trained on + 50 too old for it + 300 in flight" in tokens_line(record | {"tokens/masked": 50.0})


def test_summary_has_the_tokens_of_the_newest_step(tmp_path):
    records = history(*[0.5] * 6)
    assert "generated" not in summary(tmp_path, records)
    records[-1] |= {"tokens/generated": 10.0, "tokens/trained": 10.0, "tokens/in_flight": 0.0}
    assert "10 generated = 10 trained on + 0 in flight + 0 wasted" in summary(tmp_path, records)


def typed(line: str) -> list[str]:
    """The words that a shell makes of a printed command, after its label and `PYTHON -m`."""
    command = line.partition("   ")[2].strip()
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.split("\0")[2:-1]


@pytest.mark.parametrize("name", ["plain", "a b", "it's $HOME", "x;y&z", "~tilde", 'a"b'])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["learner.lr=2e-5", "seed=1"],
        ['task.parquet.instruction=Don\'t say "so"; use $5 `now`'],
        ['model="my model"', "learner.betas=[0.8, 0.9]", "task.parquet.path=*.jsonl"],
    ],
)
def test_the_commands_to_paste_carry_what_was_given(tmp_path, name, overrides):
    run = RunDirectory(RunConfig(run_dir=str(tmp_path / name)))
    given = [*overrides, "run_dir=elsewhere", " steps = 6"]
    lines = summary_lines(run, "my configs/a.toml", history(0.5), 6, overrides=given, flags=["--synchronous"])
    further, read, curves = (next(typed(line) for line in lines if line.startswith(label)) for label in ("train f", "its a", "curves"))
    assert further[0] == "jobs.train"
    options = train.parse_arguments(further[1:])
    assert (options.config, options.synchronous) == ("my configs/a.toml", True)
    assert options.overrides == [*overrides, f"run_dir={tmp_path / name}", "steps=21"]
    assert read == ["jobs.answers", f"{tmp_path / name}"]
    assert curves[-2:] == ["--logdir", f"{tmp_path / name}/tensorboard"]
    read_back = read_values(RunConfig, None, options.overrides)
    assert (read_back["run_dir"], read_back["steps"]) == (str(tmp_path / name), 21)
