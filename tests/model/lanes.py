"""Model 3: a queue read in commit order while its lanes are written, and others take from it.

Two lanes publish segments through the real `pack`, in any order, one or two at once; a `LaneReader` with pages of one segment reads
between them; a getter elsewhere takes segments; another reader takes over behind what was handed out. Whatever is handed out comes in
commit order, each once, and nothing that lies on the queue is ever passed by (a channel deletes all below its watermark).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from model import canonical
from model.canonical import ADMIN, Part, joined, kv_part, part, seen
from model.search import Move
from model.snapshot import Snapshot
from model.walks import Image
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.lanes import LAST, LaneReader, Place, Position
from qsg.rules.pack import pack
from qsg.rules.packed import Lane, read_guard
from qsg.rules.unit import NewSegment, Unit
from qsg.store.contract import Delete, Limits, Put

QUEUE = "Q"
LANES = (("X", 0), ("X", 1))


def reader_of(page: int, after: tuple[tuple[int, Position], ...] = ()) -> LaneReader:
    return LaneReader(QUEUE, start_after=dict(after), page_max=page, gets_max=8)


def clone(reader: LaneReader) -> LaneReader:
    """Another reader at the same point: states share readers, which are never fed in place."""
    other = copy.copy(reader)
    other._totals = dict(reader._totals)
    other._lanes = {p: {n: replace(lane, waiting=deque(lane.waiting)) for n, lane in lanes.items()} for p, lanes in reader._lanes.items()}
    other._ready = {}
    return other


def reader_part(reader: LaneReader) -> Part:
    """All that a reader decides on. (Everything ready is handed out at once.)"""
    parts = [part("at", (seen(ADMIN),), (reader.revision,))]
    for name, (revision, totals) in sorted(reader._totals.items()):
        parts.append(part((name, totals.SerializeToString(deterministic=True)), (ADMIN,), (revision,)))
    for priority, lanes in sorted(reader._lanes.items()):
        for name, lane in sorted(lanes.items()):
            age = min(9, reader._round - lane.used_at)
            shape = priority, name, lane.bound[1], lane.cursor, lane.published, age, tuple(s.suffix for s in lane.waiting)
            kinds = [seen(ADMIN) if lane.bound[1] == LAST else ADMIN, *[ADMIN] * len(lane.waiting)]
            parts.append(part(shape, kinds, [lane.bound[0], *(s.create_revision for s in lane.waiting)]))
    after = sorted(reader._start_after.items())
    parts.append(part([(p, at.suffix) for p, at in after].__repr__(), [ADMIN] * len(after), [at.create_revision for _, at in after]))
    return joined(("reader", reader._typical_size), parts)


@dataclass(frozen=True)
class Bounds:
    name: str
    segments: int = 4
    priorities: int = 1
    takes: int = 1
    takeovers: int = 0
    reads: int = 8
    page: int = 1

    def __str__(self) -> str:
        return (
            f"2 lanes, {self.priorities} priorities, segments ≤{self.segments}, one or two in a transaction; pages of {self.page}, "
            f"reads ≤{self.reads} a reader, taken by others ≤{self.takes}, takeovers ≤{self.takeovers}"
        )


class Budget(NamedTuple):
    segments: int
    takes: int
    takeovers: int
    reads: int


@dataclass(frozen=True, slots=True)
class State:
    store: Snapshot
    reader: LaneReader
    budget: Budget
    counters: tuple[int, ...] = (0,) * len(LANES)
    handed: tuple[tuple[int, Place], ...] = ()
    behind: tuple[tuple[int, Place], ...] = ()
    """Places that the last takeover began at: their segments may be handed out again."""


class Lanes:
    def __init__(self, bounds: Bounds) -> None:
        self.limits, self.name, self.bounds = bounds, bounds.name, str(bounds)

    def initial(self) -> State:
        b = self.limits
        store, _ = Snapshot().txn((), [Put(keys.member("X"), b"")])
        return State(store, reader_of(b.page), Budget(b.segments, b.takes, b.takeovers, b.reads))

    # Moves

    def moves(self, state: State) -> Iterator[Move]:
        for lane in range(len(LANES)):
            for priority in range(self.limits.priorities):
                for count in range(1, min(2, state.budget.segments) + 1):
                    yield f"lane {lane} publishes {count} at priority {priority}", partial(self._publish, state, lane, priority, count)
        if state.budget.reads:
            yield "the reader reads", partial(self._read, state)
        for n, kv in enumerate(state.store.under(keys.headers(QUEUE))):
            if state.budget.takes:
                yield f"another takes segment {n}", partial(self._take, state, kv.key)
        if state.budget.takeovers:
            for n in range(len(state.handed) + 1):
                yield f"another reader takes over behind {n} handed out", partial(self._take_over, state, n)

    def _publish(self, state: State, which: int, priority: int, count: int) -> State:
        member, slot = LANES[which]
        own = state.store.get(keys.member(member))
        assert own is not None
        lane = Lane(member, slot, own.create_revision, counter=state.counters[which])
        had = state.store.get(keys.lane_totals(QUEUE, lane.name))
        lane.totals[QUEUE] = Image(keys.lane_totals(QUEUE, lane.name), had, ADMIN).cell()
        header = pb.SegmentHeader(entries=[pb.Entry(message_id=b"m", payload_size=1)])
        unit = Unit("put", puts=[NewSegment(QUEUE, priority, header, b"", 1, 1) for _ in range(count)])
        packed = pack([unit], lane, read_guard(state.store.get(lane.guard_key)), b"a%d" % state.store.revision, Limits())
        store, result = state.store.txn(packed.compares, packed.ops, packed.else_ops)
        assert result.succeeded and packed.included
        counters = tuple(lane.counter if i == which else c for i, c in enumerate(state.counters))
        budget = state.budget._replace(segments=state.budget.segments - count)
        return replace(state, store=store, counters=counters, budget=budget)

    def _take(self, state: State, key: bytes) -> State:
        store, _ = state.store.txn((), [Delete(key)])
        return replace(state, store=store, budget=state.budget._replace(takes=state.budget.takes - 1))

    def _read(self, state: State) -> State:
        reader = clone(state.reader)
        reader.feed(state.store.revision, [state.store.read(get) for get in reader.plan()])
        state = replace(state, reader=reader, budget=state.budget._replace(reads=state.budget.reads - 1))
        for priority in reader.priorities():
            ready = reader.ready(priority)
            while ready:
                state = self._handed(state, priority, ready.popleft().place)
        if reader.caught_up:
            left = [place for place in self._there(state) if place not in state.handed]
            assert not left, f"the reader has caught up, and {left} were not handed out (invariant 1)"
        return state

    def _handed(self, state: State, priority: int, place: Place) -> State:
        if (priority, place) in state.behind:
            return replace(state, behind=tuple(b for b in state.behind if b != (priority, place)))
        before = [p for at, p in state.handed if at == priority]
        assert not before or before[-1] < place, f"{place} is handed out behind {before[-1]} (invariant 2)"
        passed = [p for at, p in self._there(state) if at == priority and p < place and (at, p) not in state.handed]
        assert not passed, f"{place} is handed out before {passed}, which would be deleted unsent (invariant 1)"
        return replace(state, handed=(*state.handed, (priority, place)))

    def _take_over(self, state: State, count: int) -> State:
        """What was handed out later is handed out again, behind the last position of each priority."""
        handed = state.handed[:count]
        last = {priority: place for priority, place in handed}
        after = tuple((priority, Position(*place, 0)) for priority, place in sorted(last.items()))
        behind = tuple(sorted(last.items()))
        budget = state.budget._replace(takeovers=state.budget.takeovers - 1, reads=self.limits.reads)
        return replace(state, reader=reader_of(self.limits.page, after), handed=handed, behind=behind, budget=budget)

    # Invariants

    def _there(self, state: State) -> list[tuple[int, Place]]:
        found = [(keys.split_segment_key(QUEUE, kv.key), kv.create_revision) for kv in state.store.under(keys.headers(QUEUE))]
        return [(priority, (revision, bytes(suffix))) for (priority, suffix), revision in found]

    def check(self, state: State) -> None:
        """Undisturbed, the reader comes to the end of the queue."""
        if state.budget.reads:
            return
        state = replace(state, budget=state.budget._replace(reads=50))
        for _ in range(4 * self.limits.segments + 4):
            state = self._read(state)
        left = [place for place in self._there(state) if place not in state.handed]
        assert not left, f"the reader never comes to {left} (invariant 6)"

    # Identity

    def digest(self, state: State) -> bytes:
        parts: list[Part] = [kv_part(state.store.kvs[key], ADMIN) for key in state.store.order]
        parts += [self._places(state.handed), self._places(state.behind), part((state.counters, state.budget))]
        parts.append(reader_part(state.reader))
        return canonical.digest(parts, one_store=True)

    def _places(self, places: tuple[tuple[int, Place], ...]) -> Part:
        shape = tuple((priority, suffix) for priority, (_, suffix) in places)
        return part(shape, [ADMIN] * len(places), [revision for _, (revision, _) in places])
