"""The next one is made ready while the current one is used.

for packed in ahead(lambda rows: pack(rows).to(device), micro_batches):
    train(packed)                            # meanwhile a thread packs and moves the next
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(prepare: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """`prepare(item)` of every item, in order; of at most one more than is being used, by a thread.

    `items` themselves are taken by the caller's thread, so they may be made with collectives. What `prepare` raises is
    raised where its result is due, after those before it were used. A caller that goes away waits for what the thread
    is at, and nothing is left running."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming: Future[T] | None = None
        for item in items:
            ready, coming = coming, thread.submit(prepare, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
