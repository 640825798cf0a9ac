"""Membership of one incarnation in one structure: its member key, lease and watch, and the settled guards of its slots.

Owns the member key, the only fencing root: its create revision is the incarnation, and every transaction of this member compares it.
Invariants: an incarnation is created by two transactions (delete the old key, create the new), never by a put over a living key; no
attempt of an earlier incarnation can be applied after `register` has returned; a lost lease is never replaced within an incarnation.
Not guaranteed: that a fenced member notices at once. It need not: whatever it writes fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from qsg.failpoint import task_failpoint
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.packed import read_guard
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import Damaged, read_record
from qsg.rules.slots import Guard
from qsg.rules.world import World
from qsg.store.contract import (
    Compacted,
    Delete,
    Get,
    KeyValue,
    LeaseNotFound,
    NoSpace,
    NotApplied,
    Op,
    Put,
    Store,
    StoreError,
    Unavailable,
    absent,
    created_at,
    prefix_end,
    unchanged,
)

log = structlog.get_logger()

TTL_S = 5
ATTEMPT_S = 0.4
BEAT_S = 1.2
CALL_S = 0.8
"""A renewal or a look that takes longer is given up and repeated: several fit into a lease."""
PAUSE_S = 0.2
SILENT_S = 1.0
RESTORED_JUMP = 10**8
"""A store's revision that jumps by this much between two looks was restored from a snapshot (which bumps it by more)."""


def check_restored(highest: int, revision: int) -> None:
    """Raises `Refusal(STRUCTURE_RESTORED)` when a store that was last seen at `highest` (0 = never) now is at `revision`."""
    if highest and (revision < highest or revision - highest >= RESTORED_JUMP):
        raise Refusal(Reason.STRUCTURE_RESTORED, f"revision {revision}, last seen {highest}")


async def confirm_restored(store: Store) -> int:
    """An operator's word that a restored store may be used: deletes all member keys, which came back with it (interleaving P16).

    Returns the revision, to be kept as the highest seen. Members join anew.
    """
    result = await store.txn([], [Delete(keys.MEMBERS, prefix_end(keys.MEMBERS))])
    return result.revision


@dataclass(frozen=True, slots=True)
class Registration:
    incarnation: int
    lease: int
    guards: list[Guard]
    valid_until: float
    """Loop time until which the lease lives for certain."""


async def register(
    store: Store,
    record: pb.MemberRecord,
    world: World,
    *,
    slots: int,
    lease: bool,
    ttl_s: int = TTL_S,
    highest: int = 0,
    again: bool = False,
) -> Registration:
    """Makes `record.member` a member anew, displacing whoever holds its name. Repeats while the store is out of reach.

    `again`: a process that was fenced joins again. It gives way to another process of its name (raises `Displaced`): of two, the one
    that was started later stays.

    Why earlier attempts cannot come late: each compares the create revision of the key that is deleted here, which never comes back. So
    the guards that are read with our key absent stand still, and the transaction that creates our key advances them, which also makes
    its own copies apply at most once (that it compares *absent* alone would not: the key comes and goes).
    """
    timeout_s = ATTEMPT_S
    while True:
        try:
            return await _register(store, record, again, world, slots, ttl_s if lease else 0, highest, timeout_s)
        except (NotApplied, LeaseNotFound, NoSpace, _Again) as error:
            log.info("registering again", member=record.member, error=repr(error))
        except (Unavailable, TimeoutError) as error:
            log.info("registering again", member=record.member, error=repr(error), timeout_s=timeout_s)
            timeout_s = min(timeout_s * 1.25, 2.0)
        await asyncio.sleep(PAUSE_S * (0.5 + world.random.random()))


class Displaced(Exception):
    """Another process has taken this member's name: this one is to end."""


class _Again(Exception):
    """Somebody else changed what this registration had read."""


