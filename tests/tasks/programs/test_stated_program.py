from __future__ import annotations

import pytest

from tasks.programs.stated_program import stated_program

PROGRAM = "import math\n\ndef f(x):\n    return math.sqrt(x)"


@pytest.mark.parametrize(
    "response",
    [
        f"```python\n{PROGRAM}\n```",
        f"Here it is:\n\n```Python\n\n{PROGRAM}\n\n```\nIt takes the root.",
        f"1. First:\n   ```py\n{PROGRAM}\n   ```",
        f"```\n{PROGRAM}\n```",
        f"```python\n{PROGRAM}",  # cut off at the length limit
        f"```python\r\n{PROGRAM.replace(chr(10), chr(13) + chr(10))}\r\n```\r\n",
        f"A try:\n```python\ndef f(x): return 0\n```\nThat is wrong. Better:\n```python\n{PROGRAM}\n```",
        f"```python\n{PROGRAM}\n```\nIt prints\n```\n2.0\n```\nor\n```text\n2\n```",
        f"<think>\n```python\ndef f(x): pass\n```\n</think>\n```python\n{PROGRAM}\n```",
        f'```python title="f.py"\n{PROGRAM}\n```',
        "1. First:\n\n   ```python\n" + "".join(f"   {line}\n" if line else "\n" for line in PROGRAM.split("\n")) + "   ```\n",
        "- ```python\n" + "".join(f"  {line}\n" if line else "\n" for line in PROGRAM.split("\n")) + "  ```",
        "\t```python\n" + "".join(f"\t{line}\n" for line in PROGRAM.split("\n")) + "\t```",
        f"````python\n{PROGRAM}\n````",
        f"```python\n{PROGRAM}\n```\nFor example:\n```python\nprint(f(4))\n# 2.0\n```",
        f"```python\n{PROGRAM}\n```\nUse:\n```python\n>>> f(4)\n2.0\n```",
        f"```python\n{PROGRAM}\n```\nUse:\n```python\nx = f(4)\nassert x == 2\n```\nand\n```python\nf(9)\n```",
        f"```\n{PROGRAM}\n```\nUse:\n```python\nprint(f(4))\n```",
        f"```python\n{PROGRAM}\n```<|im_end|>\n<|im_start|>user\n```python\ndef f(x): return 0\n```",
        PROGRAM,
        f"{PROGRAM}\n\nThis takes the square root of x.",
        f"The answer is as follows.\n\n{PROGRAM}\n\nHope it helps!",
    ],
)
def test_program_is_found(response: str) -> None:
    assert stated_program(response) == PROGRAM


@pytest.mark.parametrize(
    "response",
    [
        "",
        "I do not know.",
        "</think>",
        "```python\n```",
        "```python\n\n\n```",
        "```json\n{}\n```",
        "The function f returns x.",
        "x" * 10**6,
        "`" * 10**5,
        "```\n" * 10**4,
    ],
)
def test_no_program_is_none(response: str) -> None:
    assert stated_program(response) is None


def test_bare_program_goes_on_over_what_belongs_to_it() -> None:
    program = '''from collections import Counter
LIMITS: dict[str, int] = {
    "a": 1,
}
# a comment
@staticmethod
def f(x):
    """Says:

    something"""
    return x

class A:
    pass

if __name__ == "__main__":
    print(f(1))
x, y = 1, 2
print(x)'''
    assert stated_program(f"Sure!\n{program}\nThe function f gives x back.") == program


def test_last_block_that_says_it_is_python_goes_before_later_ones_that_do_not() -> None:
    assert stated_program("```python\na = 1\n```\n```\nb = 2\n```") == "a = 1"
    assert stated_program("```\na = 1\n```\n```\nb = 2\n```") == "b = 2"


def test_last_block_that_defines_what_is_called_is_the_program() -> None:
    tested = "```python\ndef check():\n    assert f(4) == 2\n```"
    assert stated_program(f"```python\n{PROGRAM}\n```\n{tested}", names={"f"}) == PROGRAM
    assert stated_program(f"```python\n{PROGRAM}\n```\n{tested}") == "def check():\n    assert f(4) == 2"
    assert stated_program(f"```python\nf = lambda x: x\n```\n```python\n{PROGRAM}\n```\n{tested}", names={"f"}) == PROGRAM
    assert stated_program(f"```python\n{PROGRAM}\n```\n```python\nclass f:\n    pass\n```", names={"f"}) == "class f:\n    pass"
    assert stated_program("```python\na = 1\n```\n```python\nb = 2\n```", names={"f"}) == "b = 2"


def test_blocks_that_are_indented_in_part_stay_as_they_are() -> None:
    assert stated_program("   ```python\n    x = 1\ny = 2\n   ```") == "    x = 1\ny = 2"
