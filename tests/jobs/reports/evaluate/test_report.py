"""The report on samples: what is written, what it says, and that text of models stays text."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from jobs.analysis.evaluation import evaluate_outcomes
from jobs.reports.evaluate.plots import SOLVE_RATE_NAMES, solve_rate_counts
from jobs.reports.evaluate.report import EvaluateReport, write_report
from jobs.reports.text import spread
from jobs.sampling.samples import read_responses
from tests.jobs.reports.page_text import Text
from tests.jobs.samples_fixture import outcomes_of, realistic_models, store_of

FIGURES = ("passk", "solve_rates", "difference", "efficiency")
HOSTILE = "</pre><script>alert(1)</script>{{ 7*7 }}\u202e\x1b[2J"


def write(directory: Path, models: dict[str, list[str]], **values: object) -> tuple[EvaluateReport, Text]:
    store = store_of(directory, models, **values)
    max_k = max(len(letters) for problems in models.values() for letters in problems)
    read = partial(read_responses, store)
    report = write_report(read, list(models), {"model": "tiny", "task": {"name": "sums"}}, directory, max_k=max_k, num_resamples=200)
    return report, Text((directory / "report.html").read_text())


def screen(report: EvaluateReport, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    report.print(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluateReport, Text]:
    directory = tmp_path_factory.mktemp("evaluation")
    return directory, *write(directory, realistic_models(24, 32), base_mean_logprob=-1.25)


def test_a_report_is_a_page_its_numbers_and_four_figures_with_theirs(two_models: tuple[Path, EvaluateReport, Text]) -> None:
    directory, report, page = two_models
    written = {path.name for path in directory.iterdir()} - {"samples.parquet"}
    assert written == {"report.json", "report.html", *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "json"))}
    for name in FIGURES:
        height, width, _ = imread(directory / f"{name}.png").shape
        assert width > 900 and height > 400
    record = json.loads((directory / "report.json").read_text())
    assert record["models"]["base"]["pass_at_k"]["value"] == list(report.models["base"].pass_at_k.value)
    assert len(record["problems"]) == 24
    assert "http" not in (directory / "report.html").read_text().replace("http-equiv", "")
    assert page.tags.isdisjoint({"script", "iframe", "a", "link"})


def test_the_page_says_who_is_better_and_by_how_much(two_models: tuple[Path, EvaluateReport, Text]) -> None:
    _, report, page = two_models
    (comparison,) = report.comparisons
    assert (comparison.model, comparison.against) == ("trained", "base")
    assert comparison.difference.at(1).low > 0
    assert "trained less base: pass@1 +0." in page.text
    assert "sample efficiency" in page.text
    assert "trained against base" in page.text
    assert "24 problems, 32 samples of each by each of 2 models." in page.text
    assert "-1.25 (-1.25 to -1.25)" in page.text


def test_the_console_has_a_column_a_model_and_fits_a_screen(two_models: tuple[Path, EvaluateReport, Text]) -> None:
    text = screen(two_models[1])
    assert len(text.splitlines()) <= 40
    header = next(line for line in text.splitlines() if "base" in line and "trained" in line)
    assert header.index("base") < header.index("trained")
    first = two_models[1].models["base"].pass_at_k.at(1)
    assert f"{first.value:.2f} ({first.low:.2f} to {first.high:.2f})" in text


def test_problems_on_which_models_differ_most_are_shown(two_models: tuple[Path, EvaluateReport, Text]) -> None:
    _, report, page = two_models
    gaps = {line.problem_id: abs(line.num_correct[0] - line.num_correct[1]) for line in report.problems}
    assert [gaps[example.problem_id] for example in report.examples] == sorted(gaps.values(), reverse=True)[:3]
    assert report.examples[0].answers[0].correct == "text 1"
    assert f"Reference answer: {report.examples[0].reference_answer}" in page.text


def test_one_model_has_no_comparison_and_one_problem_no_interval(tmp_path: Path) -> None:
    report, page = write(tmp_path, {"only": ["1x?"]})
    assert report.comparisons == ()
    assert not (tmp_path / "difference.png").exists()
    assert "One problem leaves no intervals" in page.text
    assert "0.33" in screen(report)


def test_what_could_not_be_scored_is_told_model_by_model(tmp_path: Path) -> None:
    report, page = write(tmp_path, {"a": ["1xte", "tttt"], "b": ["11xx", "xxxx"]})
    assert "a: 75.00 % of responses could not be scored (timeout or error). They are left out, never counted as wrong" in page.text
    assert "b: " not in " ".join(report.notes)
    assert "62.5 % timeout" in page.text


def test_each_model_is_compared_with_those_before_it(tmp_path: Path) -> None:
    report, _ = write(tmp_path, {"a": ["1xxx", "xxxx"], "b": ["11xx", "1xxx"], "c": ["111x", "xxxx"]})
    assert [(one.model, one.against) for one in report.comparisons] == [("b", "a"), ("c", "a"), ("c", "b")]


def test_figures_of_an_earlier_report_that_no_longer_apply_are_removed(tmp_path: Path) -> None:
    write(tmp_path, {"a": ["1x", "xx"], "b": ["11", "1x"]})
    assert (tmp_path / "efficiency.png").is_file()
    write_report(partial(read_responses, store_of(tmp_path, {"a": ["xx", "xx"]})), ["a"], {}, tmp_path, max_k=2)
    assert not (tmp_path / "efficiency.png").exists()


def test_text_of_models_and_data_sets_stays_text(tmp_path: Path) -> None:
    values = dict.fromkeys(("task", "question", "reference_answer", "response_text", "final_answer"), HOSTILE)
    report, page = write(tmp_path, {"m": ["1x", "x1"]}, **values)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert not {"\x1b", "\u202e"} & {*page.text, *screen(report, 300)}


def test_the_same_samples_and_seed_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, {"m": ["1xxx", "11xx", "xxxx"], "n": ["11xx", "1xxx", "xxxx"]})
    for path in (tmp_path / "a").glob("*.*"):
        if path.suffix != ".parquet":
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_solve_rates_are_counted_by_class() -> None:
    """c / n of 0, 0.1, 0.2, 0.5, 0.9, 0.95 (of 20) and 1; the upper end belongs to a class."""
    outcomes = outcomes_of("x" * 20, "1" * 2 + "x" * 18, "1" * 4 + "x" * 16, "1" * 10 + "x" * 10, "1" * 18 + "xx", "1" * 19 + "x", "1" * 20)
    counts = dict(zip(SOLVE_RATE_NAMES, solve_rate_counts(outcomes).tolist(), strict=True))
    assert counts == {"none": 1, "to 10 %": 1, "to 30 %": 1, "to 50 %": 1, "to 70 %": 0, "to 90 %": 1, "below all": 1, "all": 1}


def test_a_few_k_stand_for_all_in_the_console() -> None:
    assert spread((1, 2, 4, 8, 16, 32, 64, 128, 256), 3) == [1, 16, 256]
    assert spread((1, 2), 6) == [1, 2]
    assert spread((5,), 6) == [5]


def test_every_k_may_be_asked_for() -> None:
    assert evaluate_outcomes(outcomes_of("1xx", "xxx"), ks=(2, 3), num_resamples=100).ks == (2, 3)
