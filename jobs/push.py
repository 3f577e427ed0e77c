"""`repexp push RUN OWNER/NAME [--step N] [--public] [--dry-run]`: put a run's policy on the Hugging Face hub,
with its model card. The files become one commit, or nothing changes. Exit codes: 0 done, 2 refused (one line says
why)."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jobs.cluster.package import mib
from jobs.cluster.runs import find_run, shown
from jobs.configuration.characters import spelled_out
from jobs.configuration.user_error import UserError, answering
from jobs.directory.model_card import README, is_hub_name
from jobs.directory.run_dir import POLICY_STEP
from jobs.sampling.evaluated_models import copy_policy, find_model

SENT = (
    *(README, POLICY_STEP, "config.json", "generation_config.json", "chat_template.*"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "*.model", "vocab.*", "merges.txt"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
)
"""What belongs to a policy. Whatever else somebody has put into its directory stays here."""
TIMEOUTS_S = (10.0, 120.0, 120.0, 10.0)
"""How long to connect, for an answer to begin, for a piece to be sent, and for a free connection. The hub's client
waits for ever."""
TOKEN_HINT = "set HF_TOKEN to one from https://huggingface.co/settings/tokens, or run `hf auth login`"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp push", description="Put a run's policy on the Hugging Face hub.")
    add = parser.add_argument
    add("run", help="its directory or its name")
    add("repository", metavar="OWNER/NAME", help="where to; it is made if it does not exist, private")
    add("--step", type=int, metavar="N", help="the policy of this step; default: the newest there is")
    add("--public", action="store_true", help="everyone may read it: make a public repository, or push to one")
    add("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    _require_name(options.repository)
    token = None if options.dry_run else _token()
    directory = find_run(options.run)
    if options.step is not None and options.step < 1:
        raise UserError(f"--step {options.step}: the first step of a run is 1")
    model = find_model(str(directory) if options.step is None else f"{directory}@{options.step}")
    assert model.run is not None
    with tempfile.TemporaryDirectory(prefix="push-", dir=model.run.path) as staging:
        policy = Path(staging) / "policy"
        copy_policy(model, policy)
        print(f"policy     {model.label}, in {shown(model.run.path)}")
        files = _list(policy)
        if token is not None:
            _push(files, options.repository, token, public=options.public, message=model.label)
    return 0


def _require_name(repository: str) -> None:
    if is_hub_name(repository):
        return
    raise UserError(
        f"{repository!r} is no name on the hub: write OWNER/NAME, each of letters, digits, '-', '_' and '.', together 96 at most"
    )


def _token() -> str:
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise UserError(
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so nothing is sent: unset it, or see what would be with --dry-run"
        )
    token = get_token()
    if token is None:
        raise UserError(f"there is no token for the hub: {TOKEN_HINT}")
    return str(token)


def _list(policy: Path) -> dict[str, Path]:
    """Print every file, and return those to send by their names on the hub."""
    found = {path.relative_to(policy).as_posix(): path for path in sorted(policy.rglob("*")) if path.is_symlink() or not path.is_dir()}
    sent = {name: path for name, path in found.items() if path.is_file() and not path.is_symlink() and _belongs(name)}
    sizes = {name: path.stat().st_size for name, path in sent.items()}
    for name, size in sizes.items():
        print(f"{size:>15,} {name}")
    print(f"{sum(sizes.values()):>15,} bytes in {len(sizes)} files ({mib(sum(sizes.values()))})", flush=True)
    if left_out := sorted(found.keys() - sent.keys()):
        print(f"left out   {spelled_out(', '.join(left_out))}", flush=True)
    return sent


def _belongs(name: str) -> bool:
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in SENT)


def _push(files: dict[str, Path], repository: str, token: str, *, public: bool, message: str) -> None:
    """Make the repository if there is none, send the files, and remove those of an earlier policy."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _configure_client()
    api = HfApi(token=token)
    with _one_line(repository, api.endpoint):
        api.create_repo(repository, private=not public, exist_ok=True)
        before = api.model_info(repository)
        if not (public or before.private):
            raise UserError(f"{repository} is public: give --public to push there, or choose another name")
        there = {file.rfilename for file in before.siblings or ()}
        gone = sorted(name for name in there - files.keys() if _belongs(name))
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in gone]
        commit = api.create_commit(repository, operations, commit_message=message)
    done = "unchanged  " if commit.oid == before.sha else "pushed     "
    print(f"{done}{api.endpoint}/{repository} ({'private' if before.private else 'public'}), commit {commit.oid[:12]}")
    if gone:
        print(f"removed    {', '.join(gone)}, of an earlier policy")


def _configure_client() -> None:
    """Give the hub's client deadlines, and let it show progress to people only."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import disable_progress_bars, logging
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        made.timeout = TIMEOUTS_S
        return made

    set_client_factory(client)
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


@contextmanager
def _one_line(repository: str, endpoint: str) -> Iterator[None]:
    """Turn what the hub and the way to it answer into UserErrors that say what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a seam: the client and its transports have errors of several libraries
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        codes = [response.status_code for cause in causes if (response := getattr(cause, "response", None)) is not None]
        if 401 in codes:
            raise UserError(f"{endpoint} does not accept this token: {TOKEN_HINT}") from None
        if 403 in codes:
            raise UserError(f"this token may not write to {repository}: use one that may, or a name of your own") from None
        said = " ".join(dict.fromkeys(_said(cause) for cause in (causes if not codes else causes[:1])))
        raise UserError(f"{endpoint}: {said}; the same command tries again") from None


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("For more information")) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