async def _register(
    store: Store, record: pb.MemberRecord, again: bool, world: World, slots: int, ttl_s: int, highest: int, timeout_s: float
) -> Registration:
    loop = asyncio.get_running_loop()
    member, value = record.member, record.SerializeToString()
    key = keys.member(member)
    guard_keys = [keys.guard(member, i) for i in range(slots)]
    old, guards, revision = await _look(store, key, guard_keys, timeout_s)
    check_restored(highest, revision)
    if old is not None:
        if again and process_of(old) not in ("", record.process):
            raise Displaced(f"process {process_of(old)} has taken the name {member}")
        log.info("displacing an earlier incarnation", member=member, incarnation=old.create_revision, process=process_of(old))
        await store.txn([created_at(key, old.create_revision)], [Delete(key)], timeout_s=timeout_s)
        old, guards, revision = await _look(store, key, guard_keys, timeout_s)
        if old is not None:
            raise _Again
        await task_failpoint("membership.after_delete_before_create")
    sent = loop.time()
    lease = 0
    if ttl_s:
        async with asyncio.timeout(CALL_S):
            lease = await store.grant(ttl_s)
    join_id = world.id(12)
    ops: list[Op] = [Put(key, value, lease)]
    for name, guard in zip(guard_keys, guards, strict=True):
        ops.append(Put(name, pb.Guard(number=guard.number + 1, attempt=join_id).SerializeToString()))
    compares = [absent(key), *(unchanged(name, guard.revision) for name, guard in zip(guard_keys, guards, strict=True))]
    try:
        result = await store.txn(compares, ops, timeout_s=timeout_s)
        if not result.succeeded:
            raise _Again
        incarnation = result.revision
    except Unavailable:
        # It may still be applied; when it is, the guards show our id. When they do not, the next look finds out.
        now, seen, _ = await _look(store, key, guard_keys, timeout_s)
        if now is None or seen[0].attempt != join_id:
            raise
        incarnation = now.create_revision
    settled = [Guard(guard.number + 1, join_id, incarnation) for guard in guards]
    return Registration(incarnation, lease, settled, sent + ttl_s if ttl_s else float("inf"))


async def _look(store: Store, key: bytes, guard_keys: list[bytes], timeout_s: float) -> tuple[KeyValue | None, list[Guard], int]:
    """Member key and guards at one revision."""
    result = await store.txn([], [Get(key), *(Get(k) for k in guard_keys)], timeout_s=timeout_s)
    return result.got(0).first, [read_guard(result.got(i + 1).first) for i in range(len(guard_keys))], result.revision


def process_of(kv: KeyValue) -> str:
    """The process that a member key names, blank when it cannot be read: that is nobody to give way to."""
    try:
        return read_record(pb.MemberRecord, kv.value, kv.key).process
    except Damaged as damaged:
        log.error("a member key cannot be read", detail=damaged.detail)
        return ""


