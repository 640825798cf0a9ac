"""A live copy of a prefix: listed at one revision, then kept up by a watch.

Invariant: `items` is always the exact state of the prefix at some revision of the store (at least `revision`), never a mix; it moves
forward only, and every change of it is told to every subscriber once, in order. Not guaranteed: that it is current (while the store is
unreachable it stands still), nor that every intermediate value is seen (after a compaction the differences are told, not the steps).
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType

import structlog

from qsg.store.contract import Compacted, Event, Get, KeyValue, Store, StoreError, WatchBatch, prefix_end

log = structlog.get_logger()

PAGE = 1000
RETRY_S = (0.05, 1.0)
"""First and longest pause before the store is asked again."""

Listener = Callable[[list[Event]], None]
Predicate = Callable[[dict[bytes, KeyValue]], bool]


class Follower:
    """Follows `prefix` in `store` from `start()` (or `ready()`, or `async with`) until `close()`.

    `items` and `revision` are to be read only. An inferred deletion (found by listing again) has the revision of that list.
    """

    def __init__(self, store: Store, prefix: bytes) -> None:
        self.prefix = prefix
        self.items: dict[bytes, KeyValue] = {}
        self.revision = 0
        self._store = store
        self._end = prefix_end(prefix)
        self._task: asyncio.Task[None] | None = None
        self._listed = asyncio.Event()
        self._listeners: list[Listener] = []
        self._subscriptions: list[weakref.ref[Changes]] = []
        self._waiters: dict[asyncio.Event, None] = {}
        self._closed = False

    async def __aenter__(self) -> Follower:
        await self.ready()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def start(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"follow {self.prefix!r}")
            self._task.add_done_callback(lambda _: self._wake())

    async def ready(self) -> None:
        """Returns once the prefix was listed."""
        await self._until(self._listed.is_set)

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with every later list of changes, after `items` has them; returns what ends that.

        The first listing counts as changes too, for listeners added before it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def changes(self) -> Changes:
        """Every list of changes from this call on, for `async for`. Ends when the follower is closed."""
        self.start()
        subscription = Changes(self)
        self._subscriptions.append(weakref.ref(subscription))
        return subscription

    async def wait_for(self, predicate: Predicate, timeout_s: float | None = None) -> None:
        """Returns once `predicate(items)` holds. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            await self._until(lambda: self._listed.is_set() and predicate(self.items))

    async def wait(self, revision_after: int, timeout_s: float | None = None) -> bool:
        """Waits until this copy has moved beyond a revision; False when it has not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._until(lambda: self.revision > revision_after)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Ends the watch and every subscription. Waiters get a `StoreError`."""
        self._closed = True
        task, self._task = self._task, None
        self._wake()
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            log.error("follower had failed", prefix=self.prefix, error=repr(task.exception()))

    def _until_failed(self) -> None:
        """Raises what ended the follower, if anything did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            error = self._task.exception()
            if error is not None:
                raise StoreError(f"following {self.prefix!r} failed: {error!r}") from error
        if self._closed:
            raise StoreError(f"following {self.prefix!r} has ended")

    async def _until(self, condition: Callable[[], bool]) -> None:
        self.start()
        wake = asyncio.Event()
        self._waiters[wake] = None
        try:
            while True:
                self._until_failed()
                if condition():
                    return
                wake.clear()
                await wake.wait()
        finally:
            del self._waiters[wake]

    def _wake(self) -> None:
        for wake in self._waiters:
            wake.set()
        for reference in self._subscriptions:
            subscription = reference()
            if subscription is not None:
                subscription.wake.set()

    # Following

    async def _run(self) -> None:
        pause = RETRY_S[0]
        while True:
            try:
                await self._list()
                pause = RETRY_S[0]
                await self._watch()
            except Compacted as e:
                log.info("history is gone, listing again", prefix=self.prefix, compacted=e.revision)
            except StoreError as e:
                log.warning("store does not answer, listing again", prefix=self.prefix, error=repr(e), pause_s=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_S[1])

    async def _list(self) -> None:
        """Reads the whole prefix at one revision and tells what differs from `items`."""
        listed: dict[bytes, KeyValue] = {}
        key, revision, more = self.prefix or b"\0", 0, True
        while more:
            page = await self._store.get(Get(key, self._end, limit=PAGE, revision=revision))
            revision = revision or page.revision
            listed.update((kv.key, kv) for kv in page.kvs)
            more = page.more and bool(page.kvs)
            if more:
                key = page.kvs[-1].key + b"\0"
        if revision < self.revision:
            raise StoreError(f"the store went back from revision {self.revision} to {revision}")
        events = _differences(self.items, listed, revision)
        self.items.clear()
        self.items.update(listed)
        self.revision = revision
        self._listed.set()
        self._tell(events)

    async def _watch(self) -> None:
        batches = self._store.watch(self.prefix or b"\0", self._end, self.revision + 1)
        try:
            async for batch in batches:
                self._take(batch)
        finally:
            aclose = getattr(batches, "aclose", None)
            if aclose is not None:
                await aclose()

    def _take(self, batch: WatchBatch) -> None:
        """Applies what is newer than this copy (a resumed watch may repeat)."""
        events = [e for e in batch.events if e.kv.mod_revision > self.revision]
        for event in events:
            if event.deleted:
                self.items.pop(event.kv.key, None)
            else:
                self.items[event.kv.key] = event.kv
        self.revision = max(self.revision, batch.revision)
        self._tell(events)

    def _tell(self, events: list[Event]) -> None:
        if events:
            for listener in list(self._listeners):
                try:
                    listener(events)
                except Exception as e:
                    # One listener's defect must not stop the copy, which others rely on.
                    context = {"message": f"listener of {self.prefix!r} failed", "exception": e}
                    asyncio.get_running_loop().call_exception_handler(context)
            self._subscriptions = [r for r in self._subscriptions if r() is not None]
            for reference in self._subscriptions:
                subscription = reference()
                if subscription is not None:
                    subscription.pending.append(events)
        self._wake()


class Changes(AsyncIterator[list[Event]]):
    """One subscription to a follower; dropping it ends it."""

    def __init__(self, follower: Follower) -> None:
        self.pending: deque[list[Event]] = deque()
        self.wake = asyncio.Event()
        self._follower = follower

    async def __anext__(self) -> list[Event]:
        while not self.pending:
            if self._follower._closed:
                raise StopAsyncIteration
            self._follower._until_failed()
            self.wake.clear()
            await self.wake.wait()
        return self.pending.popleft()


def _differences(old: dict[bytes, KeyValue], new: dict[bytes, KeyValue], revision: int) -> list[Event]:
    """What leads from one state to the other: deletions (of keys made again, too) first, then puts in commit order."""
    deleted: list[Event] = []
    put: list[Event] = []
    for key, kv in old.items():
        after = new.get(key)
        if after is None or after.create_revision != kv.create_revision:
            deleted.append(Event(KeyValue(key, b"", 0, revision, 0, 0), deleted=True))
    for key, kv in new.items():
        before = old.get(key)
        if before is None or before.mod_revision != kv.mod_revision:
            put.append(Event(kv))
    deleted.sort(key=lambda e: e.kv.key)
    put.sort(key=lambda e: (e.kv.mod_revision, e.kv.key))
    return deleted + put
