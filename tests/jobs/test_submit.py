from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobs import submit as command
from jobs.cluster.remote import Cluster, Job
from jobs.cluster.submission import commit_environment
from jobs.config import RunConfig, load_config
from jobs.configuration.user_error import UserError
from tests.jobs.runs_fixture import FakeClient, add_run
from tests.jobs.submit_fixture import ADDRESS, connected, make_tree, refusal

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    return make_tree(tmp_path / "tree", monkeypatch)


@pytest.fixture
def client(monkeypatch) -> FakeClient:
    return connected(monkeypatch)


def job(number: int, state: str, **changes) -> Job:
    return Job(**({"id": f"mine-{number}", "run": "mine", "state": state, "storage": "~/repexp-runs"} | changes))


def prepared(jobs=(), **changes) -> command.Submission:
    settings = {
        **{"run": "mine", "jobs": jobs, "used_ids": {job.id for job in jobs}, "config_path": "configs/mine.toml", "overrides": []},
        **{"storage": None, "python": None, "commit": "abc", "environment": {}},
    }
    return command.prepare(RunConfig(), **(settings | changes))


def test_a_config_is_submitted_under_its_own_name(tree, client, capsys):
    arguments = ["configs/mine.toml", "--address", ADDRESS, "--set", "learner.lr=1e-5", "--set", 'model="my model"', "--run", "mine"]
    assert command.main(arguments) == 0
    (details,) = client.jobs.values()
    assert details.submission_id == "mine-1"
    assert details.entrypoint == (
        "exec python -m jobs.train configs/mine.toml --set learner.lr=1e-5 --set 'model=\"my model\"'"
        ' --set run_dir="$HOME"/repexp-runs/mine'
    )
    assert details.metadata is not None and details.runtime_env is not None
    assert details.metadata["kind"] == "train" and details.metadata["run"] == "mine" and details.metadata["commit"] == "unknown"
    assert len(details.metadata["config_hash"]) == 12
    assert details.runtime_env["env_vars"] == {
        **{"RAY_JOB_STOP_WAIT_TIME_S": "600", "RAY_AUTH_MODE": "disabled"},
        "REPEXP_COMMIT": "unknown",
    }
    out = capsys.readouterr().out
    assert "package    3 files, 0.0 MiB" in out
    assert "submitted  mine-1: run mine, kept in ~/repexp-runs/mine on the head" in out


