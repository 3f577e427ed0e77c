"""The page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import report
from tests.jobs.reports.run.browser import CHROMIUM, Browser
from tests.jobs.reports.run.run_fixture import HOSTILE, written_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")

TEXTS = [HOSTILE, "It is 4.\nOr 5?", "cut"]
SELECTED = "document.querySelector('#rows [aria-selected=true]')?.dataset.row ?? null"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 steps with 2 groups of 3 responses each."""
    directory = written_run(tmp_path_factory.mktemp("runs"), texts=TEXTS)
    assert report.main([str(directory)]) == 0
    return directory / "report.html"


@pytest.fixture(scope="module")
def shared(page: Path) -> Iterator[Browser]:
    with Browser.open(page.as_uri()) as browser:
        yield browser


@pytest.fixture
def browser(shared: Browser, page: Path) -> Browser:
    """The page, just opened. No test may leave an error in the console."""
    shared.send("Page.navigate", url="about:blank")
    shared.errors.clear()
    shared.requests.clear()
    shared.send("Page.navigate", url=page.as_uri())
    return shared.ready()


def found(browser: Browser) -> int:
    return int(browser.js("document.getElementById('found').textContent").split()[0])


def set_filter(browser: Browser, name: str, value: str) -> None:
    field = f"document.getElementById('filters').elements['{name}']"
    browser.js(f"{field}.value = {value!r}; {field}.dispatchEvent(new Event('input', {{ bubbles: true }}))")


def test_it_needs_nothing_else_and_hostile_text_stays_text(browser: Browser, page: Path) -> None:
    assert browser.js("document.title") == "mine: training run"
    assert browser.js("document.querySelector('#detail .tokens').textContent") == HOSTILE.replace("\u202e", "\\u{202e}") + "<|end|>"
    assert browser.js("document.querySelectorAll('img').length") == 0
    assert browser.requests == [page.as_uri()] and browser.errors == []


def test_a_script_of_somebody_else_does_not_run(browser: Browser) -> None:
    """An attribute that is a script, as if some text had become markup after all."""
    browser.js(
        """new Promise((done) => {
            document.body.insertAdjacentHTML("beforeend", `<img src=x onerror="document.title = 'owned'">`);
            document.body.lastChild.addEventListener("error", () => done(true));
        })"""
    )
    assert browser.js("document.title") == "mine: training run"
    assert any("Content Security Policy" in error for error in browser.errors)


@pytest.mark.parametrize(
    ("name", "value", "num"),
    [
        ("step", "2", 6),
        ("step", "2-3", 12),
        ("step", "2-", 12),
        ("step", "two", 18),
        ("verdict", "correct", 6),
        ("problem", "SUMS/4", 3),
        ("text", "or 5?", 6),
        ("text", "what is 3", 3),
        ("text", "nowhere", 0),
    ],
)
def test_responses_are_filtered(browser: Browser, name: str, value: str, num: int) -> None:
    set_filter(browser, name, value)
    assert found(browser) == num and browser.errors == []


def test_filters_add_up_and_are_cleared(browser: Browser) -> None:
    set_filter(browser, "step", "1")
    browser.js("document.getElementById('filters').elements.cut.click()")
    assert found(browser) == 2
    browser.js("document.querySelector('#filters [type=reset]').click()")
    browser.until("document.getElementById('found').textContent.startsWith('18 of 18')")


def test_keys_move_through_responses_and_groups_and_change_the_shading(browser: Browser) -> None:
    assert browser.js(SELECTED) == "12"  # the newest step comes first
    browser.press("j")
    assert browser.js(SELECTED) == "13" and "#rollout=3.4.1" in browser.js("location.hash")
    browser.press("J", shift=True)
    assert browser.js(SELECTED) == "15"
    browser.press("k")
    assert browser.js(SELECTED) == "14"
    pressed = "document.querySelector('.choices [aria-pressed=true]').textContent"
    assert browser.js(pressed) == "log-prob"
    browser.press("s")
    assert browser.js(pressed) == "none"
    browser.press("s")
    assert browser.js(pressed) == "version" and "version 1 (lag 1), 2 (lag 0)" in browser.js("document.querySelector('.told').textContent")
    browser.press("/")
    assert browser.js("document.activeElement.name") == "text"
    browser.press("j")
    assert "#rollout=3.4.2" in browser.js("location.hash")  # a letter in a field is a letter


