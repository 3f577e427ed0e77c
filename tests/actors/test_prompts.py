"""From messages to the tokens of a prompt, with the tiny model's real tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from actors.config import PromptConfig
from actors.prompts import DataError, PromptRefused, Prompts
from learners.models import ModelError

ASKED = [{"role": "user", "content": "2 + 2?"}]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *ASKED]
WITHOUT_SYSTEM_ROLE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)


@pytest.fixture
def base_model(tiny_model: str, tmp_path: Path) -> str:
    """The tiny model without its chat template, as a base model comes."""
    directory = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (directory / "chat_template.jinja").unlink()
    return str(directory)


def text_of(prompts: Prompts, ids: list[int]) -> str:
    return prompts.tokenizer.decode(ids)


def test_the_model_s_own_template_makes_the_prompt(tiny_model: str) -> None:
    prompts = Prompts(tiny_model, PromptConfig())
    expected = prompts.tokenizer.apply_chat_template(WITH_SYSTEM, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert prompts.token_ids("p", WITH_SYSTEM) == expected
    assert text_of(prompts, expected) == "<s>system: Be brief.</s><s>user: 2 + 2?</s><s>assistant: "


@pytest.mark.parametrize("as_file", [False, True], ids=["text", "file"])
def test_a_template_of_one_s_own_replaces_it(base_model: str, tmp_path: Path, as_file: bool) -> None:
    template = "{{ bos_token }}{% for m in messages %}Q: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    file = tmp_path / "mine.jinja"
    file.write_text(f"\ufeff{template}", encoding="utf-8")
    config = PromptConfig(template=str(file) if as_file else template)
    assert config.template == template, "the text is kept, so that the job needs the file no more"
    prompts = Prompts(base_model, config)
    assert prompts.text(WITH_SYSTEM) == "<s>Q: Be brief.\nQ: 2 + 2?\nA:"
    assert prompts.token_ids("p", ASKED)[0] == prompts.tokenizer.bos_token_id


@pytest.mark.parametrize(("messages", "text"), [(ASKED, "2 + 2?"), (WITH_SYSTEM, "Be brief.\n\n2 + 2?")])
def test_plain_completion_takes_the_texts_as_they_are(base_model: str, messages: list[dict[str, str]], text: str) -> None:
    prompts = Prompts(base_model, PromptConfig(chat=False))
    assert prompts.text(messages) == text
    assert text_of(prompts, prompts.token_ids("p", messages)) == text
    assert prompts.token_ids("p", messages) == prompts.tokenizer(text)["input_ids"], "with what the tokenizer puts before any text"


def test_plain_completion_ignores_a_template_that_is_there(tiny_model: str) -> None:
    assert Prompts(tiny_model, PromptConfig(chat=False)).text(ASKED) == "2 + 2?"


def test_a_base_model_is_told_what_to_do(base_model: str) -> None:
    with pytest.raises(ModelError) as refused:
        Prompts(base_model, PromptConfig())
    assert all(key in str(refused.value) for key in ("has no chat template", "prompt.chat = false", "prompt.template"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m }}", "{{ messages[0]['content' }}", "{% if %}x{% endif %}"])
def test_a_template_that_is_not_jinja_is_refused_with_its_line(base_model: str, template: str) -> None:
    with pytest.raises(ModelError, match=r"^prompt\.template, line 1, is not Jinja: ") as refused:
        Prompts(base_model, PromptConfig(template=template))
    assert "\n" not in str(refused.value)


def test_a_model_s_own_template_that_is_not_jinja_is_named(base_model: str) -> None:
    (Path(base_model) / "chat_template.jinja").write_text("\n{% for %}")
    with pytest.raises(ModelError, match=r"^the chat template of model .*base, line 2, is not Jinja"):
        Prompts(base_model, PromptConfig())


@pytest.mark.parametrize(
    ("template", "messages", "why"),
    [
        (WITHOUT_SYSTEM_ROLE, WITH_SYSTEM, "System role not supported"),
        ("{{ messages[1]['content'] + '!' }}", ASKED, "undefined|no element 1"),
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", ASKED, "can only concatenate"),
        ("{{ raise_exception('roles must alternate\nuser/assistant') }}", ASKED, "roles must alternate$"),
    ],
)
def test_a_template_that_refuses_a_problem_names_it(base_model: str, template: str, messages: list[dict[str, str]], why: str) -> None:
    prompts = Prompts(base_model, PromptConfig(template=template))
    with pytest.raises(DataError, match=rf"^problem task/7 cannot be posed: the chat template refuses it: .*(?:{why})") as refused:
        prompts.token_ids("task/7", messages)
    assert "\n" not in str(refused.value)


def test_one_problem_s_refusal_leaves_the_others(base_model: str) -> None:
    prompts = Prompts(base_model, PromptConfig(template=WITHOUT_SYSTEM_ROLE))
    with pytest.raises(PromptRefused):
        prompts.text(WITH_SYSTEM)
    assert prompts.text(ASKED) == "2 + 2?"


def test_a_prompt_without_tokens_cannot_be_posed(base_model: str) -> None:
    with pytest.raises(DataError, match="problem p has no tokens"):
        Prompts(base_model, PromptConfig(chat=False)).token_ids("p", [{"role": "user", "content": ""}])


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("nowhere.jinja", None, "no file that can be read"),
        ("Question:", None, "no file that can be read"),
        ("", None, "no file that can be read"),
        ("~nobody-here/chat.jinja", None, "no home directory ~nobody-here"),
        ("plain.jinja", b"Answer this.", "holds no template"),
        ("latin.jinja", b"{{ messages }} \xe9", "not UTF-8"),
        ("x" * 5000, None, "no file that can be read"),
    ],
)
def test_a_template_that_is_neither_text_nor_file_is_refused(tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValidationError, match=why):
        PromptConfig(template=str(file) if content is not None else name)


def test_a_template_contradicts_plain_completion() -> None:
    with pytest.raises(ValidationError, match="template contradicts chat = false"):
        PromptConfig(chat=False, template="{{ messages }}")


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}", '{{ "half \\ud800" }}'])
def test_a_prompt_with_half_a_character_cannot_be_posed(base_model: str, template: str | None) -> None:
    prompts = Prompts(base_model, PromptConfig(chat=template is not None, template=template))
    with pytest.raises(DataError, match=r"^problem t/1 cannot be posed: its prompt has half a character"):
        prompts.token_ids("t/1", [{"role": "user", "content": "half \ud83d of it"}])
