"""Recovery: entries of the status table whose owner is lost are taken over, by every live member at once (patent, scenarios 3 and 4).

Owns when the table is looked through: a member is gone, our initiator is gone, at start (own left-overs first, then those of inactive
members), and every few seconds. Invariant: every entry is taken over in one unit that compares its before-image and that its owner is
still lost, so of several members one recovers each channel, and different members may recover different ones. What is recovered is told
to the supervisor, which starts it where it fits best. Looks at live copies, not at the store: that saves a read where time counts. An entry
that takes long, because something does not answer, holds up no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from qsg.endings import ended
from qsg.failpoint import task_failpoint
from qsg.manager.care import GIVE_UP_S
from qsg.manager.office import Office, Passage
from qsg.manager.table import StatusTable
from qsg.rules import keys, status
from qsg.rules.ownership import Leftover, leftovers, recover, recovery, release_own_lock
from qsg.rules.reasons import Refusal
from qsg.rules.steps import Place
from qsg.rules.unit import Cell, CompareFailed, Fenced, OutcomeUnknown
from qsg.store.contract import StoreError

log = structlog.get_logger()

FORGOTTEN_S = 0.3
"""Whoever was given a channel and has not been told so by then looks after it by itself."""
Adopt = Callable[[str, Passage], None]
"""(channel whose entry is ours now, its passage)"""


class Recovery:
    """`running`: channels that tasks of this process look after. `pinned`: channels that stay with their member."""

    def __init__(self, office: Office, adopt: Adopt, running: Callable[[], Iterable[str]], pinned: Callable[[str], bool]) -> None:
        self.office = office
        self.recovered = 0
        self._adopt, self._running, self._pinned = adopt, running, pinned
        self._gone: dict[str, int] = {}
        self._noticed: dict[str, tuple[float, float, str]] = {}
        """Member -> (loop time at which its loss was noticed, milliseconds that took, cause)."""
        self._sweeping: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._under_way: dict[tuple[str, bytes], asyncio.Task[None]] = {}
        """Entries that are being recovered, by table and key."""
        self._missed: set[tuple[str, bytes]] = set()
        """Of these, what another look has found there meanwhile."""

    def member_gone(self, member: str, incarnation: int, cause: str, detect_ms: float) -> None:
        self._gone[member] = max(incarnation, self._gone.get(member, 0))
        self._noticed[member] = asyncio.get_running_loop().time(), detect_ms, cause
        self.sweep()

    def sweep(self) -> None:
        """Looks through every table, soon; again, if it is doing so now."""
        if self.office.draining:
            return  # what we leave behind is others' to recover
        for name in self.office.tables:
            if name in self._sweeping:
                self._again.add(name)
            else:
                task = asyncio.get_running_loop().create_task(self._sweep(name), name=f"recovery in {name}")
                self._sweeping[name] = task

    async def sweep_later(self) -> None:
        """An entry of ours was written by another: a channel that was given to us, of which we shall be told, or not."""
        await asyncio.sleep(FORGOTTEN_S)
        self.sweep()

    async def swept(self) -> None:
        """Returns once nothing is being looked through or recovered, or what still is takes long."""
        while under_way := [*self._sweeping.values(), *self._under_way.values()]:
            _, late = await asyncio.wait(under_way, timeout=GIVE_UP_S)
            if late:
                return

    async def close(self) -> None:
        self._missed.clear()
        await ended(*self._sweeping.values(), *self._under_way.values())

    async def _sweep(self, name: str) -> None:
        try:
            while True:
                self._again.discard(name)
                await self._look_through(name, self.office.tables[name])
                if name not in self._again:
                    return
        finally:
            self._sweeping.pop(name, None)

    async def _look_through(self, name: str, table: StatusTable) -> None:
        driver = self.office.driver
        link = driver.link
        await link.settled()  # a lost initiator's record is overwritten: what we compare is that none has joined since
        ours = link.cell.mod_revision if name == self.office.initiators else 0
        sight = table.sight(self._gone, (keys.initiator(driver.member), ours))
        found = list(leftovers(driver.me, sight, running=self._running(), pinned=self._pinned))
        # Our own first: they are ours to lose, and nobody else takes them while we live.
        found.sort(key=lambda item: item.entry.owner != driver.member)
        self._missed.update(key for item in found if (key := (name, item.cell.key)) in self._under_way)
        found = [item for item in found if (name, item.cell.key) not in self._under_way]
        if found:
            log.info("recovering", table=name, channels=[item.entry.channel for item in found])
        for item in found:
            key = name, item.cell.key
            task = asyncio.get_running_loop().create_task(self._recover(name, item), name=f"recovery of {item.entry.channel}")
            self._under_way[key] = task
            task.add_done_callback(partial(self._done, key))

    def _done(self, key: tuple[str, bytes], task: asyncio.Task[None]) -> None:
        del self._under_way[key]
        if key in self._missed:
            self._missed.discard(key)
            self.sweep()

    async def _recover(self, name: str, leftover: Leftover) -> None:
        driver = self.office.driver
        entry = leftover.entry
        loop = asyncio.get_running_loop()
        since, detect_ms, cause = self._noticed.get(entry.owner, (loop.time(), 0.0, leftover.cause))
        began = loop.time()
        try:
            if entry.owner == driver.member and entry.transmission_queue:
                await self._unlock(leftover)
            if entry.owner in self._noticed:
                leftover = Leftover(leftover.cell, entry, f"{leftover.cause}: {cause}", leftover.compare)
            unit, after = recovery(driver.me, name, leftover, self.office.world.wall_ms(), detect_ms, self.office.world.id)
            await task_failpoint("recovery.before_entry")
            await driver.structures[name].commit(unit)
            await task_failpoint("recovery.after_entry")
        except (CompareFailed, Refusal) as error:
            log.info("recovered by another", channel=entry.channel, detail=str(error))
            return
        except (StoreError, TimeoutError, OutcomeUnknown, Fenced) as error:
            log.warning("not recovered", channel=entry.channel, error=repr(error))
            return
        self.recovered += 1
        log.info(
            "recovered",
            channel=entry.channel,
            owner=entry.owner,
            state=status.name(entry.state),
            cause=leftover.cause,
            ms=round(1000 * (loop.time() - began), 1),
            since_ms=round(1000 * (loop.time() - since), 1),
        )
        if after is not None:
            self._adopt(entry.channel, Passage(since, detect_ms))

    async def take_back(self, asking: str, channel: str) -> None:
        """An owner that asks for a start while its entry still says RUNNING cannot write the table (scenario 1): done for it."""
        office, driver = self.office, self.office.driver
        place = office.find(channel)
        entry = None if place is None else office.tables[place.admin].entry(channel)
        if place is None or entry is None or entry.owner != asking or entry.state not in status.HELD:
            return
        structure = driver.structures[place.admin]
        cell = await structure.cell(keys.status_out(channel))
        now = status.parse(cell.value)
        if now is None or now.owner != asking or now.state not in status.HELD:
            return
        leftover = Leftover(cell, now, "status table out of the owner's reach", structure.mine())
        await driver.run(recover(driver.me, place.admin, leftover, office.world.wall_ms(), 0.0, office.world.id), f"recover {channel}")

    async def _unlock(self, leftover: Leftover) -> None:
        place = self.office.find(leftover.entry.channel)
        if place is not None and place.queue == leftover.entry.transmission_queue:
            await unlock_leftover(self.office, place, leftover.cell)


async def unlock_leftover(office: Office, place: Place, leftover: Cell) -> bool:
    """Before the entry: whoever is asked to start finds the lock free.

    False: its structure does not answer, and the lock stays. A member that reaches it takes it over at our request (scenario 1b); what is
    given up here and still out compares the lock as it was, so it meets nobody's later one.
    """
    driver = office.driver
    structure = driver.structures.get(place.structure)
    if structure is None or not (structure.reachable or place.together):
        return False
    try:
        async with asyncio.timeout(GIVE_UP_S):
            await driver.run(release_own_lock(driver.me, place, leftover))
    except (TimeoutError, StoreError) as error:
        if place.together:
            raise
        log.warning("a lock that nobody uses stays", channel=place.channel.name, structure=place.structure, error=repr(error))
        return False
    return True
