"""Lanes are merged into exact commit order, whatever is committed between two reads, and memory stays bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.lanes import LaneReader, Position, SegmentAt
from qsg.store.contract import Get, GetResult, KeyValue

QUEUE = "Q"


@dataclass
class Model:
    """A queue in a store, as the reader sees it: one revision a commit."""

    revision: int = 1
    kvs: dict[bytes, KeyValue] = field(default_factory=dict)
    totals: dict[str, pb.Totals] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    published: list[tuple[int, int, bytes]] = field(default_factory=list)
    size: int = 0
    largest_page: int = 0

    def commit(self, *segments: tuple[str, int]) -> None:
        """Publishes a segment per (lane, priority), all in one transaction."""
        self.revision += 1
        for lane, priority in segments:
            counter = self.counters[lane] = self.counters.get(lane, 0) + 1
            suffix = keys.suffix(lane, 7, counter)
            header = pb.SegmentHeader(entries=[pb.Entry(message_id=b"%d" % counter, size=self.size)], bodies=bytes(self.size))
            self._put(keys.header(QUEUE, priority, suffix), header.SerializeToString())
            totals = self.totals.setdefault(lane, pb.Totals())
            totals.put += 1
            totals.last[priority] = suffix
            self._put(keys.lane_totals(QUEUE, lane), totals.SerializeToString())
            self.published.append((priority, self.revision, suffix))

    def consume(self, priority: int, suffix: bytes) -> None:
        self.revision += 1
        self.kvs.pop(keys.header(QUEUE, priority, suffix), None)

    def read(self, gets: Sequence[Get]) -> list[GetResult]:
        results = []
        for get in gets:
            found = sorted(k for k in self.kvs if get.key <= k < get.end)
            page = found[: get.limit] if get.limit else found
            results.append(GetResult(tuple(self.kvs[k] for k in page), len(found), len(page) < len(found), self.revision))
            self.largest_page = max(self.largest_page, len(page))
        return results

    def _put(self, key: bytes, value: bytes) -> None:
        old = self.kvs.get(key)
        self.kvs[key] = KeyValue(key, value, old.create_revision if old else self.revision, self.revision)


def step(reader: LaneReader, model: Model) -> None:
    gets = reader.plan()
    reader.feed(model.revision, model.read(gets))


def drain(reader: LaneReader) -> list[SegmentAt]:
    taken = []
    for priority in reader.priorities():
        while reader.ready(priority):
            taken.append(reader.ready(priority).popleft())
    return taken


def places(segments: Sequence[SegmentAt], priority: int = 0) -> list[tuple[int, bytes]]:
    return [s.place for s in segments if s.priority == priority]


def run_out(reader: LaneReader, model: Model) -> list[SegmentAt]:
    taken: list[SegmentAt] = []
    for _ in range(10_000):
        step(reader, model)
        taken += drain(reader)
        if reader.caught_up:
            return taken
    raise AssertionError("never caught up")


LANES = st.sampled_from(["X.0", "X.1", "Y.0", "Z/1.0"])
COMMITS = st.lists(st.tuples(LANES, st.sampled_from([0, 0, 4])), min_size=1, max_size=4)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), COMMITS),
        st.tuples(st.just("read"), st.integers(0, 6)),
        st.tuples(st.just("late"), COMMITS),
        st.tuples(st.just("consume"), st.integers(0, 200)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(events=EVENTS, page=st.integers(1, 3), hold=st.sampled_from([1, 400, 4 << 20]), gets=st.integers(2, 5))
def test_every_segment_once_in_commit_order(events: list[tuple[str, object]], page: int, hold: int, gets: int) -> None:
    model, reader = Model(), LaneReader(QUEUE, page_max=page, hold_max_bytes=hold, gets_max=gets)
    taken: list[SegmentAt] = []
    consumed: set[tuple[int, bytes]] = set()
    for what, value in events:
        if what == "commit":
            model.commit(*value)  # type: ignore[misc]
        elif what == "late":  # commits between the plan and the read
            plan = reader.plan()
            model.commit(*value)  # type: ignore[misc]
            reader.feed(model.revision, model.read(plan))
        elif what == "consume" and model.published:
            priority, _, suffix = model.published[value % len(model.published)]  # type: ignore[operator]
            consumed.add((priority, suffix))
            model.consume(priority, suffix)
        else:
            step(reader, model)
            for priority in reader.priorities():
                ready = reader.ready(priority)
                taken += [ready.popleft() for _ in range(min(len(ready), value))]  # type: ignore[call-overload]

    taken += run_out(reader, model)

    for priority in (0, 4):
        got = places(taken, priority)
        assert got == sorted(set(got))
        must = {(r, s) for p, r, s in model.published if p == priority and (p, s) not in consumed}
        assert must <= set(got) <= {(r, s) for p, r, s in model.published if p == priority}


def test_lane_that_was_not_read_holds_the_others_back() -> None:
    """A1@2, B1@3, A2@4 (interleaving P3): the second read shows lane B only in the totals; A2 must wait for B1."""
    model, reader = Model(), LaneReader(QUEUE)
    model.commit(("A.0", 0))
    step(reader, model)
    plan = reader.plan()
    model.commit(("B.0", 0))
    model.commit(("A.0", 0))

    reader.feed(model.revision, model.read(plan))
    first = drain(reader)
    step(reader, model)
    second = drain(reader)

    assert [keys.lane_of(s.suffix) for s in first] == ["A.0"]
    assert [keys.lane_of(s.suffix) for s in second] == ["B.0", "A.0"]


def test_one_revision_for_all_lanes() -> None:
    """X empty at 100, Y's segment at 105, X's committed at 103 (interleaving C2b): X's comes first."""
    model, reader = Model(), LaneReader(QUEUE)
    model.commit(("X.0", 0), ("Y.0", 0))
    run_out(reader, model)
    model.commit(("X.0", 0))
    model.commit(("Y.0", 0))

    taken = run_out(reader, model)

    assert [keys.lane_of(s.suffix) for s in taken] == ["X.0", "Y.0"]


