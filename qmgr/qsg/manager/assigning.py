"""Who gets what: the messages offered by a window, distributed over the requests that wait, first come first served.

Owns requests and the assignment of one round. Invariants: an entry is meant for one request only; a request gets messages in the
window's order; what one round takes fits one transaction (`UNIT_SEGMENTS`), and what a unit of work claims fits its commit. Expired
messages that are met are not handed out but collected, to be removed in the same round.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from qsg.manager.consuming import Guarded, Segment
from qsg.manager.window import Window
from qsg.pb import records_pb2 as pb
from qsg.rules import consume
from qsg.rules.lanes import LaneReader, Position
from qsg.rules.reasons import Reason, Refusal

MESSAGES_MAX = 10_000
BYTES_MAX = 4 << 20
"""Of one get that asks for no less; a larger message comes alone."""
UNIT_SEGMENTS = 32
"""Segments that a round's plain gets touch at most, so that they fit into one transaction. A large message counts as one more: its chunks
are removed by an operation of their own."""
RESERVE = 8
"""Operations and compares left for guard, member key, totals and the queue itself."""


@dataclass(frozen=True, slots=True)
class GetSpec:
    """`wait_ms` 0: do not wait. Ids empty: any. `bytes_max` 0: as much as one get may bring."""

    queue: str
    queue_manager: str = ""
    messages_max: int = 1
    bytes_max: int = 0
    wait_ms: int = 0
    message_id: bytes = b""
    correlation_id: bytes = b""


@dataclass(frozen=True, slots=True)
class GotMessage:
    """`raw` is the stored `pb.Message`, serialised; `backouts` how often it was backed out before."""

    raw: bytes
    backouts: int
    position: Position

    @property
    def message(self) -> pb.Message:
        return pb.Message.FromString(self.raw)


class Unitlike(Protocol):
    """What a get needs of a unit of work."""

    id: bytes

    def room_for_segments(self, guarded: Guarded) -> int:
        """How many more segments its commit can take off this queue."""
        ...

    def holds(self, segment: Segment) -> bool: ...

    def hold(self, guarded: Guarded, parts: dict[Segment, int]) -> None:
        """These entries are claimed for it now."""
        ...


@dataclass(slots=True, eq=False)
class Request:
    spec: GetSpec
    unit: Unitlike | None
    future: asyncio.Future[list[GotMessage]]
    deadline: float
    arrived: int
    """The read that was out when it came: what is refused must have been read after."""
    cancelled: bool = False
    again: bool = False
    """It got nothing for a reason that passes: it is not told that there is no message."""
    parts: dict[Segment, int] = field(default_factory=dict)
    """This round's: entries meant for it."""
    messages: int = 0
    bytes: int = 0
    losses: int = 0
    """Compare-and-swaps that it lost; it ends with the first that is won."""
    scan: LaneReader | None = None
    found: list[tuple[Segment, int]] = field(default_factory=list)

    @property
    def by_id(self) -> bool:
        return bool(self.spec.message_id or self.spec.correlation_id)

    def clear(self) -> None:
        self.parts, self.messages, self.bytes, self.again = {}, 0, 0, False

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def add(self, segment: Segment, index: int) -> None:
        self.parts[segment] = self.parts.get(segment, 0) | 1 << index
        self.messages += 1
        self.bytes += segment.entries[index].size

    def takes(self, size: int) -> bool:
        if self.messages >= min(self.spec.messages_max, MESSAGES_MAX):
            return False
        return not self.messages or self.bytes + size <= min(self.spec.bytes_max or BYTES_MAX, BYTES_MAX)


class Assignment:
    """One round's, as of `now` (loop time) and `wall_ms`."""

    def __init__(self, window: Window, now: float, wall_ms: int) -> None:
        self.window, self.now, self.wall_ms = window, now, wall_ms
        self.expired: dict[Segment, int] = {}
        self._taken: dict[Segment, int] = {}
        limits = window.structure.store.limits  # three operations (record, header, bodies) and two compares a segment
        fit = min((limits.operations - RESERVE) // 3, (limits.compares - RESERVE) // 2, UNIT_SEGMENTS)
        self._room: dict[Unitlike | None, int] = {None: max(2, fit)}

    def distribute(self, waiting: list[Request]) -> None:
        """Fills `parts` of the requests, and `expired`."""
        for request in waiting:
            request.clear()
            if request.unit is not None and request.unit not in self._room:
                self._room[request.unit] = min(UNIT_SEGMENTS, request.unit.room_for_segments(self.window.guarded))
        for request in waiting:
            if request.by_id:
                self._by_id(request)
        plain = deque(r for r in waiting if not r.by_id)
        if plain:
            self._plain(plain)

    def _free(self, segment: Segment) -> int:
        return segment.free(self.window.live) & ~self._taken.get(segment, 0) if segment.checked else 0

    def _by_id(self, request: Request) -> None:
        spec = request.spec
        near = [(s, i) for s, i in self.window.find(spec.message_id, spec.correlation_id) if s.quiet_until <= self.now]
        for segment, index in [*near, *request.found]:
            entry = segment.entries[index]
            if not self._free(segment) >> index & 1 or 0 < entry.expires_at_ms <= self.wall_ms:
                continue
            if not request.takes(entry.size) or not self._spend(request, segment, index):
                return
            self._taken[segment] = self._taken.get(segment, 0) | 1 << index
            request.add(segment, index)

    def _plain(self, plain: deque[Request]) -> None:
        for segment in self.window.offered(self.now):
            free = self._free(segment)
            if free and 0 < segment.at.header.earliest_expiry_ms <= self.wall_ms:
                free &= ~self._expire(segment, free)
            used = 0
            for index in consume.iterate(free):
                size = segment.entries[index].size
                while plain and not (plain[0].takes(size) and self._spend(plain[0], segment, index)):
                    plain.popleft()
                if not plain:
                    break
                plain[0].add(segment, index)
                used |= 1 << index
            self._taken[segment] = self._taken.get(segment, 0) | used
            if not plain:
                return

    def _expire(self, segment: Segment, free: int) -> int:
        """Those of the free entries that have expired; they are removed as far as there is room."""
        dead = consume.bits(i for i in consume.iterate(free) if 0 < segment.entries[i].expires_at_ms <= self.wall_ms)
        if dead and self._room[None] > 0:
            room = self._room[None] - 1
            large = [i for i in consume.iterate(dead) if segment.entries[i].stage]
            self._room[None] = max(0, room - len(large))
            if now := dead & ~consume.bits(large[room:]):
                self.expired[segment] = now
        return dead

    def _spend(self, request: Request, segment: Segment, index: int) -> bool:
        """Counts a message's segment, and what it takes itself, against what the commit can take; False when there is no more room."""
        unit = request.unit
        held = segment in request.parts or (unit is not None and unit.holds(segment))
        cost = (not held) + bool(segment.entries[index].stage)
        if cost > self._room[unit]:
            if unit is not None and not request.messages and unit.room_for_segments(self.window.guarded) < cost:
                request.fail(Refusal(Reason.SYNCPOINT_LIMIT_REACHED, "commit or back out first"))
            request.again = True
            return False
        self._room[unit] -= cost
        return True
