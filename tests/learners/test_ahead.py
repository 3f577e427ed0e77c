"""One is made ready while another is used: no more, in order, with its own errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from learners.ahead import ahead

WAIT_S = 30.0


def test_the_next_is_made_ready_while_the_current_is_used_and_none_beyond() -> None:
    started = [threading.Event() for _ in range(4)]

    def prepare(item: int) -> int:
        started[item].set()
        return item

    for used in ahead(prepare, range(4)):
        if used + 1 < 4:
            assert started[used + 1].wait(WAIT_S), "it is begun without being asked for"
        assert not any(event.is_set() for event in started[used + 2 :])


def test_all_come_in_order_and_items_are_taken_by_the_callers_own_thread() -> None:
    takers, makers = set(), set()

    def items() -> Iterator[int]:
        for item in range(5):
            takers.add(threading.current_thread())
            yield item

    def prepare(item: int) -> int:
        makers.add(threading.current_thread())
        return item * item

    assert list(ahead(prepare, items())) == [0, 1, 4, 9, 16]
    assert takers == {threading.current_thread()} and len(makers) == 1 and not takers & makers
    assert list(ahead(prepare, [])) == []


def test_an_error_is_raised_where_its_result_is_due_and_no_thread_stays() -> None:
    def prepare(item: int) -> int:
        if item == 2:
            raise ValueError("no third one")
        return item

    found = []
    with pytest.raises(ValueError, match="no third one"):
        for used in ahead(prepare, range(5)):
            found.append(used)
    assert found == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_a_caller_that_goes_away_leaves_no_thread() -> None:
    stream = ahead(lambda item: item, range(5))
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
