"""The two threads of a SQLite store: a writer that commits waiting requests in groups, and a reader.

Requests are functions of the engine (writer) or of a snapshot (reader); each has a future of the event loop. All futures of a group
resolve in one call of the loop, after the group is durable. Invariant: a request is taken by its thread at most once, or withdrawn, never
both. While the disk is full each request is committed alone, so that those that shrink the store still pass.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from qsg.failpoint import failpoint
from qsg.store import sqlite_reads as reads
from qsg.store.contract import Event, NotApplied, StoreError, Unavailable
from qsg.store.sqlite_engine import Engine
from qsg.store.sqlite_file import BUSY_MS, PAGE_BYTES, is_busy, is_full, lay_out_log, meta, open_reader, open_writer, translate
from qsg.store.sqlite_files import Reserve

log = structlog.get_logger()

GROUP_BYTES = 8 << 20
GROUP_REQUESTS = 1024
READS_IN_SNAPSHOT = 64
WAL_BYTES = 12 << 20
"""The write-ahead log is copied into the file whenever it has grown by this much."""
WAL_BYTES_MAX = 64 << 20
"""From here on the writer waits for readers, so that the log can begin anew."""
RESTART_WAIT_MS = 100
PAGES_A_GROUP = 4
ERASE_ROWS, ERASE_BYTES = 256, 4 << 20
ERASE_PAGES = 32
"""A step of erasing in one group; more when the group itself writes more. It rewrites about `ERASE_PAGES`."""
MARK_S = 0.5
FULL_RETRY_S = 0.5


@dataclass(slots=True, eq=False)
class Call:
    """One request. `size` is what it will write, about."""

    run: Callable[[Any], Any]
    future: asyncio.Future[Any]
    size: int = 0


Outcome = tuple[asyncio.Future[Any], Any, BaseException | None]


@dataclass(frozen=True, slots=True)
class Report:
    """What one group did, for the loop."""

    outcomes: list[Outcome]
    events: list[Event]
    revision: int
    bytes_in_use: int
    bytes_total: int
    failure: str = ""
    full: bool = False
    """The disk is."""


def _unavailable(calls: list[Call], failure: str) -> list[Outcome]:
    return [(call.future, None, Unavailable(failure)) for call in calls]


class Inbox:
    """Requests on their way to a thread."""

    def __init__(self) -> None:
        self._waiting: deque[Call] = deque()
        self._condition = threading.Condition()
        self._closed = False

    def add(self, call: Call) -> None:
        with self._condition:
            if self._closed:
                raise NotApplied("the store is closed")
            self._waiting.append(call)
            self._condition.notify()

    def withdraw(self, call: Call) -> bool:
        """True when the thread has not taken it, and now never will."""
        with self._condition:
            try:
                self._waiting.remove(call)
            except ValueError:
                return False
            return True

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()

    def take(self, calls_max: int, bytes_max: int, timeout_s: float | None) -> tuple[list[Call], bool]:
        """Waits for requests; also says whether this is the end (closed, nothing left)."""
        with self._condition:
            if not self._waiting and not self._closed:
                self._condition.wait(timeout_s)
            taken: list[Call] = []
            size = 0
            while self._waiting and len(taken) < calls_max and size < bytes_max:
                call = self._waiting.popleft()
                taken.append(call)
                size += call.size
            return taken, self._closed and not taken


class Writer(threading.Thread):
    """Owns the engine. `report` is called in this thread once per group; `opened` with the first report or the error."""

    def __init__(
        self,
        path: Path,
        *,
        quota_bytes: int,
        reserve_bytes: int,
        history_s: float,
        compact_interval_s: float,
        report: Callable[[Report], None],
        opened: Callable[[Report | StoreError], None],
    ) -> None:
        super().__init__(name=f"store writer {path.name}", daemon=True)
        self.inbox = Inbox()
        self.snapshots = 0
        self._path = path
        self._quota_bytes = quota_bytes
        self._reserve = Reserve(path, reserve_bytes)
        self._reserve_bytes = reserve_bytes
        self._history_s = history_s
        self._compact_interval_s = compact_interval_s
        self._report = report
        self._opened = opened
        self._failure = ""
        self._group_bytes = min(GROUP_BYTES, reserve_bytes // 4) if reserve_bytes else GROUP_BYTES
        self._log_bytes = min(WAL_BYTES, reserve_bytes * 3 // 8) if reserve_bytes else WAL_BYTES
        """So the reserve has room for the log's copy in the file, and for one more group."""
        self._wal_bytes = 0
        self._erasing = False
        self._erase_stuck = False
        """The disk was too full even for erasing: tried again a little later."""
        self._marks: deque[tuple[float, int]] = deque()
        self._compacted_at = 0.0
        self._full_at = 0.0
        self._engine: Engine

    def run(self) -> None:
        try:
            connection = open_writer(self._path)
        except StoreError as e:
            self._opened(e)
            return
        try:
            self._engine = Engine(connection, self._quota_bytes)
            lay_out_log(connection, self._path, self._log_bytes + self._log_bytes // 4)
            if not self._reserve.take():
                self._became_full()
            self._marks.append((time.monotonic(), self._engine.revision))
            self._erasing = self._engine.superseded_by(self._engine.compacted)
        except (sqlite3.Error, OSError) as e:
            connection.close()
            self._opened(StoreError(f"{self._path} cannot be opened: {e}"))
            return
        self._opened(self._state([], []))
        try:
            self._serve()
        finally:
            self._finish(connection)

    def _serve(self) -> None:
        while True:
            calls, ended = self.inbox.take(GROUP_REQUESTS, self._group_bytes, self._pause_s())
            if ended:
                return
            if self._failure:
                self._answer(_unavailable(calls, self._failure), [])
                continue
            try:
                if calls or self._erasing:
                    self._group(calls)
                if not self._failure:
                    self._maintain()
            except Exception as e:  # a defect: nothing may go on from a half-done group, and nobody may wait for ever
                log.exception("the store's writer failed", path=str(self._path))
                self._fail(calls, e)

    def _finish(self, connection: sqlite3.Connection) -> None:
        try:
            if not self._failure:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as e:
            log.warning("the store's log was not copied at closing", path=str(self._path), error=str(e))
        finally:
            connection.close()

    def _pause_s(self) -> float | None:
        """How long to wait for requests; None = for ever."""
        if self._failure:
            return None
        if self._erasing and not self._erase_stuck:
            return 0.0
        return MARK_S if self._marks or self._engine.allowance is not None else None

    # Groups

    def _group(self, calls: list[Call]) -> None:
        if self._engine.allowance is not None:
            self._one_by_one(calls)
            return
        try:
            self._commit(calls)
        except sqlite3.Error as e:
            self._recover(calls, e)

    def _commit(self, calls: list[Call]) -> None:
        self._engine.begin()
        outcomes = [self._run_call(call) for call in calls]
        size, rows = self._engine.written
        if self._erasing:
            self._erasing = self._engine.erase(max(ERASE_ROWS, 2 * rows), max(ERASE_BYTES, 2 * size))
            self._wal_bytes += (ERASE_PAGES + rows) * PAGE_BYTES
        failpoint("sqlite.before_commit")
        events = self._engine.commit()
        failpoint("sqlite.after_commit_before_answer")
        self._wal_bytes += size + (rows + PAGES_A_GROUP) * PAGE_BYTES
        self._answer(outcomes, events)

    def _run_call(self, call: Call) -> Outcome:
        try:
            return call.future, call.run(self._engine), None
        except StoreError as e:
            return call.future, None, e

    def _recover(self, calls: list[Call], error: sqlite3.Error) -> None:
        """A group has failed as a whole, nothing of it was applied unless the failure was in its commit."""
        if is_busy(error) and self._roll_back():
            self._answer([(call.future, None, NotApplied("another program holds the store's file")) for call in calls], [])
        elif is_full(error) and self._roll_back():
            self._became_full()
            self._one_by_one(calls)
        else:
            self._fail(calls, error)

    def _one_by_one(self, calls: list[Call]) -> None:
        """While the disk is full: a group of its own for each request, so that only what needs space is refused."""
        for i, call in enumerate(calls):
            self._allow()
            try:
                self._engine.begin()
                outcome = self._run_call(call)
                events = self._engine.commit()
                self._answer([outcome], events)
                self._wal_bytes += sum(len(e.kv.value) for e in events) + PAGES_A_GROUP * PAGE_BYTES
            except sqlite3.Error as e:
                if not is_full(e) or not self._roll_back():
                    self._fail(calls[i:], e)
                    return
                self._became_full()
                self._answer([(call.future, None, translate(e))], [])
        if self._erasing:
            self._erase_alone()

    def _erase_alone(self) -> None:
        self._engine.begin()
        try:
            self._erasing = self._engine.erase(ERASE_ROWS, ERASE_BYTES)
            self._engine.commit()
            self._erase_stuck = False
            self._wal_bytes += ERASE_PAGES * PAGE_BYTES
        except sqlite3.Error as e:
            if not is_full(e) or not self._roll_back():
                self._fail([], e)
                return
            self._erase_stuck = True
            self._became_full()

    def _roll_back(self) -> bool:
        try:
            self._engine.rollback()
        except sqlite3.Error as e:
            log.error("the store's file failed", path=str(self._path), error=str(e))
            return False
        return True

    def _fail(self, calls: list[Call], error: Exception) -> None:
        """The file cannot be trusted any more (a failed sync may or may not have written): nothing is accepted until it is opened anew."""
        self._failure = f"the store's file failed: {error}"
        log.error("the store's file failed", path=str(self._path), error=str(error))
        self._report(Report(_unavailable(calls, self._failure), [], 0, 0, 0, self._failure))

    def _answer(self, outcomes: list[Outcome], events: list[Event]) -> None:
        self._report(self._state(outcomes, events))

    def _state(self, outcomes: list[Outcome], events: list[Event]) -> Report:
        engine = self._engine
        total = engine.bytes_in_use + engine.bytes_free
        full = engine.allowance is not None
        return Report(outcomes, events, engine.revision, engine.bytes_in_use, total, self._failure, full)

    # A full disk

    def _became_full(self) -> None:
        if self._engine.allowance is None:
            log.warning("the disk is full", path=str(self._path))
        self._reserve.give_up()
        self._engine.allowance = 0
        self._full_at = time.monotonic()
        self._checkpoint("PASSIVE")

    def _allow(self) -> None:
        """How much may grow while the disk is full: what is free inside the file, less a part for draining. Ends the state if it can."""
        engine = self._engine
        if engine.allowance is None:
            return
        now = time.monotonic()
        if now - self._full_at >= FULL_RETRY_S:
            self._full_at = now
            if self._reserve.take():
                engine.allowance = None
                self._erase_stuck = False
                log.info("the disk has space again", path=str(self._path))
                return
            self._reserve.give_up()
        engine.allowance = max(0, (engine.bytes_free - self._reserve_bytes) // 2)

    # Between groups

    def _maintain(self) -> None:
        try:
            if self._engine.allowance is not None:
                self._allow()
                if self._engine.allowance is None:
                    self._answer([], [])  # nobody writes while it is said to be full, so this must be told by itself
            self._compact()
            if self._wal_bytes >= self._log_bytes:
                self._checkpoint("PASSIVE")
        except sqlite3.Error as e:
            if not is_full(e) or not self._roll_back():
                self._fail([], e)

    def _compact(self) -> None:
        """Forgets what is older than the history to be kept, now and then."""
        engine, now = self._engine, time.monotonic()
        if self._compact_interval_s <= 0:
            self._marks.clear()
            return
        if engine.revision > (self._marks[-1][1] if self._marks else engine.compacted) and (
            not self._marks or now - self._marks[-1][0] >= MARK_S
        ):
            self._marks.append((now, engine.revision))
        if now - self._compacted_at < self._compact_interval_s:
            return
        target = 0
        while self._marks and self._marks[0][0] <= now - self._history_s:
            target = self._marks.popleft()[1]
        if target > engine.compacted and engine.superseded_by(target):
            self._compacted_at = now
            engine.begin()
            engine.compact(target)
            engine.commit()
            self._erasing = True
            self._answer([], [])

    def compacted_by_request(self) -> None:
        """To be called by a request, in this thread."""
        self._erasing = True

    def _checkpoint(self, mode: str) -> None:
        """Copies the write-ahead log into the file. A full disk only postpones it."""
        try:
            _busy, frames, _copied = self._engine.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.OperationalError as e:
            log.warning("the store's log was not copied", path=str(self._path), error=str(e))
            self._wal_bytes = 0
            return
        self._wal_bytes = 0
        if mode == "PASSIVE" and frames * PAGE_BYTES > WAL_BYTES_MAX and not self.snapshots:
            self._begin_log_anew()

    def _begin_log_anew(self) -> None:
        """Waits a moment for readers, so that the log can be written from its start again; if they are slow, it grows on."""
        connection = self._engine.connection
        connection.execute(f"PRAGMA busy_timeout = {RESTART_WAIT_MS}")
        self._checkpoint("RESTART")
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")


class Reader(threading.Thread):
    """Reads committed state; requests that wait together see one snapshot. `failed` is told once that nothing can be read any more."""

    def __init__(self, path: Path, report: Callable[[list[Outcome]], None], failed: Callable[[Report], None]) -> None:
        super().__init__(name=f"store reader {path.name}", daemon=True)
        self.inbox = Inbox()
        self._connection = open_reader(path)
        try:
            self._floor = meta(self._connection, "floor")
        except sqlite3.Error as e:
            self._connection.close()
            raise StoreError(f"{path} cannot be read: {e}") from e
        self._path = path
        self._report = report
        self._failed = failed

    def run(self) -> None:
        failure = ""
        try:
            while True:
                calls, ended = self.inbox.take(READS_IN_SNAPSHOT, GROUP_BYTES, None)
                if ended:
                    return
                try:
                    outcomes = self._snapshot(calls) if not failure else _unavailable(calls, failure)
                except Exception as e:  # nobody may wait for ever
                    log.exception("the store's reader failed", path=str(self._path))
                    failure = f"the store's file failed: {e}"
                    self._failed(Report(_unavailable(calls, failure), [], 0, 0, 0, failure))
                else:
                    self._report(outcomes)
        finally:
            self._connection.close()

    def _snapshot(self, calls: list[Call]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            self._connection.execute("BEGIN")
            view = reads.View(self._connection, reads.current_revision(self._connection, self._floor), meta(self._connection, "compacted"))
            for call in calls:
                try:
                    outcomes.append((call.future, call.run(view), None))
                except StoreError as e:
                    outcomes.append((call.future, None, e))
                except sqlite3.Error:
                    raise
                except Exception as e:  # a defect, which is of this call alone
                    log.exception("a read failed", path=str(self._path))
                    outcomes.append((call.future, None, StoreError(f"the read failed: {e!r}")))
        except sqlite3.Error as e:
            outcomes += _unavailable(calls[len(outcomes) :], f"the store's file failed: {e}")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        return outcomes
