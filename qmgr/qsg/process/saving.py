"""A structure's etcd saved to a file. Invariant: a file of the name asked for is whole; standard output is only when the end is reached."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from qsg.process.config import StructureConfig
from qsg.process.security import store_of


def save(structure: StructureConfig, target: str) -> int:
    """Its size. Raises `StoreError`, `OSError`; a file that is there already is left."""
    if target == "-":
        size = asyncio.run(_download(structure, sys.stdout.buffer.write))
        sys.stdout.buffer.flush()
        return size
    path = Path(target)
    partial = path.with_name(path.name + ".part")
    with path.open("xb"):
        pass
    try:
        with partial.open("wb") as file:
            size = asyncio.run(_download(structure, file.write))
        partial.replace(path)
    except BaseException:
        path.unlink()
        partial.unlink(missing_ok=True)
        raise
    return size


async def _download(structure: StructureConfig, write: Callable[[bytes], int]) -> int:
    store, size = store_of(structure), 0
    try:
        async with contextlib.aclosing(store.snapshot()) as chunks:
            async for chunk in chunks:
                size += write(chunk)
    finally:
        await store.close()
    return size
