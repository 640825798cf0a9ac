"""Watches of a SQLite store: each group commit is offered to every watch; one that falls behind catches up from the log.

Invariant: a watch delivers each event of its range once, in commit order, and never part of a revision; what is held in memory for it is
bounded. A watch is *live* while it is offered commits, else it reads pages of the log until it has reached the newest commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from qsg.store.contract import Event, StoreError, WatchBatch
from qsg.store.mvcc import in_range
from qsg.store.sqlite_reads import EventPage

PAGE_BYTES = 1 << 20
HELD_BYTES = 8 << 20
HELD_EVENTS = 16384

ReadEvents = Callable[[bytes, bytes, int, int], Awaitable[EventPage]]


class Watch:
    """One watch. `next_batch()` is for one caller at a time."""

    def __init__(self, hub: Hub, key: bytes, end: bytes, from_revision: int) -> None:
        self._hub = hub
        self._key = key
        self._end = end
        self._next = from_revision or hub.revision + 1
        """The first revision not delivered."""
        self._through = self._next - 1
        """Up to here everything was offered or read."""
        self._live = self._next > hub.revision
        self._held: list[Event] = []
        self._held_bytes = 0
        self._wake = asyncio.Event()
        self._progress_wanted = False

    @property
    def delivered(self) -> int:
        """Every event up to and including this revision has been delivered."""
        return self._next - 1

    def want_progress(self) -> None:
        """`next_batch` shall return soon, with an empty batch if need be."""
        self._progress_wanted = True
        self._wake.set()

    def offer(self, events: Sequence[Event], revision: int) -> None:
        if not self._live or revision < self._next:
            return
        for event in events:
            kv = event.kv
            if kv.mod_revision >= self._next and in_range(kv.key, self._key, self._end):
                self._held.append(event)
                self._held_bytes += len(kv.key) + len(kv.value) + 64
        self._through = max(self._through, revision)
        if self._held_bytes > HELD_BYTES or len(self._held) > HELD_EVENTS:
            self._live = False
            self._held.clear()
            self._held_bytes = 0
            self._wake.set()
        elif self._held:
            self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    async def next_batch(self) -> WatchBatch:
        """Raises `Compacted`, or `StoreError` when the store is closed."""
        while True:
            self._hub.check()
            self._wake.clear()
            if not self._live:
                batch = await self._catch_up()
                if batch is not None:
                    return batch
            elif self._held or (self._progress_wanted and self._through >= self._next):
                self._progress_wanted = False
                events, self._held, self._held_bytes = tuple(self._held), [], 0
                return self._deliver(self._through, events)
            elif self._progress_wanted:
                self._progress_wanted = False
                return WatchBatch(self._next - 1, ())
            else:
                await self._wake.wait()

    async def _catch_up(self) -> WatchBatch | None:
        page = await self._hub.read_events(self._key, self._end, self._next, PAGE_BYTES)
        self._live = page.revision >= self._hub.revision
        self._through = page.revision
        if page.events or self._live:
            return self._deliver(page.revision, page.events)
        return None

    def _deliver(self, revision: int, events: tuple[Event, ...]) -> WatchBatch:
        self._next = max(self._next, revision + 1)
        return WatchBatch(self._next - 1, events)


class Hub:
    """All watches of one store, and the newest commit as the loop knows it."""

    def __init__(self, read_events: ReadEvents) -> None:
        self.read_events = read_events
        self.revision = 0
        self._ended: StoreError | None = None
        self._watches: dict[Watch, None] = {}

    def check(self) -> None:
        if self._ended is not None:
            raise self._ended

    def add(self, key: bytes, end: bytes, from_revision: int) -> Watch:
        watch = Watch(self, key, end, from_revision)
        self._watches[watch] = None
        return watch

    def remove(self, watch: Watch) -> None:
        self._watches.pop(watch, None)

    def committed(self, events: Sequence[Event], revision: int) -> None:
        if revision > self.revision:
            self.revision = revision
            for watch in self._watches:
                watch.offer(events, revision)

    def tick(self) -> None:
        """Lets watches whose range is quiet say how far the store has come."""
        for watch in self._watches:
            if watch.delivered < self.revision:
                watch.want_progress()

    def end(self, error: StoreError) -> None:
        self._ended = error
        for watch in self._watches:
            watch.wake()
