"""Reads a transmission queue ahead of its sender: headers in commit order, bodies a few segments ahead, bounded in bytes.

Owns the lane reader, what was consumed of segments before, and what is loaded. Invariant: segments come in position order per priority,
each entry once; what the partner's record covers (`floor`) is not loaded but reported as settled. The doorbell is level and event: own
commits and a watch of the totals wake it, and it reads again until it has caught up, so no put is waited for by polling.
Does not guarantee that a segment exists later: only the holder of the lock deletes, and that is what each delete compares.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from qsg.manager.structure import Structure
from qsg.pb import records_pb2
from qsg.rules import batches, keys
from qsg.rules.batches import Loaded, Piece
from qsg.rules.lanes import LaneReader, Position, SegmentAt
from qsg.rules.records import Damaged, read_record
from qsg.rules.segments import needs_bodies
from qsg.rules.unit import CompareFailed
from qsg.store.contract import Event, Get, prefix_end

AHEAD_BYTES = 6 << 20
"""Bodies loaded and not yet sent."""
GROUP_BYTES = 1 << 20
"""Bodies fetched by one read."""
GROUP_SEGMENTS = 64
PAGE = 500
LOOKS = 2
"""The first look shows the lanes, the second what is in them."""


class SeenTaken(CompareFailed):
    """Lock or fence are another's, as was read: no write of ours was refused."""


