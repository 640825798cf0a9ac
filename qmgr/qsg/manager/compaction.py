"""Compacts a structure's history: one member does it, the first by name of those that live.

Invariant: at least `keep_s` seconds of history stay, as this process saw revisions pass. Not guaranteed: that only one member does it at
a time (around a member's end two may; compacting twice does no harm), nor that any does while the store is out of reach.
"""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from qsg.rules import keys
from qsg.store.contract import Compacted, Get, Store, StoreError, prefix_end

log = structlog.get_logger()

EVERY_S = 2.0
KEEP_S = 5.0


class Housekeeper:
    def __init__(self, store: Store, member: str, *, every_s: float = 0.0, keep_s: float = KEEP_S) -> None:
        self.store, self.member, self.every_s, self.keep_s = store, member, every_s or EVERY_S, keep_s
        self.compacted = 0
        """The last revision that this process compacted to."""
        self._seen: deque[tuple[float, int]] = deque()

    async def run(self) -> None:
        while True:
            try:
                await self.step()
            except Compacted as error:
                self.compacted = max(self.compacted, error.revision)
            except StoreError as error:
                log.info("not compacted", error=repr(error))
            await asyncio.sleep(self.every_s)

    async def step(self) -> None:
        """Notes the present revision, and compacts up to the newest one noted that is old enough, if that is our turn."""
        result = await self.store.get(Get(keys.MEMBERS, prefix_end(keys.MEMBERS), limit=1, keys_only=True))
        now = asyncio.get_running_loop().time()
        self._seen.append((now, result.revision))
        target = 0
        while self._seen and self._seen[0][0] <= now - self.keep_s:
            target = self._seen.popleft()[1]
        first = result.first
        if target <= self.compacted or first is None or first.key != keys.member(self.member):
            return
        await self.store.compact(target)
        self.compacted = target
