"""Whole files of SQLite stores: snapshot, restore, and the reserve of disk space that lets a full store drain.

Invariant: a restored store's revision is higher than any that the original can have reached since the snapshot (by `bump_revision`),
everything older reads as compacted, and it has no leases (their keys are gone, as if all had expired).
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from qsg.store import sqlite_reads as reads
from qsg.store.contract import NoSpace, StoreError
from qsg.store.files import must_be_new, new_file
from qsg.store.sqlite_engine import Engine
from qsg.store.sqlite_file import is_full, meta, open_reader, open_writer, own

BUMP_REVISION = 1_000_000_000


def snapshot(source: Path, target: Path) -> int:
    """Writes a consistent copy of a store (open or not) to a new file, durably; returns its revision.

    Raises `StoreError` when `target` exists, `NoSpace` when the disk is full (nothing is left there then).
    """
    with new_file(target) as part:
        connection = open_reader(source)
        try:
            connection.execute("VACUUM INTO ?", (str(part),))
        except sqlite3.Error as e:
            if is_full(e):
                raise NoSpace(f"no room for {target}") from e
            raise StoreError(f"{source} cannot be copied: {e}") from e
        finally:
            connection.close()
    return _revision(target)


def _revision(path: Path) -> int:
    connection = open_reader(path)
    try:
        return reads.current_revision(connection, meta(connection, "floor"))
    except sqlite3.Error as e:
        raise StoreError(f"{path} is not the snapshot of a store: {e}") from e
    finally:
        connection.close()


def restore(snapshot_path: str | Path, target_path: str | Path, bump_revision: int = BUMP_REVISION) -> int:
    """Makes a new store from a snapshot; returns its revision. Raises `StoreError` when `target_path` exists or the snapshot is not one."""
    source, target = Path(snapshot_path), Path(target_path)
    if not source.exists():
        raise StoreError(f"{source} does not exist")
    if bump_revision < 1:
        raise StoreError("a restored store needs a higher revision")
    _revision(source)
    must_be_new(target)
    ownership = own(target)
    try:
        with new_file(target) as part:
            snapshot(source, part)
            return _bump(part, bump_revision)
    finally:
        ownership.release()


def _bump(path: Path, bump_revision: int) -> int:
    connection = open_writer(path)
    try:
        engine = Engine(connection)
        engine.begin()
        for lease in list(engine.leases):
            engine.revoke(lease)
        engine.commit()
        revision = engine.revision + bump_revision
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE meta SET value = ? WHERE name IN ('floor', 'compacted')", (revision,))
        connection.execute("UPDATE meta SET value = random() & 0x7FFFFFFFFFFFFFFF WHERE name = 'identity'")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = DELETE")  # one file, no log beside it
    finally:
        connection.close()
    return revision


class Reserve:
    """Disk space kept in a file beside the store, given up when the disk is full so that deletions can be written."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path.with_name(path.name + ".reserve")
        self._size = size

    def take(self) -> bool:
        """Sets the space aside; False when the disk has not got it."""
        if not self._size:
            return True
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size)
        except OSError:
            os.ftruncate(fd, 0)
            return False
        finally:
            os.close(fd)
        return True

    def give_up(self) -> None:
        if self._size and self._path.exists():
            os.truncate(self._path, 0)
