"""Commits units of work: a few slots, each with one transaction in flight, shared by all that waits when it is built.

Owns the slots of one incarnation in one store. Invariants: a caller hears *committed*, *changed meanwhile*, *refused* or *fenced* only
when it is so (`qsg.rules.slots`); units handed to one slot are applied in that order, also when some of them fail and the rest is tried
again. Not guaranteed: order between slots. A unit whose caller was cancelled before it was sent is dropped; once it is out it settles.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from qsg.bell import Bell
from qsg.manager.slot_driver import Item, SlotDriver, grows
from qsg.rules.packed import Lane
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.slots import Guard, Slot
from qsg.rules.unit import Committed, Fenced, Unit
from qsg.rules.world import World
from qsg.store.contract import Limits, Store

log = structlog.get_logger()

LOOK_SHARE = 1 / 16
"""Who has written so much of the room that was left looks again."""
FULL_S = 1.0
"""How long puts are refused at once after the store said that it is full."""


@dataclass(slots=True)
class Counters:
    units: int = 0
    commits: int = 0
    repeats: int = 0
    voids: int = 0
    unknown: int = 0
    failed: int = 0
    """Units whose compares did not hold."""
    fenced: int = 0
    """Units refused because this incarnation was over."""


class Committer:
    """`guards[i]` is slot i's settled guard. `fenced` is told once our member key was seen to be gone."""

    def __init__(
        self,
        store: Store,
        member: str,
        incarnation: int,
        guards: list[Guard],
        world: World,
        *,
        fenced: Callable[[str], None] = lambda cause: None,
        answered: Callable[[bool, int], None] = lambda reachable, revision: None,
    ) -> None:
        self.store, self.member, self.incarnation, self.world = store, member, incarnation, world
        self.counters = Counters()
        self._learnt: Limits | None = None
        self.on_commit: list[Callable[[int, frozenset[str]], None]] = []
        self.revision = incarnation
        self._room: float | None = None
        """Bytes that may still be written until puts are refused; None: no limit is known."""
        self._look_at, self._refuse_at = 0.0, 0.0
        self.look = Bell()
        """Set when it is time to find out again how much room there is: others write too."""
        self._full_until = 0.0
        self._told_fenced, self._told = fenced, answered
        self.is_fenced = False
        self._closed = False
        self._slots = [SlotDriver(self, Lane(member, i, incarnation), Slot(guard)) for i, guard in enumerate(guards)]

    def start(self) -> None:
        for slot in self._slots:
            slot.start()

    @property
    def limits(self) -> Limits:
        """What the store says that it takes, or less if it was found to take less."""
        said, learnt = self.store.limits, self._learnt
        if learnt is None:
            return said
        return Limits(min(said.operations, learnt.operations), min(said.compares, learnt.compares), min(said.bytes, learnt.bytes))

    def learn_limits(self, limits: Limits) -> None:
        log.warning("the store takes less in one transaction than it said", limits=limits)
        self._learnt = limits

    @property
    def slots(self) -> int:
        return len(self._slots)

    def slot_for(self, unit: Unit, affinity: str) -> int:
        """Consumption goes to slot 0; what has an affinity to a slot of its own; anything else where least waits."""
        if unit.taken or len(self._slots) == 1:
            return 0
        if affinity:
            return zlib.crc32(affinity.encode()) % len(self._slots)
        return min(range(len(self._slots)), key=lambda i: len(self._slots[i].waiting))

    async def commit(self, unit: Unit, *, affinity: str = "", slot: int | None = None) -> Committed:
        if self.is_fenced:
            self.counters.fenced += 1
            raise Fenced
        if self._closed:
            raise Refusal(Reason.Q_MGR_STOPPING)
        if not (unit.compares or unit.changes or unit.puts or unit.taken or unit.ops):
            return Committed(self.revision)
        if self.refuses_growth() and grows(unit):
            raise Refusal(Reason.STORAGE_NOT_AVAILABLE, "the structure is full")
        future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self._slots[self.slot_for(unit, affinity) if slot is None else slot % len(self._slots)].hand_in(Item(unit, future))
        return await future

    def refuses_growth(self) -> bool:
        over_quota = self._room is not None and self._room <= self._refuse_at
        return over_quota or (self._full_until > 0 and asyncio.get_running_loop().time() < self._full_until)

    def has_room(self, room: float | None, slack: float = 0.0) -> None:
        """Told from outside, now and then: how much more may be written. Where there was any, what we write ourselves may go beyond it by
        `slack` until the next look, which may find that others have made room."""
        self._room = room
        self._refuse_at = -slack if room is not None and room > 0 else 0.0
        self._look_at = (1 - LOOK_SHARE) * (room or 0.0)

    def wrote(self, size: int) -> None:
        """What we write between two looks counts: a store that is filled to its very quota takes no write, and cannot be drained."""
        if self._room is not None:
            self._room -= size
            if self._room <= self._look_at:
                self.look.set()

    def full(self) -> None:
        self._full_until = asyncio.get_running_loop().time() + FULL_S

    def fence(self, cause: str) -> None:
        """Our member key is gone: nothing that was not sent yet will be, and what is out can only settle."""
        if self.is_fenced:
            return
        self.is_fenced = True
        self._told_fenced(cause)
        for slot in self._slots:
            slot.fence()

    def saw(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        self._told(True, revision)

    def silent(self) -> None:
        self._told(False, 0)

    def committed(self, revision: int, queues: frozenset[str]) -> None:
        for callback in self.on_commit:
            try:
                callback(revision, queues)
            except Exception:
                log.exception("a listener of commits failed", member=self.member)

    async def close(self, grace_s: float = 1.0) -> None:
        """Waits for what is out, then gives up: units still unsettled learn that their outcome is unknown."""
        self._closed = True
        await self._settled(grace_s)
        if self.counters.fenced:
            log.warning("writes refused", member=self.member, incarnation=self.incarnation, units=self.counters.fenced)

    async def _settled(self, grace_s: float) -> None:
        tasks = [slot.closing() for slot in self._slots]
        running = [t for t in tasks if t is not None]
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        for slot in self._slots:
            slot.abandon()
