"""The write side of a SQLite store: executes requests one after the other inside one database transaction. Synchronous, one thread.

Invariant: a request either raises and changes nothing, or is applied in full; whatever can refuse it is checked before its first write.
So only failures of the file itself undo anything, and they undo the whole group (`rollback`). Writes are collected and written in bulk
before the next read that needs them and at the end of the group.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from qsg.store import sqlite_reads as reads
from qsg.store.contract import (
    Compacted,
    Compare,
    Delete,
    Event,
    Get,
    GetResult,
    KeyValue,
    LeaseNotFound,
    NoSpace,
    Op,
    Put,
    Relation,
    StoreError,
    Target,
)
from qsg.store.mvcc import check_branch, holds
from qsg.store.sqlite_file import SUB_BITS, meta, row_id

OVERHEAD = 64
"""Bytes that a row costs beside key and value, about."""
HEADS_CACHED = 8192
SMALL_BYTES = 16384
"""Changes that grow the store by no more may use the reserve: draining writes small records before it frees large ones."""
RESERVE = 16
"""The reserve is this part of the quota."""

_COLUMNS = {Target.CREATE: "created", Target.MOD: f"(id >> {SUB_BITS})", Target.VERSION: "number", Target.LEASE: "lease"}
_OPPOSITES = {Relation.EQUAL: "!=", Relation.NOT_EQUAL: "=", Relation.LESS: ">=", Relation.GREATER: "<="}
_MISSING = KeyValue(b"", b"", 0, 0, 0, 0)


class Head(NamedTuple):
    """A living key."""

    id: int
    created: int
    number: int
    lease: int
    size: int


@dataclass(frozen=True, slots=True)
class Applied:
    """Result of a transaction. Per operation: what was read, how many were deleted, None for a put."""

    succeeded: bool
    revision: int
    results: tuple[GetResult | int | None, ...]


@dataclass(slots=True)
class Pending:
    """Writes of the open group that are not in the tables yet, and what the group did so far."""

    heads: dict[bytes, Head | None] = field(default_factory=dict)
    versions: list[tuple[int, bytes, int, int, int, bytes]] = field(default_factory=list)
    pasts: list[tuple[int, int, int, int, bytes]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    bytes_written: int = 0
    rows_written: int = 0


class Engine:
    """Owns the writing connection. `begin`, any number of requests, `commit` (or `rollback`)."""

    def __init__(self, connection: sqlite3.Connection, quota_bytes: int = 0) -> None:
        self.connection = connection
        self.quota_bytes = quota_bytes
        self.floor = meta(connection, "floor")
        self.page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        self.allowance: int | None = None
        """Set while the disk is full: by how many bytes a group may grow the store; what shrinks it, or grows it little, always passes."""
        self._heads: dict[bytes, Head | None] = {}
        self._reload()

    def _reload(self) -> None:
        """What is kept in memory, as the file has it."""
        self._heads.clear()
        self._pending = Pending()
        self.revision = reads.current_revision(self.connection, self.floor)
        self.compacted = meta(self.connection, "compacted")
        self.leases: dict[int, int] = dict(self.connection.execute("SELECT id, ttl_s FROM lease"))
        self._erased = 0
        """Erasing has come to this row of `past`."""
        self._measure()

    def _measure(self) -> None:
        pages = self.connection.execute("PRAGMA page_count").fetchone()[0]
        free = self.connection.execute("PRAGMA freelist_count").fetchone()[0]
        self.bytes_in_use: int = (pages - free) * self.page_bytes
        self.bytes_free: int = free * self.page_bytes

    # Groups

    def begin(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> list[Event]:
        """Makes the group durable; returns its events in commit order."""
        self._flush()
        self.connection.execute("COMMIT")
        events = self._pending.events
        self._pending = Pending()
        self._measure()
        if len(self._heads) > HEADS_CACHED:
            self._heads.clear()
        return events

    def rollback(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        self._reload()

    def _flush(self) -> None:
        pending = self._pending
        if pending.versions:
            self.connection.executemany("INSERT INTO version VALUES (?, ?, ?, ?, ?, ?)", pending.versions)
            pending.versions.clear()
        if pending.pasts:
            self.connection.executemany("INSERT INTO past VALUES (?, ?, ?, ?, ?)", pending.pasts)
            pending.pasts.clear()
        if pending.heads:
            living = [(key, *head) for key, head in pending.heads.items() if head is not None]
            self.connection.executemany("INSERT OR REPLACE INTO head VALUES (?, ?, ?, ?, ?, ?)", living)
            gone = [(key,) for key, head in pending.heads.items() if head is None]
            self.connection.executemany("DELETE FROM head WHERE key = ?", gone)
            pending.heads.clear()

    @property
    def written(self) -> tuple[int, int]:
        """Bytes and rows of the open group, about."""
        return self._pending.bytes_written, self._pending.rows_written

    # Transactions

    def txn(self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op]) -> Applied:
        check_branch(ops)
        check_branch(else_ops)
        succeeded = all(self._holds(compare) for compare in compares)
        branch = ops if succeeded else else_ops
        self._check_branch(branch)
        first = row_id(self.revision + 1)
        row = first
        results: list[GetResult | int | None] = []
        for op in branch:
            if isinstance(op, Get):
                self._flush()
                results.append(reads.read(self.connection, op, self.revision))
            elif isinstance(op, Put):
                self._put(op, row)
                row += 1
                results.append(None)
            else:
                keys = self._keys(op)
                for key, head in keys:
                    self._delete(key, head, row)
                    row += 1
                results.append(len(keys))
        assert row - first < 1 << SUB_BITS, "more writes than a revision can hold"
        if row != first:
            self.revision += 1
            results = [replace(result, revision=self.revision) if isinstance(result, GetResult) else result for result in results]
        return Applied(succeeded, self.revision, tuple(results))

    def _holds(self, compare: Compare) -> bool:
        if compare.target is Target.VALUE or not compare.end:
            return self._holds_each(compare)
        self._flush()
        if not isinstance(compare.operand, int):
            raise StoreError(f"operand of a compare of {compare.target.value} has the wrong type")
        where, arguments = reads.bounds(compare.key, compare.end)
        failing = f"SELECT 1 FROM head WHERE {where} AND {_COLUMNS[compare.target]} {_OPPOSITES[compare.relation]} ? LIMIT 1"
        if self.connection.execute(failing, [*arguments, max(-reads.INT_MAX, min(compare.operand, reads.INT_MAX))]).fetchone() is not None:
            return False
        if holds(compare, _MISSING):
            return True
        return self.connection.execute(f"SELECT 1 FROM head WHERE {where} LIMIT 1", arguments).fetchone() is not None

    def _holds_each(self, compare: Compare) -> bool:
        if compare.target is Target.VALUE:
            self._flush()
            kvs = reads.read(self.connection, Get(compare.key, compare.end), self.revision).kvs
            return bool(kvs) and all(holds(compare, kv) for kv in kvs)
        head = self._head(compare.key)
        if head is None:
            return holds(compare, _MISSING)
        return holds(compare, KeyValue(compare.key, b"", head.created, head.id >> SUB_BITS, head.number, head.lease))

    def _head(self, key: bytes) -> Head | None:
        if key in self._heads:
            return self._heads[key]
        row = self.connection.execute("SELECT id, created, number, lease, size FROM head WHERE key = ?", (key,)).fetchone()
        head = None if row is None else Head(*row)
        self._heads[key] = head
        return head

    def _keys(self, delete: Delete) -> list[tuple[bytes, Head]]:
        """The living keys that a deletion is about, in order."""
        if not delete.end:
            head = self._head(delete.key)
            return [] if head is None else [(delete.key, head)]
        self._flush()
        where, arguments = reads.bounds(delete.key, delete.end)
        sql = f"SELECT key, id, created, number, lease, size FROM head WHERE {where} ORDER BY key"
        return [(row[0], Head(*row[1:])) for row in self.connection.execute(sql, arguments)]

    def _check_branch(self, branch: Sequence[Op]) -> None:
        """Refuses what cannot be applied, before anything is."""
        growth = 0
        deletes = False
        for op in branch:
            if isinstance(op, Put):
                if op.lease and op.lease not in self.leases:
                    raise LeaseNotFound(f"lease {op.lease} is not known")
                old = self._head(op.key)
                growth += len(op.value) - old.size if old is not None else len(op.key) + len(op.value) + OVERHEAD
            elif isinstance(op, Get):
                reads.check_revision(op, self.revision, self.compacted)
            else:
                deletes = True
        if growth > 0 and (self.quota_bytes or self.allowance is not None):
            if deletes:
                growth -= sum(len(key) + head.size + OVERHEAD for op in branch if isinstance(op, Delete) for key, head in self._keys(op))
            self._check_growth(growth)

    def _check_growth(self, growth: int) -> None:
        if growth <= 0:
            return
        if self.allowance is not None and growth > SMALL_BYTES and self._pending.bytes_written + growth > self.allowance:
            raise NoSpace("the disk is full")
        if not self.quota_bytes:
            return
        quota = self.quota_bytes if growth > SMALL_BYTES else self.quota_bytes + self.quota_bytes // RESERVE
        in_use = self.bytes_in_use + self._pending.bytes_written
        if in_use + growth > quota:
            raise NoSpace(f"{in_use} of {self.quota_bytes} bytes are in use")

    def _put(self, put: Put, row: int) -> None:
        old = self._head(put.key)
        revision = row >> SUB_BITS
        if old is None:
            head = Head(row, revision, 1, put.lease, len(put.value))
        else:
            head = Head(row, old.created, old.number + 1, put.lease, len(put.value))
            self._pending.pasts.append((row, old.id, 0, old.size, put.key))
        value = bytes(put.value)
        self._write(put.key, head, row, (head.created, head.number, head.lease, value))
        self._pending.events.append(Event(KeyValue(put.key, value, head.created, revision, head.number, head.lease)))

    def _delete(self, key: bytes, old: Head, row: int) -> None:
        self._pending.pasts.append((row, old.id, 1, old.size, key))
        self._write(key, None, row, (0, 0, 0, b""))
        self._pending.events.append(Event(KeyValue(key, b"", 0, row >> SUB_BITS, 0, 0), deleted=True))

    def _write(self, key: bytes, head: Head | None, row: int, rest: tuple[int, int, int, bytes]) -> None:
        pending = self._pending
        pending.versions.append((row, key, *rest))
        pending.heads[key] = self._heads[key] = head
        pending.bytes_written += len(key) + len(rest[3]) + OVERHEAD
        pending.rows_written += 1

    # Leases

    def grant(self, lease: int, ttl_s: int) -> None:
        if lease in self.leases:
            raise StoreError(f"lease {lease} already exists")
        self.connection.execute("INSERT INTO lease VALUES (?, ?)", (lease, ttl_s))
        self.leases[lease] = ttl_s

    def revoke(self, lease: int) -> None:
        """Ends a lease and deletes its keys, in one revision."""
        if lease not in self.leases:
            raise LeaseNotFound(f"lease {lease} is not known")
        self._flush()
        row = first = row_id(self.revision + 1)
        for key in self.keys_of(lease):
            head = self._head(key)
            assert head is not None
            self._delete(key, head, row)
            row += 1
        if row != first:
            self.revision += 1
        self.connection.execute("DELETE FROM lease WHERE id = ?", (lease,))
        del self.leases[lease]

    def keys_of(self, lease: int) -> list[bytes]:
        self._flush()
        return [row[0] for row in self.connection.execute("SELECT key FROM head WHERE lease = ? AND lease != 0 ORDER BY key", (lease,))]

    # Compaction

    def compact(self, revision: int) -> None:
        """From now on nothing below `revision` can be read; `erase` frees the room."""
        if revision > self.revision:
            raise StoreError(f"required revision {revision} is a future revision")
        if revision <= self.compacted:
            raise Compacted(self.compacted)
        self.connection.execute("UPDATE meta SET value = ? WHERE name = 'compacted'", (revision,))
        self.compacted = revision
        self._erased = 0

    def superseded_by(self, revision: int) -> bool:
        """Would compacting to `revision` free anything?"""
        return self.connection.execute("SELECT 1 FROM past WHERE id < ? LIMIT 1", (row_id(revision + 1),)).fetchone() is not None

    def erase(self, rows_max: int, bytes_max: int) -> bool:
        """One step of erasing what cannot be read any more; True when there is more.

        Deletions at exactly the compacted revision stay (their rows of `past` with no old row), for watches that begin there.
        """
        self._flush()
        sql = "SELECT id, old, deleted, size FROM past WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
        found = self.connection.execute(sql, (self._erased, row_id(self.compacted + 1), rows_max)).fetchall()
        kept_from = row_id(self.compacted)
        gone, done, kept, size = [], [], [], 0
        for row, old, deleted, old_size in found:
            gone.append((old,))
            if deleted and row >= kept_from:
                kept.append((row,))
            else:
                done.append((row,))
                if deleted:
                    gone.append((row,))
            self._erased, size = row, size + old_size
            if size >= bytes_max:
                break
        self.connection.executemany("DELETE FROM version WHERE id = ?", gone)
        self.connection.executemany("DELETE FROM past WHERE id = ?", done)
        self.connection.executemany("UPDATE past SET old = 0, size = 0 WHERE id = ?", kept)
        return len(found) == rows_max or size >= bytes_max
