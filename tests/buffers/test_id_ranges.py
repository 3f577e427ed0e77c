import random

import pytest

from buffers.id_ranges import IdRanges


@pytest.mark.parametrize("seed", range(20))
def test_ranges_agree_with_a_set(seed: int) -> None:
    rng = random.Random(seed)
    ranges, plain = IdRanges(), set()
    for _ in range(100):
        value = rng.randrange(60)
        ranges.add(value)
        plain.add(value)
        if rng.random() < 0.1:
            stop = rng.randrange(30)
            ranges.add_below(stop)
            plain |= set(range(stop))
        ranges.check_valid()
    assert [value in ranges for value in range(-1, 62)] == [value in plain for value in range(-1, 62)]
    assert len(ranges) == len(plain)
    assert IdRanges(ranges.ranges).ranges == ranges.ranges


def test_ids_in_any_order_without_gaps_are_one_range() -> None:
    ids = list(range(1000))
    random.Random(0).shuffle(ids)
    ranges = IdRanges()
    for value in ids:
        ranges.add(value)
    assert ranges.ranges == [(0, 1000)]
