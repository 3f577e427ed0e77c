"""What docs/tasks.md, docs/verifiers.md and docs/sandbox.md say of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tasks.config import MIXTURE, TASKS, TaskConfig

DOCS = Path(__file__).parents[2] / "docs"
TASK_PAGE = (DOCS / "tasks.md").read_text()


def tables(page: str) -> list[list[list[str]]]:
    """Tables of rows of cells. A bar in a code span must be escaped."""
    blocks = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


@pytest.mark.parametrize("name", ["tasks.md", "verifiers.md", "sandbox.md"])
def test_rows_of_a_table_have_its_columns(name: str) -> None:
    found = tables((DOCS / name).read_text())
    assert found
    for rows in found:
        assert {len(row) for row in rows} == {len(rows[0])}, rows[0]
        assert set("".join(rows[1])) == {"-"}


def test_every_known_task_is_listed_once() -> None:
    names = [row[0].strip(" `") for row in tables(TASK_PAGE)[0][2:]]
    assert sorted(names) == sorted([*TASKS, MIXTURE])


def test_data_sets_and_their_commits_are_those_of_the_configuration() -> None:
    (table,) = [rows for rows in tables(TASK_PAGE) if rows[0][0].strip() == "task" and len(rows[0]) == 4 and "hub" in rows[0][3]]
    listed = set(re.findall(r"([\w.-]+/[\w.-]+), ([0-9a-f]{8})", "".join(row[3] for row in table)))
    config = TaskConfig()
    sources = [config.gsm8k, config.math, config.aime, config.dapo_math, config.dapo_math.amc, config.mbpp_plus, config.mbpp_plus.mbpp]
    expected = {(str(source.hub), source.revision[:8]) for source in sources}
    assert listed == expected | {(str(config.aime.hub_2025), config.aime.revision_2025[:8])}