class Prefetch:
    """`prepare`, `start_from`, then `run` for ever; `take` from `loaded`.

    `on_settled` is told what the partner already has, `on_loaded` that something changed.
    """

    def __init__(
        self,
        structure: Structure,
        queue: str,
        *,
        on_settled: Callable[[Piece], None],
        on_loaded: Callable[[], None],
    ) -> None:
        self.loaded: deque[Loaded] = deque()
        self.caught_up = False
        """Everything that was on the queue when the last doorbell rang is loaded."""
        self.passed = asyncio.Event()
        """All that the partner's record covers was reported."""
        self._structure = structure
        self._queue = queue
        self._floor: Mapping[int, Position] = {}
        self._behind: set[int] = set()
        self._settle_only = False
        self._on_settled = on_settled
        self._on_loaded = on_loaded
        self._reader = LaneReader(queue)
        self._consumed: dict[tuple[int, bytes], int] = {}
        self._bytes = 0
        self._room = asyncio.Event()
        self._bell = asyncio.Event()
        self._rung = 0
        """The newest put that a doorbell told of."""
        self._puts: dict[bytes, int] = {}

    async def prepare(self) -> None:
        """Reads what can be read before the partner has answered: the lock is ours, so nobody else changes what is there."""
        await self._read_consumed()
        for _ in range(LOOKS):
            revision, results = await self._structure.read(*self._reader.plan())
            self._reader.feed(revision, results)

    def start_from(self, floor: Mapping[int, Position]) -> None:
        """The partner's record: everything up to here it has. Before `run`."""
        self._floor = floor
        self._behind = set(floor)

    def take(self) -> Loaded:
        """The next segment, or what is left of it."""
        loaded = self.loaded.popleft()
        self._bytes -= _size(loaded)
        self._room.set()
        return loaded

    def give_back(self, loaded: Loaded) -> None:
        """What did not fit comes next."""
        self.loaded.appendleft(loaded)
        self._bytes += _size(loaded)

    def only_settle(self) -> None:
        """Nothing more will be sent: what is loaded is dropped, and only what the partner already has is looked for."""
        self._settle_only = True
        self.loaded.clear()
        self._bytes = 0
        self._room.set()

    async def run(self) -> None:
        follower = self._structure.follow(keys.totals(self._queue))
        follower.add_listener(self._rung_elsewhere)
        self._structure.on_commit.append(self._rung_here)
        try:
            follower.start()
            await self._load_ready()
            while True:
                while not await self._read():
                    pass
                self.caught_up = True
                self._on_loaded()
                await self._rung_again()
                self.caught_up = False
        finally:
            self._structure.on_commit.remove(self._rung_here)
            await follower.close()

    # Doorbells

    async def _rung_again(self) -> None:
        """Until a put is told that the last look did not show: both doorbells ring for our own."""
        while self._rung <= self._reader.revision:
            self._bell.clear()
            await self._bell.wait()

    def _rung_here(self, revision: int, queues: frozenset[str]) -> None:
        if self._queue in queues:
            self._ring(revision)

    def _ring(self, revision: int) -> None:
        self._rung = max(self._rung, revision)
        self._bell.set()

    def _rung_elsewhere(self, events: list[Event]) -> None:
        """Only puts ring, and only those that were not read yet (our own deletes change the totals too)."""
        for event in events:
            if event.deleted:
                continue
            try:
                put = read_record(records_pb2.Totals, event.kv.value, event.kv.key).put
            except Damaged:
                self._bell.set()  # who reads it tells
                continue
            known, self._puts[event.kv.key] = self._puts.get(event.kv.key), put
            if put != known:
                self._ring(event.kv.mod_revision)

    # Reading

    async def _read_consumed(self) -> None:
        """What applications had consumed before the channel took the queue; while it is open nobody else consumes."""
        prefix = keys.consumptions(self._queue)
        start, more = prefix, True
        while more:
            _, (page,) = await self._structure.read(Get(start, prefix_end(prefix), limit=PAGE))
            for kv in page.kvs:
                record = read_record(records_pb2.Consumption, kv.value, kv.key)
                self._consumed[keys.split_segment_key(self._queue, kv.key, b"c")] = batches.bits(record.gone)
            more = page.more and bool(page.kvs)
            if more:
                start = page.kvs[-1].key + b"\0"

    async def _read(self) -> bool:
        """One look at the queue; True when there is no more for now."""
        # All that a doorbell told of, and all lanes as they stood at one revision; what came later rings again.
        revision, results = await self._structure.read_near(self._rung, *self._reader.plan())
        self._reader.feed(revision, results)
        await self._load_ready()
        self._behind = {p for p in self._behind if not self._reader.caught_up_at(p)}
        if not self._behind:
            self.passed.set()
        return self._reader.caught_up

    async def _load_ready(self) -> None:
        while group := self._group():
            await self._load(group)

    def _group(self) -> list[SegmentAt]:
        """The next segments to load together, highest priority first."""
        group: list[SegmentAt] = []
        size = 0
        for priority in self._reader.priorities():
            ready = self._reader.ready(priority)
            while ready and size < GROUP_BYTES and len(group) < GROUP_SEGMENTS:
                segment = ready.popleft()
                size += segment.header.bodies_size
                group.append(segment)
        return group

    async def _load(self, group: list[SegmentAt]) -> None:
        wanted: list[Loaded] = []
        for segment in group:
            recorded = self._consumed.pop((segment.priority, segment.suffix), None)
            gone = (recorded or 0) & batches.below(len(segment.header.entries))
            loaded = Loaded(segment, b"", 0, gone, recorded is not None)
            piece, rest = batches.covered(loaded, self._floor.get(segment.priority))
            if piece is not None:
                self._on_settled(piece)
            if rest is not None:
                wanted.append(rest)
                self._behind.discard(segment.priority)
        if not self._behind:
            self.passed.set()
        if self._settle_only:
            return
        await self._fetch(wanted)
        if self._settle_only:
            return
        for loaded in wanted:
            self.loaded.append(loaded)
            self._bytes += _size(loaded)
        if wanted:
            self._on_loaded()
        while self._bytes > AHEAD_BYTES and not self._settle_only:
            self._room.clear()
            await self._room.wait()

    async def _fetch(self, wanted: list[Loaded]) -> None:
        now_ms = self._structure.world.wall_ms()
        apart = [one for one in wanted if needs_bodies(one.segment.header) and one.wants_bodies(now_ms)]
        if not apart:
            return
        gets = [Get(keys.body(self._queue, one.segment.priority, one.segment.suffix)) for one in apart]
        _, results = await self._structure.read_near(self._reader.revision, *gets)
        for one, result in zip(apart, results, strict=True):
            key = keys.body(self._queue, one.segment.priority, one.segment.suffix)
            if result.first is None:
                await self._check_header(one.segment)
                # Only who holds the lock deletes: it is no longer us.
                raise SeenTaken((key,))
            if len(result.first.value) != one.segment.header.bodies_size:
                raise Damaged(f"{len(result.first.value)} of {one.segment.header.bodies_size} bytes are there", key)
            one.bodies = result.first.value

    async def _check_header(self, segment: SegmentAt) -> None:
        """Raises `Damaged` when the segment is there, without its bodies."""
        header = keys.header(self._queue, segment.priority, segment.suffix)
        _, (result,) = await self._structure.read(Get(header, keys_only=True))
        if result.first is not None and result.first.create_revision == segment.create_revision:
            raise Damaged("its bodies are missing", header)


def _size(loaded: Loaded) -> int:
    return len(loaded.bodies) + loaded.segment.size
