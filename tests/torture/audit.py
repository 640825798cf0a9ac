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

from qsg.process.local import REMOTE
from qsg.rules import keys
from qsg.store.contract import Get, StoreError
from qsg.store.etcd import EtcdStore
from support.linearizable import Call, stuck
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
            if culprits := stuck(calls(ours, [seen for seen in self.reads if seen.key == key]), 0):
                told = "; ".join(f"{c.kind} {c.expected} {c.value} in {c.start:.3f}..{c.end:.3f}" for c in culprits[:3])
                found.append(f"reads of {key.decode()} are not linearizable: {told}")
        return found


def calls(changes: Sequence[Change], reads: Sequence[Seen]) -> list[Call]:
    """Of one register, whose states are told by the revisions at which they began. Where history was not seen whole, a change is a mere
    write, and what was read from the state before it until then is left out: nothing is known of it."""
    made, state = [], 0
    began = [0]
    blind: list[tuple[int, int]] = []
    for change in changes:
        if change.broken:
            blind.append((state, change.revision))
            made.append(Call("write", 0.0, change.at, change.revision))
        else:
            made.append(Call("swap", 0.0, change.at, change.revision, state))
        state = change.revision
        began.append(state)
    for seen in reads:
        if seen.revision > state or any(low < seen.revision < high for low, high in blind):
            continue  # behind what the watch has shown, or where it has shown nothing
        value = seen.mod_revision or began[bisect_right(began, seen.revision) - 1]
        made.append(Call("read", seen.start, seen.end, value))
    return made
