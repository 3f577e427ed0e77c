"""A run's policy on the hub: the real client of the hub, in a process of its own, against a stand-in over HTTP."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from jobs.push import main
from tests.jobs.evaluate_fixture import make_run
from tests.jobs.hub_stand_in import TOKEN, Repository, StandIn

REPOSITORY = Path(__file__).parents[2]
BOUND_S = 100


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    error: str

    def refusal(self) -> str:
        """The one line that it was refused with."""
        assert self.code == 2, self
        (line,) = self.error.splitlines()
        return line


@dataclass
class Desk:
    """Where somebody pushes from: a home, a run, and a shell."""

    home: Path
    run: Path

    def push(self, *arguments: str, endpoint: str = "", environment: Mapping[str, str] | None = None) -> Done:
        """Push the run in a process of its own, with the token of the stand-in's owner and the LFS protocol."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        ours = {
            "HOME": str(self.home),
            "HF_TOKEN": TOKEN,
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        command = [sys.executable, "-m", "jobs.push", str(self.run), *arguments]
        done = subprocess.run(
            command, env=kept | ours | (environment or {}), cwd=self.home, capture_output=True, text=True, timeout=BOUND_S
        )
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def desk(tmp_path: Path, tiny_model: str) -> Desk:
    return Desk(home=tmp_path, run=make_run(tmp_path / "runs" / "mine", tiny_model, checkpoints=[10, 20], policy=20))


def test_a_push_is_the_policy_and_its_card_and_a_second_one_changes_nothing(desk: Desk, tiny_model: str) -> None:
    (desk.run / "policy" / "notes.txt").write_text("mine")
    (desk.run / "policy" / "optimiser.safetensors").write_bytes(b"moments")
    (desk.run / "policy" / "hf_token.json").symlink_to(desk.home / "token")
    with StandIn() as hub:
        first, again = (desk.push("me/model", endpoint=hub.endpoint) for _ in range(2))
    assert (first.code, again.code) == (0, 0), (first, again)
    repository = hub.repositories["me/model"]
    assert repository.private and repository.commits == ["mine step 20"]
    assert "pushed" in first.out and "unchanged" in again.out and "(private)" in again.out
    sent = {path.name for path in Path(tiny_model).iterdir()} | {"README.md", "repexp.json"}
    assert set(repository.files) == sent
    assert "left out   hf_token.json, notes.txt, optimiser.safetensors" in first.out
    weights = repository.files["model.safetensors"]
    assert isinstance(weights, str) and hub.blobs[weights] == (Path(tiny_model) / "model.safetensors").read_bytes()
    card = repository.files["README.md"]
    assert isinstance(card, bytes) and ModelCard(card.decode()).data.library_name == "transformers"
    assert [path.name for path in desk.run.iterdir() if path.name.startswith("push-")] == []


def test_by_xet_which_is_the_default_the_same_arrives(desk: Desk, tiny_model: str) -> None:
    with StandIn() as hub:
        done = desk.push("me/model", endpoint=hub.endpoint, environment={"HF_HUB_DISABLE_XET": "0"})
    assert done.code == 0, done
    assert hub.xet_bytes > (Path(tiny_model) / "model.safetensors").stat().st_size / 2 and not hub.blobs
    assert set(hub.repositories["me/model"].files) >= {"model.safetensors", "config.json", "README.md"}


def test_an_earlier_step_and_what_it_replaces(desk: Desk) -> None:
    with StandIn() as hub:
        hub.repositories["me/model"] = Repository(private=False, files={"model-00001-of-00002.safetensors": "0" * 64, "mine.md": b"mine"})
        refused = desk.push("me/model", "--step", "10", endpoint=hub.endpoint)
        assert not hub.repositories["me/model"].commits
        done = desk.push("me/model", "--step", "10", "--public", endpoint=hub.endpoint)
    assert refused.refusal().endswith("me/model is public: give --public to push there, or choose another name")
    repository = hub.repositories["me/model"]
    assert done.code == 0 and repository.commits == ["mine step 10"] and "(public)" in done.out
    assert "removed    model-00001-of-00002.safetensors" in done.out
    assert "mine.md" in repository.files and "model-00001-of-00002.safetensors" not in repository.files


