"""Cancels a task at every moment of its ending: what is to be cleaned up must be clean whatever the moment."""

from __future__ import annotations

import asyncio
from typing import Any


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled_twice(task: asyncio.Task[Any], between: int) -> None:
    """Cancels `task`, again some steps of the loop later, and returns once it has ended."""
    task.cancel()
    await ticks(between)
    task.cancel()
    await asyncio.wait([task])
