"""Lanes merged into commit order: who reads a queue in order reads it through a `LaneReader`.

Owns: for every (priority, lane) how far it was read and up to where nothing unread can lie, and the segments that were read.
Invariant: `ready(p)` hands out segments of priority p in the exact order of their commits (create revision, suffix), each once, and
never one while a segment that was committed before it could still be unread. That holds because a lane's key order is its commit order,
because every page carries its own *bound* (the store's revision when the page was complete, its last segment when it was cut off), and
because only what lies at or below the lowest bound of all lanes is handed out. Lanes are learnt from the totals under `n/`, which are
written in the transaction that publishes a segment, and read at the same revision as the pages.
Does not guarantee: that a segment still exists when it is used (others may have consumed it); consumers compare its create revision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.keys import Suffix
from qsg.rules.records import read_record
from qsg.store.contract import Get, GetResult, get_prefix, prefix_end

Place = tuple[int, bytes]
"""(create revision, suffix) of a segment."""

LAST = b"\xff"
"""Behind every suffix."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A message's place in its queue; comparing positions of one priority compares their order."""

    create_revision: int
    suffix: bytes
    index: int

    def record(self) -> pb.Position:
        return pb.Position(create_revision=self.create_revision, suffix=self.suffix, index=self.index)

    @classmethod
    def of(cls, record: pb.Position) -> Position:
        return cls(record.create_revision, record.suffix, record.index)


@dataclass(frozen=True, slots=True)
class SegmentAt:
    """A published segment. `header.bodies` holds the bodies of a small one; others lie in the `b/` key of the same suffix."""

    priority: int
    suffix: Suffix
    create_revision: int
    header: pb.SegmentHeader
    size: int = 0
    """Bytes of the header as stored."""

    @property
    def place(self) -> Place:
        return self.create_revision, self.suffix

    @property
    def bodies_inline(self) -> bool:
        return bool(self.header.bodies) or not self.header.bodies_size

    def position(self, index: int) -> Position:
        return Position(self.create_revision, self.suffix, index)


@dataclass(slots=True)
class _Lane:
    """One lane of one priority. Everything of it at or below `bound` was read; nothing at or below `cursor` is read again."""

    start: bytes
    """Suffixes of this lane begin with it."""
    bound: Place
    cursor: bytes = b""
    published: bytes = b""
    """The last suffix that the totals have shown."""
    waiting: deque[SegmentAt] = field(default_factory=deque)
    used_at: int = 0

    @property
    def moved(self) -> bool:
        return self.published > self.cursor


