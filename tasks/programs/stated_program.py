"""The program that a response states.

    program = stated_program(response)   # None if there is none

Of the answer part of a response (`tasks.judging`), it is the last ``` block marked as Python, else the last
block without a mark, else the lines of the text that look like Python from the first def, class, import or decorator
on. Of several blocks, the last one counts that defines a name that is asked for; without any, the last one that
defines a function or class. So a block of example use after the program does not count. An indented block is moved to
the left, as Markdown does. Nothing is compiled here; the sandbox does that."""

import re
from collections.abc import Callable, Collection
from itertools import product

from tasks.base import DEFAULT_JUDGING, JudgingConfig

__all__ = ["stated_program"]

_BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)(?:(?:[-*+]|[0-9]{1,3}[.)])[ \t]+)?```+[ \t]*(?P<language>\w*)[^\n`]*\n(?P<code>.*?)(?:^[ \t]*```|\Z)",
    re.MULTILINE | re.DOTALL,
)
_DEFINED = re.compile(r"^(?:async[ \t]+)?(?:def|class)[ \t]", re.MULTILINE)
_NAMED = re.compile(r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*(?::[^=\n]*)?=[ \t]*\w", re.MULTILINE)
_PYTHON = ("python", "python3", "py")
_FIRST_LINE = re.compile(r"(def|class|async def)\s+\w+.*[:(]|import\s+\w|from\s+[\w.]+\s+import\s|@\w")
_NEXT_LINE = re.compile(
    r"\s|[#)\]}@'\"]"  # within a definition, a comment, the end of a long expression
    r"|(def|class|async def|if|elif|else|for|while|with|try|except|finally)\b.*:"
    r"|(import|from|return|raise|assert|del|global|pass)\b"
    r"|[\w.]+(\[.*\])?(\s*,\s*[\w.]+)*\s*(:[^=]+)?[-+*/%|&^]?=[^=]"  # an assignment
    r"|[\w.]+\("  # a call
)


def stated_program(response: str, judging: JudgingConfig = DEFAULT_JUDGING, *, names: Collection[str] = ()) -> str | None:
    """Return the program, with "\\n" for line ends and without blank lines around it, or None. `names` are those that a
    program may have to define."""
    text = judging.answer_part(response).replace("\r\n", "\n").replace("\r", "\n")
    blocks = [(match["language"].lower(), _dedented(match["code"])) for match in _BLOCK.finditer(text)]
    groups = [[code for language, code in blocks if language in languages and code.strip()] for languages in (_PYTHON, ("",))]
    rules: tuple[Callable[[str], object], ...] = (lambda code: _defines(code, names), _DEFINED.search, str.strip)
    for rule, codes in product(rules, groups):
        if found := [code for code in codes if rule(code)]:
            return found[-1].strip("\n")
    return None if blocks else _bare_program(text)


def _defines(code: str, names: Collection[str]) -> bool:
    """Return whether a function or class, or a value, has one of `names`."""
    return any((match[1] or match[2]) in names for match in _NAMED.finditer(code))


def _dedented(code: str) -> str:
    """Move all lines to the left as far as the first one with text is indented, if none has less than that."""
    lines = code.split("\n")
    first = next((line for line in lines if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip(" \t"))]
    is_common = indent and all(line.startswith(indent) or not line.strip() for line in lines)
    return "\n".join(line.removeprefix(indent) for line in lines) if is_common else code


def _bare_program(text: str) -> str | None:
    """Return the longest run of lines that look like Python, from the first definition, import or decorator on."""
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if _FIRST_LINE.match(line)), None)
    if start is None:
        return None
    end = next((number for number in range(start + 1, len(lines)) if lines[number].strip() and not _NEXT_LINE.match(lines[number])), None)
    return "\n".join(lines[start:end]).strip("\n")
