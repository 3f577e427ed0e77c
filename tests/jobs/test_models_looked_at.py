"""Every job that takes a model looks at it, and at the prompts it will pose, before anything starts: what is wrong is
one line and exit code 2, and nothing is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jobs import compare, evaluate, explore, train
from tests.actors.test_prompts import WITHOUT_SYSTEM_ROLE
from tests.learners.model_directories import change_tensors, changed_copy

UP, HEAD, EMBEDDING = "model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"


def train_arguments(model: str, out: Path) -> list[str]:
    sets = {"run_dir": out, "model": model, "rollout.engine": "transformers", "sampling.max_response_tokens": 8}
    return ["configs/quickstart.toml", *(word for key, value in sets.items() for word in ("--set", f"{key}={value}"))]


def compare_arguments(model: str, out: Path) -> list[str]:
    file = out.with_suffix(".toml")
    sampling = "{ max_prompt_tokens = 96, max_response_tokens = 8 }"
    lines = [f'out = "{out}"', "seeds = [0]", "steps = [1]", "[common]", f'model = "{model}"', f"sampling = {sampling}"]
    file.write_text("\n".join([*lines, "[methods.grpo]", "bonus = { enabled = false }", ""]))
    return [str(file)]


COMMANDS: dict[str, Callable[[str, Path, list[str]], int]] = {
    "train": lambda model, out, more: train.main([*train_arguments(model, out), *more]),
    "train --dry-run": lambda model, out, more: train.main([*train_arguments(model, out), "--dry-run", *more]),
    "train --replay-from": lambda model, out, more: train.main([*train_arguments(model, out), "--replay-from", "rows", *more]),
    "explore": lambda model, out, more: explore.main(["--model", model, "--task", "arithmetic", "--out", str(out), *more]),
    "explore --dry-run": lambda model, out, more: explore.main(["--model", model, "--out", str(out), "--dry-run", *more]),
    "evaluate": lambda model, out, more: evaluate.main(["--model", model, "--task", "arithmetic", "--out", str(out), *more]),
    "evaluate --dry-run": lambda model, out, more: evaluate.main(["--model", model, "--out", str(out), "--dry-run", *more]),
    "compare": lambda model, out, more: compare.main([*compare_arguments(model, out), *more]),
    "compare --dry-run": lambda model, out, more: compare.main([*compare_arguments(model, out), "--dry-run", *more]),
}
POSING = ("train", "explore", "evaluate", "compare")
"""Those that measure the prompts."""


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jobs.run.session", "jobs.sampling.explore_session", "jobs.sampling.evaluate_session"):
        monkeypatch.setattr(f"{module}.ray_session", lambda *args, **options: pytest.fail("Ray was started"))
    monkeypatch.setattr("jobs.comparison.session.run_comparison", lambda *args: pytest.fail("the comparison was begun"))


def refusal(capsys: pytest.CaptureFixture[str], command: str, model: Path | str, out: Path, *more: str) -> str:
    assert COMMANDS[command](str(model), out, list(more)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert not out.exists(), "something was written"
    return lines[0]


def without_a_tensor(tiny_model: str, model: Path) -> str:
    change_tensors(changed_copy(tiny_model, model), lambda tensors: {n: t for n, t in tensors.items() if n != UP})
    return f"lack tensor {UP}"


def with_two_matrices(tiny_model: str, model: Path) -> str:
    change_tensors(changed_copy(tiny_model, model), lambda tensors: {**tensors, HEAD: tensors[EMBEDDING] * 2})
    return "two different ones"


def with_an_adapter(tiny_model: str, model: Path) -> str:
    (changed_copy(tiny_model, model) / "adapter_config.json").write_text("{}")
    return "adapter beside it"


def with_ids_beyond(tiny_model: str, model: Path) -> str:
    changed_copy(tiny_model, model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|think|>"]})
    tokenizer.save_pretrained(model)
    return "'<|think|>'"


def with_a_limit(tiny_model: str, model: Path) -> str:
    changed_copy(tiny_model, model, config={"max_position_embeddings": 7})
    return "model allows 7 (max_position_embeddings)".replace("model", f"model {model}")


def cut_short(tiny_model: str, model: Path) -> str:
    file = changed_copy(tiny_model, model) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    return "model.safetensors is damaged or cut short"


SEEN_UNLOADED = (with_an_adapter, with_a_limit, cut_short)
FAULTS = (without_a_tensor, with_two_matrices, with_ids_beyond, *SEEN_UNLOADED)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_model_is_one_line(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Callable[[str, Path], str]
) -> None:
    named = fault(tiny_model, tmp_path / "model")
    assert named in refusal(capsys, "train", tmp_path / "model", tmp_path / "out")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_job_looks(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    for fault in SEEN_UNLOADED if "dry" in command else FAULTS:
        named = fault(tiny_model, tmp_path / fault.__name__)
        assert named in refusal(capsys, command, tmp_path / fault.__name__, tmp_path / "out")


@pytest.mark.parametrize("command", POSING)
def test_a_base_model_without_a_template_is_told_what_to_do(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    model = changed_copy(tiny_model, tmp_path / "base")
    (model / "chat_template.jinja").unlink()
    line = refusal(capsys, command, model, tmp_path / "out")
    assert "prompt.chat = false" in line and "prompt.template" in line


@pytest.mark.parametrize("command", ["train", "explore", "evaluate"])
def test_prompts_that_are_too_long_are_named(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    line = refusal(capsys, command, tiny_model, tmp_path / "out", "--set", "sampling.max_prompt_tokens=30")
    assert "longer than sampling.max_prompt_tokens = 30: arithmetic/" in line and 'prompt.too_long = "leave_out"' in line


@pytest.mark.parametrize("command", ["train", "explore", "evaluate"])
def test_a_template_that_no_problem_passes_is_refused(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    template = WITHOUT_SYSTEM_ROLE.replace("== 'system'", "== 'user'")
    line = refusal(
        capsys,
        command,
        tiny_model,
        tmp_path / "out",
        *("--set", f"prompt.template={template}", "--set", "task.name=parquet", "--set", f"task.parquet.path={tmp_path}/rows.jsonl"),
        *([] if command == "train" else ["--split", "train"]),
    )
    assert "no problem can be posed" in line and "System role not supported" in line


def test_a_dry_run_of_the_embedded_model_knows_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    (cache / "models" / "smollm2-135m-v1").mkdir(parents=True)
    (cache / "models" / "smollm2-135m-v1" / "config.json").write_text(json.dumps({"max_position_embeddings": 8192}))
    arguments = ["configs/quickstart.toml", "--dry-run", "--set", f"run_dir={tmp_path}/run", "--set", "sampling.max_prompt_tokens=8190"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPEXP_CACHE", str(cache))
        assert train.main(arguments) == 2
    assert "make 8210 tokens, and model smollm2-135m allows 8192" in capsys.readouterr().err
    shutil.rmtree(cache)


def test_a_base_model_of_another_tokenizer_cannot_score(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = changed_copy(tiny_model, tmp_path / "small", config={"vocab_size": 100})
    change_tensors(small, lambda tensors: {**tensors, EMBEDDING: tensors[EMBEDDING][:100].clone()})
    tokenizer = json.loads((small / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {token: number for token, number in tokenizer["model"]["vocab"].items() if number < 100}
    (small / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refusal(capsys, "evaluate", tiny_model, tmp_path / "out", "--base-model", str(small))
    assert "knows 100 token ids" in line and "up to 103" in line