class LaneReader:
    """Reads queue `queue` in commit order, holding about `hold_max_bytes` of headers however deep the queue is.

    Use: `feed(*await structure.read(*plan()))`, in turns; take segments from the left of `ready(priority)`.
    `start_after`: per priority, everything at or below this position is settled; the segment that holds the position is handed out too.
    """

    def __init__(
        self,
        queue: str,
        *,
        start_after: Mapping[int, Position] | None = None,
        hold_max_bytes: int = 4 << 20,
        page_max: int = 64,
        gets_max: int = 64,
    ) -> None:
        assert page_max >= 1
        assert gets_max >= 2
        self.queue = queue
        self.revision = 0
        """The one at which the queue was read last; 0 = not yet."""
        self._start_after = dict(start_after or {})
        self._hold_max_bytes = hold_max_bytes
        self._page_max = page_max
        self._gets_max = gets_max
        self._totals: dict[str, tuple[int, pb.Totals]] = {}
        self._lanes: dict[int, dict[str, _Lane]] = {}
        self._ready: dict[int, deque[SegmentAt]] = {}
        self._planned: list[tuple[int, str, int]] = []
        self._typical_size = 16 << 10
        self._round = 0

    def plan(self) -> list[Get]:
        """What to read next, in one transaction: the totals, and a page of each lane that has (or is likely to have) more."""
        self._planned = []
        for priority in sorted(self._lanes, reverse=True):
            self._plan_priority(priority, len(self._lanes))
        self._planned = self._planned[: self._gets_max - 1]
        return [get_prefix(keys.totals(self.queue)), *(self._page(*planned) for planned in self._planned)]

    def feed(self, revision: int, results: Sequence[GetResult]) -> None:
        """Takes in what `plan()` asked for, all read at `revision`. Raises `Damaged`; then what can be read is read again."""
        assert len(results) == len(self._planned) + 1, "results are not those of the last plan"
        assert revision >= self.revision, "the store went backwards"
        self._round += 1
        self._feed_totals(results[0])
        for (priority, lane_name, limit), result in zip(self._planned, results[1:], strict=True):
            self._feed_page(priority, self._lanes[priority][lane_name], limit, revision, result)
        self._planned = []
        self.revision = revision
        for priority, lanes in self._lanes.items():
            for lane in lanes.values():
                if not lane.moved:
                    lane.bound = (revision, LAST)
            self._release(priority)

    def ready(self, priority: int) -> deque[SegmentAt]:
        """Segments to use, oldest first; take them from the left."""
        return self._ready.setdefault(priority, deque())

    def priorities(self) -> list[int]:
        """Those with segments ready, highest first."""
        return sorted((p for p, segments in self._ready.items() if segments), reverse=True)

    @property
    def caught_up(self) -> bool:
        """Everything that was published up to `revision` has been handed to `ready`."""
        return self.revision > 0 and all(not lane.moved and not lane.waiting for lanes in self._lanes.values() for lane in lanes.values())

    def complete(self, priority: int) -> bool:
        """All of this priority that was published up to `revision` has been handed to `ready`."""
        return all(not lane.moved and not lane.waiting for lane in self._lanes.get(priority, {}).values())

    @property
    def known_priorities(self) -> list[int]:
        """Those that anything was ever put with, highest first."""
        return sorted(self._lanes, reverse=True)

    def caught_up_at(self, priority: int) -> bool:
        """The same for one priority."""
        return self.revision > 0 and all(not lane.moved and not lane.waiting for lane in self._lanes.get(priority, {}).values())

    @property
    def messages(self) -> int:
        """Messages on the queue at `revision`, consumed by nobody."""
        return sum(t.put - t.got for _, t in self._totals.values())

    @property
    def payload_bytes(self) -> int:
        """Their payload bytes."""
        return sum(t.put_bytes - t.got_bytes for _, t in self._totals.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of headers held, ready or waiting for other lanes."""
        return sum(self._held(p) for p in self._lanes)

    def _held(self, priority: int) -> int:
        waiting = sum(s.size for lane in self._lanes[priority].values() for s in lane.waiting)
        return waiting + sum(s.size for s in self.ready(priority))

    def _plan_priority(self, priority: int, priorities: int) -> None:
        lanes = self._lanes[priority]
        room = self._hold_max_bytes // priorities - self._held(priority)
        starving = not self.ready(priority)
        if room <= 0 and not starving:
            return
        lowest = min((lane.bound for lane in lanes.values() if lane.moved), default=(0, b""))
        moved = [(n, lane) for n, lane in lanes.items() if lane.moved and (room > 0 or lane.bound == lowest)]
        # The lanes that hold the others up come first: without them nothing can be released.
        moved.sort(key=lambda item: item[1].bound)
        limit = min(self._page_max, max(1, room // (self._typical_size * max(1, len(moved)))))
        self._planned += [(priority, n, limit) for n, _ in moved]
        # A lane that was busy a moment ago probably has more by now: looking costs little and saves a round trip.
        idle = [(n, lane) for n, lane in lanes.items() if not lane.moved and self._round - lane.used_at <= 8]
        if room > 0:
            self._planned += [(priority, n, limit) for n, _ in idle]

    def _page(self, priority: int, lane_name: str, limit: int) -> Get:
        lane = self._lanes[priority][lane_name]
        prefix = keys.lane_headers(self.queue, priority, lane_name)
        start = keys.header(self.queue, priority, lane.cursor) + b"\0" if lane.cursor else prefix
        return Get(start, prefix_end(prefix), limit=limit)

    def _feed_totals(self, result: GetResult) -> None:
        prefix = keys.totals(self.queue)
        for kv in result.kvs:
            lane_name = keys.unname(kv.key[len(prefix) :])
            known = self._totals.get(lane_name)
            if known is not None and known[0] == kv.mod_revision:
                continue
            totals = read_record(pb.Totals, kv.value, kv.key)
            self._totals[lane_name] = kv.mod_revision, totals
            start = keys.name(lane_name) + b"/"
            for priority, last in totals.last.items():
                # A lane not seen before had published nothing when the totals were read last: that is its bound.
                lane = self._lane(priority, lane_name, start)
                published = last if last.startswith(start) else start + last
                if published > lane.published:
                    lane.published = published
                    lane.used_at = self._round

    def _lane(self, priority: int, lane_name: str, start: bytes) -> _Lane:
        lanes = self._lanes.setdefault(priority, {})
        lane = lanes.get(lane_name)
        if lane is None:
            lane = lanes[lane_name] = _Lane(start, (self.revision, LAST))
            settled = self._start_after.get(priority)
            if settled is not None and settled.suffix.startswith(start):
                # Within its own lane a position says where to begin: just before its segment.
                lane.cursor = settled.suffix[:-1] + bytes([settled.suffix[-1] - 1]) + LAST
        return lane

    def _feed_page(self, priority: int, lane: _Lane, limit: int, revision: int, result: GetResult) -> None:
        settled = self._start_after.get(priority)
        for kv in result.kvs:
            _, suffix = keys.split_segment_key(self.queue, kv.key)
            assert suffix > lane.cursor, "a page in order, behind the cursor"
            # One that cannot be read holds up what is behind it: the cursor stays before it.
            header = read_record(pb.SegmentHeader, kv.value, kv.key)
            lane.cursor = suffix
            self._typical_size = max(512, len(kv.value), self._typical_size * 7 // 8)
            if settled is not None and (kv.create_revision, suffix) < (settled.create_revision, settled.suffix):
                continue
            lane.waiting.append(SegmentAt(priority, suffix, kv.create_revision, header, len(kv.value)))
        if result.kvs:
            lane.used_at = self._round
        if result.more or len(result.kvs) >= limit:
            lane.bound = result.kvs[-1].create_revision, lane.cursor
        else:
            lane.bound = revision, LAST
            lane.cursor = max(lane.cursor, lane.published)

    def _release(self, priority: int) -> None:
        lanes = self._lanes[priority].values()
        bound = min(lane.bound for lane in lanes)
        usable: list[SegmentAt] = []
        for lane in lanes:
            while lane.waiting and lane.waiting[0].place <= bound:
                usable.append(lane.waiting.popleft())
        usable.sort(key=lambda s: s.place)
        ready = self.ready(priority)
        assert not (ready and usable) or ready[-1].place < usable[0].place, "commit order"
        ready.extend(usable)
