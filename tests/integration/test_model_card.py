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


def run_snippet(policy: Path, library: str, **environment: str) -> str:
    """Run the card's code that begins with this library, and return what it prints."""
    snippets = re.findall(r"^```python\n(.*?)^```$", ModelCard.load(policy / "README.md").text, re.MULTILINE | re.DOTALL)
    (snippet,) = [code for code in snippets if f"from {library} import" in code]
    guarded = "".join(f"    {line}\n" for line in snippet.splitlines())  # engines start processes, which import this file
    file = policy.parent / "snippet.py"
    file.write_text(f'if __name__ == "__main__":\n{guarded}')
    done = subprocess.run(
        [sys.executable, str(file)], cwd=policy, env=os.environ | environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.whole
def test_a_checkpoint_s_policy_has_a_card_and_loads_with_transformers(tiny_model: str, tmp_path: Path) -> None:
    run = LocalRun(small_config(tiny_model, tmp_path, steps=2))
    run.train()
    policy = run.directory.path / "checkpoints" / "step_000002" / "learner" / "policy"
    card = ModelCard.load(policy / "README.md")
    assert f"`{run.directory.run_id}`, step 2" in card.text and "All weights were trained" in card.text
    assert "What is 2 + 2?" in run_snippet(policy, "transformers")
    run.check_restorable(tmp_path / "state")


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_an_exported_policy_is_loaded_by_vllm(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"run_dir": str(tmp_path / "run"), "sampling": {"max_response_tokens": 8}})
    run = RunDirectory(config)
    run.path.mkdir()
    with run.exporting_policy(40) as staging:
        shutil.copytree(resolve_model(config.model), staging)
    assert run_snippet(run.policy, "vllm", VLLM_CPU_KVCACHE_SPACE="1").strip()
