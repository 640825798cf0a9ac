"""Keys: no two things share one, names come back out of them, and key order within a lane is commit order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qsg.rules import keys

NAMES = st.text("AZaz09._/%", min_size=1, max_size=12)
NUMBERS = st.integers(0, 2**62)


@given(NAMES)
def test_a_name_comes_back(name: str) -> None:
    assert keys.unname(keys.name(name)) == name
    assert b"/" not in keys.name(name)


@given(NAMES, NAMES, st.integers(0, 9), NUMBERS)
def test_a_segments_key_tells_its_place(queue: str, member: str, priority: int, number: int) -> None:
    lane = keys.lane(member, 1)
    suffix = keys.suffix(lane, number, 7)
    for kind, key in ((b"h", keys.header), (b"b", keys.body), (b"c", keys.consumption)):
        assert keys.split_segment_key(queue, key(queue, priority, suffix), kind) == (priority, suffix)
    assert keys.lane_of(suffix) == lane
    assert keys.header(queue, priority, suffix).startswith(keys.lane_headers(queue, priority, lane))


@given(NAMES, NAMES)
def test_nothing_of_one_queue_lies_under_another(one: str, other: str) -> None:
    assert (keys.queue(one).startswith(keys.queue(other))) == (one == other)
    assert (keys.status_in(one, other) == keys.status_in(other, one)) == (one == other)


@given(NAMES, st.tuples(NUMBERS, NUMBERS), st.tuples(NUMBERS, NUMBERS))
def test_key_order_within_a_lane_is_that_of_incarnation_and_counter(lane: str, a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (keys.suffix(lane, *a) < keys.suffix(lane, *b)) == (a < b)
