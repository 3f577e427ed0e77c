"""`repexp submit CONFIG.toml --address http://HEAD:8265 [--set key=value ...]`: train on a cluster. The command
sends the working directory, and the head runs `python -m jobs.train CONFIG`. A run whose name the cluster knows is
resumed; a live one is not started twice. Exit codes: 0 submitted (with --follow: and done), 1 with --follow: failed or
stopped, 2 refused (one line says why), 130 Ctrl-C (what was submitted continues)."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from jobs.cluster.package import Package, commit, select
from jobs.cluster.remote import ADDRESS_HELP, APP, TRAIN, Job, address_of, connect, shell_path
from jobs.cluster.runs import STORAGE, command_line
from jobs.cluster.submission import Submission, job_environment, next_id, send
from jobs.config import RunConfig, load_config
from jobs.configuration.files import path_of, read_values
from jobs.configuration.overrides import without
from jobs.configuration.user_error import UserError, answering
from jobs.follow import follow

RUN_DIR = "run_dir"
"""The key that on a cluster is `--storage` and `--run`."""
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
OUTSIDE = "submitted"
"""The folder of the package that files from outside the working directory are copied to."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp submit", description="Train on a Ray cluster.")
    add = parser.add_argument
    add("config", help="TOML file, for example configs/quickstart.toml")
    add("--address", help=ADDRESS_HELP)
    add("--run", metavar="NAME", help="name of the run; default: the last part of the config's run_dir")
    add("--storage", metavar="DIR", help=f"directory on the head that keeps runs; default: {STORAGE}, or where the run is")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a config key; repeatable")
    add("--exclude", action="append", default=[], metavar="GLOB", help="files to leave here; repeatable")
    add("--python", metavar="PATH", help="interpreter on the head; default: python, of the environment Ray was started in")
    add("--follow", action="store_true", help="show the run's output to its end")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    run = run_name(options.run, config)
    address = address_of(options.address)
    if address is None:
        raise UserError("no cluster is named: give --address http://HEAD:8265")
    root = Path.cwd()
    package = select(root, options.exclude)
    package.check_size()
    where, extra = in_package(path_of(options.config), package, OUTSIDE)
    template, more = template_in_package(options, package)
    cluster = connect(address)
    submission = prepare(
        config,
        run=run,
        jobs=cluster.jobs(),
        used_ids=cluster.used_ids(),
        config_path=where,
        overrides=[*options.overrides, *template],
        storage=options.storage,
        python=options.python,
        commit=commit(root),
        environment=os.environ,
    )
    for name, file in {**extra, **more}.items():
        print(f"added      {file} is not in the package and sent along as {name}")
    send(cluster, submission, package, {**extra, **more})
    print(f"submitted  {submission.job_id}: {what_follows(submission)}")
    for label, command in commands(submission, options, address):
        print(f"{label:<10} {command}")
    return follow(cluster, submission.job_id) if options.follow else 0


def run_name(option: str | None, config: RunConfig) -> str:
    """Return the run's name. Raises UserError for one that cannot be part of a path and of a job's id."""
    name = PurePosixPath(config.run_dir).name if option is None else option
    if not RUN_NAME.fullmatch(name):
        raise UserError(f"run name {name!r}: letters, digits, '.', '_' and '-' only, the first a letter or digit; give another with --run")
    return name


def in_package(file: Path, package: Package, folder: str) -> tuple[str, dict[str, Path]]:
    """Return the path of a file inside the package, and what must be added for it. A file from elsewhere, or one that
    the package leaves out, is copied into `folder`."""
    real, root = file.resolve(), package.root.resolve()
    if real.is_relative_to(root) and (inside := real.relative_to(root).as_posix()) in package.sizes:
        return inside, {}
    name = f"{folder}/{file.name}"
    return name, {name: real}


def template_in_package(options: argparse.Namespace, package: Package) -> tuple[list[str], dict[str, Path]]:
    """Return the override for a prompt template that is a file, which the head reads too, and what must be added."""
    template = read_values(RunConfig, options.config, options.overrides).get("prompt", {}).get("template")
    if template is None or "{" in template:
        return [], {}
    where, extra = in_package(Path(template).expanduser(), package, f"{OUTSIDE}/prompt")
    return [] if where == template else [f"prompt.template={where}"], extra


def prepare(
    config: RunConfig,
    *,
    run: str,
    jobs: Sequence[Job],
    used_ids: Collection[str],
    config_path: str,
    overrides: Sequence[str],
    storage: str | None,
    python: str | None,
    commit: str,
    environment: Mapping[str, str],
) -> Submission:
    """Return what to submit, given the jobs, oldest first. Raises UserError for a run that is live or elsewhere."""
    earlier = [job for job in jobs if job.run == run]
    for job in earlier:
        if job.is_live:
            raise UserError(f"run {run} is {job.state.lower()} already, as job {job.id}: stop it first, or choose another name with --run")
    known_storage = earlier[-1].storage if earlier else None
    given = (known_storage or STORAGE) if storage is None else storage
    chosen = given.rstrip("/")
    if not chosen.startswith(("/", "~/")):
        raise UserError(f"--storage {given!r}: give a whole path on the head, /DIR or ~/DIR")
    if python == "":
        raise UserError("--python '': name an interpreter on the head, or leave it out")
    if known_storage is not None and chosen != known_storage:
        raise UserError(
            f"run {run} is kept in {known_storage}, not in {chosen}: leave --storage out to resume it, or choose another name with --run"
        )
    python = python or (earlier[-1].python if earlier else "python")
    settings = "".join(f" --set {shlex.quote(override)}" for override in without(overrides, RUN_DIR))
    return Submission(
        run=run,
        job_id=next_id(run, used_ids),
        storage=chosen,
        python=python,
        command=f"jobs.train {shlex.quote(config_path)}{settings} --set run_dir={shell_path(chosen, run)}",
        resumes=bool(earlier),
        env_vars=job_environment(config, environment),
        metadata={
            **{"app": APP, "kind": TRAIN, "run": run, "storage": chosen, "python": python},
            **{"config": config_path, "config_hash": config_hash(config), "commit": commit},
        },
    )


def config_hash(config: RunConfig) -> str:
    """Return a hash of what the run computes and with what; where it is kept does not count."""
    values = config.model_dump(mode="json", exclude={"run_dir"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def what_follows(submission: Submission) -> str:
    """Return in words what the job will do."""
    where = f"{submission.storage}/{submission.run} on the head"
    return f"resumes run {submission.run} in {where}" if submission.resumes else f"run {submission.run}, kept in {where}"


def commands(submission: Submission, options: argparse.Namespace, address: str) -> list[tuple[str, str]]:
    """Return the commands that look after the run, as a person types them."""
    where = (submission.run, "--address", address)
    again = [options.config, "--address", address, "--run", submission.run, "--storage", submission.storage]
    again += [word for override in without(options.overrides, RUN_DIR) for word in ("--set", override)]
    again += [word for pattern in options.exclude for word in ("--exclude", pattern)]
    again += ["--python", submission.python] if options.python else []
    return [
        ("follow", command_line("follow", *where)),
        ("status", command_line("status", *where, "--watch")),
        ("scale", command_line("scale", *where, "--rollout", "2")),
        ("stop", command_line("stop", *where, "--wait")),
        ("resume", command_line("submit", *again)),
    ]


if __name__ == "__main__":
    sys.exit(main())
