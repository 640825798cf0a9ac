"""The work queue: keys to be reconciled. Each at most once at a time; a key that comes while it is worked on is worked on once more.

A key that fails comes back after a pause that doubles, and after `ASKED_S` at most when it is asked for: what fails may be one part of it,
and the others must not be late for that. One that succeeds comes no sooner again than after `GAP_S`, whatever happens.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable

import structlog

from qsg_operator.cache import Key

log = structlog.get_logger()

GAP_S = 0.5
BACKOFF_S = (1.0, 60.0)
ASKED_S = 5.0


class WorkQueue:
    """`work` is called for each key by `workers` tasks."""

    def __init__(self, work: Callable[[Key], Awaitable[None]]) -> None:
        self._work = work
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._busy: set[Key] = set()
        self._after: dict[Key, float] = {}
        """Not before then."""
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def add(self, key: Key, delay_s: float = 0.0) -> None:
        now = asyncio.get_running_loop().time()
        due = max(now + delay_s, self._after.get(key, 0.0))
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))
            self._wake.set()

    def forget(self, key: Key) -> None:
        """Nothing remains of a key that is worked on no more."""
        self._failures.pop(key, None)
        self._after.pop(key, None)

    def __len__(self) -> int:
        return len(self._due)

    async def run(self, workers: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._worker(), name=f"reconcile {number}")

    async def _worker(self) -> None:
        while True:
            key = await self._next()
            self._busy.add(key)
            try:
                await self._work(key)
            except Exception as error:
                self._failed(key, error)
            else:
                self._failures.pop(key, None)
                self._after[key] = asyncio.get_running_loop().time() + GAP_S
            finally:
                self._busy.discard(key)
                self._wake.set()

    def _failed(self, key: Key, error: Exception) -> None:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(BACKOFF_S[0] * 2 ** (count - 1), BACKOFF_S[1])
        log.warning("reconcile failed", kind=key[0], namespace=key[1], name=key[2], error=str(error), again_s=pause, failures=count)
        self._after[key] = asyncio.get_running_loop().time() + min(pause, ASKED_S)
        asked = self._due.pop(key, None)
        self.add(key, pause if asked is None else 0.0)

    async def _next(self) -> Key:
        loop = asyncio.get_running_loop()
        while True:
            held: list[tuple[float, Key]] = []
            found: Key | None = None
            while self._heap and self._heap[0][0] <= loop.time():
                due, key = heapq.heappop(self._heap)
                if self._due.get(key) != due:
                    continue
                if key in self._busy:
                    held.append((due, key))
                    continue
                del self._due[key]
                found = key
                break
            for item in held:
                heapq.heappush(self._heap, item)
            if found is not None:
                return found
            await self._pause(held)

    async def _pause(self, held: list[tuple[float, Key]]) -> None:
        """Until something is added, somebody is done, or the next is due."""
        later = [due for due, key in self._heap if (due, key) not in held]
        wait_s = max(0.0, min(later) - asyncio.get_running_loop().time()) if later else None
        self._wake.clear()
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            pass
