"""Browsing: looking at messages without taking or locking them.

A page shows committed messages only, in the order in which they would be got; those that a unit of work has claimed are left out. The
cursor is the position behind the page; it stays valid when messages come and go. Bounded: `BYTES_MAX` and the messages asked for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from qsg.manager import large
from qsg.manager.consuming import Segment, Segments, live_holders
from qsg.manager.getting import GotMessage
from qsg.manager.queue_store import Opened
from qsg.manager.window import matches
from qsg.pb import records_pb2 as pb
from qsg.rules import consume, keys, segments
from qsg.rules.lanes import LaneReader, Position, SegmentAt
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import stored_message
from qsg.store.contract import Get, get_prefix

BYTES_MAX = 4 << 20
MESSAGES_MAX = 1_000
SEGMENTS_MAX = 24
"""Read at once."""


@dataclass(frozen=True, slots=True)
class BrowseSpec:
    """`cursor` empty: from the first message. Ids empty: any. `headers_only`: messages come without payload."""

    queue: str
    queue_manager: str = ""
    messages_max: int = 1
    cursor: bytes = b""
    message_id: bytes = b""
    correlation_id: bytes = b""
    headers_only: bool = False


@dataclass(frozen=True, slots=True)
class Cursor:
    """Behind which message to go on: its priority and position."""

    priority: int
    position: Position

    def encode(self) -> bytes:
        return bytes([self.priority]) + self.position.record().SerializeToString()

    @classmethod
    def decode(cls, raw: bytes) -> Cursor:
        """Raises `Refusal` for bytes that are no cursor."""
        try:
            cursor = cls(raw[0], Position.of(pb.Position.FromString(raw[1:])))
        except Exception as error:
            raise Refusal(Reason.OPTIONS_ERROR, "not a cursor of browse") from error
        if cursor.priority > 9 or not cursor.position.suffix:
            raise Refusal(Reason.OPTIONS_ERROR, "not a cursor of browse")
        return cursor


class Browser:
    """One page."""

    def __init__(self, opened: Opened, spec: BrowseSpec, wall_ms: int) -> None:
        self.opened, self.spec, self.wall_ms = opened, spec, wall_ms
        self.structure = opened.structure
        self._segments = Segments(opened.name, opened.claims)
        self._cursor = Cursor.decode(spec.cursor) if spec.cursor else None
        self._found: list[GotMessage] = []
        self._bytes = 0
        self._last: bytes = spec.cursor

    async def page(self) -> tuple[list[GotMessage], bytes]:
        """(messages, cursor behind the last one). Raises `Refusal` NO_MSG_AVAILABLE when there is none."""
        cursor = self._cursor
        start = {cursor.priority: cursor.position} if cursor else {}
        reader = LaneReader(self.opened.name, start_after=start, hold_max_bytes=1 << 20)
        while not self._full():
            revision, results = await self.structure.read(*reader.plan())
            reader.feed(revision, results)
            if not await self._use(reader) and reader.caught_up:
                break
        if not self._found:
            raise Refusal(Reason.NO_MSG_AVAILABLE, self.opened.name)
        return self._found, self._last

    def _full(self) -> bool:
        return len(self._found) >= min(self.spec.messages_max, MESSAGES_MAX) or self._bytes >= BYTES_MAX

    async def _use(self, reader: LaneReader) -> bool:
        """Shows what the reader has ready, highest priority first; False when there was nothing."""
        used = False
        for priority in reader.known_priorities:
            ready = reader.ready(priority)
            skip = self._cursor is not None and priority > self._cursor.priority
            while ready and not self._full():
                used = True
                batch = self._batch(ready)
                if not skip:
                    await self._show([s for s in batch if self._any(s)])
            if not reader.complete(priority):
                return used
        return used

    def _batch(self, ready: deque[SegmentAt]) -> list[Segment]:
        """As many segments as the page may need."""
        needed = min(self.spec.messages_max, MESSAGES_MAX) - len(self._found)
        batch: list[Segment] = []
        while ready and len(batch) < SEGMENTS_MAX and (needed > 0 or not batch):
            batch.append(self._segments.at(ready.popleft()))
            needed -= batch[-1].count
        return batch

    def _any(self, segment: Segment) -> bool:
        """Whether anything in the segment is asked for, before more of it is read."""
        return any(self._wanted(segment, i) for i in range(segment.count))

    def _wanted(self, segment: Segment, index: int) -> bool:
        cursor, entry = self._cursor, segment.entries[index]
        if cursor is not None and segment.at.priority == cursor.priority and self._behind(segment, index, cursor.position):
            return False
        if entry.expires_at_ms and entry.expires_at_ms <= self.wall_ms:
            return False
        return matches(segment, index, self.spec.message_id, self.spec.correlation_id)

    @staticmethod
    def _behind(segment: Segment, index: int, position: Position) -> bool:
        place = position.create_revision, position.suffix
        return segment.at.place < place or (segment.at.place == place and index <= position.index)

    async def _show(self, batch: list[Segment]) -> None:
        if not batch:
            return
        queue = self.opened.name
        gets = [get_prefix(keys.MEMBERS, keys_only=True)]
        for segment in batch:
            at = segment.at
            gets += [Get(keys.header(queue, at.priority, at.suffix), keys_only=True), Get(segment.cell.key)]
            gets.append(Get(keys.body(queue, at.priority, at.suffix), keys_only=segment.body is not None))
        revision, results = await self.structure.read(*gets)
        live = live_holders(results[0].kvs)
        for segment, header, record, body in zip(batch, results[1::3], results[2::3], results[3::3], strict=True):
            if header.first is None or header.first.create_revision != segment.at.create_revision:
                continue
            segment.cell.saw(revision, record.first)
            bodies = segment.body if segment.body is not None else body.first.value if body.first is not None else b""
            for index in consume.iterate(segment.free(live)):
                if self._full():
                    return
                if self._wanted(segment, index):
                    await self._add(segment, index, bodies)

    async def _add(self, segment: Segment, index: int, bodies: bytes) -> None:
        entry = segment.entry(index)
        if entry.stage and self.spec.headers_only:
            raw = pb.Message(
                message_id=entry.message_id,
                correlation_id=entry.correlation_id,
                priority=segment.at.priority,
                expires_at_ms=entry.expires_at_ms,
            ).SerializeToString()
        elif entry.stage:
            try:
                raw = await large.read(self.structure, self.opened.name, entry)
            except Refusal as refusal:
                if refusal.reason is Reason.LARGE_MESSAGE_INCOMPLETE:
                    return  # Got by somebody meanwhile.
                raise
        else:
            raw = segments.body_at(segment.at.header, index, bodies)
            message = stored_message(entry, raw)
            if self.spec.headers_only:
                message.ClearField("payload")
                raw = message.SerializeToString()
        position = segment.at.position(index)
        self._found.append(GotMessage(raw, segment.backouts().get(index, 0), position))
        self._bytes += len(raw)
        self._last = Cursor(segment.at.priority, position).encode()
