"""One channel that this member looks after: taking it, running its sender, and what follows when that ends.

Owns the task of one channel for as long as its entry names this member, or a start is tried: in turns the channel is held
(`qsg.manager.tenure`), or asked for (`qsg.manager.asking`), as the table says. Invariant: when the entry is changed by another, the sender
is ended and the table decides. Does not choose which channels to look after (`qsg.manager.channels`), and decides nothing that another
member could not decide anew from the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from qsg.endings import ended
from qsg.manager.asking import Asking
from qsg.manager.care import GIVE_UP_S, Care
from qsg.manager.office import Office, Passage, RunningSender, remove_entry
from qsg.manager.preparing import make_ready
from qsg.manager.recovery import unlock_leftover
from qsg.manager.tenure import Tenure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.balance import ranked
from qsg.rules.definitions import PRIVATE
from qsg.rules.ownership import Held, Leftover, Occasion, recover, take
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Place, Sight
from qsg.rules.stopping import carry_stop, pass_stop
from qsg.rules.unit import Fenced, OutcomeUnknown
from qsg.store.contract import StoreError

log = structlog.get_logger()

RUNS_S = 1.0
"""How long a member that has handed a channel over waits until it runs."""
SETTLES_S = 0.1
"""And until what has waited meanwhile is through."""
PASS_S = 0.3
"""Longer than a beat: two that have lost the same at once know it of each other, and do not pass a stop to and fro."""


class Caretaker:
    """`on_end` is called when this member has nothing more to do with the channel."""

    def __init__(self, office: Office, place: Place, on_end: Callable[[Caretaker], None], passage: Passage | None = None) -> None:
        self.care = Care(office, place, passage)
        self.tenure: Tenure | None = None
        self.taking = False
        self._asking = Asking(self.care, self._begin)
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self.carrying: asyncio.Future[bool] | None = None
        """A stop."""
        self.moving: set[asyncio.Task[None]] = set()
        """What gives it away: one at a time, and those that outlive their tenure (or the channel's own task), as it left in another way."""

    @property
    def name(self) -> str:
        return self.care.name

    @property
    def place(self) -> Place:
        return self.care.place

    @property
    def held(self) -> Held | None:
        return self.tenure.held if self.tenure is not None else None

    @property
    def gift(self) -> bytes:
        return self.tenure.gift if self.tenure is not None else b""

    @property
    def sender(self) -> RunningSender | None:
        return self.tenure.sender if self.tenure is not None else None

    # From outside

    def start(self, occasion: Occasion | None = None, known: Sight | None = None, held: Held | None = None) -> asyncio.Future[None]:
        """Begins. With an occasion the channel is taken first (`known`: see `take`); the future tells when the lock is had, or the
        `Refusal`. `held`: it was given to us."""
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if held is not None:
            self._hold(held)
        self._task = asyncio.get_running_loop().create_task(self._main(occasion, begun, known), name=f"channel {self.name}")
        return begun

    async def finished(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Ends at once, as a killed process would: the table shows what is left over."""
        tasks = [task for task in (self._task, *self.moving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def entry_changed(self, entry: pb.ChannelStatus | None, revision: int) -> None:
        """The table shows a change of this channel's entry."""
        held = self.held
        if held is None:
            if not revision or revision > self.care.written_at:
                self.care.wake.set()
        elif revision >= held.entry.mod_revision and (entry is None or entry.request not in (held.request, self.gift)):
            # Equal: a write of our own that failed on it has shown it to us before.
            mine = entry is not None and entry.owner == self.care.office.driver.member
            self.stop(force=not (mine and entry is not None and entry.state == pb.STOPPING and not entry.stop_force))

    def adopted(self, passage: Passage) -> None:
        """It was recovered from another owner: `passage`, unless a takeover is under way already."""
        self.care.passage = self.care.passage or passage

    def stop(self, *, force: bool) -> None:
        if self.tenure is not None:
            self.tenure.stop(force=force)
        else:
            self.care.order_stop(force=force)

    def hand_over(self) -> None:
        """A planned stop: another member is made ready, what is in flight is finished, then that one is asked."""
        if not (self.care.handing_over and self.moving):  # else it is under way, and ends in a stop if it does not succeed
            self._give_away("drain", self._hand_over())

    async def _hand_over(self) -> None:
        try:
            if self.held is not None:
                await make_ready(self.care)
        finally:
            await self._pass_on()

    async def _pass_on(self) -> None:
        """To who is ready, while it runs; else it is stopped, and then the others are asked."""
        given, tenure = False, self.tenure
        try:
            if tenure is not None and self.care.ready and self.care.stop is None:
                given = await tenure.give(self.care.ready)
        finally:
            if not given and self.tenure is tenure:  # it may have left, and have been taken again, while this hung
                self.stop(force=False)

    async def move(self, to: str) -> str:
        """A planned move by command, to the member `to` ("" = the best other), whose name is the answer: it is ready, and is asked next.

        Raises `Refusal`, and then nothing was begun: the channel runs on here.
        """
        held, care = self.held, self.care
        if held is None or care.handing_over or care.stop is not None:
            raise Refusal(Reason.CHANNEL_IN_USE, f"{self.name} is not simply running on {care.office.driver.member}: nothing to move")
        refusal = await make_ready(care, to)
        if not care.ready:
            raise refusal or Refusal(
                Reason.HOST_NOT_AVAILABLE, f"{to} cannot run it now" if to else "there is no other member that could run it"
            )
        if self.held is not held or care.handing_over or care.stop is not None:
            raise Refusal(Reason.CHANGED_MEANWHILE, f"{self.name} has ended, or was told to")
        self._give_away("moved by command", self._pass_on())
        return care.ready

    def _give_away(self, cause: str, work: Coroutine[Any, Any, None]) -> None:
        self.care.handing_over, self.care.move_cause = True, cause
        self.care.elsewhere = True
        self.care.not_before = 0.0
        task = asyncio.get_running_loop().create_task(work, name=f"move {self.name}")
        self.moving.add(task)
        task.add_done_callback(self.moving.discard)

    def abandon(self) -> None:
        """Its structure is out of reach, so the sender, or a stop, may hang in a commit: it is cut off."""
        self.care.elsewhere = True
        if self.tenure is not None:
            self.tenure.cut_off()
        if self.carrying is not None:
            self.carrying.cancel()

    # The task

    async def _main(self, occasion: Occasion | None, begun: asyncio.Future[None], known: Sight | None) -> None:
        try:
            if occasion is not None:
                await self._begin(occasion, known)
            if not begun.done():
                begun.set_result(None)
            await self._take_turns()
        except Refusal as refusal:
            if begun.done():
                log.warning("channel left", channel=self.name, reason=refusal.reason.name, detail=refusal.detail)
            else:
                begun.set_exception(refusal)
        except (Fenced, OutcomeUnknown) as error:
            # This incarnation is over: what it ran is recovered by others, or by the next one.
            log.warning("channel left", channel=self.name, error=repr(error))
            if not begun.done():
                begun.set_exception(Refusal(Reason.FENCED, "this member was declared dead"))
        except (StoreError, TimeoutError) as error:
            log.warning("channel left, its status table does not answer", channel=self.name, error=repr(error))
            if not begun.done():
                begun.set_exception(Refusal(Reason.STRUCTURE_NOT_AVAILABLE, repr(error)))
            await self._asking.ask_blindly()
        except Exception as error:
            if not begun.done():
                begun.set_exception(Refusal(Reason.UNEXPECTED_ERROR, repr(error)))
            raise
        finally:
            if not begun.done():
                begun.cancel()
            self._on_end(self)

    async def _take_turns(self) -> None:
        while True:
            if self.tenure is not None and self.tenure.held is not None:
                await self.tenure.run()
            elif not await self._look_after():
                return

    async def _begin(self, occasion: Occasion, known: Sight | None = None) -> None:
        """Takes the channel. Raises `Refusal`."""
        driver = self.care.office.driver
        me = driver.me
        if not me.initiator:
            raise Refusal(Reason.NO_INITIATOR, f"no channel initiator is joined to {driver.member}")
        self.taking = True
        try:
            async with asyncio.timeout(2 * GIVE_UP_S):
                held = await driver.run(take(me, self.care.place, occasion, self.care.office.world.id, known), f"take {self.name}")
        except (TimeoutError, StoreError) as error:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, f"{self.name} cannot be taken: {error!r}") from error
        finally:
            self.taking = False
        self._hold(held)

    def _hold(self, held: Held) -> None:
        self.tenure = Tenure(self.care, held, held.status.owner_initiator)
        self._asking.taken()
        if self.care.passage is not None:
            self.care.passage.claimed = asyncio.get_running_loop().time()

    # While it is not held

    async def _look_after(self) -> bool:
        """One look at the entry, and what it asks of us. False: it is not ours (any more)."""
        entry = None if self.care.wake.is_set() else self.care.written
        self.care.written = None
        self.care.wake.clear()
        entry = entry or await self.care.table.read(self.name)
        me = self.care.office.driver.me
        if entry is None or (entry.owner, entry.owner_incarnation) != (me.member, me.incarnations[self.care.place.admin]):
            if self.care.handing_over and self.care.office.draining:
                await self._until_it_runs()
            return self.care.wake.is_set()  # changed while it was read: look again
        self.care.stop = None
        place = self.care.office.find(self.name)
        if place is None and entry.state in status.WANTED:
            await remove_entry(self.care.table, self.name, me, log_as="definition deleted")
            return False
        self.care.place = place or self.care.place
        if entry.state in status.WANTED:
            if self._asking.nobody_to_hand_to():
                log.info("left for whoever recovers it", channel=self.name)
                return False
            await self._asking.pursue(entry)
        elif entry.state == pb.STOPPING:
            await self._carry_stop()
        elif entry.state in status.HELD:
            # Who has given it away may have it back already: that is for whoever takes the gift up.
            return not self.care.handing_over and (await self._recover(entry) or self.care.wake.is_set())
        else:
            return self.care.wake.is_set()  # it may have been started again since it was read
        return True

    async def _until_it_runs(self) -> None:
        """What ends next in a draining member would only slow down whoever has just taken the channel."""
        try:
            async with asyncio.timeout(RUNS_S):
                while True:
                    self.care.wake.clear()
                    entry = self.care.table.entry(self.name)
                    mine = entry is not None and entry.owner == self.care.office.driver.member
                    if not mine and status.state_of(entry) not in (pb.STARTING, pb.BINDING):
                        break
                    await self.care.wake.wait()
        except TimeoutError:
            log.info("handed over, not seen to run", channel=self.name)
        await asyncio.sleep(SETTLES_S)

    async def _recover(self, entry: pb.ChannelStatus) -> bool:
        """A list of ours was cut off behind the entry: taken back, as if from a dead owner."""
        driver = self.care.office.driver
        me = driver.me
        cell = await self.care.table.structure.cell(keys.status_out(self.name))
        now = status.parse(cell.value)
        if now is None or now.request != entry.request:
            return True
        if not await unlock_leftover(self.care.office, self.care.place, cell):
            self.care.elsewhere = True
        leftover = Leftover(cell, now, "start was cut off", driver.structures[self.care.place.admin].mine())
        return await self.care.run(
            recover(me, self.care.place.admin, leftover, self.care.now(), 0.0, self.care.office.world.id), f"recover {self.name}"
        )

    async def _carry_stop(self) -> None:
        office, place = self.care.office, self.care.place
        self.care.wake.clear()
        try:
            cut_off = not place.together and place.structure not in office.own_load().structures
            if not cut_off and await self._carried():
                return
            # Without an initiator the partner is out of reach here.
            if (cut_off or not office.driver.link.joined) and place.admin != PRIVATE and await self._pass_stop():
                return
        except Refusal as refusal:
            log.info("stop not carried on", channel=self.name, detail=refusal.detail)
        except (StoreError, TimeoutError) as error:  # of the table too? Then the next look at the entry says so
            log.warning("stop not carried on", channel=self.name, structure=place.structure, error=repr(error))
        await self.care.pause(place.channel.retry.short_ms / 1000)

    async def _carried(self) -> bool:
        """In a task of its own, as it may hang in a commit. True also when `abandon` has ended it: looked at again at once."""
        office, place = self.care.office, self.care.place
        steps = carry_stop(office.driver.me, place, self.care.now(), office.world.id, office.sender_name(place))
        self.carrying = asyncio.ensure_future(office.driver.run(steps, f"stop {self.name}"))
        try:
            await asyncio.wait([self.carrying])
            return self.carrying.cancelled() or self.carrying.result()
        finally:
            await ended(self.carrying)
            self.carrying = None

    async def _pass_stop(self) -> bool:
        """The queue is out of reach here (scenario 1b), or the partner: a member that reaches them carries the stop on."""
        office, place = self.care.office, self.care.place
        await asyncio.sleep(PASS_S)
        me, only = office.driver.me, office.only_at(place)
        for target in ranked(office.loads(), self.name, {place.admin, place.structure}, exclude=(me.member,)):
            if only in ("", target) and await self.care.run(pass_stop(me, place, target, self.care.now()), f"pass the stop of {self.name}"):
                log.warning("stop passed on, it cannot be carried on here", channel=self.name, structure=place.structure, member=target)
                return True
        return False
