"""A private store's disk: a commit is answered once it is synced, and a crash takes what was not.

Invariant: what was answered survives a crash; what was not answered may or may not. Reads and watches show only what is synced, as with
SQLite, whose commit syncs before anybody sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from qsg.store.contract import Compare, Op, TxnResult
from qsg.store.faults import Fault, Faults
from qsg.store.memory import MemoryServer, MemoryStore
from simulation.loop import KERNEL

T = TypeVar("T")


class DiskServer(MemoryServer):
    def __init__(self, random: Random) -> None:
        super().__init__(random=random, context=KERNEL)
        self.sync_s = 0.002
        self._synced_at: list[tuple[int, float]] = []
        """(revision, when it is synced), what is not synced yet."""
        self._last_sync = 0.0

    def open(self) -> MemoryStore:
        return DiskStore(self, _DiskFaults(self))

    @property
    def unsynced_s(self) -> float:
        """How long until everything that is written now is synced."""
        return max(0.0, self._last_sync - asyncio.get_running_loop().time())

    def plan_sync(self) -> float:
        """Seconds until a write that arrives now is synced."""
        now = asyncio.get_running_loop().time()
        self._last_sync = max(self._last_sync, now + self.random.uniform(0.1, 1.0) * self.sync_s)
        return self._last_sync - now

    def txn(self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op]) -> TxnResult:
        before = self.state.revision
        result = super().txn(compares, ops, else_ops)
        if result.revision != before:
            self._forget_synced()
            self._synced_at.append((result.revision, self._last_sync))
        return result

    def _forget_synced(self) -> None:
        now = asyncio.get_running_loop().time()
        self._synced_at = [entry for entry in self._synced_at if entry[1] > now]

    def is_synced(self, revision: int, now: float) -> bool:
        return all(synced_at <= now for written, synced_at in self._synced_at if written <= revision)

    def crash(self) -> int:
        """What was not synced is gone; how many commits that were."""
        self._forget_synced()
        lost, self._synced_at = self._synced_at, []
        if lost:
            self.state.rewind(lost[0][0] - 1)
        return len(lost)


class DiskStore(MemoryStore):
    server: DiskServer

    def _settle(self, answer: asyncio.Future[T], action: Callable[[], T], fault: Fault) -> None:
        if not self._closed:  # what a process had sent off dies with it
            super()._settle(answer, action, fault)

    def _answer_delay_s(self, fault: Fault) -> float:
        return self.server.plan_sync()


class _DiskFaults(Faults):
    def __init__(self, disk: DiskServer) -> None:
        self._disk = disk

    def watch_delay_s(self) -> float:
        return self._disk.unsynced_s
