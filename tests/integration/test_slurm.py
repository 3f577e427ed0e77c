"""`deploy/slurm.sbatch` over two nodes that are both this machine, with stand-ins for the commands of Slurm; Ray, the
tiny model and the signals are real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from learners.checkpoint import CheckpointManager
from tests.integration.processes import REPOSITORY, Training, name_of, steps_of, tiny_settings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

SCRIPT = REPOSITORY / "deploy" / "slurm.sbatch"
SRUN = """
import itertools, psutil, signal, subprocess, sys

task = subprocess.Popen(itertools.dropwhile(lambda word: word.startswith("--"), sys.argv[1:]))

def end(*_):
    for process in [*psutil.Process(task.pid).children(recursive=True), task]:
        process.kill()
    sys.exit(143)

signal.signal(signal.SIGTERM, end)
sys.exit(task.wait())
"""
SCONTROL = """
import pathlib, sys

print("n1", "n2", sep="\\n") if sys.argv[1:2] == ["show"] else pathlib.Path("requeued").write_text(sys.argv[2])
"""


class SlurmJob(Training):
    """One start of the script in a clone, as Slurm starts it."""

    def __init__(self, clone: Path, *arguments: str) -> None:
        self._clone = clone
        self.id = str(os.getpid())
        slurm = {"JOB_ID": self.id, "JOB_NODELIST": "n[1-2]", "NNODES": "2", "CPUS_PER_TASK": "4"}
        environment = {f"SLURM_{name}": value for name, value in slurm.items()} | {"PATH": f"{clone / 'bin'}:{os.environ['PATH']}"}
        super().__init__(clone / "tiny.toml", clone / "runs" / "tiny", *arguments, environment=environment)

    def command(self, module: str, *arguments: str) -> list[str]:
        return ["bash", str(SCRIPT), *arguments]

    @property
    def directory(self) -> Path:
        return self._clone

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        shutil.rmtree(f"/tmp/ray-{self.id}", ignore_errors=True)


@pytest.fixture
def clone(tmp_path: Path, tiny_model: str) -> Path:
    """Return a directory that looks like a clone with its environment, and has Slurm's commands in `bin`."""
    if not all((Path(sys.prefix) / "bin" / name).is_file() for name in ("activate", "ray")):
        pytest.skip("the tests do not run in a virtual environment that has Ray")
    for name in ("actors", "bonus", "buffers", "jobs", "learners", "tasks"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "tiny.toml").write_text(tiny_settings(tiny_model))
    for name, code in (("srun", SRUN), ("scontrol", SCONTROL)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!{sys.executable}\n{code}")
        file.chmod(0o755)
    (tmp_path / "runs").mkdir()
    return tmp_path


def test_a_run_that_slurm_warns_writes_a_checkpoint_and_queues_again(clone: Path) -> None:
    with SlurmJob(clone, "--set", "steps=100000") as job:
        job.wait_for_steps(2, timeout_s=300)
        assert [name_of(process) for process in job.processes()].count("raylet") == 2
        job.signal(signal.SIGUSR1)
        assert job.exit_code() == 128 + signal.SIGTERM, job.output()[-3000:]
        job.assert_no_process_left()
    assert (clone / "requeued").read_text() == job.id
    assert CheckpointManager(str(clone / "runs" / "tiny" / "checkpoints"), keep=1).latest() == steps_of(job.run_dir)[-1]


@pytest.mark.parametrize(
    ("arguments", "complaint"), [((), "no configuration"), (("mine.toml",), "has no .venv")], ids=["nothing", "no environment"]
)
def test_what_the_script_lacks_is_one_line(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and complaint in line