def test_the_commands_printed_are_taken_by_the_commands_as_they_are(tree, client, capsys):
    from jobs import follow, scale, status, stop

    assert command.main(["configs/mine.toml", "--address", ADDRESS, "--run", "mine", "--set", "steps=4", "--storage", "~/here"]) == 0
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    printed = {label: rest for label, rest in lines if label in ("follow", "status", "scale", "stop", "resume")}
    assert len(printed) == 5
    parsers = {"follow": follow, "status": status, "scale": scale, "stop": stop, "resume": command}
    for label, text in printed.items():
        shell = subprocess.run(["sh", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, timeout=10, check=True)
        program, name, *arguments = shell.stdout.splitlines()
        assert program == ".venv/bin/repexp" and f"jobs.{name}" == parsers[label].__name__
        options = parsers[label].parse_arguments(arguments)
        assert options.run == "mine" and options.address == ADDRESS
    assert (options.storage, options.overrides) == ("~/here", ["steps=4"])


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_run_that_is_going_on_is_not_started_twice(state):
    with pytest.raises(UserError, match=f"run mine is {state.lower()} already, as job mine-2: stop it first, or choose another name"):
        prepared([job(1, "FAILED"), job(2, state)])


def test_a_run_that_has_ended_is_resumed_where_it_is():
    submission = prepared([job(1, "FAILED", storage="/mnt/runs", python="/opt/python")])
    assert submission.resumes and submission.job_id == "mine-2"
    assert submission.entrypoint == "exec /opt/python -m jobs.train configs/mine.toml --set run_dir=/mnt/runs/mine"


def test_a_run_of_another_name_goes_beside_it():
    submission = prepared([job(1, "RUNNING", run="other")])
    assert not submission.resumes and submission.storage == "~/repexp-runs"


def test_a_run_is_not_started_anew_in_another_place():
    with pytest.raises(UserError, match="run mine is kept in ~/repexp-runs, not in /mnt: leave --storage out"):
        prepared([job(1, "STOPPED")], storage="/mnt")


@pytest.mark.parametrize("storage", ["runs", "", "/"])
def test_a_storage_that_would_end_with_the_job_is_refused(storage):
    with pytest.raises(UserError, match=f"--storage '{storage}': give a whole path on the head"):
        prepared(storage=storage)


def test_an_interpreter_without_a_name_is_refused():
    with pytest.raises(UserError, match="--python '': name an interpreter on the head"):
        prepared(python="")


def test_ids_of_any_job_are_left_alone():
    assert prepared(used_ids={"mine-1", "mine-2"}).job_id == "mine-3"


def test_of_two_submissions_at_the_same_moment_the_second_is_refused(tree, client, capsys, monkeypatch):
    add_run(client, "mine-1", "mine", "RUNNING")
    monkeypatch.setattr(Cluster, "jobs", lambda self: [])
    monkeypatch.setattr(Cluster, "used_ids", lambda self: set())
    assert "already exists" in refusal(capsys, "configs/mine.toml", "--address", ADDRESS, "--run", "mine")


@pytest.mark.parametrize(("wait_s", "stop_s"), [(5, "60"), (300, "300"), (7200, "600")])
def test_a_stopped_job_has_the_time_for_a_checkpoint(wait_s, stop_s):
    assert command.job_environment(RunConfig(wait_timeout_s=wait_s), {})["RAY_JOB_STOP_WAIT_TIME_S"] == stop_s


def test_the_auth_mode_is_always_said_and_being_offline_where_it_is_so_here():
    assert command.job_environment(RunConfig(), {})["RAY_AUTH_MODE"] == "disabled"
    variables = command.job_environment(RunConfig(), {"RAY_AUTH_MODE": "token", "HF_HUB_OFFLINE": "1", "RAY_AUTH_TOKEN": "secret"})
    assert variables["RAY_AUTH_MODE"] == "token" and variables["HF_HUB_OFFLINE"] == "1"
    assert "secret" not in variables.values()


def test_the_name_is_the_last_part_of_run_dir_also_when_that_is_overridden(tree, client):
    assert command.main(["configs/mine.toml", "--address", ADDRESS, "--set", "run_dir=runs/named"]) == 0
    (details,) = client.jobs.values()
    assert details.submission_id == "named-1"
    assert details.entrypoint.count("run_dir") == 1


def test_the_hash_tells_what_is_computed_not_where():
    config = RunConfig()
    assert command.config_hash(config) == command.config_hash(config.model_copy(update={"run_dir": "elsewhere"}))
    assert command.config_hash(config) != command.config_hash(config.model_copy(update={"seed": 1}))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["configs/none.toml", "--address", ADDRESS], "config file configs/none.toml does not exist"),
        (["configs/mine.toml", "--address", ADDRESS, "--set", "stepps=3"], "did you mean 'steps'"),
        (["configs/mine.toml", "--address", ADDRESS, "--run", "a/b"], "run name 'a/b'"),
        (["configs/mine.toml", "--address", ADDRESS, "--run", ""], "run name ''"),
        (["configs/mine.toml", "--address", ADDRESS, "--set", "prompt.template=none.jinja"], "no file that can be read"),
        (["configs/mine.toml"], "no cluster is named"),
        (["configs/mine.toml", "--address", "head:6379"], "write it as http://HEAD:8265"),
    ],
)
def test_mistakes_are_told_in_one_line_before_the_cluster_is_asked(tree, monkeypatch, capsys, arguments, why):
    monkeypatch.setattr(command, "connect", None)
    assert why in refusal(capsys, *arguments)


def test_outside_of_a_checkout_there_is_nothing_to_send(tree, monkeypatch, capsys):
    monkeypatch.chdir(tree / "configs")
    assert "has no jobs/train.py" in refusal(capsys, "mine.toml", "--address", ADDRESS)


