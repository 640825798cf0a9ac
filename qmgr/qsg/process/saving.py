"""A structure's etcd saved to a file. Invariant: a file of the name asked for is whole; standard output is only when the end is reached."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from qsg.process.config import StructureConfig
from qsg.process.security import store_of
from qsg.store.files import new_file


def save(structure: StructureConfig, target: str) -> int:
    """Its size. Raises `StoreError` (also when `target` exists), `OSError`."""
    if target == "-":
        size = asyncio.run(_download(structure, sys.stdout.buffer.write))
        sys.stdout.buffer.flush()
        return size
    with new_file(Path(target)) as part, part.open("wb") as file:
        return asyncio.run(_download(structure, file.write))


async def _download(structure: StructureConfig, write: Callable[[bytes], int]) -> int:
    store, size = store_of(structure), 0
    try:
        async with contextlib.aclosing(store.snapshot()) as chunks:
            async for chunk in chunks:
                size += write(chunk)
    finally:
        await store.close()
    return size
