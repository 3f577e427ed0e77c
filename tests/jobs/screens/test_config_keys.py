"""Every key has a text, and the terminal and the page show all of them."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from rich.console import Console

from buffers.extensions import Known
from jobs import train
from jobs.config import RunConfig
from jobs.configuration.files import all_keys
from jobs.configuration.user_error import UserError
from jobs.screens.config_keys import COMMANDS, KeySection, _markdown, main, page, sections, selected, show

REPOSITORY = Path(__file__).resolve().parents[3]
ROOTS = list(COMMANDS.values())


class Part(BaseModel):
    """One part.

    It has a second paragraph."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    weight: float = Field(1.0, gt=0, le=2)
    """Not [bold]markup[/bold], *emphasis* or `a_code`."""


class Root(BaseModel):
    """A configuration with every kind of key."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    method: Annotated[str, AfterValidator(Known("clip", "gspo"))] = "clip"
    """A seam."""
    methods: tuple[Annotated[str, AfterValidator(Known("log"))], ...] = ("log",)
    """Several of a seam."""
    method_options: dict[str, Any] = {}
    """A table."""
    path: str | None = None
    """Unset by default."""
    ridge: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """A number or a word."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Two numbers."""
    on: bool = False
    """A switch."""
    count: int = Field(32, gt=0, multiple_of=32)
    """A count."""
    first: Part = Part()
    second: Part = Part(weight=2.0)
    parts: dict[str, Part] = {}
    """Parts by label."""


def shown(*arguments: str) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    show(selected(Root, *arguments), console)
    return console.file.getvalue()


@pytest.mark.parametrize("root", ROOTS)
def test_every_key_has_a_text(root):
    assert [key.name for section in sections(root) for key in section.keys if not key.text.strip()] == []


@pytest.mark.parametrize("root", ROOTS)
def test_every_section_has_a_text(root):
    assert [section.name for section in sections(root) if not section.text.strip()] == []


@pytest.mark.parametrize("root", ROOTS)
def test_every_text_is_in_the_schema(root):
    schema = root.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    assert [
        name for model in models for name, field in model.get("properties", {}).items() if not {"description", "$ref"} & set(field)
    ] == []
    assert [model["title"] for model in models if "properties" in model and "description" not in model] == []


@pytest.mark.parametrize("root", ROOTS)
def test_the_keys_of_all_sections_are_all_keys(root):
    listed = {key.name for section in selected(root, "") for key in section.keys}
    repeated = [section.name for section in selected(root, "") if section.same_as is not None]
    left_out = {key for key in all_keys(root) if any(key.startswith(f"{name}.") for name in repeated)}
    assert listed | left_out == set(all_keys(root)) and not listed & left_out


def test_kinds_and_defaults_are_said_as_a_file_has_them():
    assert {key.name: (key.kind, key.default) for section in sections(Root) for key in section.keys} == {
        "method": ('"clip" | "gspo" | "package.module:name"', '"clip"'),
        "methods": ('list of ("log" | "package.module:name")', '["log"]'),
        "method_options": ("table", "{}"),
        "path": ("string", "unset"),
        "ridge": ('number > 0 | "auto"', '"auto"'),
        "betas": ("[number, number]", "[0.9, 0.95]"),
        "on": ("true or false", "false"),
        "count": ("integer > 0, in multiples of 32", "32"),
        "first.weight": ("number > 0, ≤ 2", "1.0"),
    }


def test_a_section_whose_model_was_met_refers_to_it_with_what_differs():
    second, parts = sections(Root)[2:]
    assert (second.name, second.same_as, second.changed) == ("second", "first", ["weight = 2.0"])
    assert (parts.name, parts.same_as, parts.changed) == ("parts.LABEL", "first", [])


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("first", ["first.weight"]),
        ("first.weight", ["first.weight"]),
        ("first.we", ["first.weight"]),
        ("method", ["method"]),
        ("meth", ["method", "methods", "method_options"]),
        ("second.weight", ["second.weight"]),
        ("parts.mine.weight", ["parts.LABEL.weight"]),
    ],
)
def test_a_prefix_selects_a_section_or_a_key_or_the_beginning_of_a_name(prefix, names):
    assert [key.name for section in selected(Root, prefix) for key in section.keys] == names


@pytest.mark.parametrize(
    ("prefix", "named"),
    [
        ("frist", "unknown key 'frist'; did you mean 'first'?"),
        ("first.wieght", "unknown key 'first.wieght'; did you mean 'first.weight'?"),
        ("parts.mine.wieght", "did you mean 'parts.mine.weight'?"),
        ("ridge.x", "'ridge' is a key and has none below it"),
    ],
)
def test_an_unknown_prefix_is_refused_with_the_nearest(prefix, named):
    with pytest.raises(UserError) as refusal:
        selected(Root, prefix)
    assert named in str(refusal.value)


def test_text_is_never_read_as_markup():
    assert "Not [bold]markup[/bold], *emphasis* or `a_code`." in shown("first")
    assert "[first]\nOne part." in shown("first")
    assert r"Not \[bold\]markup\[/bold\], \*emphasis\* or `a_code`." in _markdown(selected(Root, "first")[0])


def test_paragraphs_stay_apart_on_the_page_and_no_line_begins_a_list():
    section = sections(Root)[1]
    assert "One part.\n\nIt has a second paragraph.\n" in _markdown(section)
    wrapped = _markdown(KeySection(name="", text="x" * 115 + " + y", keys=[]))
    assert wrapped.endswith("x\n\\+ y\n")


def test_keys_are_printed_without_a_configuration(capsys):
    assert train.main(["--keys", "learner.lr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[learner]"
    assert any(line.startswith("learner.lr  number > 0  default 2e-05") for line in lines)
    assert not any("learner.loss" in line for line in lines)


def test_all_keys_are_printed_without_a_prefix(capsys):
    assert train.main(["--keys"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{key.name}  " in printed for section in sections(RunConfig) for key in section.keys)


def test_an_unknown_prefix_is_one_line_and_exit_code_2(capsys):
    assert train.main(["--keys", "lerner.lr"]) == 2
    assert capsys.readouterr() == ("", "error: unknown key 'lerner.lr'; did you mean 'learner'?\n")


@pytest.mark.parametrize("arguments", [["configs/quickstart.toml", "--keys", "learner"], ["--keys", "learner", "--dry-run"], []])
def test_keys_go_with_nothing_else_and_a_run_needs_a_configuration(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(arguments)
    assert end.value.code == 2
    capsys.readouterr()


def test_the_committed_page_is_what_the_generator_writes(tmp_path):
    assert main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == page()
    assert (REPOSITORY / "docs/configuration.md").read_text() == page(), "run `make docs` and commit docs/configuration.md"


def test_the_page_has_every_section_and_refers_to_sections_it_has():
    text = page()
    for root in ROOTS:
        for section in selected(root, ""):
            assert section.name == "" or f"### {section.name}\n" in text or f"[{section.name}]" in text


def test_listing_keys_imports_neither_torch_nor_ray_nor_vllm():
    loaded = "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    code = f"import sys\nfrom jobs.train import main\nmain(['--keys'])\n{loaded}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "ray", "vllm", "transformers"} & set(done.stderr.split())
