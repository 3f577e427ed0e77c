"""What the model card of a policy says, and that nothing in it from outside is read as its markup."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from jobs import __version__
from jobs.config import RunConfig
from jobs.configuration.files import load
from jobs.directory.code_version import COMMIT, code_commit
from jobs.directory.model_card import MEANS, model_card
from jobs.directory.run_dir import POLICY_STEP, RunDirectory

METRICS = {"step": 40.0, "reward/mean": 0.875, "reward/pass@1": 0.75, "tokens/generated": 28224.0}
EVALUATION = {"step": 35.0, "eval/problems": 64.0, "eval/pass@1": 0.5, "eval/pass_low@1": 0.4, "eval/pass_high@1": 0.6, "eval/pass@8": 0.9}
NAMES = ["- a: b", "x\n---\nlicense: mit", "``` `tick", "{{ 7 * 7 }} {% raw %}", "a|b <script>", "日本語"]


def card_of(config: dict[str, Any] | None = None, *, run: str = "mine", step: int = 40, **values: Any) -> ModelCard:
    parsed = RunConfig.model_validate(config or {})
    return ModelCard(model_card(run, parsed, step=step, **{"metrics": METRICS, "evaluation": None, **values}))


def settings_in(card: ModelCard) -> dict[str, Any]:
    match = re.search(r"^(`{3,})toml\n(.*?)\n\1$", card.text, re.MULTILINE | re.DOTALL)
    assert match
    return tomllib.loads(match[2])


def test_it_says_from_what_how_and_how_good() -> None:
    card = card_of({"learner": {"advantage": {"beta": 0.25}}}, evaluation=EVALUATION)
    front = card.data.to_dict()
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (front["license"], front["library_name"], front["pipeline_tag"]) == ("apache-2.0", "transformers", "text-generation")
    assert "arithmetic" in front["tags"] and "datasets" not in front
    for said in ("`mine`, step 40", "`elliptical`, × beta = 0.25", "`normalised`", "| `reward/mean` | 0.875 |", "28,224"):
        assert said in card.text
    assert "| pass@1 | 0.500 | 0.400 to 0.600 |" in card.text and "| pass@8 | 0.900 |  |" in card.text and "step 35" in card.text
    assert f"repexp {__version__} (commit `{code_commit()}`)" in card.text
    assert "from_pretrained" in card.text and "from vllm import LLM" in card.text
    assert card.text.endswith("\n") and "\n\n\n" not in card.text


def test_what_is_not_known_is_not_made_up() -> None:
    card = card_of({"model": "someone/never-fetched", "bonus": {"enabled": False}}, metrics=None)
    assert (card.data.base_model, card.data.license) == ("someone/never-fetched", "unknown")
    assert "Unknown: see the base model" in card.text and "No metrics of this step are known" in card.text
    assert "Evaluation" not in card.text and "no exploration bonus" in card.text


def test_a_local_model_is_described_by_its_own_card(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    config = {"model": str(tmp_path / "base")}
    assert card_of(config).data.to_dict().get("base_model") is None and "`base`" in card_of(config).text
    readme = tmp_path / "base" / "README.md"
    readme.write_text("---\nbase_model: someone/large\nlicense: mit\n---\n")
    assert (card_of(config).data.base_model, card_of(config).data.license) == ("someone/large", "mit")
    readme.write_text("---\nlicense: other\nlicense_name: research-only\n---\n")
    assert card_of(config).data.to_dict()["license_name"] == "research-only" and "license is `research-only`" in card_of(config).text
    for damaged in (
        "---\n: [\n---\n",
        "---\nbase_model: 7\nlicense: [a]\n---\n",
        "---\nbase_model: /home/me/model\n---\n",
        "no front matter",
    ):
        readme.write_text(damaged)
        assert card_of(config).data.to_dict().get("base_model") is None and card_of(config).data.license == "unknown"


def test_the_license_of_a_fetched_model_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    assert (card_of({"model": "google/g"}).data.base_model, card_of({"model": "google/g"}).data.license) == ("google/g", "gemma")


def test_the_data_sets_of_the_hub_are_named() -> None:
    assert card_of({"task": {"name": "gsm8k"}}).data.datasets == ["openai/gsm8k"]
    parts = {"gsm8k": {}, "easy": {"name": "arithmetic"}}
    card = card_of({"task": {"name": "mixture", "mixture": {"parts": parts}}})
    assert card.data.datasets == ["openai/gsm8k"] and card.data.tags[-2:] == ["gsm8k", "arithmetic"]
    assert "[openai/gsm8k](https://huggingface.co/datasets/openai/gsm8k)" in card.text


def test_the_configuration_in_it_trains_the_same(tmp_path: Path) -> None:
    given = {
        "model": "someone/model",
        "prompt": {"chat": True, "template": "{{ bos_token }}```\n---\n{% for m in messages %}{{ m.content }}{% endfor %}"},
        "task": {"name": "mixture", "mixture": {"parts": {"gsm8k": {"weight": 2.0}, "arithmetic": {}}}},
        "bonus": {"terms": [{"kind": "elliptical", "weight": 0.5}, {"kind": "random"}]},
        "learner": {"lr": 3e-5, "lora": {"enabled": True, "targets": ["q_proj"]}},
    }
    file = tmp_path / "card.toml"
    card = card_of(given | {"checkpoint": {"storage": "s3://key:password@bucket/x"}, "run_dir": "/home/me/runs/mine"})
    assert "password@" not in card.text and "/home/me" not in card.text
    file.write_text(re.search(r"^(`{3,})toml\n(.*?)\n\1$", card.text, re.MULTILINE | re.DOTALL)[2])  # type: ignore[index]
    config, original = load(RunConfig, str(file), ()), RunConfig.model_validate(given)
    assert config.model_dump(exclude=MEANS) == original.model_dump(exclude=MEANS)
    assert "`adapter/`" in card.text and "Give it as `chat_template`" in card.text


def test_keys_to_something_are_left_out() -> None:
    options = {"api_key": "SECRET1", "OPENAI_API_KEY": "SECRET2", "password": "SECRET3", "hf_token": "SECRET4", "max_tokens": 7}
    options |= {"token": "SECRET5", "aws_secret_access_key": "SECRET6", "private_key": "SECRET7", "parts": [{"api_key": "SECRET8"}]}
    card = card_of({"task": {"name": "mylab.tasks:Mine", "options": options | {"more": {"secret": "SECRET9"}}}})
    assert "SECRET" not in card.text and settings_in(card)["task"]["options"]["max_tokens"] == 7


@pytest.mark.parametrize("name", NAMES)
def test_text_from_outside_is_data(name: str, tmp_path: Path) -> None:
    """Front matter and headings are those of a card with harmless names."""
    template = f"{{{{ messages }}}}\n---\n# Heading\n```\n{name}\n````\n"
    harmless = card_of({"prompt": {"template": "{{ messages }}"}})
    card = card_of({"model": str(tmp_path / "x" / name), "prompt": {"template": template}}, run=name)
    assert card.data.to_dict().keys() == harmless.data.to_dict().keys() - {"base_model"}
    assert card.data.license == "unknown"
    assert headings(card.text)[1:] == headings(harmless.text)[1:]
    assert settings_in(card)["prompt"]["template"] == template
    assert " ".join(name.split()) in card.text


def headings(text: str) -> list[str]:
    """The headings outside of code blocks, as CommonMark has these: a block ends with as many backticks as it began."""
    found, fence = [], ""
    for line in text.splitlines():
        if ticks := re.match(r" {0,3}(`{3,})(?P<rest>[^`]*)$", line):
            if not fence:
                fence = ticks[1]
            elif len(ticks[1]) >= len(fence) and not ticks["rest"].strip():
                fence = ""
        elif not fence and line.startswith("#"):
            found.append(line)
    return found


def test_an_exported_policy_has_the_card_of_its_step(tmp_path: Path) -> None:
    run = RunDirectory(RunConfig(run_dir=str(tmp_path / "run"), steps=40))
    run.path.mkdir()
    run.metrics.write_text(
        "".join(json.dumps(METRICS | {"step": step, "reward/mean": step / 100}) + "\n" for step in (20, 40, 41)) + '{"st'
    )
    (run.path / "eval.jsonl").write_text("".join(json.dumps(EVALUATION | {"step": step}) + "\n" for step in (30, 60)))
    with run.exporting_policy(40) as staging:
        staging.mkdir()
    card = ModelCard.load(run.policy / "README.md")
    assert "| `reward/mean` | 0.400 |" in card.text and "Evaluation of step 30" in card.text
    assert (run.policy / POLICY_STEP).is_file()
    assert "| `reward/mean` | 0.200 |" in run.model_card(39) and "No metrics" in run.model_card(19)


def test_code_without_a_repository_has_the_commit_that_it_was_sent_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.directory.code_version._ROOT", tmp_path)
    for value, expected in (("abc-dirty", "abc-dirty"), ("", "unknown")):
        monkeypatch.setenv(COMMIT, value)
        code_commit.cache_clear()
        assert code_commit() == expected
    code_commit.cache_clear()