class Membership:
    """Keeps one registration alive and notices its end: `fenced` is set once our member key is known to be gone."""

    def __init__(self, store: Store, member: str, registration: Registration, *, on_revision: Callable[[int], None] | None = None) -> None:
        self.store, self.member = store, member
        self.incarnation, self.lease = registration.incarnation, registration.lease
        self.valid_until = registration.valid_until
        """Loop time until which the lease lives for certain, by our own clock."""
        self.fenced = asyncio.Event()
        self.cause = ""
        self.restored = False
        self._answered_at = asyncio.get_running_loop().time()
        self._failed = False
        self.highest = registration.incarnation
        self._on_revision = on_revision
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._beat(), name=f"member key of {self.member}"),
            loop.create_task(self._watch(), name=f"watch of {self.member}"),
        ]

    def fence(self, cause: str) -> None:
        if not self.fenced.is_set():
            log.warning("fenced", member=self.member, incarnation=self.incarnation, cause=cause)
            self.cause = cause
            self.fenced.set()

    @property
    def reachable(self) -> bool:
        """False once the store has failed to answer and given no other answer for a second."""
        return not self._failed or asyncio.get_running_loop().time() - self._answered_at < SILENT_S

    def answered(self, reachable: bool, revision: int) -> None:
        """Every answer of the store passes here, or that there was none: its revision is remembered, and a jump noticed."""
        self._failed = not reachable
        if not reachable:
            return
        self._answered_at = asyncio.get_running_loop().time()
        if revision <= self.highest:
            return
        if revision - self.highest >= RESTORED_JUMP:
            self._was_restored(revision)
            return
        self.highest = revision
        if self._on_revision is not None:
            self._on_revision(revision)

    def _was_restored(self, revision: int) -> None:
        self.restored = True
        log.error("the structure was restored from a snapshot", revision=revision, highest=self.highest)
        self.fence(f"the structure was restored: revision {revision}, last seen {self.highest}")

    async def leave(self) -> None:
        """Deletes our member key, once nothing more is to be written; best effort within a second, the lease does the rest."""
        await self.close()
        try:
            async with asyncio.timeout(1.0):
                if not self.fenced.is_set():
                    key = keys.member(self.member)
                    await self.store.txn([created_at(key, self.incarnation)], [Delete(key)])
                if self.lease:
                    await self.store.revoke(self.lease)
        except (StoreError, TimeoutError) as error:
            log.info("left without saying so", member=self.member, error=repr(error))
        if not self.fenced.is_set():
            self.cause = "left"
            self.fenced.set()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _beat(self) -> None:
        """Renews the lease, and looks at our key: a lease outlives a key that somebody deleted."""
        loop = asyncio.get_running_loop()
        while not self.fenced.is_set():
            pause = BEAT_S
            try:
                if self.lease:
                    sent = loop.time()
                    async with asyncio.timeout(CALL_S):
                        self.valid_until = sent + await self.store.keep_alive(self.lease)
                await self._look()
            except LeaseNotFound:
                self.fence("our lease has expired")
            except (StoreError, TimeoutError) as error:
                self.answered(False, 0)
                pause = PAUSE_S
                log.info("no answer to a keep-alive", member=self.member, error=repr(error))
            await asyncio.sleep(pause)

    async def _look(self) -> int:
        before = self.highest
        async with asyncio.timeout(CALL_S):
            result = await self.store.get(Get(keys.member(self.member), keys_only=True))
        if result.revision < before:
            self._was_restored(result.revision)
            return result.revision
        self.answered(True, result.revision)
        if result.first is None or result.first.create_revision != self.incarnation:
            self.fence("our member key is gone")
        return result.revision

    async def _watch(self) -> None:
        key, revision = keys.member(self.member), self.incarnation
        while not self.fenced.is_set():
            try:
                async with aclosing(self.store.watch(key, key + b"\0", revision + 1)) as batches:  # type: ignore[type-var]
                    async for batch in batches:
                        revision = max(revision, batch.revision)
                        if any(event.deleted or event.kv.create_revision != self.incarnation for event in batch.events):
                            self.fence("our member key is gone")
                            return
            except Compacted:
                log.info("history of our member key is gone", member=self.member)
            except StoreError as error:
                log.info("watch of our member key broke", member=self.member, error=repr(error))
            await asyncio.sleep(PAUSE_S)
            try:
                revision = max(revision, await self._look())
            except (StoreError, TimeoutError):
                self.answered(False, 0)


async def join(
    store: Store,
    name: str,
    record: pb.MemberRecord,
    world: World,
    *,
    slots: int = 2,
    lease: bool = True,
    ttl_s: int = TTL_S,
    highest: int = 0,
    on_revision: Callable[[int], None] | None = None,
    compact: bool = True,
    again: bool = False,
    sole: bool = False,
) -> Structure:
    """Makes this process member `record.member` of structure `name`. `lease` False for a private store.
    `sole`: no other process has the store.

    `highest` is the highest revision of this store that was ever seen (0 = none), `on_revision` is told each higher one, to be kept.
    `again`: see `register`. Raises `Refusal(STRUCTURE_RESTORED)`, `Displaced`. Waits while the store is out of reach.
    """
    registration = await register(store, record, world, slots=slots, lease=lease, ttl_s=ttl_s, highest=highest, again=again)
    membership = Membership(store, record.member, registration, on_revision=on_revision)
    structure = Structure(name, store, membership, registration.guards, world, sole=sole)
    structure.start(compact=compact)
    return structure
