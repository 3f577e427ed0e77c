"""The docs say what the code does, where that can be checked."""

from __future__ import annotations

import importlib
import importlib.util
import re
import tomllib
from pathlib import Path

import numpy as np

from actors.bonus import BonusScorer
from bonus.config import BonusConfig
from bonus.kinds import KINDS, READS
from bonus.methods import BONUSES
from buffers.schema import with_features
from buffers.tokens import TokenLedger
from jobs.__main__ import NAMES
from jobs.analysis.evaluation import evaluate_outcomes
from jobs.compare_config import CompareConfig
from jobs.config import RunConfig
from jobs.configuration.files import all_keys
from jobs.evaluation_config import EvaluateConfig
from jobs.explore_config import ExploreConfig
from jobs.processes.failures import FailureKind
from jobs.screens.config_keys import COMMANDS
from learners.advantages import NORMALISERS
from learners.config import LearnerConfig
from learners.estimators import ESTIMATORS
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
        "rollout|time|replay|publication|faults|curriculum|late",
    )
)


def metrics_written() -> set[str]:
    names = set()
    for source in (*SOURCES, *ROOT.glob("jobs/run/*.py")):
        names |= set(re.findall(rf'"((?:{GROUPS})/[\w@]+)"', (ROOT / source).read_text()))
    names |= elliptical_metrics() | metrics_of_known_bonuses()
    names |= {f"faults/{kind}" for kind in FailureKind if kind is not FailureKind.BUG}
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


def metrics_of_known_bonuses() -> set[str]:
    """Of a step of each kind alone, without the elliptical one's."""
    group = with_features(make_group(0, [4], [[5], [6, 7], [8]], [1.0, 0.0, 0.0]), np.eye(3, 8, dtype=np.float32), [True] * 3)
    scorers = [BonusScorer(bonus=BonusConfig(kind=kind, dim=8), group_size=3, seed=0) for kind in KINDS if kind != "elliptical"]
    return {name for scorer in scorers for name in scorer.score(group, 0)[1]}


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


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.md"))
FOLDERS = "actors|benchmarks|bonus|buffers|configs|docs|jobs|learners|requirements|tasks|tests"
PACKAGES = "actors|benchmarks|bonus|buffers|jobs|learners|tasks"
NOT_OURS = {"configs/mine.toml", "jobs.NAME", "jobs/NAME.py"}
"""What a page tells its reader to put in."""


def shown_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links_of(page: Path) -> list[str]:
    return re.findall(r"\]\((?!http)([^)]+)\)", page.read_text())


