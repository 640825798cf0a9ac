"""What the store saw: every change of members, status table, lock, fences and records, as one history in the order of revisions.

Watched from etcd itself, not through any member; judged by `support.histories`. Where a compaction under load has taken history away before
it was seen, what is found there after it has a *break* before it: nothing is said about how it came there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import groupby

from qsg.pb import records_pb2 as pb
from qsg.process.local import REMOTE
from qsg.rules import keys, status
from qsg.store.contract import Compacted, Event, KeyValue, StoreError, get_prefix, prefix_end
from qsg.store.etcd import EtcdStore
from support.histories import StoreHistory

WATCHED = (
    keys.MEMBERS,
    keys.STATUS_OUT,
    keys.STATUS_IN,
    keys.FENCES,
    keys.PROGRESS,
    keys.RECEIVER_FENCES,
    keys.RECEIVER_PROGRESS,
    keys.lock(REMOTE),
)


@dataclass(frozen=True, slots=True)
class Change:
    event: Event
    broken: bool = False
    at: float = 0.0
    """When it was seen; it was made before that."""

    @property
    def revision(self) -> int:
        return self.event.kv.mod_revision


@dataclass(frozen=True, slots=True)
class Takeover:
    channel: str
    from_: str
    to: str
    cause: str
    detect_ms: float
    claim_ms: float
    resume_ms: float


@dataclass
class History:
    """Of one store."""

    endpoints: Sequence[str]
    changes: list[Change] = field(default_factory=list)
    breaks: int = 0
    takeovers: list[Takeover] = field(default_factory=list)
    now: dict[bytes, bytes] = field(default_factory=dict)
    """Each key as it was seen last."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self._tasks = [asyncio.get_running_loop().create_task(self._follow(prefix), name=f"history of {prefix!r}") for prefix in WATCHED]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def entry(self, channel: str) -> pb.ChannelStatus | None:
        return status.parse(self.now.get(keys.status_out(channel)))

    async def _follow(self, prefix: bytes) -> None:
        store = EtcdStore(self.endpoints)
        revision = 0
        try:
            while True:
                try:
                    if not revision:
                        revision = await self._list(store, prefix)
                    async with aclosing(store.watch(prefix, prefix_end(prefix), revision + 1)) as batches:
                        async for batch in batches:
                            for event in batch.events:
                                self.add(Change(event, at=time.monotonic()))
                            revision = max(revision, batch.revision)
                except Compacted:
                    revision = 0
                except StoreError:
                    await asyncio.sleep(0.1)
        finally:
            await store.close()

    async def _list(self, store: EtcdStore, prefix: bytes) -> int:
        """The keys as they are; those that have changed unseen have a break before them."""
        found = await store.get(get_prefix(prefix))
        there = {kv.key: kv for kv in found.kvs}
        for key in [k for k in self.now if k.startswith(prefix) and k not in there]:
            self.add(Change(Event(KeyValue(key, b"", 0, found.revision, 0, 0), deleted=True), broken=True, at=time.monotonic()))
        for kv in there.values():
            if self.now.get(kv.key) != kv.value:
                self.add(Change(Event(kv), broken=True, at=time.monotonic()))
        return found.revision

    def add(self, change: Change) -> None:
        key, value = change.event.kv.key, change.event.kv.value
        self.changes.append(change)
        self.breaks += change.broken
        if change.event.deleted:
            self.now.pop(key, None)
            return
        before = self.now.get(key)
        self.now[key] = value
        if key.startswith(keys.STATUS_OUT) and before != value:
            self._note_takeover(status.parse(before), pb.ChannelStatus.FromString(value))

    def _note_takeover(self, before: pb.ChannelStatus | None, after: pb.ChannelStatus) -> None:
        t = after.takeover
        if t.resume_ms and (before is None or before.takeover.SerializeToString() != t.SerializeToString()):
            from_ = getattr(t, "from")
            self.takeovers.append(Takeover(after.channel, from_, t.to, t.cause, t.detect_ms, t.claim_ms, t.resume_ms))

    def problems(self) -> list[str]:
        """What no history may have."""
        judge = StoreHistory()
        found: list[str] = []
        ordered = sorted(self.changes, key=lambda c: c.revision)
        for revision, changes in groupby(ordered, key=lambda c: c.revision):
            together = list(changes)
            wrong = judge.saw([c.event for c in together])
            if not any(c.broken for c in together):
                found += [f"revision {revision}: {text}" for text in wrong]
        return found
