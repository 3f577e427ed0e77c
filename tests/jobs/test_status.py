from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from jobs import status as command
from jobs.cluster.runs import age, find_run, is_alive
from jobs.configuration.user_error import UserError
from jobs.directory.run_state import STATUS, Waiting, WorkerStatus
from jobs.screens.status_screen import count, one_line, screen, tokens_line, verdict
from tests.jobs.runs_fixture import NOW, run_directory, running, status, ticking


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def shown(record, **options) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(screen(record, **{"is_alive": True, "now": NOW, **options}))
    return console.export_text()


def test_the_screen_says_where_a_run_is_and_what_it_waits_for():
    workers = (
        WorkerStatus(
            name="rollout-0", role="rollout", state="serving", since=NOW - 120, version=11, groups=4, sampled_tokens=123456, rss_mib=900
        ),
        WorkerStatus(name="rollout-1", role="rollout", state="dead", since=NOW - 7, detail="killed by signal 9"),
    )
    text = shown(
        status(
            workers=workers,
            metrics={"reward/mean": 0.4126, "rollout/tokens_per_s": 812.3},
            waits=(Waiting(loop="train", waiting_for="a batch of 8 groups", since=NOW - 42),),
            faults=("rollout-1 is replaced: killed by signal 9",),
            tokens={"generated": 100000, "trained": 90000, "in_flight": 2000, "wasted_stale": 5000, "wasted_lost": 3000},
        )
    )
    for part in (
        *("step 12/40", "training", "reward 0.413", "tok/s 812", "trained 12, live 11 (lag 1)", "rollout 2, verifier 1, encoder 1"),
        *("requests 3, free slots 0", "wasted 8.0% (stale 5000, lost 3000)", "step 10, 35 s ago", "started 10 min ago, last word 1 s ago"),
        *("123.5 k", "900 MiB", "killed by signal 9", "a batch of 8 groups", "42 s", "rollout-1 is replaced"),
    ):
        assert part in text, part


def test_metrics_that_are_not_there_or_no_numbers_are_left_out():
    text = shown(status(metrics={"reward/mean": float("nan"), "time/step_s": 3.0}))
    assert "reward" not in text and "step s 3.0" in text


def test_a_process_that_is_gone_is_said_to_be_gone():
    workers = (WorkerStatus(name="rollout-0", role="rollout", state="serving", since=NOW),)
    text = shown(status(workers=workers, waits=(Waiting(loop="train", waiting_for="a batch", since=NOW),)), is_alive=False)
    assert "gone" in text and "the same command resumes it from step 10" in text
    assert not [word for word in ("training", "a batch", "serving") if word in text]


def test_a_live_process_that_says_nothing_is_said_to_be_silent():
    assert "has said nothing for 60 s" in verdict(status(updated=NOW - 60), is_alive=True, now=NOW)


@pytest.mark.parametrize("phase", ["failed", "stopped"])
def test_a_run_that_ended_early_can_be_resumed(phase):
    assert "resumes it from step 10" in verdict(status(phase=phase), is_alive=False, now=NOW)


def test_a_finished_run_and_one_that_goes_on_need_no_word():
    assert verdict(status(phase="finished", step=40), is_alive=False, now=NOW) == ""
    assert verdict(status(), is_alive=True, now=NOW) == ""


def test_a_line_for_logs():
    assert one_line(status(metrics={"reward/mean": 0.5}), is_alive=True) == "mine: training, step 12/40, reward 0.500"
    assert one_line(status(), is_alive=False) == "mine: gone, step 12/40"


def test_the_ledger_of_tokens_leaves_out_causes_that_wasted_nothing():
    assert tokens_line({"generated": 50, "wasted_stale": 0}) == "generated 50"
    assert tokens_line({"wasted_stale": 5, "wasted_lost": 20, "generated": 50}) == "generated 50, wasted 50.0% (lost 20, stale 5)"


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (9999, "9999"), (12345, "12.3 k"), (1234567, "1.2 M"), (5 * 10**9, "5.0 G")])
def test_counts_in_words(number, text):
    assert count(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h"), (3 * 86400, "3 d"), (-5, "0 s")])
def test_ages_in_words(seconds, text):
    assert age(NOW - seconds, NOW) == text


def test_json_is_the_record_of_the_file_in_one_line(tmp_path, capsys):
    directory = run_directory(tmp_path / "runs")
    assert command.main(["mine", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads((directory / STATUS).read_text()) | {"alive": False}


def test_a_run_is_alive_while_its_lock_is_held_whatever_its_status_says(tmp_path):
    directory = run_directory(tmp_path / "runs", phase="finished")
    with running(directory):
        assert is_alive(directory)
        assert is_alive(directory), "asking must not change it"
    assert not is_alive(directory)
    assert not is_alive(tmp_path)


def test_a_run_is_found_by_directory_and_by_name_here_and_in_the_storage(tmp_path):
    directory = run_directory(tmp_path / "elsewhere", "far")
    run_directory(tmp_path / "runs", "near")
    run_directory(tmp_path / "home/repexp-runs", "kept")
    assert find_run(str(directory)) == directory
    assert find_run("near").samefile(tmp_path / "runs/near")
    assert find_run("near/").samefile(tmp_path / "runs/near"), "as a shell completes it"
    assert find_run("kept") == tmp_path / "home/repexp-runs/kept"


def test_an_unknown_run_is_refused_with_the_nearest_names(tmp_path, capsys):
    run_directory(tmp_path / "runs", "quickstart")
    run_directory(tmp_path / "runs", "another")
    assert command.main(["quikstart"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: no run 'quikstart' in ./runs or ~/repexp-runs (there are: quickstart)"


def test_without_any_run_the_refusal_says_so():
    with pytest.raises(UserError, match="there is none at all"):
        find_run("mine")


def test_a_directory_in_which_nothing_was_run_is_refused(tmp_path, capsys):
    directory = run_directory(tmp_path / "runs")
    (directory / STATUS).unlink()
    assert command.main([str(directory)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no status.json" in line


def test_a_run_that_starts_and_has_said_nothing_is_no_error(tmp_path, capsys):
    directory = run_directory(tmp_path / "runs")
    (directory / STATUS).unlink()
    with running(directory):
        assert command.main([str(directory)]) == 0
    assert "has not said anything yet" in capsys.readouterr().out


def test_watching_ends_with_the_run_and_logs_each_change_once(capsys):
    seen = iter([(None, True), (status(), True), (status(), True), (status(step=13), True), (status(step=13, phase="stopped"), False)])

    def look() -> command.Look:
        record, alive = next(seen)
        return command.Look(status=record, is_alive=alive)

    command.show(command.looks(look, ticking(), 1.0), Console(width=100), as_json=False, watch=True)
    assert capsys.readouterr().out.splitlines() == [
        "the run has not said anything yet",
        "mine: training, step 12/40",
        "mine: training, step 13/40",
        "mine: stopped, step 13/40",
    ]
    assert next(seen, None) is None
