"""What the store saw: every change of the status table, the channel's lock and its fence, as one history in the order of revisions.

Watched from etcd itself, not through any member. Where a compaction under load has taken history away before it was seen, the entry after
it has a *break* before it: nothing is said about how it came there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.store.contract import Compacted, KeyValue, StoreError, get_prefix, prefix_end
from qsg.store.etcd import EtcdStore


@dataclass(frozen=True, slots=True)
class Change:
    revision: int
    key: bytes
    value: bytes | None
    at: float
    """When it was seen, monotonic."""
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Takeover:
    at: float
    channel: str
    from_: str
    to: str
    cause: str
    detect_ms: float
    claim_ms: float
    resume_ms: float


@dataclass
class History:
    """Of keys under `prefixes`."""

    endpoints: Sequence[str]
    prefixes: Sequence[bytes]
    changes: list[Change] = field(default_factory=list)
    breaks: int = 0
    takeovers: list[Takeover] = field(default_factory=list)
    now: dict[bytes, bytes] = field(default_factory=dict)
    """Each key as it was seen last."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self._tasks = [
            asyncio.get_running_loop().create_task(self._follow(prefix), name=f"history of {prefix!r}") for prefix in self.prefixes
        ]

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
                                self._saw(event.kv, deleted=event.deleted)
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
            self._add(Change(found.revision, key, None, time.monotonic(), broken=True))
        for kv in there.values():
            if self.now.get(kv.key) != kv.value:
                self._add(Change(kv.mod_revision, kv.key, kv.value, time.monotonic(), broken=True))
        return found.revision

    def _saw(self, kv: KeyValue, *, deleted: bool) -> None:
        self._add(Change(kv.mod_revision, kv.key, None if deleted else kv.value, time.monotonic()))

    def _add(self, change: Change) -> None:
        self.changes.append(change)
        self.breaks += change.broken
        if change.value is None:
            self.now.pop(change.key, None)
            return
        before = self.now.get(change.key)
        self.now[change.key] = change.value
        if change.key.startswith(keys.STATUS_OUT) and before != change.value:
            self._note_takeover(status.parse(before), pb.ChannelStatus.FromString(change.value), change.at)

    def _note_takeover(self, before: pb.ChannelStatus | None, after: pb.ChannelStatus, at: float) -> None:
        t = after.takeover
        if t.resume_ms and (before is None or before.takeover.SerializeToString() != t.SerializeToString()):
            from_ = getattr(t, "from")
            self.takeovers.append(Takeover(at, after.channel, from_, t.to, t.cause, t.detect_ms, t.claim_ms, t.resume_ms))

    def problems(self) -> list[str]:
        """What no history may have."""
        seen: dict[bytes, bytes | None] = {}
        found: list[str] = []
        for change in sorted(self.changes, key=lambda c: c.revision):
            before = seen.get(change.key)
            seen[change.key] = change.value
            if change.broken:
                continue
            found += [f"revision {change.revision}: {text}" for text in _check(change, before)]
        return found


def _check(change: Change, before: bytes | None) -> list[str]:
    if change.key.startswith((keys.STATUS_OUT, keys.STATUS_IN)):
        was, now = status.parse(before), status.parse(change.value)
        try:
            status.check(status.state_of(was), status.state_of(now))
        except status.IllegalTransition as error:
            return [f"{change.key.decode()}: {error}"]
        if was is not None and now is not None and change.key.startswith(keys.STATUS_OUT) and now.epoch < was.epoch:
            return [f"{change.key.decode()}: epoch {was.epoch} -> {now.epoch}"]
    elif change.key.startswith(keys.FENCES) and before is not None and change.value is not None:
        fence, after = pb.SenderFence.FromString(before), pb.SenderFence.FromString(change.value)
        if fence.stream == after.stream and after.epoch < fence.epoch:
            return [f"{change.key.decode()}: epoch of the fence {fence.epoch} -> {after.epoch}"]
    elif change.key.endswith(b"/l") and before is not None and change.value is not None:
        lock, taken = pb.Lock.FromString(before), pb.Lock.FromString(change.value)
        if taken.epoch <= lock.epoch:
            return [f"{change.key.decode()}: locked at epoch {taken.epoch} by {taken.member} over {lock.epoch} of {lock.member}"]
    return []
