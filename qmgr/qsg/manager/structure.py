"""A store as a member sees it: units are committed under the member's incarnation, reads show one revision.

Owns the committer, the membership and the housekeeping of one structure for one incarnation; torn down whole when that is fenced.
Invariant: nothing is written except under compares of our own member key. Not guaranteed: that what was read still holds; what must
hold at a commit is compared there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from qsg.manager import calls
from qsg.manager.claims import Claims
from qsg.manager.committer import Committer, Counters
from qsg.manager.compaction import Housekeeper
from qsg.rules import keys
from qsg.rules.slots import Guard
from qsg.rules.unit import Cell, Committed, Unit
from qsg.rules.world import World
from qsg.store.contract import (
    Compacted,
    Compare,
    Get,
    GetResult,
    NotApplied,
    Store,
    StoreError,
    StoreStatus,
    TxnResult,
    Unavailable,
    created_at,
)
from qsg.store.follow import Follower

if TYPE_CHECKING:
    from qsg.manager.large import Stage
    from qsg.manager.membership import Membership

log = structlog.get_logger()

READ_S = 5.0
"""How long a read is repeated before it fails with `Unavailable`."""
NEAR_S = 0.4
QUOTA_SHARE = 0.7
"""Puts are refused while more of the quota than this is in use."""
QUOTA_SLACK = 0.1
"""So much more of it a member may write by itself before it has looked again."""
QUOTA_EVERY_S = 1.0
QUOTA_PAUSE_S = 0.05
"""Between two looks at the quota, at least."""


class Structure:
    def __init__(self, name: str, store: Store, membership: Membership, guards: list[Guard], world: World, *, sole: bool = False) -> None:
        self.name, self.store, self.membership, self.world = name, store, membership, world
        self.member, self.incarnation = membership.member, membership.incarnation
        self.fenced = membership.fenced
        self.claims = Claims() if sole else None
        """Of units of work, where nobody else has the store."""
        self._committer = Committer(
            store, self.member, self.incarnation, guards, world, fenced=membership.fence, answered=membership.answered
        )
        self.on_commit = self._committer.on_commit
        self.filled: StoreStatus | None = None
        """As the store told last."""
        self.abandoned: dict[bytes, Stage] = {}
        """What was staged here and could not be removed yet (`large`)."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def reachable(self) -> bool:
        """False once the store has failed to answer and given no other answer for a second."""
        return self.membership.reachable

    @property
    def revision(self) -> int:
        """The highest revision seen."""
        return self.membership.highest

    @property
    def counters(self) -> Counters:
        return self._committer.counters

    def start(self, *, compact: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.membership.start()
        self._committer.start()
        self._tasks = [
            loop.create_task(self._watch_fence(), name=f"fence of {self.name}"),
            loop.create_task(self._watch_quota(), name=f"quota of {self.name}"),
        ]
        if compact:
            self._tasks.append(loop.create_task(Housekeeper(self.store, self.member).run(), name=f"compaction of {self.name}"))

    def mine(self) -> Compare:
        """Our member key is unchanged (the committer compares it in every transaction by itself)."""
        return created_at(keys.member(self.member), self.incarnation)

    async def commit(self, unit: Unit, *, affinity: str = "", slot: int | None = None) -> Committed:
        """Applies a unit. Waits while the structure is out of reach.

        Raises `Refusal` (of a change's `apply`; SYNCPOINT_LIMIT_REACHED; STORAGE_NOT_AVAILABLE when full), `CompareFailed` or `Fenced`:
        then nothing of it was applied and never will be. `OutcomeUnknown`: only when the structure is closed while it is out.
        Units with the same `affinity` or `slot` are applied in the order handed in; units with `taken` go to slot 0 unless told.
        """
        calls.changing()
        return await self._committer.commit(unit, affinity=affinity, slot=slot)

    def slot_for(self, affinity: str) -> int:
        """The slot of an affinity, for units that must stay in order also when they take messages off a queue."""
        return self._committer.slot_for(Unit(), affinity)

    async def read(self, *gets: Get) -> tuple[int, list[GetResult]]:
        """Reads everything at one revision, and returns that. Repeated for up to 5 s, then `Unavailable`."""
        step = max(1, self.store.limits.operations)
        while True:
            first = await self._txn(gets[:step])
            results = [first.got(i) for i in range(len(first.results))]
            try:
                for start in range(step, len(gets), step):
                    more = await self._txn([replace(g, revision=g.revision or first.revision) for g in gets[start : start + step]])
                    results.extend(more.got(i) for i in range(len(more.results)))
            except Compacted:
                if any(g.revision for g in gets):
                    raise
                log.info("history went away between two reads, reading again", structure=self.name)
                continue
            return first.revision, results

    async def read_near(self, behind: int, *gets: Get) -> tuple[int, list[GetResult]]:
        """As `read`, of a state that may lag a little, but holds revision `behind` and all that this member has seen.

        For who is told by a doorbell what to look for: it saves the store's members the round that a read of the newest state takes.
        """
        behind = max(behind, self.revision)
        if len(gets) <= self.store.limits.operations:
            try:
                result = await self.store.txn([], [replace(get, near=True) for get in gets], timeout_s=NEAR_S)
            except (Unavailable, NotApplied) as error:
                log.debug("nobody near answers", structure=self.name, error=repr(error))
            else:
                if result.revision >= behind:
                    self.membership.answered(True, result.revision)
                    return result.revision, [result.got(i) for i in range(len(gets))]
        return await self.read(*gets)

    async def _txn(self, gets: Sequence[Get]) -> TxnResult:
        loop = asyncio.get_running_loop()
        until, timeout_s, pause = loop.time() + READ_S, 0.4, 0.01
        while True:
            try:
                result = await self.store.txn([], gets, timeout_s=timeout_s)
            except (Unavailable, NotApplied) as error:
                self.membership.answered(False, 0)
                if loop.time() >= until:
                    raise Unavailable(f"{self.name} does not answer") from error
            else:
                self.membership.answered(True, result.revision)
                return result
            await asyncio.sleep(pause)
            timeout_s, pause = min(timeout_s * 1.5, 3.0), min(pause * 2, 0.25)

    async def cell(self, key: bytes) -> Cell:
        """One key, read now."""
        revision, results = await self.read(Get(key))
        cell = Cell(key)
        cell.saw(revision, results[0].first)
        return cell

    async def refresh(self, *cells: Cell) -> int:
        """Reads cells anew, all at one revision, and returns that."""
        revision, results = await self.read(*(Get(c.key) for c in cells))
        for cell, result in zip(cells, results, strict=True):
            cell.saw(revision, result.first)
        return revision

    def follow(self, prefix: bytes) -> Follower:
        return Follower(self.store, prefix)

    async def leave(self, grace_s: float = 1.0) -> None:
        """Settles what is out, deletes our member key and ends. The store stays open: it belongs to the caller."""
        await self._end_tasks()
        await self._committer.close(grace_s)
        await self.membership.leave()

    async def close(self, grace_s: float = 0.0) -> None:
        """Ends without leaving, as after being fenced: what is still out learns that its outcome is unknown."""
        await self._end_tasks()
        await self._committer.close(grace_s)
        await self.membership.close()

    async def _end_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _watch_fence(self) -> None:
        await self.fenced.wait()
        self._committer.fence(self.membership.cause)

    async def _watch_quota(self) -> None:
        loop, full = asyncio.get_running_loop(), False
        while True:
            try:
                status = await self.store.status()
            except StoreError as error:
                log.debug("no status", structure=self.name, error=repr(error))
            else:
                self.filled = status
                room = QUOTA_SHARE * status.bytes_quota - status.bytes_in_use if status.bytes_quota else None
                if full != (full := room is not None and room <= 0):
                    log.warning("puts are refused" if full else "puts are taken again", structure=self.name, in_use=status.bytes_in_use)
                self._committer.has_room(room, QUOTA_SLACK * (status.bytes_quota or 0))
            looked_at = loop.time()
            if await self._committer.look.wait(looked_at + QUOTA_EVERY_S):
                await asyncio.sleep(max(0.0, looked_at + QUOTA_PAUSE_S - loop.time()))
            self._committer.look.clear()
