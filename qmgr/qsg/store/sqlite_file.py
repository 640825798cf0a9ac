"""The file of a SQLite store: its tables, how it is opened, who owns it, and how its errors read.

Layout. `version` is the log: one row per put or deletion, its id = revision << SUB_BITS | index within the revision, so that row order is
commit order. `head` has the living keys. `past` says which row was superseded by which, in order of the superseding one: reads at an
earlier revision and compaction go by it. All writes but those of `head` are appends.

Invariant: one process has the file open for writing (an advisory lock on a file beside it, which the kernel drops when the process
dies). Not guaranteed: protection from programs that ignore the lock, or on file systems without it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsg.store.contract import NoSpace, StoreError, Unavailable

SUB_BITS = 22
"""Bits of a row id for the index within a revision: 4 million writes a revision, 2**41 revisions."""
APPLICATION_ID = 0x51534753
FORMAT = 1
PAGE_BYTES = 8192
CACHE_KIB = 8192
BUSY_MS = 5000
"""How long another program's lock is waited for."""

SCHEMA = """
CREATE TABLE version (id INTEGER PRIMARY KEY, key BLOB NOT NULL, created INTEGER NOT NULL, number INTEGER NOT NULL,
  lease INTEGER NOT NULL, value BLOB NOT NULL);
CREATE TABLE head (key BLOB PRIMARY KEY, id INTEGER NOT NULL, created INTEGER NOT NULL, number INTEGER NOT NULL,
  lease INTEGER NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX head_lease ON head (lease) WHERE lease != 0;
CREATE TABLE past (id INTEGER PRIMARY KEY, old INTEGER NOT NULL, deleted INTEGER NOT NULL, size INTEGER NOT NULL, key BLOB NOT NULL);
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_s INTEGER NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('compacted', 0), ('floor', 1), ('identity', random() & 0x7FFFFFFFFFFFFFFF);
"""
"""A deletion is a row of `version` with number 0. The revision is never below `floor` (a new store's is 1, as etcd's); `identity`
is drawn when the file is made or restored."""


def row_id(revision: int) -> int:
    """The smallest row id of a revision."""
    return revision << SUB_BITS


def revision_of(row: int) -> int:
    return row >> SUB_BITS


class Ownership:
    """The exclusive right to a store's file, held until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise StoreError(f"{path} is in use by another process") from None

    def release(self) -> None:
        os.close(self._fd)


def own(path: Path) -> Ownership:
    try:
        return Ownership(path)
    except OSError as e:
        raise StoreError(f"{path} cannot be opened: {e.strerror}") from e


def open_writer(path: Path) -> sqlite3.Connection:
    """Opens or creates the file. Raises `StoreError` when it is not a store's, damaged or not writable."""
    try:
        connection = _connect(path)
        with _closed_unless_done(connection):
            _prepare(connection, path)
    except sqlite3.Error as e:
        raise StoreError(f"{path} cannot be opened: {e}") from e
    return connection


@contextmanager
def _closed_unless_done(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    mode = "ro" if read_only else "rwc"
    uri = path.absolute().as_uri() + f"?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000, cached_statements=64)
    with _closed_unless_done(connection):
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA mmap_size = 0")
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID and not (empty and application == 0):
        raise StoreError(f"{path} is not the file of a store")
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise StoreError(f"{path}: its file system does not allow write-ahead logging")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = OFF")  # where it is on by default, erasing would write every page that it frees
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer does it by itself
    if empty:
        connection.executescript(
            f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT;"
        )
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found != FORMAT:
        raise StoreError(f"{path} has format {found}, this program knows {FORMAT}")
    connection.execute("BEGIN IMMEDIATE")  # fails at once where the file cannot be written
    connection.execute("ROLLBACK")


def lay_out_log(connection: sqlite3.Connection, path: Path, size: int) -> None:
    """Empties the write-ahead log and fills its file with zeros, before the first write.

    Syncing a file that grows costs the file system's own journal, several times a commit in blocks that exist. SQLite takes a log without
    a valid header as empty. A disk without the room is no error: the log then grows as it is used.
    """
    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    log = path.with_name(path.name + "-wal")
    if busy or not log.exists() or log.stat().st_size:
        return
    fd = os.open(log, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, size)
        for offset in range(0, size, 1 << 20):
            os.pwrite(fd, bytes(min(1 << 20, size - offset)), offset)
        os.fsync(fd)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def open_reader(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path, read_only=True)
    except sqlite3.Error as e:
        raise StoreError(f"{path} cannot be read: {e}") from e


def meta(connection: sqlite3.Connection, name: str) -> int:
    value = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]
    assert isinstance(value, int)
    return value


def is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


def translate(error: sqlite3.Error) -> StoreError:
    """What a failed write means to the caller. Only *full* is known not to be applied."""
    if is_full(error):
        return NoSpace("the disk is full")
    return Unavailable(f"the store's file failed: {error}")
