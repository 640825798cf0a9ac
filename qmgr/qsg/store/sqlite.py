"""`SqliteStore`: the store contract over one SQLite file of this machine, with etcd's semantics.

Durable when a transaction returns (write-ahead log, synchronous=FULL). One thread writes, committing all that waits as one group; another
reads committed state. Invariant: a call's result becomes known to the loop only after it is durable, in the order of the commits, so a
read that begins after a write returned sees it. One process owns the file. Not guaranteed: protection from a disk that loses what it
confirmed.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import structlog

from qsg.store import sqlite_reads as reads
from qsg.store.answers import settle
from qsg.store.contract import (
    Compare,
    Get,
    GetResult,
    LeaseNotFound,
    Limits,
    NotApplied,
    Op,
    StoreError,
    StoreStatus,
    TxnResult,
    Unavailable,
    WatchBatch,
)
from qsg.store.mvcc import check_branch, check_limits, size_of
from qsg.store.sqlite_engine import Applied, Engine
from qsg.store.sqlite_file import meta, own
from qsg.store.sqlite_files import BUMP_REVISION, restore, snapshot
from qsg.store.sqlite_leases import TICK_S, Leases
from qsg.store.sqlite_reads import EventPage, View
from qsg.store.sqlite_threads import Call, Inbox, Outcome, Reader, Report, Writer
from qsg.store.sqlite_watch import Hub, Watch

__all__ = ["BUMP_REVISION", "SqliteStore", "restore"]

log = structlog.get_logger()
T = TypeVar("T")

TXN_TIMEOUT_S = 0.4
READ_TIMEOUT_S = 5.0
CONTROL_TIMEOUT_S = 5.0
RESERVE_BYTES = 32 << 20
HISTORY_S = 5.0
COMPACT_INTERVAL_S = 3.0
PROGRESS_TICKS = 4


class SqliteStore:
    """One store in one file. `await store.open()` or `async with`; belongs to the event loop that opened it.

    `quota_bytes`: puts that grow what is in use beyond it raise `NoSpace` (0 = only the disk's end does); `reserve_bytes`: disk space kept
    so that a full store can drain; `history_s`: how much history automatic compaction leaves (every `compact_interval_s`, 0 = never).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        quota_bytes: int = 0,
        limits: Limits | None = None,
        reserve_bytes: int = RESERVE_BYTES,
        history_s: float = HISTORY_S,
        compact_interval_s: float = COMPACT_INTERVAL_S,
    ) -> None:
        self.path = Path(path)
        self.limits = limits or Limits()
        self.failed = asyncio.Event()
        """Set when the file failed: every call raises `Unavailable` until it is opened anew."""
        self._quota_bytes = quota_bytes
        self._reserve_bytes = reserve_bytes
        self._history_s = history_s
        self._compact_interval_s = compact_interval_s
        self.identity = 0
        """Drawn when the file was made or restored."""
        self.bytes_total = 0
        self._bytes_in_use = 0
        self._disk_full = False
        self._leases = Leases()
        self._hub = Hub(self._read_events)
        self._closed = True
        self._groups = 0
        self._ticker: asyncio.Task[None] | None = None

    # Life

    async def __aenter__(self) -> SqliteStore:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def open(self) -> None:
        """A closed store can be opened again.

        Raises `StoreError` when the file is another's, another process has it, or it cannot be read and written.
        """
        assert self._closed, "open already"
        self._loop = asyncio.get_running_loop()
        self._owner = own(self.path)
        self.failed.clear()
        self._leases = Leases()
        self._hub = Hub(self._read_events)
        opened: asyncio.Future[Report] = self._loop.create_future()
        self._writer = Writer(
            self.path,
            quota_bytes=self._quota_bytes,
            reserve_bytes=self._reserve_bytes,
            history_s=self._history_s,
            compact_interval_s=self._compact_interval_s,
            report=lambda report: self._from_thread(self._committed, report),
            opened=lambda result: self._from_thread(settle, opened, result),
        )
        self._writer.start()
        try:
            await asyncio.wait([opened])  # not `shield`, which with Python 3.14 reports a failure that nobody waits for any more
            report = opened.result()
            self._reader = Reader(
                self.path,
                lambda outcomes: self._from_thread(_resolve, outcomes),
                failed=lambda report: self._from_thread(self._committed, report),
            )
        except BaseException:
            self._writer.inbox.close()
            self._writer.join()
            self._owner.release()
            raise
        self._reader.start()
        self._closed = False
        self._committed(report)
        try:
            await self._take_over()
        except BaseException:
            await self.close()
            raise

    async def _take_over(self) -> None:
        """Learns what the file says and gives every lease its full time."""
        self.identity = await self._read(lambda view: meta(view.connection, "identity"))
        leases = await self._write(lambda engine: dict(engine.leases), 0, CONTROL_TIMEOUT_S)
        for lease, ttl_s in leases.items():
            self._leases.add(lease, ttl_s, self._loop.time())
        self._ticker = self._loop.create_task(self._tick(), name=f"store clock {self.path.name}")
        self._ticker.add_done_callback(self._ticker_ended)

    def _ticker_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("the store's clock failed: no lease ends any more", path=str(self.path), error=repr(task.exception()))
            self.failed.set()

    async def close(self) -> None:
        """Commits what was asked for, ends watches, gives the file up."""
        if self._closed:
            return
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
        self._hub.end(StoreError("the store is closed"))
        self._writer.inbox.close()
        self._reader.inbox.close()
        await asyncio.gather(*(self._loop.run_in_executor(None, thread.join) for thread in (self._reader, self._writer)))
        self._owner.release()

    def _from_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.warning("the event loop ended before the store was closed", path=str(self.path))

    # Requests to the threads

    async def _ask(self, inbox: Inbox, run: Callable[[Any], T], size: int, timeout_s: float) -> T:
        if self._closed:
            raise NotApplied("the store is closed")
        call = Call(run, self._loop.create_future(), size)
        inbox.add(call)
        try:
            async with asyncio.timeout(timeout_s):
                result: T = await call.future
                return result
        except TimeoutError:
            if inbox.withdraw(call):
                raise NotApplied(f"not begun within {timeout_s} s") from None
            raise Unavailable(f"no answer within {timeout_s} s") from None

    async def _write(self, run: Callable[[Engine], T], size: int, timeout_s: float) -> T:
        return await self._ask(self._writer.inbox, run, size, timeout_s)

    async def _read(self, run: Callable[[View], T]) -> T:
        try:
            return await self._ask(self._reader.inbox, run, 0, READ_TIMEOUT_S)
        except NotApplied as e:
            raise Unavailable(str(e)) from e

    def _committed(self, report: Report) -> None:
        """One group is durable: its results, then its events."""
        self._groups += 1
        _resolve(report.outcomes)
        if report.failure:
            self.failed.set()
            self._hub.end(Unavailable(report.failure))
            return
        self._bytes_in_use = report.bytes_in_use
        self._disk_full = report.full
        self.bytes_total = report.bytes_total
        self._hub.committed(report.events, report.revision)

    async def _read_events(self, key: bytes, end: bytes, from_revision: int, bytes_max: int) -> EventPage:
        return await self._read(lambda view: reads.events(view, key, end, from_revision, bytes_max))

    # The contract

    @property
    def revision(self) -> int:
        """The newest commit that the loop knows of."""
        return self._hub.revision

    @property
    def groups(self) -> int:
        """How many times the writer reported: group commits and compactions since opening."""
        return self._groups

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op] = (), *, timeout_s: float | None = None
    ) -> TxnResult:
        applied = await self.apply(compares, ops, else_ops, timeout_s=timeout_s)
        results = tuple([result if isinstance(result, GetResult) else None for result in applied.results])
        return TxnResult(applied.succeeded, applied.revision, results)

    async def apply(
        self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op] = (), *, timeout_s: float | None = None
    ) -> Applied:
        """As `txn`; the result also says how many keys each deletion deleted."""
        compares, ops, else_ops = tuple(compares), tuple(ops), tuple(else_ops)
        check_limits(self.limits, compares, ops, else_ops)
        timeout_s = TXN_TIMEOUT_S if timeout_s is None else timeout_s
        if not compares and all(isinstance(op, Get) for op in ops):
            check_branch(else_ops)
            return await self._read_all(ops)
        size = size_of((), ops)
        return await self._write(lambda engine: engine.txn(compares, ops, else_ops), size, timeout_s)

    async def _read_all(self, gets: Sequence[Op]) -> Applied:
        """Reads only: one snapshot, without the writer."""
        check_branch(gets)
        plain = [get for get in gets if isinstance(get, Get)]

        def run(view: View) -> Applied:
            return Applied(True, view.revision, tuple([_read_one(view, get) for get in plain]))

        return await self._read(run)

    async def get(self, get: Get) -> GetResult:
        check_branch((get,))
        return await self._read(lambda view: _read_one(view, get))

    async def watch(self, key: bytes, end: bytes, from_revision: int) -> AsyncIterator[WatchBatch]:
        """As the contract; `from_revision` 0 = from now on. Says once a second how far the store has come, if nothing else does."""
        watch = self.open_watch(key, end, from_revision)
        try:
            while True:
                yield await watch.next_batch()
        finally:
            self.close_watch(watch)

    def open_watch(self, key: bytes, end: bytes, from_revision: int) -> Watch:
        """A watch that the caller asks for batches, and must close."""
        return self._hub.add(key, end, from_revision)

    def close_watch(self, watch: Watch) -> None:
        self._hub.remove(watch)

    async def grant(self, ttl_s: int, lease: int = 0) -> int:
        """`lease` 0 = an id is chosen."""
        if ttl_s <= 0:
            raise StoreError(f"time to live must be positive, not {ttl_s}")
        chosen = lease or secrets.randbits(62) + 1
        try:
            await self._write(lambda engine: engine.grant(chosen, ttl_s), 0, CONTROL_TIMEOUT_S)
        except Unavailable:
            self._leases.add(chosen, ttl_s, self._loop.time())  # it may exist, so it must run out
            raise
        self._leases.add(chosen, ttl_s, self._loop.time())
        return chosen

    async def keep_alive(self, lease: int) -> float:
        if self._closed or self.failed.is_set():
            raise Unavailable("the store is closed, or its file failed")
        return float(self._leases.renew(lease, self._loop.time()))

    async def revoke(self, lease: int) -> None:
        await self._write(lambda engine: engine.revoke(lease), 0, CONTROL_TIMEOUT_S)
        self._leases.remove(lease)

    def lease_ids(self) -> list[int]:
        return self._leases.ids()

    def lease_remaining(self, lease: int) -> tuple[int, float]:
        """Seconds to live as granted, and what is left of them. Raises `LeaseNotFound`."""
        return self._leases.remaining(lease, self._loop.time())

    async def lease_keys(self, lease: int) -> list[bytes]:
        return await self._write(lambda engine: engine.keys_of(lease), 0, CONTROL_TIMEOUT_S)

    async def compact(self, revision: int) -> None:
        def run(engine: Engine) -> None:
            engine.compact(revision)
            self._writer.compacted_by_request()

        await self._write(run, 0, CONTROL_TIMEOUT_S)

    async def status(self) -> StoreStatus:
        if self._closed or self.failed.is_set():
            raise Unavailable("the store is closed, or its file failed")
        # While the disk is full, what is in use is all there is: so nobody writes more than it takes to drain.
        quota_bytes = self._bytes_in_use if self._disk_full else self._quota_bytes
        return StoreStatus(self._hub.revision, self._bytes_in_use, quota_bytes, f"sqlite {sqlite3.sqlite_version}", "")

    async def snapshot(self, path: str | Path) -> int:
        """Writes a consistent copy to a new file while work goes on; returns its revision."""
        self._writer.snapshots += 1
        try:
            return await self._loop.run_in_executor(None, snapshot, self.path, Path(path))
        finally:
            self._writer.snapshots -= 1

    # Time

    async def _tick(self) -> None:
        """Ends leases that ran out and lets quiet watches report."""
        ticks = 0
        ending: dict[int, None] = {}
        while True:
            ending.update(dict.fromkeys(self._leases.tick(self._loop.time())))
            for lease in list(ending):
                try:
                    await self._write(lambda engine, lease=lease: engine.revoke(lease), 0, CONTROL_TIMEOUT_S)  # type: ignore[misc]
                except LeaseNotFound:
                    pass  # revoked meanwhile
                except StoreError as e:
                    log.warning("a lease could not be ended yet", lease=lease, error=str(e))
                    continue
                del ending[lease]
            ticks += 1
            if ticks % PROGRESS_TICKS == 0:
                self._hub.tick()
            await asyncio.sleep(TICK_S)


def _read_one(view: View, get: Get) -> GetResult:
    reads.check_revision(get, view.revision, view.compacted)
    return reads.read(view.connection, get, view.revision)


def _resolve(outcomes: Sequence[Outcome]) -> None:
    for future, result, error in outcomes:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
