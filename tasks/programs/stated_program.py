"""The program that a response states.

    program = stated_program(response)   # None if there is none

It is the last ``` block marked as Python, else the last block without a mark, else the lines of the text that look like
Python from the first def, class, import or decorator on. Reasoning up to </think> is not part of a response. Nothing is
compiled here; the sandbox does that."""

import re

__all__ = ["stated_program"]

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = ("python", "python3", "py")
_FIRST_LINE = re.compile(r"(def|class|async def)\s+\w+.*[:(]|import\s+\w|from\s+[\w.]+\s+import\s|@\w")
_NEXT_LINE = re.compile(
    r"\s|[#)\]}@'\"]"  # within a definition, a comment, the end of a long expression
    r"|(def|class|async def|if|elif|else|for|while|with|try|except|finally)\b.*:"
    r"|(import|from|return|raise|assert|del|global|pass)\b"
    r"|[\w.]+(\[.*\])?(\s*,\s*[\w.]+)*\s*(:[^=]+)?[-+*/%|&^]?=[^=]"  # an assignment
    r"|[\w.]+\("  # a call
)


def stated_program(response: str) -> str | None:
    """Return the program, with "\\n" for line ends and without blank lines around it, or None."""
    text = response.rpartition("</think>")[2].replace("\r\n", "\n").replace("\r", "\n")
    blocks: list[tuple[str, str]] = _BLOCK.findall(text)
    for languages in (_PYTHON, ("",)):
        found = [code for language, code in blocks if language.lower() in languages and code.strip()]
        if found:
            return found[-1].strip("\n")
    return None if blocks else _bare_program(text)


def _bare_program(text: str) -> str | None:
    """Return the longest run of lines that look like Python, from the first definition, import or decorator on."""
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if _FIRST_LINE.match(line)), None)
    if start is None:
        return None
    end = next((number for number in range(start + 1, len(lines)) if lines[number].strip() and not _NEXT_LINE.match(lines[number])), None)
    return "\n".join(lines[start:end]).strip("\n")
