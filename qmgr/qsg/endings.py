"""Endings that are not cut short: clean-up behind an await, in a task that may be cancelled again while it cleans up.

gRPC cancels a handler at any moment, and who ends a service cancels tasks that may be ending by themselves just then. What stands behind
an await in a `finally` is skipped by that. So: clean up synchronously first; what needs an await goes through here. Invariant: what is
given here runs to its end, and a cancellation that comes meanwhile is raised behind it. Not guaranteed: an end in time; give only work
that is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` in a task of its own and waits for it, however often the caller is cancelled meanwhile."""
    task = asyncio.get_running_loop().create_task(work)
    await _wait(task)
    return task.result()


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancels tasks and returns once all have ended; how they did is nobody's business any more."""
    for task in tasks:
        task.cancel()
    try:
        await _wait(*tasks)
    finally:
        for task in tasks:
            if not task.cancelled():
                task.exception()  # fetched: the loop need not complain that nobody did


async def _wait(*tasks: asyncio.Future[Any]) -> None:
    cancelled: asyncio.CancelledError | None = None
    while left := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
