"""The head of a queue as one member's getters see it: a bounded window of segments in the order in which messages are got.

Owns the lane reader, the segments read but not used up, and the fence and living incarnations as last read. Invariant: whatever is
offered comes in priority order, then commit order, as of the last read; only segments whose record was read (or that are newer than
everything known before, and so taken for untouched) are offered. Bounded: about `HEADERS_BYTES` of headers and `BODIES_BYTES` of
bodies, however deep the queue is. Not guaranteed: that an offered message is still there; taking it compares that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import dropwhile, islice

from qsg.manager.consuming import Guarded, Segment, Segments, live_holders
from qsg.manager.structure import Structure
from qsg.rules import consume, keys
from qsg.rules.consume import Holder
from qsg.rules.lanes import LaneReader
from qsg.rules.records import Damaged
from qsg.store.contract import Get, GetResult, get_prefix

HEADERS_BYTES = 2 << 20
BODIES_BYTES = 4 << 20
SEGMENTS_MAX = 512
SEGMENTS_INDEXED_MAX = 8192
"""Segments held; more when somebody gets by id."""
CHECKS = 36
"""Records read at once."""


class Window:
    def __init__(self, guarded: Guarded, segments: Segments) -> None:
        self.guarded = guarded
        self.segments = segments
        self.queue = guarded.opened.name
        self.structure: Structure = guarded.opened.structure
        self.live: Collection[Holder] = frozenset()
        self.dropped = False
        """Segments that were wholly claimed by others were left out; only a rescan finds what is given back of them."""
        self.revision = 0
        """Of the last read."""
        self.reader = self._reader()
        self._segments: dict[int, dict[Segment, None]] = {}
        self._bytes = 0
        self._bodies: dict[Segment, int] = {}
        self._index: dict[bytes, dict[tuple[Segment, int], None]] | None = None
        self._quiet: list[Segment] = []

    def _reader(self) -> LaneReader:
        return LaneReader(self.queue, hold_max_bytes=1 << 20, gets_max=48)

    @property
    def full(self) -> bool:
        count = sum(map(len, self._segments.values()))
        return self._bytes >= HEADERS_BYTES or count >= (SEGMENTS_MAX if self._index is None else SEGMENTS_INDEXED_MAX)

    @property
    def complete(self) -> bool:
        """Everything that was on the queue at the last read, and can be got, is here."""
        return self.reader.caught_up and self.reader.revision >= self.revision and not self.dropped

    @property
    def shown(self) -> int:
        """Another read shows nothing that was put up to here. (What was put later finds no room in a full window.)"""
        return self.revision if self.full else self.reader.revision

    def rescan(self) -> None:
        """Starts again at the head of the queue."""
        self.reader, self.dropped = self._reader(), False
        for priority in list(self._segments):
            for segment in list(self._segments[priority]):
                self.remove(segment)

    # Reading

    async def read(self, *, ahead: bool) -> None:
        """One read at one revision: further headers (with `ahead`), records of segments not checked, fence, living members."""
        self._drop_gone()
        reader = self.reader
        more = reader.plan() if ahead and not self.full else []
        check = self._unchecked()
        gets = [*self.guarded.gets(), get_prefix(keys.MEMBERS, keys_only=True), *more]
        fixed = len(gets)
        revision, results = await self.structure.read(*gets, *(g for s in check for g in self._check(s)))
        self.revision = revision
        self._take_in(results[: fixed - len(more)])
        if more and reader is self.reader:  # else a rescan began meanwhile: the read was planned for a reader that is no more
            fresh = reader.revision if reader.caught_up else 0
            reader.feed(revision, results[fixed - len(more) : fixed])
            self._collect(fresh)
        self._checked(check, revision, results[fixed:])

    async def check(self, segments: Iterable[Segment]) -> None:
        """Reads the records of segments, of the window or not."""
        wanted = [s for s in segments if not s.checked]
        for start in range(0, len(wanted), CHECKS):
            some = wanted[start : start + CHECKS]
            revision, results = await self.structure.read(*(g for s in some for g in self._check(s)))
            self._checked(some, revision, results)

    async def load(self, segments: Collection[Segment]) -> None:
        """Reads the bodies of segments that are to be used together, as many as one read takes, and their records with them."""
        wanted = [s for s in segments if s.body is None][:CHECKS]
        gets = [*self.guarded.gets(), get_prefix(keys.MEMBERS, keys_only=True)]
        fixed = len(gets)
        bodies = [Get(keys.body(self.queue, s.at.priority, s.at.suffix)) for s in wanted]
        revision, results = await self.structure.read(*gets, *bodies, *(g for s in wanted for g in self._check(s)))
        self._take_in(results[:fixed])
        for segment, result in zip(wanted, results[fixed : fixed + len(wanted)], strict=True):
            # Missing although the header is there (else it is gone, see below): damage, found when a message is made of it.
            segment.body = result.first.value if result.first is not None else b""
            self._bodies[segment] = len(segment.body)
        self._checked(wanted, revision, results[fixed + len(wanted) :])
        self._forget_bodies(keep=segments)

    def _check(self, segment: Segment) -> list[Get]:
        at = segment.at
        return [Get(keys.header(self.queue, at.priority, at.suffix), keys_only=True), Get(segment.cell.key)]

    def _take_in(self, results: list[GetResult]) -> None:
        if self.guarded.transmission:
            self.guarded.read(results[0])
        live = live_holders(results[-1].kvs)
        if live != self.live:
            self.live = live

    def _checked(self, segments: Iterable[Segment], revision: int, results: list[GetResult]) -> None:
        pairs = iter(results)
        for segment, header, record in zip(segments, pairs, pairs, strict=True):
            if header.first is None or header.first.create_revision != segment.at.create_revision:
                segment.gone = True
                self.remove(segment)
                continue
            segment.cell.saw(revision, record.first)
            segment.checked = True

    def _collect(self, fresh: int) -> None:
        """Takes over what the reader has ready; what is newer than `fresh` (> 0: all older was known) needs no check."""
        for priority in self.reader.priorities():
            ready = self.reader.ready(priority)
            mine = self._segments.setdefault(priority, {})
            while ready:
                at = ready.popleft()
                segment = self.segments.at(at)
                if segment not in mine:
                    mine[segment] = None
                    self._bytes += at.size
                    self._add_to_index(segment)
                segment.checked = segment.checked or 0 < fresh < at.create_revision

    def _drop_gone(self) -> None:
        for segment in [s for s in self if s.gone]:
            self.remove(segment)

    def _unchecked(self) -> list[Segment]:
        found: list[Segment] = []
        for segment in self:
            if not segment.checked:
                found.append(segment)
                if len(found) == CHECKS:
                    break
        return found

    def _forget_bodies(self, keep: Collection[Segment]) -> None:
        total = sum(self._bodies.values())
        for segment in list(self._bodies):
            if total <= BODIES_BYTES:
                return
            if segment not in keep:
                total -= self._bodies.pop(segment)
                segment.body = None

    # What is there

    def __iter__(self) -> Iterator[Segment]:
        """All segments, highest priority and oldest first."""
        for priority in sorted(self._segments, reverse=True):
            yield from self._segments[priority]

    def offered(self, now: float) -> Iterator[Segment]:
        """Segments to take from, in order; ends where something must be read first. Those in dispute are left out until later."""
        for priority in sorted({*self._segments, *self.reader.known_priorities}, reverse=True):
            for segment in self._segments.get(priority, ()):
                if not segment.checked:
                    return
                if segment.quiet_until <= now:
                    yield segment
            if not self.reader.complete(priority):
                return

    def give_way(self, lost: Collection[Segment], ahead: int, until: float) -> None:
        """Leaves segments that others are faster at, and the `ahead` next ones, alone until then; those behind are looked at again."""
        last = max(lost, key=lambda s: (-s.at.priority, s.at.place))
        mine = iter(self._segments.get(last.at.priority, ()))
        behind = dropwhile(lambda s: s.at.place <= last.at.place, mine)
        for segment in [*lost, *islice(behind, ahead)]:
            if segment.quiet_until == 0:
                self._quiet.append(segment)
            segment.quiet_until = until
        for segment in islice(behind, CHECKS):
            segment.checked = False

    def end_quiet(self, now: float) -> None:
        """What was left alone long enough is looked at again: much may have been taken of it."""
        over = [s for s in self._quiet if s.quiet_until <= now]
        if over:
            self._quiet = [s for s in self._quiet if s.quiet_until > now]
        for segment in over:
            segment.quiet_until = 0.0
            segment.checked = False

    def disputed(self, now: float) -> list[float]:
        """When segments that are left alone for the moment will be offered again."""
        return [s.quiet_until for s in self._quiet if s.quiet_until > now and not s.gone]

    @property
    def shows_any(self) -> bool:
        """There is something on the queue as of the last read, or may be: free, claimed, or not read yet."""
        return self.dropped or not self.reader.caught_up or any(self._segments.values())

    @property
    def unread(self) -> bool:
        """There is more to read before everything is offered."""
        return not self.reader.caught_up or any(not s.checked for s in self)

    def remove(self, segment: Segment) -> None:
        """A segment that is used up or gone."""
        mine = self._segments.get(segment.at.priority, {})
        if segment in mine:
            del mine[segment]
            self._bytes -= segment.at.size
            if self._index is not None:
                for index, entry in enumerate(segment.at.header.entries):
                    for key in _id_keys(entry.message_id, entry.correlation_id):
                        self._index.get(key, {}).pop((segment, index), None)
                        if not self._index.get(key, {1: 1}):
                            del self._index[key]
        self._bodies.pop(segment, None)

    def drop_claimed(self) -> None:
        """Makes room: leaves out what others have claimed, until a rescan."""
        for segment in list(self):
            if segment.checked and not segment.free(self.live):
                self.remove(segment)
                self.dropped = True

    def doubt_claimed(self) -> bool:
        """What others have claimed may be free by now: its records are read again before it is offered; whether there is any. Also behind
        the window, where a request by id has found it, or a unit of work holds a part of it."""
        mine, any_claimed = (self.structure.member, self.structure.incarnation), False
        for segment in self.segments:
            try:
                record = consume.parse(segment.cell.value)
            except Damaged:
                segment.checked = False  # who reads it again tells: here it would fail whoever told of what was given back
                continue
            if any((c.member, c.incarnation) != mine for c in record.claims):
                segment.checked, any_claimed = False, True
        return any_claimed

    # By id

    def find(self, message_id: bytes, correlation_id: bytes) -> Iterator[tuple[Segment, int]]:
        """Entries of the window with these ids (empty: any), oldest first of what is indexed."""
        if self._index is None:
            self._index = {}
            for segment in self:
                self._add_to_index(segment)
        for segment, index in list(self._index.get(_id_keys(message_id, correlation_id)[0], ())):
            if matches(segment, index, message_id, correlation_id):
                yield segment, index

    def _add_to_index(self, segment: Segment) -> None:
        if self._index is None:
            return
        for index, entry in enumerate(segment.at.header.entries):
            for key in _id_keys(entry.message_id, entry.correlation_id):
                self._index.setdefault(key, {})[segment, index] = None


def matches(segment: Segment, index: int, message_id: bytes, correlation_id: bytes) -> bool:
    entry = segment.entry(index)
    return message_id in (b"", entry.message_id) and correlation_id in (b"", entry.correlation_id)


def all_matching(segment: Segment, message_id: bytes, correlation_id: bytes) -> list[int]:
    """Indexes of the entries with these ids (empty: any)."""
    if correlation_id:
        found = [i for i, e in enumerate(segment.entries) if e.correlation_id == correlation_id]
    else:
        found = [i for i, e in enumerate(segment.entries) if e.message_id == message_id]
    return [i for i in found if matches(segment, i, message_id, correlation_id)]


def _id_keys(message_id: bytes, correlation_id: bytes) -> list[bytes]:
    return [prefix + value for prefix, value in ((b"m", message_id), (b"c", correlation_id)) if value]
