"""A RAY_ADDRESS that no job can be attached to, and a placement that Ray does not know, are refused before anything
loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import evaluate, explore, train
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.processes.environment import require_placements, require_ray_address
from tests.jobs.comparison_fixture import write_comparison

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "address", ["", "auto", "local", "10.0.0.1:6379", "head:6379", "[::1]:6379", "ray://head:10001", "ray://head", "h:65535"]
)
def test_an_address_of_a_cluster_is_taken(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    require_ray_address()


@pytest.mark.parametrize("address", ["http://head:8265", "https://head", "HTTP://head:8265", "http://127.0.0.1:8265/"])
def test_a_job_server_is_refused_with_what_to_do(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as refused:
        require_ray_address()
    line = str(refused.value)
    assert "\n" not in line and f"RAY_ADDRESS={address} is a job server" in line
    assert all(remedy in line for remedy in ("repexp submit", "unset RAY_ADDRESS", "HOST:PORT"))


@pytest.mark.parametrize(
    "address", ["head", "tcp://head:6379", "head:port", "head:6379/x", " ", "a b:1", "h:0", "h:65536", "h:6379,g:6379", "ray://"]
)
def test_what_is_no_address_is_refused(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="is no address of a Ray cluster: unset RAY_ADDRESS"):
        require_ray_address()


@pytest.mark.parametrize("command", ["train", "explore", "evaluate", "compare"])
def test_every_job_refuses_it_before_ray_and_torch_are_imported(tmp_path, tiny_model, command):
    if command == "compare":
        arguments = [str(write_comparison(tmp_path, tiny_model))]
    elif command == "train":
        (tmp_path / "run.toml").write_text(f'run_dir = "{tmp_path / "run"}"\nmodel = "{tiny_model}"\n')
        arguments = [str(tmp_path / "run.toml")]
    else:
        arguments = ["--model", tiny_model, "--out", str(tmp_path / "run")]
    code = (
        f"import sys\nfrom jobs.{command} import main\nstatus = main({arguments!r})\n"
        "print(*({'ray', 'torch', 'transformers', 'vllm'} & set(sys.modules)))\nsys.exit(status)"
    )
    environment = os.environ | {"RAY_ADDRESS": "http://head:8265", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.partition("=")[0]) == (2, "error: RAY_ADDRESS")
    assert not done.stdout.split()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "remedy"), [("http://head:8265", "Set RAY_ADDRESS to the GCS address instead"), ("nowhere://head", "Module: nowhere")]
)
def test_all_that_ray_says_of_an_address_is_handed_on(monkeypatch, address, remedy):
    from jobs.processes.build import ray_session

    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as refused, ray_session("repexp-test", []):
        pass
    assert f"RAY_ADDRESS={address} cannot be attached to: " in str(refused.value)
    assert remedy in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        ({"accelerator_type": "H10O"}, """rollout.placement.accelerator_type = "H10O" is none that Ray knows: did you mean 'H100'? """),
        ({"accelerator_type": "Mine"}, 'set rollout.placement.resources to { "accelerator_type:Mine" = 0.001 }'),
        ({"label_selector": {"a b": "c"}}, "rollout.placement: Invalid label key name `a b`"),
        ({"label_selector": {"zone": "in(a"}}, "rollout.placement: Invalid label selector value `in(a`"),
        ({"resources": {"disk": 1e-7}}, "rollout.placement: The precision of the fractional quantity of resource disk"),
    ],
)
def test_a_placement_that_ray_cannot_be_asked_for_is_refused_by_name(placement, said):
    config = RunConfig.model_validate({"rollout": {"placement": placement}})
    with pytest.raises(UserError) as refused:
        require_placements(config)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_any_placement_that_ray_can_be_asked_for_is_taken():
    role = {"accelerator_type": "L4", "label_selector": {"ray.io/market-type": "!in(spot, other)"}, "resources": {"disk": 0.5}}
    require_placements(RunConfig.model_validate({name: {"placement": role} for name in ("rollout", "learner", "encoder", "verifier")}))


@pytest.mark.parametrize("command", [train, explore, evaluate])
def test_every_job_looks_at_its_placements_before_it_starts(capsys, tmp_path, tiny_model, command):
    file = tmp_path / "job.toml"
    file.write_text('[verifier.placement]\naccelerator_type = "H10O"\n')
    assert command.main([str(file), "--dry-run"]) == 2
    assert 'error: verifier.placement.accelerator_type = "H10O" is none that Ray knows' in capsys.readouterr().err
