"""Reads of a SQLite store: ranges now or at a revision, and the log's events. Synchronous; runs in whichever thread has the connection.

Invariant: each function sees what one transaction of its connection sees; calling it inside one makes several reads one snapshot.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from operator import itemgetter

from qsg.store.contract import Compacted, Event, Get, GetResult, KeyValue, StoreError
from qsg.store.sqlite_file import SUB_BITS, revision_of, row_id

INT_MAX = (1 << 63) - 1
"""The largest number that SQLite knows."""

Row = tuple[bytes, int, int, int, int, bytes]


def bounds(key: bytes, end: bytes, column: str = "key") -> tuple[str, list[bytes]]:
    """SQL for *`column` is in [key, end)*; `end` empty = only `key`, a zero byte = no upper end."""
    if not end:
        return f"{column} = ?", [key]
    if end == b"\0":
        return f"{column} >= ?", [key]
    return f"{column} >= ? AND {column} < ?", [key, end]


def current_revision(connection: sqlite3.Connection, floor: int) -> int:
    """The newest row of the log is never compacted, so it tells the revision."""
    newest = connection.execute("SELECT max(id) FROM version").fetchone()[0]
    return max(floor, revision_of(newest or 0))


def check_revision(get: Get, revision: int, compacted: int) -> None:
    if get.revision > revision:
        raise StoreError(f"required revision {get.revision} is a future revision")
    if 0 < get.revision < compacted:
        raise Compacted(compacted)


def read(connection: sqlite3.Connection, get: Get, revision: int) -> GetResult:
    """`revision` is the one that the result shall name. The caller has checked `get.revision`."""
    source, arguments = _source(get)
    if get.count_only:
        return GetResult((), _count(connection, source, arguments), False, revision)
    select = "v.key, v.id, v.created, v.number, v.lease, " + ("x''" if get.keys_only else "v.value")
    found_where, found_arguments = "", list(arguments)
    if get.mod_after:
        found_where = " WHERE s.id >= ?"
        found_arguments.append(row_id(min(get.mod_after, revision) + 1))
    sql = f"SELECT {select} FROM (SELECT * FROM ({source}) s{found_where} ORDER BY key"
    if get.limit:
        sql += " LIMIT ?"
        found_arguments.append(min(get.limit + 1, INT_MAX))
    rows = connection.execute(sql + ") f CROSS JOIN version v ON v.id = f.id", found_arguments).fetchall()
    rows.sort(key=itemgetter(0))  # in order already; SQL would sort the values too
    more = bool(get.limit) and len(rows) > get.limit
    kvs = tuple([_kv(row) for row in (rows[: get.limit] if more else rows)])
    counted = len(kvs) if not more and not get.mod_after else _count(connection, source, arguments)
    return GetResult(kvs, counted, more, revision)


def _source(get: Get) -> tuple[str, list[bytes | int]]:
    """Key and row of everything in the range, at its revision."""
    where, keys = bounds(get.key, get.end)
    if not get.revision:
        return f"SELECT key, id FROM head WHERE {where}", [*keys]
    limit = row_id(get.revision + 1)
    sql = f"SELECT key, id FROM head WHERE {where} AND id < ? UNION ALL SELECT key, old FROM past WHERE id >= ? AND old < ? AND {where}"
    return sql, [*keys, limit, limit, limit, *keys]


def _count(connection: sqlite3.Connection, source: str, arguments: list[bytes | int]) -> int:
    counted = connection.execute(f"SELECT count(*) FROM ({source})", arguments).fetchone()[0]
    assert isinstance(counted, int)
    return counted


def _kv(row: Row) -> KeyValue:
    key, row_number, created, number, lease, value = row
    return KeyValue(key, value, created, row_number >> SUB_BITS, number, lease)


@dataclass(frozen=True, slots=True)
class EventPage:
    """Every event of a range up to and including `revision`."""

    events: tuple[Event, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot."""

    connection: sqlite3.Connection
    revision: int
    compacted: int


def events(view: View, key: bytes, end: bytes, from_revision: int, bytes_max: int) -> EventPage:
    """Events from a revision on, whole revisions only, ending soon after `bytes_max`. Raises `Compacted`."""
    if from_revision < view.compacted:
        raise Compacted(view.compacted)
    where, keys = bounds(key, end)
    sql = f"SELECT key, id, created, number, lease, value FROM version WHERE id >= ? AND {where} ORDER BY id"
    cursor = view.connection.execute(sql, [row_id(from_revision), *keys])
    found: list[Event] = []
    size = 0
    for row in cursor:
        kv = _kv(row)
        if size >= bytes_max and kv.mod_revision != found[-1].kv.mod_revision:
            cursor.close()
            return EventPage(tuple(found), found[-1].kv.mod_revision)
        found.append(Event(kv, deleted=kv.version == 0))
        size += len(kv.key) + len(kv.value) + 64
    return EventPage(tuple(found), max(view.revision, from_revision - 1))
