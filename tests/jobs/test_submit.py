from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobs import submit as command
from jobs.cluster.package import commit, is_excluded, select
from jobs.cluster.remote import Cluster, Job
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from tests.jobs.runs_fixture import FakeClient, add_run

ADDRESS = "http://head:8265"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A checkout (not of git) with things that belong to a job and things that do not."""
    root = tmp_path / "tree"
    for name in (
        "jobs/train.py",
        "jobs/__pycache__/train.pyc",
        "configs/mine.toml",
        "data/big.bin",
        "runs/a/status.json",
        ".venv/bin/python",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("steps = 3\n")
    (root / "jobs/data").mkdir()
    (root / "jobs/data/kept.py").write_text("")
    monkeypatch.chdir(root)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return root


@pytest.fixture
def client(monkeypatch) -> FakeClient:
    client = FakeClient()
    monkeypatch.setattr(command, "connect", lambda address: Cluster(client, address))
    return client


def job(number: int, state: str, **changes) -> Job:
    return Job(**({"id": f"mine-{number}", "run": "mine", "state": state, "storage": "~/repexp-runs"} | changes))


def prepared(jobs=(), **changes) -> command.Submission:
    settings = {
        **{"run": "mine", "jobs": jobs, "used_ids": {job.id for job in jobs}, "config_path": "configs/mine.toml", "overrides": []},
        **{"storage": None, "python": None, "commit": "abc", "environment": {}},
    }
    return command.prepare(RunConfig(), **(settings | changes))


def refusal(capsys, *arguments: str) -> str:
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


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
    assert details.runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "600", "RAY_AUTH_MODE": "disabled"}
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
        _python, _, module, *arguments = shell.stdout.splitlines()
        assert module == parsers[label].__name__
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


def test_a_storage_that_would_end_with_the_job_is_refused():
    with pytest.raises(UserError, match="whole path on the head"):
        prepared(storage="runs")


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


def test_data_runs_environments_and_caches_stay_here(tree):
    assert sorted(select(tree).sizes) == ["configs/mine.toml", "jobs/data/kept.py", "jobs/train.py"]
    assert sorted(select(tree, ["*.toml", "/jobs/data"]).sizes) == ["jobs/train.py"]


def test_what_git_ignores_stays_here_and_new_files_go_along(tree):
    (tree / ".gitignore").write_text("*.secret\n")
    (tree / "jobs/key.secret").write_text("x")
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True, timeout=30)
    assert sorted(select(tree).sizes) == [".gitignore", "configs/mine.toml", "jobs/data/kept.py", "jobs/train.py"]


def test_ray_s_own_packaging_would_send_what_git_hides_and_leave_out_what_is_committed(tree, tmp_path):
    """Why `jobs.submit` makes the package itself: Ray reads the .gitignore files of the tree and asks git nothing."""
    from ray._private.runtime_env.packaging import create_package

    subprocess.run(["git", "init", "-q"], cwd=tree, check=True, timeout=30)
    (tree / ".gitignore").write_text("*.bin\n")
    (tree / ".git/info/exclude").write_text("token.txt\n")
    (tree / "jobs/token.txt").write_text("secret")
    (tree / "jobs/table.bin").write_text("committed in spite of .gitignore")
    subprocess.run(["git", "add", "-f", "jobs/table.bin"], cwd=tree, check=True, timeout=30)
    create_package(str(tree), tmp_path / "ray.zip", include_gitignore=True, excludes=[".git"])
    rays, ours = set(zipfile.ZipFile(tmp_path / "ray.zip").namelist()), set(select(tree).sizes)
    assert "jobs/token.txt" in rays - ours
    assert "jobs/table.bin" in ours - rays
    assert {"runs/a/status.json", ".venv/bin/python"} <= rays - ours


def git(tree: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=tree, check=True, timeout=30, capture_output=True)


def program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo \"fatal: detected dubious ownership in repository at 'X'\" >&2; printf 'call:\\n\\n\\tgit config X\\n' >&2; exit 128",
            "git config X",
        ),
        ("echo 'fatal: index file corrupt' >&2; exit 128", "fatal: index file corrupt"),
        ("echo 'fatal: not a git repository' >&2; exit 128", "fatal: not a git repository"),
        ("exit 3", "git ended with exit code 3"),
        (None, "git cannot be run (No such file or directory)"),
    ],
)
@pytest.mark.parametrize("at", [".git", "../.git"])
def test_where_git_fails_nothing_is_sent(tree, tmp_path, client, capsys, monkeypatch, script, said, at):
    (tree / at).mkdir()
    (tree / "jobs/key.secret").write_text("x")
    if script is not None:
        program(tmp_path / "bin", "git", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    line = refusal(capsys, "configs/mine.toml", "--address", ADDRESS, "--run", "mine")
    assert f"git does not say which files of {tree} are to stay here, so nothing is sent: " in line and said in line
    assert not client.jobs


def test_a_gitignore_in_utf_16_is_a_failure_for_git_ignores_nothing_that_it_names(tree, client, capsys):
    git(tree, "init", "-q")
    (tree / "jobs/key.secret").write_text("x")
    (tree / ".gitignore").write_text("*.secret\n", encoding="utf-16")
    line = refusal(capsys, "configs/mine.toml", "--address", ADDRESS)
    assert "nothing is sent: .gitignore is not UTF-8" in line and "save it as UTF-8" in line
    assert not client.jobs


def test_a_gitignore_that_git_does_not_read_is_a_failure(tree, capsys):
    git(tree, "init", "-q")
    (tree / "patterns").write_text("*.secret\n")
    (tree / ".gitignore").symlink_to("patterns")
    assert "nothing is sent: warning: unable to access '.gitignore'" in refusal(capsys, "configs/mine.toml", "--address", ADDRESS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_checkout_of_somebody_else_is_refused_in_gits_own_words(tree, client, capsys, monkeypatch):
    git(tree, "init", "-q")
    for name in ("SUDO_UID", "GIT_TEST_ASSUME_DIFFERENT_OWNER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    os.chown(tree, 54321, 54321)
    line = refusal(capsys, "configs/mine.toml", "--address", ADDRESS, "--run", "mine")
    assert f"dubious ownership in repository at '{tree}'" in line and f"git config --global --add safe.directory {tree}" in line


def test_a_git_that_does_not_answer_is_given_up(tree, tmp_path, capsys, monkeypatch):
    (tree / ".git").mkdir()
    program(tmp_path / "bin", "git", "exec sleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("jobs.cluster.package.GIT_TIMEOUT_S", 0.2)
    assert "git did not answer within 0.2 s" in refusal(capsys, "configs/mine.toml", "--address", ADDRESS)


def test_without_any_git_and_outside_of_it_all_files_are_sent(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sorted(select(tree).sizes) == ["configs/mine.toml", "jobs/data/kept.py", "jobs/train.py"]


def test_the_commit_is_named_from_the_first_one_on(tree):
    git(tree, "init", "-q")
    assert commit(tree) == "unknown"
    git(tree, "-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "first")
    assert len(commit(tree)) == len("0123456789ab-dirty") and commit(tree).endswith("-dirty")


@pytest.mark.parametrize("in_git", [False, True])
@pytest.mark.parametrize("name", [b"caf\xe9.py", b"\xff", b"jobs/\xc3(.txt", b"two words \x80"])
def test_a_name_that_no_archive_can_hold_is_refused_with_the_flag_that_leaves_it_out(tree, client, capsys, in_git, name):
    if in_git:
        git(tree, "init", "-q")
    (tree / os.fsdecode(name)).write_text("x")
    arguments = ["configs/mine.toml", "--address", ADDRESS, "--run", "mine"]
    line = refusal(capsys, *arguments)
    assert "is not UTF-8, and no archive can hold it: rename the file, or leave it out with --exclude " in line
    words = subprocess.run(["sh", "-c", f"printf %s {line.rpartition('--exclude ')[2]}"], capture_output=True, text=True, check=True)
    assert command.main([*arguments, "--exclude", words.stdout]) == 0
    capsys.readouterr()


def test_names_in_utf_8_and_with_odd_characters_are_sent(tree, tmp_path):
    names = ["naïve.py", "数.txt", "a b.txt", "new\nline", "quote'\".txt", "[x].txt", "back\\slash"]
    for name in names:
        (tree / name).write_text("x")
    everywhere = set(select(tree).sizes)
    git(tree, "init", "-q")
    assert set(select(tree).sizes) == everywhere >= set(names)
    select(tree).write(tmp_path / "package.zip", extra={})


@pytest.mark.parametrize("in_git", [False, True])
def test_what_is_left_out_is_named(tree, tmp_path, client, capsys, in_git):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "notes.txt").write_text("x")
    links = {"corpus": outside, "jobs/inner": outside / "deep", "nothing": tmp_path / "gone", "notes.txt": outside / "notes.txt"}
    links |= {"to_data": tree / "data/big.bin", "runs_link": tree / "runs", "again.toml": Path("configs/mine.toml")}
    for name, target in links.items():
        (tree / name).symlink_to(target)
    os.mkfifo(tree / "pipe")
    if in_git:
        git(tree, "init", "-q")
        git(tree, "init", "-q", "nested")
        (tree / "nested/file").write_text("x")
    package = select(tree)
    assert {"notes.txt", "again.toml"} <= package.sizes.keys()
    expected = {"corpus", "jobs/inner", "nothing", "to_data", "runs_link"} | ({"nested"} if in_git else {"pipe"})
    assert set(package.left_out) == expected
    assert select(tree, ["corpus", "/jobs/inner", "*_*", "nothing", "nested", "pipe"]).left_out == []
    assert command.main(["configs/mine.toml", "--address", ADDRESS, "--run", "mine"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out ")]
    assert all(name in line for name in expected)


def test_a_link_does_not_send_what_git_ignores(tree):
    git(tree, "init", "-q")
    (tree / ".gitignore").write_text("*.secret\n")
    (tree / "jobs/key.secret").write_text("x")
    (tree / "jobs/key.py").symlink_to("key.secret")
    (tree / "jobs/head").symlink_to("../.git/HEAD")
    package = select(tree)
    assert package.left_out == ["jobs/head", "jobs/key.py"] and not {"jobs/key.py", "jobs/head"} & package.sizes.keys()


@pytest.mark.parametrize("target", ["data", "../private", "runs/a"])
@pytest.mark.parametrize("place", ["papers", "jobs/papers"])
def test_a_link_where_a_tracked_directory_was_sends_nothing_behind_it(tree, tmp_path, place, target):
    (tree / place / "deep").mkdir(parents=True)
    behind = tree / target
    (behind / "deep").mkdir(parents=True, exist_ok=True)
    for name in ("big.bin", "status.json", "deep/note.txt"):
        (tree / place / name).write_text("tracked")
        (behind / name).write_text("private")
    git(tree, "init", "-q")
    (tree / ".gitignore").write_text("/data\n/runs\n")
    git(tree, "add", "-f", place, "jobs/train.py")
    shutil.rmtree(tree / place)
    (tree / place).symlink_to(behind)
    package = select(tree)
    assert not [path for path in package.sizes if path.startswith(place)]
    assert place in package.left_out


def test_many_paths_that_are_left_out_are_counted(tree):
    for number in range(20):
        (tree / f"link{number:02}").symlink_to(tree / "jobs")
    (tree / "a\x1b[2J").symlink_to(tree / "jobs")
    named = select(tree).named_left_out
    assert named.endswith(" and 13 more") and "link06" in named and "link07" not in named and "\x1b" not in named


def test_a_file_that_cannot_be_read_is_named(tree, tmp_path):
    package = select(tree)
    (tree / "jobs/train.py").unlink()
    (tree / "jobs/train.py").mkdir()
    with pytest.raises(UserError, match=r"train\.py cannot be read \(Is a directory\)"):
        package.write(tmp_path / "package.zip", extra={})


@pytest.mark.parametrize(
    "override",
    ["task.parquet.path=/a b/c.jsonl", 'task.parquet.instruction=it\'s $HOME `x` "q"', "model=~/m", "evaluation.split=a;b", "model=a\\b"],
)
def test_printed_commands_mean_what_was_typed(tree, client, capsys, override):
    given = ["configs/mine.toml", "--address", ADDRESS, "--run", "mine", "--set", override, "--set", "seed=2", "--exclude", "*.npy"]
    assert command.main(given) == 0
    resume = next(line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("resume "))
    shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {resume}"], capture_output=True, text=True, timeout=10, check=True)
    options = command.parse_arguments(shell.stdout.split("\0")[3:-1])
    assert (options.overrides, options.exclude) == ([override, "seed=2"], ["*.npy"])
    (details,) = client.jobs.values()
    entrypoint = details.entrypoint.removeprefix("exec python -m jobs.train ")
    shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {entrypoint}"], capture_output=True, text=True, timeout=10, check=True)
    assert shell.stdout.split("\0")[1:5] == ["--set", override, "--set", "seed=2"]


@pytest.mark.parametrize("pattern", ["jobs", "/jobs/", "./jobs", "*", "train.py"])
def test_a_job_is_not_sent_without_its_code(tree, client, capsys, pattern):
    line = refusal(capsys, "configs/mine.toml", "--address", ADDRESS, "--run", "mine", "--exclude", pattern)
    assert "jobs/train.py would not be sent" in line and not client.jobs


@pytest.mark.parametrize(
    ("path", "pattern", "excluded"),
    [
        ("jobs/__pycache__/a.pyc", "__pycache__", True),
        ("data/a", "/data", True),
        ("bonus/data/a", "/data", False),
        ("bonus/data/a", "bonus/data/", True),
        ("bonus/database", "bonus/data", False),
        ("a/b.npy", "*.npy", True),
        ("configs/a.toml", "/configs/*.toml", True),
        ("notes/a", "./notes", True),
        ("notes/a", "./notes/", True),
        ("jobs/notes/a", "./notes", False),
    ],
)
def test_patterns_name_files_and_directories(path, pattern, excluded):
    assert is_excluded(path, [pattern]) is excluded


def test_a_package_that_is_too_large_is_refused_with_what_is_largest(tree):
    (tree / "models").mkdir()
    (tree / "models/weights.bin").write_bytes(bytes(3 << 20))
    (tree / "notes.txt").write_bytes(bytes(2 << 20))
    package = select(tree)
    package.check_size()
    with pytest.raises(UserError) as refused:
        package.check_size(4 << 20)
    assert "is 5.0 MiB, 4.0 MiB at most can be sent: leave out with --exclude models (3.0 MiB), notes.txt (2.0 MiB)" in str(refused.value)


def test_the_same_files_are_the_same_archive_whenever_it_is_made(tree, tmp_path):
    select(tree).write(tmp_path / "first.zip", extra={})
    (tree / "jobs/train.py").touch()
    select(tree).write(tmp_path / "second.zip", extra={})
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


def test_a_config_from_elsewhere_is_sent_along(tree, tmp_path, client, capsys, monkeypatch):
    (tmp_path / "far.toml").write_text("seed = 5\n")
    sent = {}

    def submit_job(**options) -> str:
        with zipfile.ZipFile(options["runtime_env"]["working_dir"]) as archive:
            sent.update({name: archive.read(name) for name in archive.namelist()})
        return FakeClient.submit_job(client, **options)

    monkeypatch.setattr(client, "submit_job", submit_job)
    assert command.main([str(tmp_path / "far.toml"), "--address", ADDRESS, "--run", "far"]) == 0
    assert sent["submitted/far.toml"] == b"seed = 5\n" and "jobs/train.py" in sent
    assert "jobs.train submitted/far.toml" in client.jobs["far-1"].entrypoint
    assert "far.toml is not in the package and sent along as submitted/far.toml" in capsys.readouterr().out
