"""The files in `deploy/`, as far as they can be checked without Docker, Kubernetes, Slurm and a cloud."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.config import RunConfig, load_config

REPOSITORY = Path(__file__).parents[1]
DEPLOY = REPOSITORY / "deploy"
RAY_VERSION = next(line for line in (REPOSITORY / "requirements/cpu.lock").read_text().splitlines() if line.startswith("ray=="))[5:]
SPECS = {"RayCluster": ("raycluster.yaml", "ray.io_rayclusters.yaml"), "RayJob": ("rayjob.yaml", "ray.io_rayjobs.yaml")}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def schema_of(kind: str) -> dict[str, Any]:
    """Return what KubeRay's resource definition says of version v1 of `kind`, with unknown keys refused."""
    data = Path(os.environ.get("REPEXP_DATA") or REPOSITORY.parent / "shared" / "data") / "kuberay" / SPECS[kind][1]
    if not data.is_file():
        pytest.skip(f"{data} is not here")
    versions = yaml.load(data.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema: dict[str, Any] = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"properties": {"name": {"type": "string"}}, "additionalProperties": False}
    return closed(schema)


def closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        parts["additionalProperties"] = False
    return parts


@pytest.mark.parametrize("kind", SPECS)
def test_kuberay_takes_the_file(kind: str) -> None:
    file = read(SPECS[kind][0])
    assert (file["apiVersion"], file["kind"]) == ("ray.io/v1", kind)
    schema = schema_of(kind)
    jsonschema.Draft202012Validator(schema).validate(file)
    cluster = file["spec"].get("rayClusterSpec", file["spec"])
    cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(jsonschema.ValidationError, match="'resource' was unexpected"):
        jsonschema.Draft202012Validator(schema).validate(file)


def test_a_job_has_the_cluster_of_the_cluster_file() -> None:
    cluster = read("raycluster.yaml")["spec"]
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"] == cluster
    assert cluster["rayVersion"] == RAY_VERSION


def test_rays_autoscaler_knows_what_each_group_has() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as as_the_autoscaler_reads

    cluster = read("raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    groups = as_the_autoscaler_reads(cluster)["available_node_types"]
    assert {name: group["labels"] for name, group in groups.items()} == {
        "headgroup": {"role": "head"},
        "learner": {"role": "learner"},
        "rollout": {"role": "rollout"},
    }
    assert {name: group["resources"].get("GPU", 0) for name, group in groups.items()} == {"headgroup": 0, "learner": 1, "rollout": 1}


def test_every_node_sees_the_runs_and_only_spot_nodes_may_vanish() -> None:
    cluster = read("raycluster.yaml")["spec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]} | {"head": cluster["headGroupSpec"]}
    for name, group in groups.items():
        (container,) = group["template"]["spec"]["containers"]
        assert group["labels"] == {"role": name}
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/runs", "/dev/shm"}
        assert ("nodeSelector" in group["template"]["spec"]) is (name == "rollout")


def settings_of(words: list[str], *start: str) -> RunConfig:
    """Return what a command of `jobs.train` would run, after the words it must start with."""
    command = [*start, "python", "-m", "jobs.train"]
    config, *settings = words[len(command) :]
    assert (words[: len(command)], set(settings[::2])) == (command, {"--set"})
    return load_config(str(REPOSITORY / config), settings[1::2])


def test_the_job_runs_what_train_takes_and_places_each_role_in_a_group() -> None:
    config = settings_of(shlex.split(read("rayjob.yaml")["spec"]["entrypoint"]), "exec")
    assert config.run_dir == "/runs/quickstart"
    groups = {group["groupName"] for group in read("raycluster.yaml")["spec"]["workerGroupSpecs"]} | {"head"}
    for section in (config.rollout, config.learner, config.encoder, config.verifier):
        assert section.placement.label_selector["role"] in groups


def test_rays_launcher_takes_the_file() -> None:
    from ray.autoscaler._private.util import fillout_defaults, prepare_config, validate_config

    config = prepare_config(read("ray-cluster.yaml"))
    validate_config(config)
    assert config["setup_commands"] == [] and config["head_node_type"] == "head"
    assert set(fillout_defaults(read("ray-cluster.yaml"))["available_node_types"]) == {"head", "learner", "rollout"}
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "max_worker": 3})


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_what_an_image_copies_exists_and_it_runs_as_a_user(name: str) -> None:
    text = (DEPLOY / name).read_text()
    for source in re.findall(r"^COPY (?!--from)(\S+) \S+$", text, re.MULTILINE):
        assert (REPOSITORY / source).exists(), source
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 1001$", last_stage, re.MULTILINE)
    (command,) = re.findall(r"^CMD (\[.*\])$", text.replace("\\\n", ""), re.MULTILINE)
    assert settings_of(json.loads(command)).run_dir == "/runs/quickstart"
