"""Reads who owns the channel, all the time and at every member of etcd, and holds that against the history: is it linearizable?

What the rules decide on a read (our member key is gone, the entry is still ours, the guard stands still) is right only if no read is stale,
also while etcd's leader is killed or frozen. The registers are the entry, the lock and the fence of the channel out of the group. Changes
are known from the watch, in the order of revisions; when each was made is known only to be before it was seen.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

from qsg.process.local import REMOTE
from qsg.rules import keys
from qsg.store.contract import Get, StoreError
from qsg.store.etcd import EtcdStore
from torture.history import Change

PAUSE_S = 0.2
CHANNEL = f"QSG.TO.{REMOTE}"
REGISTERS = (keys.status_out(CHANNEL), keys.lock(REMOTE), keys.sender_fence(REMOTE))


@dataclass(frozen=True, slots=True)
class Seen:
    """One read of one register. `mod_revision` 0: it was absent."""

    key: bytes
    start: float
    end: float
    mod_revision: int
    revision: int
    """Of the store, at which it was read."""


@dataclass
class Audit:
    endpoints: Sequence[str]
    reads: list[Seen] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._read(endpoint), name=f"audit at {endpoint}") for endpoint in self.endpoints]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, endpoint: str) -> None:
        store = EtcdStore([endpoint])
        try:
            while True:
                start = time.monotonic()
                try:
                    result = await store.txn([], [Get(key, keys_only=True) for key in REGISTERS])
                except StoreError:
                    await asyncio.sleep(PAUSE_S)
                    continue
                end = time.monotonic()
                for i, key in enumerate(REGISTERS):
                    kv = result.got(i).first
                    self.reads.append(Seen(key, start, end, 0 if kv is None else kv.mod_revision, result.revision))
                await asyncio.sleep(PAUSE_S)
        finally:
            await store.close()

    def problems(self, changes: Sequence[Change]) -> list[str]:
        found = []
        for key in REGISTERS:
            ours = sorted((c for c in changes if c.event.kv.key == key), key=lambda c: c.revision)
            if why := stale(ours, [seen for seen in self.reads if seen.key == key]):
                found.append(f"reads of {key.decode()} are not linearizable: {why}")
        return found


def stale(changes: Sequence[Change], reads: Sequence[Seen]) -> str:
    """Why the reads of one register do not fit its changes, in the order of revisions; "" = they do.

    The order is known, so nothing is searched: a change was made after the start of each read that shows a state before it, and before it
    was seen, and before the end of each read that shows its state or a later one. Exact, and linear in the history: an hour has 10,000s of
    changes. Where history was not seen whole, what was read from the state before the break until then is left out: nothing is known.
    """
    began = [0, *(c.revision for c in changes)]
    states = {revision: n for n, revision in enumerate(began)}
    blind = [(began[n], change.revision) for n, change in enumerate(changes) if change.broken]
    starts, ends = [-inf] * len(began), [inf, *(c.at for c in changes)]
    for seen in reads:
        if seen.revision > began[-1] or any(low < seen.revision < high for low, high in blind):
            continue  # behind what the watch has shown, or where it has shown nothing
        n = states.get(seen.mod_revision, -1) if seen.mod_revision else bisect_right(began, seen.revision) - 1
        if n < 0:
            return f"revision {seen.mod_revision} was read, which it never had"
        starts[n], ends[n] = max(starts[n], seen.start), min(ends[n], seen.end)
    latest = list(accumulate(starts, max))
    earliest = list(accumulate(reversed(ends), min))[::-1]
    for n, change in enumerate(changes, start=1):
        if latest[n - 1] > earliest[n]:
            what = f"its change at revision {change.revision} was seen by {earliest[n]:.3f}"
            return f"{what}, and a read that began at {latest[n - 1]:.3f} shows a state before it"
    return ""
