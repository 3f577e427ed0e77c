"""What a model card says about loading its policy is run as it stands, in the policy's directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from jobs.config import RunConfig
from jobs.directory.run_dir import RunDirectory
from learners.models import resolve_model
from tests.jobs.components_fixture import LocalRun, small_config

ENGINE_TIMEOUT_S = 280


def snippet(card: ModelCard, library: str) -> str:
    """The code of the card that begins with this library."""
    snippets = re.findall(r"^```python\n(.*?)^```$", card.text, re.MULTILINE | re.DOTALL)
    (code,) = [code for code in snippets if f"from {library} import" in code]
    return str(code)


@pytest.mark.whole
def test_a_checkpoint_s_policy_has_a_card_and_loads_with_transformers(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = LocalRun(small_config(tiny_model, tmp_path, steps=2))
    run.train()
    policy = run.directory.path / "checkpoints" / "step_000002" / "learner" / "policy"
    card = ModelCard.load(policy / "README.md")
    assert f"`{run.directory.run_id}`, step 2" in card.text and "All weights were trained" in card.text
    monkeypatch.chdir(policy)
    exec(snippet(card, "transformers"), {})
    assert "What is 2 + 2?" in capsys.readouterr().out
    run.check_restorable(tmp_path / "state")


@pytest.mark.engine
@pytest.mark.timeout(ENGINE_TIMEOUT_S + 20)
def test_an_exported_policy_is_loaded_by_vllm(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"run_dir": str(tmp_path / "run"), "sampling": {"max_response_tokens": 8}})
    run = RunDirectory(config)
    run.path.mkdir()
    with run.exporting_policy(40) as staging:
        shutil.copytree(resolve_model(config.model), staging)
    code = snippet(ModelCard.load(run.policy / "README.md"), "vllm").replace("LLM(", "LLM(enforce_eager=True, ")  # compiling takes a minute
    file = tmp_path / "snippet.py"
    file.write_text('if __name__ == "__main__":\n' + "".join(f"    {line}\n" for line in code.splitlines()))  # the engine is a process
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, str(file)], cwd=run.policy, env=environment, capture_output=True, text=True, timeout=ENGINE_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()
