import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from jobs.reports.explore.report import ExploreReport, write_report
from tests.jobs.candidates_fixture import as_table, realistic_table, row, small_table

FIGURES = ("passk", "first_correct", "efficiency")
VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "</pre><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&{{ 7*7 }}\u202e\x1b[2J"


class Page(HTMLParser):
    """Tags of a page, checked to be balanced, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def write(tmp_path, table, settings=None) -> tuple[ExploreReport, Page, dict]:
    report = write_report(table, settings or {}, tmp_path)
    record = json.loads((tmp_path / "report.json").read_text())
    return report, Page((tmp_path / "report.html").read_text()), record


def screen(report: ExploreReport, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    report.print(console)
    return console.file.getvalue().splitlines()


def files(tmp_path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()}


def files_of(*figures) -> set[str]:
    return {"report.json", "report.html", *(f"{name}.{kind}" for name in figures for kind in ("png", "json"))}


@pytest.fixture(scope="module")
def realistic(tmp_path_factory) -> tuple[Path, ExploreReport]:
    directory = tmp_path_factory.mktemp("report") / "not" / "yet" / "there"
    settings = {"model": "tiny", "select": [1, 2, 4, 8], "selection": {"ridge": 1.0}, "rollout": {"workers": 2}}
    return directory, write_report(realistic_table(24, 32), settings, directory, seed=5)


# ---- a whole report


def test_a_report_is_a_page_its_numbers_and_three_figures_with_theirs(realistic):
    directory, _ = realistic
    assert files(directory) == files_of(*FIGURES)
    for name in FIGURES:
        height, width, _ = imread(directory / f"{name}.png").shape
        assert width > 1000 and height > 500


def test_the_page_needs_nothing_but_itself(realistic):
    html = (realistic[0] / "report.html").read_text()
    page = Page(html)
    assert "http" not in html.replace("http-equiv", "")
    assert not {"script", "link", "iframe", "a"} & {tag for tag, _ in page.tags}
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_numbers_of_a_figure_are_those_of_the_report(realistic):
    directory, report = realistic
    drawn = json.loads((directory / "passk.json").read_text())
    assert drawn["curves"]["repexp"]["value"] == list(report.statistics.orders["repexp"].pass_at_k.value)
    assert drawn["curves"]["random"]["low"] == list(report.statistics.random_pass_at_k.low)
    assert set(drawn["order_of_legend"]) == {"random", *report.statistics.orders}
    first = json.loads((directory / "first_correct.json").read_text())["quality"]
    assert sum(first["order"]) / len(first["order"]) == pytest.approx(report.statistics.orders["quality"].first_correct.value)
    assert first["below"] + first["above"] <= len(first["order"]) == report.statistics.num_solvable
    ratio = json.loads((directory / "efficiency.json").read_text())["quality"]
    assert ratio["high"] == list(report.statistics.orders["quality"].efficiency_at_k.high)


def test_report_json_holds_what_the_page_shows(realistic):
    directory, report = realistic
    record = json.loads((directory / "report.json").read_text())
    text = Page((directory / "report.html").read_text()).text
    for sentence in record["summary"]:
        assert sentence in text
    for name, order in record["statistics"]["orders"].items():
        efficiency = order["efficiency"]
        shown = f"{efficiency['value']:.2f} ({efficiency['low']:.2f} to {efficiency['high']:.2f})"
        assert shown in text, name
        assert f"{record['picks'][name]['mean_tokens']:.1f}" in text
    assert record["statistics"]["ks"] == [1, 2, 4, 8]
    assert len(record["examples"]) == len(report.examples) > 0


def test_the_drawn_random_order_gives_way_to_the_exact_one(realistic):
    _, report = realistic
    assert "random" not in report.statistics.orders
    assert next(iter(report.picks)) == "random"
    assert sum(line.startswith("random ") for line in screen(report)) == 1


def test_the_summary_names_the_result_and_what_it_was_measured_on(realistic):
    summary = " ".join(realistic[1].summary)
    assert "24 prompts of sums, 32 candidates each: 768 in all." in summary
    assert "repexp (novelty): " in summary and "Efficiency" in summary
    assert "model tiny, selection.ridge 1.0." in summary
    assert "tokens on average" in summary and "cut off" in summary and "no_answer" in summary


def test_the_table_of_orders_fits_a_terminal(realistic):
    """No cell is broken: every order is one line."""
    lines = screen(realistic[1])
    table = lines[: lines.index(realistic[1].summary[0]) - 1]
    assert [line.split()[0] for line in table[-9:]] == ["random", *(name[:16] for name in realistic[1].statistics.orders)]
    assert all(line.endswith(")") for line in table[-8:]) and max(map(len, table)) <= 80
    assert any(line.split()[:5] == ["pass@k", "1", "2", "4", "8"] for line in table)


def test_the_same_table_and_seed_give_the_same_files(realistic, tmp_path):
    table = small_table("0100", "1000", "0001")
    for name in ("a", "b"):
        write_report(table, {}, tmp_path / name, seed=3)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


# ---- what tables may lack


def test_a_report_without_a_solvable_prompt_says_that_no_order_can_be_better(tmp_path):
    report, page, record = write(tmp_path, small_table("000", "000"))
    assert files(tmp_path) == files_of()
    assert "0 of 2 prompts have a correct candidate, so that no order can be better than another" in page.text
    assert record["statistics"]["orders"]["repexp"]["efficiency"] is None
    assert any(line.split()[:2] == ["repexp", "0.00"] for line in screen(report))


def test_a_report_of_one_prompt_has_no_intervals(tmp_path):
    report, page, _ = write(tmp_path, small_table("0010"))
    assert files(tmp_path) == files_of(*FIGURES)
    assert "One prompt leaves no intervals" in page.text
    assert "Efficiency 0.83: of one prompt" in " ".join(report.summary)
    assert "95 % interval 0" not in " ".join(report.summary)


def test_a_report_of_one_candidate_a_problem_has_nothing_to_order(tmp_path):
    report, page, _ = write(tmp_path, small_table("1", "0", "1"))
    assert files(tmp_path) == files_of("first_correct")
    assert "Pools of one candidate have nothing to order." in page.text
    assert "3 prompts of sums, 1 candidate each" in report.summary[0]


def test_a_report_of_correct_candidates_alone_has_efficiency_1(tmp_path):
    report, _, _ = write(tmp_path, small_table("111", "111"))
    assert files(tmp_path) == files_of("passk", "first_correct")
    assert report.statistics.orders["repexp"].efficiency.value == 1.0
    assert report.warning is None


def test_a_report_without_verdicts_has_lengths_picks_and_examples_only(tmp_path):
    table = small_table("...", "...", verdict_answer=None).drop_columns(["verdict_status", "reward", "verdict_answer"])
    report, page, record = write(tmp_path, table)
    assert files(tmp_path) == files_of()
    assert record["statistics"] is None
    assert "No candidate was verified: there is no pass@k" in page.text
    assert "Candidates have 3 tokens on average" in page.text
    assert [example.kind for example in report.examples] == ["first", "first"]
    assert "not verified" in page.text
    assert set(record["picks"]) == {"random", "quality", "repexp"}
    assert screen(report)[0] == report.summary[0]


def test_with_verdicts_on_the_first_candidates_only_random_choice_is_said_to_be_unknown(tmp_path):
    report, page, record = write(tmp_path, small_table("01..", "00..", orders=("repexp", "quality", "random")))
    assert files(tmp_path) == files_of("passk")
    assert "What random choice would have found is not known: that needs a verdict on every candidate of a pool." in page.text
    assert record["statistics"]["random_pass_at_k"] is None
    assert record["statistics"]["orders"]["repexp"]["pass_at_k"]["value"] == [0.0, 0.5]
    assert record["statistics"]["orders"]["quality"]["pass_at_k"] is None
    assert set(record["statistics"]["orders"]) == {"repexp", "quality", "random_draw"}
    assert "random (one draw)" in page.text
    assert any(line.split() == ["repexp", "0.00", "0.50", "–", "–", "–"] for line in screen(report))


def test_prompts_without_any_verdict_are_left_out_and_counted(tmp_path):
    report, page, _ = write(tmp_path, small_table("0100", "....", "1000"))
    assert report.statistics.num_prompts == 2
    assert report.statistics.random_pass_at_k is not None
    assert "1 prompt without any verdict left out" in page.text
    assert {example.problem_id for example in report.examples} <= {"p0", "p2"}


def test_orders_that_a_table_lacks_are_named(tmp_path):
    report, page, _ = write(tmp_path, small_table("010", "100", orders=("likeliest", "longest")))
    assert files(tmp_path) == files_of("passk")
    assert "Not in this table: the orders repexp, quality, random, unlikeliest" in page.text
    assert "Examples: what likeliest picks" in page.text
    assert report.warning is None


def test_a_table_without_any_order_still_has_random_choice(tmp_path):
    report, _, _ = write(tmp_path, small_table("010", "100", orders=()))
    assert report.statistics.random_pass_at_k.value == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert report.examples == ()
    assert files(tmp_path) == files_of("passk")


def test_what_could_not_be_scored_counts_as_not_correct_and_is_said(tmp_path):
    report, _, record = write(tmp_path, small_table("t1", "e0"))
    assert report.statistics.random_pass_at_k.at(1).value == 0.25
    assert record["overview"]["verdicts"] == {
        "correct": 1,
        "incorrect": 1,
        "no_answer": 0,
        "malformed": 0,
        "timeout": 1,
        "error": 1,
        "not verified": 0,
    }
    assert "Timeouts and errors (2) could not be scored and count as not correct." in " ".join(report.summary)


def test_problems_may_differ_in_their_number_of_candidates(tmp_path):
    report, _, _ = write(tmp_path, small_table("01", "00010", "0"))
    assert "1 to 5 candidates each: 8 in all" in report.summary[0]
    assert files(tmp_path) == files_of(*FIGURES)


def test_an_order_worse_than_random_is_warned_about_first(tmp_path):
    report, page, _ = write(tmp_path, small_table(*["00000011"] * 12))
    assert "(repexp) finds correct answers less often than random choice" in report.warning
    assert page.text.index("Warning.") < page.text.index("12 prompts of sums")
    assert any(line.startswith("WARNING: ") for line in screen(report))


def test_an_empty_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        write_report(small_table("1").slice(0, 0), {}, tmp_path)
    assert files(tmp_path) == set()


# ---- hostile text, files


def test_text_of_models_and_data_sets_stays_text(tmp_path):
    names = ("task", "problem_id", "question", "reference_answer", "response_text", "verdict_answer")
    table = as_table([row(0, i, {"repexp": i}, **dict.fromkeys(names, HOSTILE), verdict_status="correct") for i in range(2)])
    report, page, _ = write(tmp_path, table, {"model": HOSTILE})
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object"})
    assert all(attributes["src"].startswith("data:") for tag, attributes in page.tags if tag == "img")
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "\\u{202e}\\u{1b}[2J" in page.text
    assert not {"\x1b", "\u202e"} & {*page.text, *"".join(screen(report))}


def test_long_answers_are_cut(tmp_path):
    _, page, _ = write(tmp_path, small_table("10", response_text="x" * 5000))
    assert "(4300 more characters)" in page.text
    assert len(page.text) < 10_000


def test_figures_of_an_earlier_report_that_no_longer_apply_are_removed(tmp_path):
    write(tmp_path, small_table("010", "100"))
    assert files(tmp_path) == files_of(*FIGURES)
    write(tmp_path, small_table("...", "..."))
    assert files(tmp_path) == files_of()


def test_an_interrupted_write_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    write(tmp_path, small_table("010", "100"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(self, target):
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        write_report(small_table("000", "001"), {}, tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == before


def test_settings_are_shown_flat(tmp_path):
    _, page, record = write(tmp_path, small_table("10"), {"task": {"name": "sums", "path": None}, "select": (1, 2)})
    assert record["settings"] == {"task.name": "sums", "task.path": "None", "select": "(1, 2)"}
    assert "3 settings" in page.text