def test_a_link_opens_its_response_even_where_a_filter_hides_it(browser: Browser, page: Path) -> None:
    set_filter(browser, "step", "3")
    browser.js("location.hash = '#rollout=1.1.2'")
    browser.until(f"({SELECTED}) === '5'")
    assert "step 1, group 1, response 2" in browser.js("document.getElementById('detail').textContent")
    browser.js("location.hash = '#rollout=9.9.9'")
    browser.until("document.getElementById('detail').textContent.includes('no response 9 of group 9')")
    browser.send("Page.navigate", url="about:blank")
    browser.send("Page.navigate", url=f"{page.as_uri()}#rollout=2.3.1")
    browser.ready().until(f"({SELECTED}) === '10'")


def test_a_heading_sorts_within_groups_or_all(browser: Browser) -> None:
    top = "getBoundingClientRect().top"
    rows = f"[...document.querySelectorAll('#rows .row:not(.group)')].sort((a, b) => a.{top} - b.{top})"
    heading = "[...document.querySelectorAll('#headings button')].find((one) => one.textContent.startsWith('tokens'))"
    browser.js(f"{heading}.click()")
    browser.js(f"{heading}.click()")
    assert browser.js(f"{rows}.map((row) => row.dataset.row).slice(0, 3)") == ["14", "13", "12"]
    browser.js("document.getElementById('filters').elements.together.click()")
    assert browser.js(f"{rows}.map((row) => row.dataset.row).slice(0, 6)") == ["2", "5", "8", "11", "14", "17"]


def test_the_timeline_tells_what_is_under_the_pointer_and_leads_to_the_rollouts_of_a_step(browser: Browser) -> None:
    browser.js("document.getElementById('timeline').scrollIntoView()")
    edges = "(({ left, top, width }) => [left, top, width])(document.querySelector('#picture canvas').getBoundingClientRect())"
    left, top, width = browser.js(edges)
    x = left + 118 + (width - 118) * 25 / 60  # step 2 trains from 20 to 30 of 60 seconds
    for kind, button in (("mouseMoved", "none"), ("mousePressed", "left"), ("mouseReleased", "left")):
        browser.send("Input.dispatchMouseEvent", type=kind, x=x, y=top + 25, button=button, clickCount=int(button == "left"))
    assert "training step 2: 0:20.0 to 0:30.0, 10 s" in browser.js("document.getElementById('told').textContent")
    assert browser.js("document.getElementById('filters').elements.step.value") == "2" and browser.errors == []


def test_a_click_on_a_curve_leads_to_the_rollouts_of_its_step(browser: Browser) -> None:
    click = "dispatchEvent(new MouseEvent('click', { clientX: BOX.left + BOX.width * 0.55, clientY: BOX.top + 9, bubbles: true }))"
    browser.js(f"(() => {{ const image = document.querySelector('.chart svg'), BOX = image.getBoundingClientRect(); image.{click}; }})()")
    assert browser.js("document.getElementById('filters').elements.step.value") == "2" and found(browser) == 6


def test_what_is_under_the_pointer_is_told(browser: Browser) -> None:
    browser.js("document.querySelectorAll('.tokens .token')[3].dispatchEvent(new MouseEvent('mouseover', { bubbles: true }))")
    told = browser.js("document.querySelector('.told').textContent")
    assert told == 'token 3 "c", log-prob −0.375 (probability 0.687), version 1, lag 1'
    browser.js("document.querySelector('.chart svg').dispatchEvent(new MouseEvent('mousemove', { clientX: 9999, bubbles: true }))")
    assert "0.3step 3" in browser.js("document.querySelector('.chart figcaption').textContent")


def test_only_the_rows_that_are_seen_are_made(tmp_path: Path) -> None:
    """Ten thousand responses: the rows follow the scroll, and a filter takes less than a blink."""
    page = tmp_path / "page.html"
    directory = written_run(tmp_path, steps=50, texts=["It is 3."] * 100)
    assert report.main([str(directory), "--out", str(page)]) == 0
    with Browser.open(page.as_uri()) as browser:
        browser.ready()
        assert browser.js("document.getElementById('found').textContent") == "10,000 of 10,000 responses."
        for share in (0, 0.3, 1):
            browser.js(f"document.getElementById('list').scrollTop = {share} * document.getElementById('list').scrollHeight")
            browser.until(
                "(() => { const row = document.elementFromPoint(200, document.getElementById('list').getBoundingClientRect().top + 200);"
                "return row?.closest('#rows .row') !== null && document.querySelectorAll('#rows .row').length < 100; })()"
            )
        took_ms = browser.js(
            "(() => { const begun = performance.now(); document.getElementById('filters').elements.verdict.value = 'correct';"
            "document.getElementById('filters').dispatchEvent(new Event('input')); return performance.now() - begun; })()"
        )
        assert found(browser) == 100 and took_ms < 1000
