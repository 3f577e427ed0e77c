"""The docs say what the code does, where that can be checked."""

from __future__ import annotations

import re
from pathlib import Path

from bonus.diagnostics import BonusDiagnostics
from buffers.tokens import TokenLedger

ROOT = Path(__file__).parents[1]
SOURCES = ("learners/metrics.py", "learners/policy_learner.py", "actors/bonus.py", "jobs/controller.py", "jobs/synchronous.py")
GROUPS = "reward|groups|verifier|response|bonus|advantage|learner|policy|mismatch|mismatch_lag0|rollout|time|replay|publication|faults"


def metrics_written() -> set[str]:
    names = set()
    for source in SOURCES:
        names |= set(re.findall(rf'"((?:{GROUPS})/[\w@]+)"', (ROOT / source).read_text()))
    names |= {f"bonus/{name.removeprefix('bonus_')}" for name in BonusDiagnostics.__dataclass_fields__}
    names |= TokenLedger().metrics().keys()
    return names | {f"mismatch/{kind}" for kind in ("mean", "p95", "max", "outside_band")}


def metrics_documented() -> set[str]:
    names: set[str] = set()
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        cell = line.split("|")[1] if line.startswith("| `") else ""
        section = ""
        for name in re.findall(r"`([^`]+)`", cell):
            section = name.partition("/")[0] or section
            names.add(name if not name.startswith("/") else section + name)
    return names - {"step", "time", "mismatch_lag0/…", "memory/…"}


def test_every_metric_written_is_documented_and_no_other():
    assert len(metrics_written()) > 40
    assert metrics_written() == metrics_documented()


def test_every_file_a_page_links_to_exists():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())]
    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