def anchors_of(page: Path) -> set[str]:
    """The anchors that a Markdown page has for its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, attributes = name, []
    while importlib.util.find_spec(module.partition(".")[0]) and not _is_module(module):
        module, _, attribute = module.rpartition(".")
        attributes.insert(0, attribute)
    found = importlib.import_module(module) if attributes else None
    for attribute in attributes:
        if attribute not in vars(found) and attribute not in getattr(found, "__annotations__", {}):
            return False
        found = vars(found).get(attribute)
    return True


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def is_key(name: str) -> bool:
    """Whether a dotted name is a key or a section of a configuration. (Some sections are called like packages.)"""
    keys = {key for root in COMMANDS.values() for key in all_keys(root)}
    return any(f"{key}.".startswith(f"{name}.") for key in keys)


def test_every_link_of_a_page_leads_somewhere():
    links = [(page, *link.partition("#")[::2]) for page in PAGES + RESULTS for link in links_of(page)]
    assert len(links) > 50
    assert [f"{shown_name(page)}: {link}" for page, link, _ in links if not (page.parent / link).exists()] == []
    anchored = [(page, page.parent / link if link else page, anchor) for page, link, anchor in links if anchor]
    assert [f"{shown_name(page)}: {target.name}#{anchor}" for page, target, anchor in anchored if anchor not in anchors_of(target)] == []


def test_every_file_a_page_names_exists():
    pattern = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.-]*\.(?:py|toml|md|txt|in|lock|jinja))\b")
    named = [(page, name) for page in PAGES + RESULTS for name in pattern.findall(without_examples(page))]
    assert len(named) > 50
    assert [f"{shown_name(page)}: {name}" for page, name in named if name not in NOT_OURS and not (ROOT / name).exists()] == []


def test_every_module_a_page_names_exists():
    pattern = re.compile(rf"`(?:python -m )?((?:{PACKAGES})(?:\.[A-Za-z_]\w*)+)")
    named = {(page, name) for page in PAGES + RESULTS for name in pattern.findall(without_examples(page))}
    assert len(named) > 20
    assert [
        f"{shown_name(page)}: {name}" for page, name in sorted(named) if name not in NOT_OURS and not is_key(name) and not resolves(name)
    ] == []


def test_every_command_a_page_names_exists():
    """In code: `repexp NAME`, or a line of a block that begins so."""
    start = re.compile(r"(?:`|^(?:\$ |#? *|\w+ +)?(?:\.venv/bin/)?)repexp ([a-z]\w*)", re.MULTILINE)
    texts = {path: "".join(re.findall(r"`[^`\n]+`|^```\n.*?^```", path.read_text(), re.MULTILINE | re.DOTALL)) for path in PAGES}
    named = [(page, name) for page, text in texts.items() for name in start.findall(text)]
    assert len(named) > 50
    assert [f"{shown_name(page)}: {name}" for page, name in named if name not in (*NAMES, "help")] == []


def without_examples(page: Path) -> str:
    """The text of a page without the files that its reader is to write: blocks that begin with a path in a comment."""
    return re.sub(r"^```\w+\n# \S+\.(?:py|toml)\n.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_readme_lists_every_page():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links_of(ROOT / "README.md")}
    assert [shown_name(page) for page in PAGES[1:] if page not in linked] == []


def test_the_results_are_listed_with_their_topics():
    linked = {link for link in links_of(ROOT / "benchmarks/results/README.md")}
    assert {page.name for page in RESULTS} - {"README.md"} <= linked


def test_the_reading_path_gives_sizes_that_hold():
    path = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert 15 <= len(path) <= 20
    sizes = {name: (int(said), len((ROOT / name).read_text().splitlines())) for name, said in path}
    assert {name: both for name, both in sizes.items() if abs(both[0] - both[1]) > 0.2 * both[1]} == {}, "(said, is)"


def test_every_part_of_a_loss_is_in_the_table():
    named = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/losses.md").read_text(), re.MULTILINE))
    parts = (ESTIMATORS, NORMALISERS, SURROGATES, AGGREGATIONS, CORRECTIONS, KL_ESTIMATORS)
    assert {name for registry in parts for name in registry} <= named


def test_every_known_bonus_is_described_with_its_keys_and_its_source():
    text = (ROOT / "docs/exploration.md").read_text()
    parts = {heading: part.partition("\n## ")[0] for heading, _, part in (part.partition("\n") for part in text.split("\n## "))}
    described = re.findall(r"^\| `(\w+)` \|.*`(bonus/\w+\.py)` \|$", text, re.MULTILINE)
    assert [kind for kind, _ in described] == list(BONUSES)
    assert {kind for kind, file in described if f'KINDS["{kind}"]' not in (ROOT / file).read_text()} == set()
    sources = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]*) \|", parts["Sources"], re.MULTILINE)))
    assert sorted(sources) == sorted(KINDS)
    for cell, readers in re.findall(r"^\| (`[^|]*`) \| ([a-z_, ]+) \|$", parts["Keys"], re.MULTILINE):
        for key in re.findall(r"`([\w.]+)`", cell):
            read = {kind for kind, keys in READS.items() if key.partition(".")[0] in keys}
            assert not read or read == set(readers.split(", ")), key


def test_every_recipe_is_a_run_too():
    """With the keys of [bonus] and the other sections that it names."""
    recipes = (ROOT / "docs/losses.md").read_text().partition("## Recipes")[2].partition("##")[0]
    sections = "|".join(RunConfig.model_fields)
    num_outside = 0
    for line in recipes.splitlines():
        given = re.findall(r"`((?:loss|advantage|mini_batches)[^`]* = [^`]*)`", line)
        outside = re.findall(rf"`((?:{sections})\.[^`]* = [^`]*)`", line)
        num_outside += len(outside)
        if given or outside:
            RunConfig.model_validate(tomllib.loads("\n".join([*(f"learner.{key}" for key in given), *outside])))
    assert num_outside >= 2


def test_toml_of_the_pages_is_valid_configuration():
    """A block is of one of the jobs. Tables that people fill with classes of their own are left out."""
    kinds = (RunConfig, EvaluateConfig, ExploreConfig, CompareConfig)
    num = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            values = tomllib.loads(block)
            if re.search("mylab|mypackage|templates/", block) or not any(values.keys() <= kind.model_fields.keys() for kind in kinds):
                continue
            errors = []
            for kind in kinds:
                try:
                    kind.model_validate(values)
                except ValueError as error:
                    errors.append(f"{kind.__name__}: {error}")
            assert len(errors) < len(kinds), f"{page.name}:\n{block}\n" + "\n".join(errors)
            num += 1
    assert num >= 10


def test_every_recipe_is_a_configuration():
    recipes = (ROOT / "docs/losses.md").read_text().partition("## Recipes")[2].partition("##")[0]
    keys = {
        line.split("|")[1].strip(): re.findall(r"`((?:loss|advantage|mini_batches)[^`]* = [^`]*)`", line)
        for line in recipes.splitlines()
        if line.startswith("| ") and "= " in line
    }
    configs = {name: LearnerConfig.model_validate(tomllib.loads("\n".join(given))) for name, given in keys.items() if given}
    assert len(configs) == 14
    assert len(set(map(repr, configs.values()))) == 14 and LearnerConfig() not in configs.values()
