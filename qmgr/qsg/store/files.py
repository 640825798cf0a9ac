"""New files that are there whole or not at all, and durable. Not guaranteed: that two who make one of the same name notice each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsg.store.contract import StoreError


def must_be_new(target: Path) -> None:
    """Raises `StoreError`."""
    if target.exists():
        raise StoreError(f"{target} exists already")


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Where to write it; it gets its name at the end, or is removed when something was raised. Raises `StoreError` when `target` exists."""
    must_be_new(target)
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    try:
        yield part
        sync(part)
        os.replace(part, target)
        sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Makes a file's content, or a directory's entries, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