def test_page_cut_off_bounds_what_is_usable() -> None:
    """Two segments of lane A in one transaction after B's (interleaving P4): a page of one of A does not let B's later one pass."""
    model, reader = Model(), LaneReader(QUEUE, page_max=1)
    model.commit(("A.0", 0), ("A.0", 0), ("A.0", 0))
    model.commit(("B.0", 0))
    step(reader, model)
    step(reader, model)

    first = drain(reader)

    assert [keys.lane_of(s.suffix) for s in first] == ["A.0"]
    assert not reader.caught_up
    assert [keys.lane_of(s.suffix) for s in run_out(reader, model)] == ["A.0", "A.0", "B.0"]


def test_start_after_skips_what_is_settled() -> None:
    model = Model()
    for _ in range(3):
        model.commit(("A.0", 0))
        model.commit(("B.0", 0))
    _, revision, suffix = model.published[3]
    reader = LaneReader(QUEUE, start_after={0: Position(revision, suffix, 0)})

    taken = run_out(reader, model)

    assert places(taken) == [(r, s) for _, r, s in model.published[3:]]


def test_memory_is_bounded_and_pages_shrink_with_large_headers() -> None:
    model = Model(size=20_000)
    for _ in range(300):
        model.commit(("A.0", 0), ("B.0", 0))
    reader = LaneReader(QUEUE, hold_max_bytes=200_000)
    held = []
    taken: list[SegmentAt] = []
    for _ in range(2_000):
        step(reader, model)
        held.append(reader.held_bytes)
        if reader.ready(0):
            taken.append(reader.ready(0).popleft())
        if reader.caught_up and not reader.ready(0):
            break

    assert len(taken) == 600
    assert max(held) <= 300_000


def test_idle_queue_costs_one_small_read() -> None:
    model, reader = Model(), LaneReader(QUEUE)
    model.commit(("A.0", 0), ("B.0", 5))
    run_out(reader, model)
    for _ in range(20):
        step(reader, model)

    assert len(reader.plan()) == 1
    assert reader.caught_up
    assert reader.messages == 2


@pytest.mark.parametrize("name", ["A/B", "100%", "%2F"])
def test_queue_and_lane_names_with_slashes(name: str) -> None:
    reader = LaneReader(name)
    suffix = keys.suffix("M/1.0", 3, 9)
    key = keys.header(name, 2, suffix)

    assert keys.split_segment_key(name, key) == (2, suffix)
    assert reader.plan()[0].key == keys.totals(name)