def test_validating_and_packaging_import_neither_torch_nor_ray():
    code = (
        "import jobs.submit, jobs.status, jobs.scale, jobs.stop, jobs.list, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert not set(done.stdout.split()) & {"torch", "ray", "vllm", "transformers"}


@pytest.mark.parametrize(
    "override",
    ["task.parquet.path=/a b/c.jsonl", 'task.parquet.instruction=it\'s $HOME `x` "q"', "model=~/m", "evaluation.split=a;b", "model=a\\b"],
)
def test_printed_commands_mean_what_was_typed(tree, client, capsys, override):
    given = ["configs/mine.toml", "--address", ADDRESS, "--run", "mine", "--set", override, "--set", "seed=2", "--exclude", "*.npy"]
    assert command.main(given) == 0
    resume = next(line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("resume "))
    shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {resume}"], capture_output=True, text=True, timeout=10, check=True)
    options = command.parse_arguments(shell.stdout.split("\0")[2:-1])
    assert (options.overrides, options.exclude) == ([override, "seed=2"], ["*.npy"])
    (details,) = client.jobs.values()
    entrypoint = details.entrypoint.removeprefix("exec python -m jobs.train ")
    shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {entrypoint}"], capture_output=True, text=True, timeout=10, check=True)
    assert shell.stdout.split("\0")[1:5] == ["--set", override, "--set", "seed=2"]


@pytest.fixture
def sent(client, monkeypatch) -> dict[str, bytes]:
    """The files of the package that was sent."""
    files: dict[str, bytes] = {}

    def submit_job(**options) -> str:
        with zipfile.ZipFile(options["runtime_env"]["working_dir"]) as archive:
            files.update({name: archive.read(name) for name in archive.namelist()})
        return FakeClient.submit_job(client, **options)

    monkeypatch.setattr(client, "submit_job", submit_job)
    return files


def test_a_config_from_elsewhere_is_sent_along(tree, tmp_path, client, sent, capsys):
    (tmp_path / "far.toml").write_text("seed = 5\n")
    assert command.main([str(tmp_path / "far.toml"), "--address", ADDRESS, "--run", "far"]) == 0
    assert sent["submitted/far.toml"] == b"seed = 5\n" and "jobs/train.py" in sent
    assert "jobs.train submitted/far.toml" in client.jobs["far-1"].entrypoint
    assert "far.toml is not in the package and sent along as submitted/far.toml" in capsys.readouterr().out


def test_the_commit_goes_along_with_every_job_and_to_trackers_where_it_is_known():
    assert commit_environment("abc") == {"REPEXP_COMMIT": "abc", "WANDB_GIT_COMMIT": "abc"}
    assert commit_environment("unknown") == {"REPEXP_COMMIT": "unknown"}


@pytest.mark.parametrize("by_flag", [False, True])
@pytest.mark.parametrize("place", ["elsewhere", "inside, by its whole path", "inside", "left out"])
def test_a_prompt_template_is_where_the_head_looks_for_it(tree, tmp_path, client, sent, monkeypatch, place, by_flag):
    files = {"elsewhere": tmp_path / "it's mine.jinja", "left out": tree / "data" / "mine.jinja"}
    file = files.get(place, tree / "configs" / "mine.jinja")
    file.write_text("{{ messages }}")
    named = "configs/mine.jinja" if place == "inside" else str(file)
    flag = ["--set", f"prompt.template={named}"] if by_flag else []
    if not by_flag:
        (tree / "configs" / "mine.toml").write_text(f'prompt.template = "{named}"\n')
    assert command.main(["configs/mine.toml", "--address", ADDRESS, "--run", "mine", *flag]) == 0
    entrypoint = client.jobs["mine-1"].entrypoint.removeprefix("exec python -m jobs.train ")
    shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {entrypoint}"], capture_output=True, text=True, timeout=10, check=True)
    path, *flags = shell.stdout.split("\0")[:-1]
    for name, content in sent.items():  # the head's working directory, where the file of this machine is not
        (tmp_path / "head" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "head" / name).write_bytes(content)
    file.unlink()
    monkeypatch.chdir(tmp_path / "head")
    assert load_config(path, flags[1::2]).prompt.template == "{{ messages }}"


def test_a_template_that_is_text_needs_no_file(tree, client, sent):
    assert command.main(["configs/mine.toml", "--address", ADDRESS, "--run", "mine", "--set", "prompt.template={{ messages }}"]) == 0
    assert client.jobs["mine-1"].entrypoint.count("prompt.template") == 1 and not [name for name in sent if "submitted" in name]