def test_a_dry_run_lists_what_would_be_sent_and_asks_nobody(desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main([str(desk.run), "me/model", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "mine step 20" in out and " model.safetensors\n" in out and " README.md\n" in out and " MiB)" in out and "optimiser" not in out


# ---- refused with one line ----


def test_a_token_that_the_hub_does_not_know(desk: Desk) -> None:
    with StandIn() as hub:
        done = desk.push("me/model", endpoint=hub.endpoint, environment={"HF_TOKEN": "hf_other"})
    assert "does not accept this token: set HF_TOKEN" in done.refusal() and not hub.repositories


@pytest.mark.parametrize("exists", [False, True])
def test_a_repository_of_somebody_else(desk: Desk, exists: bool) -> None:
    with StandIn() as hub:
        if exists:
            hub.repositories["other/model"] = Repository(private=False)
        done = desk.push("other/model", "--public", endpoint=hub.endpoint)
    assert "this token may not write to other/model" in done.refusal()
    assert not any(repository.files for repository in hub.repositories.values())


def test_no_token_and_no_network(desk: Desk) -> None:
    assert "there is no token for the hub: set HF_TOKEN" in desk.push("me/model", environment={"HF_TOKEN": ""}).refusal()
    assert "HF_HUB_OFFLINE" in desk.push("me/model", environment={"HF_HUB_OFFLINE": "1"}).refusal()
    with StandIn() as hub:
        pass
    line = desk.push("me/model", endpoint=hub.endpoint).refusal()
    assert line == f"error: {hub.endpoint}: [Errno 111] Connection refused; the same command tries again"


@pytest.mark.whole
@pytest.mark.parametrize("dies_at", ["/lfs/", "/commit/"])
def test_a_hub_that_dies_in_the_middle_has_nothing_new_and_the_same_command_ends_it(desk: Desk, dies_at: str) -> None:
    with StandIn(dies_at=dies_at) as hub:
        line = desk.push("me/model", endpoint=hub.endpoint).refusal()
    assert line.endswith("; the same command tries again")
    assert not hub.repositories["me/model"].files
    assert not [path for path in desk.run.iterdir() if path.name.startswith("push-")]
    with StandIn() as other:
        other.repositories, other.blobs = hub.repositories, dict(hub.blobs)
        assert desk.push("me/model", endpoint=other.endpoint).code == 0
    assert "model.safetensors" in hub.repositories["me/model"].files
    assert [request for request in other.requests if request.startswith("PUT")] == [
        f"PUT /lfs/{name}" for name in other.blobs.keys() - hub.blobs
    ]


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["mine", "model"], "'model' is no name on the hub: write OWNER/NAME"),
        (["mine", "me/my model"], "'me/my model' is no name on the hub"),
        (["mine", ""], "'' is no name on the hub"),
        (["mine", "me/"], "'me/' is no name on the hub"),
        (["mine", "me/a/b"], "'me/a/b' is no name on the hub"),
        (["mine", "me/model", "--step", "15"], "has no policy of step 15: there are those of 10, 20"),
        (["mine", "me/model", "--step", "-1"], "--step -1: the first step of a run is 1"),
        (["yours", "me/model"], "no run 'yours'"),
        (["young", "me/model"], "has neither a policy nor a checkpoint yet"),
        (["", "me/model"], "no run ''"),
    ],
)
def test_what_cannot_be_pushed(desk: Desk, tiny_model: str, monkeypatch, capsys, arguments: list[str], refused: str) -> None:
    make_run(desk.home / "runs" / "young", tiny_model)
    monkeypatch.chdir(desk.home)
    monkeypatch.setenv("HOME", str(desk.home))
    assert main([*arguments, "--dry-run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and refused in lines[0]


def test_a_damaged_checkpoint_is_not_pushed(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(desk.run / "policy")
    file = desk.run / "checkpoints" / "step_000010" / "learner" / "policy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert main([str(desk.run), "me/model", "--step", "10", "--dry-run"]) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err
