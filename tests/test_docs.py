"""The docs say what the code does, where that can be checked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np

from actors.bonus import BonusScorer
from bonus.config import BonusConfig
from buffers.schema import with_features
from buffers.tokens import TokenLedger
from jobs.analysis.evaluation import evaluate_outcomes
from learners.advantages import NORMALISERS
from learners.config import LearnerConfig
from learners.loss.aggregation import AGGREGATIONS
from learners.loss.corrections import CORRECTIONS
from learners.loss.kl import KL_ESTIMATORS
from learners.loss.surrogates import SURROGATES
from learners.mismatch import Cause, MismatchTokens, mismatch_metrics
from tests.jobs.samples_fixture import outcomes_of
from tests.learners.samples import make_group

ROOT = Path(__file__).parents[1]
SOURCES = ("learners/metrics.py", "learners/policy_learner.py", "jobs/run/controller.py", "jobs/run/synchronous.py")
GROUPS = "|".join(
    (
        "reward|groups|verifier|response|bonus|advantage|learner|policy|mismatch|mismatch_lag0",
        "rollout|time|replay|publication|faults|curriculum",
    )
)


def metrics_written() -> set[str]:
    names = set()
    for source in SOURCES:
        names |= set(re.findall(rf'"((?:{GROUPS})/[\w@]+)"', (ROOT / source).read_text()))
    names |= elliptical_metrics()
    names |= TokenLedger().metrics().keys()
    names |= {re.sub(r"@\d+$", "@k", name) for name in evaluate_outcomes(outcomes_of("1x", "11")).metrics()}
    columns = {name: np.arange(4.0) for name in MismatchTokens.__dataclass_fields__}
    names |= {name for name in mismatch_metrics(MismatchTokens(**columns)) if not name.startswith("mismatch_lag")}
    return names | {f"mismatch/alarm_{cause}" for cause in Cause} | {"mismatch/engine_temperature"}


def elliptical_metrics() -> set[str]:
    """Of a step that has them all: it remembers prompts, and its ridge is so large that the bonus carries no signal."""
    group = make_group(0, [4], [[5], [6, 7], [8]], [1.0, 0.0, 0.0])
    features_KD = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    encoded = with_features(group, features_KD, [True] * 3)
    scorer = BonusScorer(bonus=BonusConfig(dim=8, memory="prompt", ridge=1e9), group_size=3, seed=0)
    return set(scorer.score(encoded, 0)[1])


def metrics_documented() -> set[str]:
    names: set[str] = set()
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        cell = line.split("|")[1] if line.startswith("| `") else ""
        section = ""
        for name in re.findall(r"`([^`]+)`", cell):
            section = name.partition("/")[0] or section
            names.add(name if not name.startswith("/") else section + name)
    lags = {f"mismatch_lag{lag}/…" for lag in range(4)} | {"mismatch_lag0/share"}
    return names - lags - {"step", "time", "memory/…", "curriculum/pass_rate/…", "…"}


def test_every_metric_written_is_documented_and_no_other():
    assert len(metrics_written()) > 40
    assert metrics_written() == metrics_documented()


def test_every_file_a_page_links_to_exists():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())]
    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_every_part_of_a_loss_is_in_the_table():
    named = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/losses.md").read_text(), re.MULTILINE))
    parts = (NORMALISERS, SURROGATES, AGGREGATIONS, CORRECTIONS, KL_ESTIMATORS)
    assert {name for registry in parts for name in registry} <= named


def test_every_recipe_is_a_configuration():
    recipes = (ROOT / "docs/losses.md").read_text().partition("Recipes")[2].partition("##")[0]
    keys = {
        line.split("|")[1].strip(): re.findall(r"`((?:loss|advantage|mini_batches)[^`]* = [^`]*)`", line)
        for line in recipes.splitlines()
        if "= " in line
    }
    configs = {name: LearnerConfig.model_validate(tomllib.loads("\n".join(given))) for name, given in keys.items() if given}
    assert len(configs) == 8
    assert len(set(map(repr, configs.values()))) == 8 and LearnerConfig() not in configs.values()
