"""One channel that this member looks after: taking it, running its sender, and what follows when that ends.

Owns the task of one channel for as long as its entry names this member, or a start is tried. Invariant: a sender runs only while its
`Held` is in hand; when the entry is changed by another, the sender is ended and the table decides. Does not choose which channels to
look after (`qsg.manager.channels`), and decides nothing that another member could not decide anew from the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from qsg.manager.office import Ended, Office, Outcome, Passage, RunningSender, SenderCounters, remove_entry
from qsg.manager.peers import PeerUnreachable
from qsg.manager.table import StatusTable
from qsg.pb import peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import balance, keys, retry, status
from qsg.rules.definitions import PRIVATE
from qsg.rules.ownership import (
    Alter,
    Held,
    Leftover,
    Occasion,
    alter_entry,
    raise_epoch,
    recover,
    release,
    release_idle,
    release_own_lock,
    take,
)
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Place, Steps
from qsg.rules.stopping import StopOrder, ask_stop, carry_stop
from qsg.rules.unit import Fenced, OutcomeUnknown
from qsg.store.contract import Compare, StoreError, unchanged

log = structlog.get_logger()

GIVE_UP_S = 1.5
"""A change that a structure does not take for so long counts as one that cannot be made."""
REPORT_S = 1.0
CHANGED_S = 0.01
"""First pause when a take was overtaken by another change."""
IDLE_S = 0.2
"""Pause when no member can run the channel now."""
REFUSED_S = (0.1, 1.0)
"""First and longest pause when every member has refused a start request."""
FATAL = frozenset({Reason.SEQUENCE_ERROR, Reason.NO_RECORD, Reason.SEQUENCE_WRAP_MISMATCH, Reason.MSG_TOO_BIG_FOR_Q_MGR})
"""Errors that no retry mends: the channel becomes STOPPED."""
REBINDS = 3
"""Binds in a row, without a pause, to a partner whose members are ending."""
EPOCH_TRIES = 3


class Caretaker:
    """`on_end` is called when this member has nothing more to do with the channel."""

    def __init__(self, office: Office, place: Place, on_end: Callable[[Caretaker], None], passage: Passage | None = None) -> None:
        self.office, self.place = office, place
        self.held: Held | None = None
        self.sender: RunningSender | None = None
        self.passage = passage
        self.taking = False
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._sender_task: asyncio.Task[Outcome] | None = None
        self._initiator = 0
        self._instance = 1
        self._epoch_tries = 0
        self._not_before = 0.0
        self._refusals = self._rebinds = 0
        self._elsewhere = False
        """Others are asked first: it has just failed here."""
        self._handing_over = False
        self._stop: bool | None = None
        """A stop was ordered; True: by force."""

    @property
    def name(self) -> str:
        return self.place.channel.name

    @property
    def table(self) -> StatusTable:
        return self.office.tables[self.place.admin]

    # From outside

    def start(self, occasion: Occasion | None = None) -> asyncio.Future[None]:
        """Begins. With an occasion the channel is taken first; the future tells when the lock is had, or the `Refusal`."""
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._main(occasion, begun), name=f"channel {self.name}")
        return begun

    async def finished(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Ends at once, as a killed process would: the table shows what is left over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def entry_changed(self, entry: pb.ChannelStatus | None, revision: int) -> None:
        """The table shows a change of this channel's entry."""
        held = self.held
        if held is None:
            self._wake.set()
        elif revision > held.entry.mod_revision and (entry is None or entry.request != held.request):
            mine = entry is not None and entry.owner == self.office.driver.member
            self.stop(force=not (mine and entry is not None and entry.state == pb.STOPPING and not entry.stop_force))

    def stop(self, *, force: bool) -> None:
        self._stop = force or bool(self._stop)
        self._wake.set()
        if self.sender is not None:
            self.sender.stop(force=self._stop)

    def hand_over(self) -> None:
        """A planned move: what is in flight is finished, then another member is asked."""
        self._handing_over = True
        self._elsewhere = True
        self._not_before = 0.0
        self.stop(force=False)

    def abandon(self) -> None:
        """Its structure is out of reach, so the sender may hang in a commit: it is cut off."""
        self._elsewhere = True
        if self._sender_task is not None:
            self._sender_task.cancel()

    # The task

    async def _main(self, occasion: Occasion | None, begun: asyncio.Future[None]) -> None:
        try:
            if occasion is not None:
                await self._begin(occasion)
            if not begun.done():
                begun.set_result(None)
            while True:
                if self.held is not None:
                    await self._run_held()
                elif not await self._look_after():
                    return
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
            await self._ask_blindly()
        finally:
            if not begun.done():
                begun.cancel()
            self._on_end(self)

    async def _run(self, steps: Steps[bool], label: str = "", timeout_s: float = GIVE_UP_S) -> bool:
        async with asyncio.timeout(timeout_s):
            return await self.office.driver.run(steps, label)

    async def _begin(self, occasion: Occasion) -> None:
        """Takes the channel. Raises `Refusal`."""
        driver = self.office.driver
        me = driver.me
        if not me.initiator:
            raise Refusal(Reason.NO_INITIATOR, f"no channel initiator is joined to {driver.member}")
        loop = asyncio.get_running_loop()
        self.taking = True
        try:
            async with asyncio.timeout(2 * GIVE_UP_S):
                held = await driver.run(take(me, self.place, occasion, self.office.world.id), f"take {self.name}")
        except (TimeoutError, StoreError) as error:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, f"{self.name} cannot be taken: {error!r}") from error
        finally:
            self.taking = False
        self.held, self._initiator, self._instance, self._epoch_tries = held, me.initiator, 1, 0
        self._refusals = self._rebinds = 0
        if self.passage is not None:
            self.passage.claimed = loop.time()

    # While it is held

    async def _run_held(self) -> None:
        held = self.held
        assert held is not None
        sender = self.office.make_sender(held, self._instance)
        self.sender = sender
        if self._stop is not None:
            sender.stop(force=self._stop)
        loop = asyncio.get_running_loop()
        running = self._sender_task = loop.create_task(sender.run(), name=f"sender {self.name}")
        reporting = loop.create_task(self._report(held, sender), name=f"status of {self.name}")
        try:
            await asyncio.wait([running])
        finally:
            running.cancel()
            reporting.cancel()
            await asyncio.gather(running, reporting, return_exceptions=True)
            self.sender = self._sender_task = None
        outcome = _outcome(running)
        log.info(
            "sender ended", channel=self.name, kind=outcome.kind, reason=outcome.reason.name, detail=outcome.detail, clean=outcome.clean
        )
        await self._after(held, sender.counters, outcome)

    async def _after(self, held: Held, counters: SenderCounters, outcome: Outcome) -> None:
        if outcome.kind == "idle" and self._stop is None:
            await self._idle(held)
        elif outcome.kind == "fenced":
            self.held = None
            await self._pause(0.0)
        elif self._handing_over and outcome.kind in ("stopped", "handed-over", "idle"):
            takeover = self._takeover("drain")
            await self._release(held, lambda e: status.altered(e, pb.RECOVERING, self._now(), takeover=takeover), outcome.clean)
            self.passage = Passage(asyncio.get_running_loop().time())
        elif outcome.kind in ("stopped", "handed-over", "idle"):
            # The entry is STOPPING, by whoever ordered it; the rest of the stop follows from it.
            await self._release(held, lambda e: status.altered(e, e.state, self._now()), outcome.clean)
            self._stop = None
        else:
            await self._failed(held, counters, outcome)

    async def _idle(self, held: Held) -> None:
        if await self._run(release_idle(held), f"end idle {self.name}"):
            self.held = None
            return
        entry = await self.table.read(self.name)
        if entry is None or entry.request != held.request:
            await self._release(held, lambda e: None, clean=True)
        self._instance += 1  # a message came meanwhile: on with the same lock

    async def _failed(self, held: Held, counters: SenderCounters, outcome: Outcome) -> None:
        driver = self.office.driver
        if outcome.reason is Reason.DRAINING and self._rebinds < REBINDS:
            # A planned move at the other end: another member of it answers now, and the lock is ours.
            self._rebinds += 1
            self._instance += 1
            return
        if outcome.epoch_seen >= held.epoch and self._epoch_tries < EPOCH_TRIES:
            self._epoch_tries += 1
            if await self._run(raise_epoch(driver.me, held, outcome.epoch_seen), f"raise epoch of {self.name}"):
                self._instance = 1
                return
        if driver.link.initiator != self._initiator:
            await self._initiator_lost(held, outcome)
        elif outcome.reason in FATAL:
            await self._stop_for(outcome.reason, outcome.detail, held)
        else:
            await self._retry(held, counters.messages > 0, outcome)

    async def _initiator_lost(self, held: Held, outcome: Outcome) -> None:
        """Scenario 3, for a channel whose sender noticed: confirmed by comparing the dead initiator's record, which is overwritten."""
        link = self.office.driver.link
        await link.settled()
        self.passage = Passage(asyncio.get_running_loop().time())
        takeover = self._takeover("channel initiator failed")
        extra = (unchanged(link.cell.key, link.cell.mod_revision),) if self.place.admin == self.office.initiators else ()
        initiator = link.initiator

        def alter(entry: pb.ChannelStatus) -> pb.ChannelStatus:
            return status.altered(
                entry, pb.RECOVERING, self._now(), takeover=takeover, takeovers=entry.takeovers + 1, owner_initiator=initiator
            )

        await self._release(held, alter, outcome.clean, extra)

    async def _retry(self, held: Held, got_through: bool, outcome: Outcome) -> None:
        """Scenario 2: unlock, then start requests, first to others at once, then by the retry timers."""
        entry = held.status
        rules = self.place.channel.retry
        full = retry.Attempts.full(rules)
        left = full if got_through else retry.Attempts(entry.short_retries_left, entry.long_retries_left)
        planned = retry.next_delay(rules, left, self.office.world.random)
        if planned is None:
            await self._stop_for(outcome.reason, f"retries exhausted: {outcome.detail}", held)
            return
        delay_ms, after = planned
        first = left.within(rules) == full
        self.passage = Passage(asyncio.get_running_loop().time())
        takeover = self._takeover("communications failed")
        alive = status.altered

        def alter(entry: pb.ChannelStatus) -> pb.ChannelStatus:
            return alive(
                entry,
                pb.RETRYING,
                self._now(),
                reason=int(outcome.reason),
                detail=outcome.detail[:500],
                short_retries_left=after.short,
                long_retries_left=after.long,
                takeover=takeover,
                in_doubt=not outcome.clean,
            )

        self._elsewhere = True
        others = [m for m in self._candidates() if m != self.office.driver.member]
        self._not_before = asyncio.get_running_loop().time() + (0.0 if first and others else delay_ms / 1000)
        await self._release(held, alter, outcome.clean)

    async def _stop_for(self, reason: Reason, detail: str, held: Held) -> None:
        """An error that needs a command: the stop list, begun by ourselves."""
        order = StopOrder(pb.STOPPED, False, self._now(), int(reason), detail[:500])
        try:
            await self.office.driver.run(ask_stop(self.office.driver.me, self.place, order, self.office.world.id), f"stop {self.name}")
        except Refusal as refusal:
            log.info("entry changed before the stop", channel=self.name, detail=refusal.detail)
        await self._release(held, lambda e: None, clean=False)

    async def _release(self, held: Held, alter: Alter, clean: bool, extra: tuple[Compare, ...] = ()) -> None:
        self.held = None
        structures = self.office.driver.structures
        if structures[self.place.structure].reachable or self.place.together:
            try:
                await self._run(release(held, alter, clean=clean, extra=extra), f"release {self.name}")
                return
            except (TimeoutError, StoreError):
                log.warning("release does not come through", channel=self.name, structure=self.place.structure)
                if self.place.together or not structures[self.place.admin].reachable:
                    raise
        # Scenario 1b: the lock stays; a member that reaches the queue takes it over at our request.
        await self._run(alter_entry(held, alter, extra), f"entry of {self.name}")

    # What the table shows of it

    async def _report(self, held: Held, sender: RunningSender) -> None:
        """RUNNING once bound, then the counters from time to time."""
        await sender.bound.wait()
        if not await self._entered(held, lambda e: self._running(e, held, sender)):
            return
        written = self._progress(sender)
        while True:
            await asyncio.sleep(REPORT_S)
            if self._progress(sender) != written:
                written = self._progress(sender)
                try:
                    await self._run(alter_entry(held, lambda e: self._running(e, held, sender)))
                except (TimeoutError, StoreError) as error:
                    # Scenario 1: losing the table ends no running channel.
                    log.warning("status not written", channel=self.name, error=repr(error))

    async def _entered(self, held: Held, alter: Alter) -> bool:
        try:
            if await self._run(alter_entry(held, alter)):
                if self.passage is not None:
                    log.info("channel resumed", channel=self.name, **_milliseconds(held.status.takeover))
                self.passage = None
                self._elsewhere = False
                self._rebinds = 0
                return True
            log.info("entry changed while binding", channel=self.name)
            entry = await self.table.read(self.name)
            mine = entry is not None and entry.owner == self.office.driver.member and entry.state == pb.STOPPING
            self.stop(force=not mine or (entry is not None and entry.stop_force))
        except (TimeoutError, StoreError) as error:
            # Scenario 1: a change of state that cannot be written ends the channel.
            log.warning("the status table does not take RUNNING", channel=self.name, error=repr(error))
            self._elsewhere = True
            self.stop(force=True)
        return False

    def _running(self, entry: pb.ChannelStatus, held: Held, sender: RunningSender) -> pb.ChannelStatus:
        counters = sender.counters
        after = status.altered(entry, pb.RUNNING, self._now(), epoch=held.epoch, instance=self._instance, address=counters.address)
        if entry.state != pb.RUNNING:
            after.reason, after.detail = 0, ""
        after.messages, after.bytes, after.batches = counters.messages, counters.bytes, counters.batches
        after.current_sequence, after.last_sequence = counters.current_sequence, counters.sequence
        after.current_luwid, after.last_luwid = counters.current_luwid, counters.luwid
        after.in_doubt, after.last_message_at_ms = counters.in_doubt, counters.last_message_at_ms
        after.partner = counters.partner or after.partner
        if counters.messages:
            full = retry.Attempts.full(self.place.channel.retry)
            after.short_retries_left, after.long_retries_left = full.short, full.long
        if self.passage is not None and after.HasField("takeover"):
            now = asyncio.get_running_loop().time()
            after.takeover.to = self.office.driver.member
            after.takeover.detect_ms = self.passage.detect_ms
            after.takeover.claim_ms = 1000 * (self.passage.claimed - self.passage.since)
            after.takeover.resume_ms = 1000 * (now - self.passage.since)
        return after

    def _progress(self, sender: RunningSender) -> tuple[object, ...]:
        c = sender.counters
        return c.messages, c.bytes, c.batches, c.sequence, c.in_doubt, self._instance

    def _takeover(self, cause: str) -> pb.Takeover:
        takeover = pb.Takeover(cause=cause, at_ms=self._now())
        setattr(takeover, "from", self.office.driver.member)
        return takeover

    def _now(self) -> int:
        return self.office.world.wall_ms()

    # While it is not held

    async def _look_after(self) -> bool:
        """One look at the entry, and what it asks of us. False: it is not ours (any more)."""
        self._wake.clear()
        entry = await self.table.read(self.name)
        me = self.office.driver.me
        if entry is None or (entry.owner, entry.owner_incarnation) != (me.member, me.incarnations[self.place.admin]):
            return self._wake.is_set()  # changed while it was read: look again
        self._stop = None
        place = self.office.find(self.name)
        if place is None and entry.state in status.WANTED:
            await remove_entry(self.table, self.name, me, log_as="definition deleted")
            return False
        self.place = place or self.place
        if entry.state in status.WANTED:
            if self._nobody_to_hand_to():
                log.info("left for whoever recovers it", channel=self.name)
                return False
            await self._pursue(entry)
        elif entry.state == pb.STOPPING:
            await self._carry_stop()
        elif entry.state in status.HELD:
            return await self._recover(entry)
        else:
            return False
        return True

    def _nobody_to_hand_to(self) -> bool:
        office = self.office
        if not office.draining or self._candidates():
            return False
        stays = self.place.admin == PRIVATE or self.place.channel.disposition == "fixed-shared"
        alone = stays or office.peers is None or len(office.peers.members.registered) < 2
        return alone or asyncio.get_running_loop().time() >= office.drain_until

    async def _recover(self, entry: pb.ChannelStatus) -> bool:
        """A list of ours was cut off behind the entry: taken back, as if from a dead owner."""
        driver = self.office.driver
        me = driver.me
        await self._run(release_own_lock(me, self.place.structure, self.place.queue))
        cell = await self.table.structure.cell(keys.status_out(self.name))
        now = status.parse(cell.value)
        if now is None or now.request != entry.request:
            return True
        leftover = Leftover(cell, now, "start was cut off", driver.structures[self.place.admin].mine())
        return await self._run(recover(me, self.place.admin, leftover, self._now(), 0.0, self.office.world.id), f"recover {self.name}")

    async def _carry_stop(self) -> None:
        office = self.office
        steps = carry_stop(office.driver.me, self.place, self._now(), office.world.id, office.sender_name(self.place))
        self._wake.clear()
        try:
            if await office.driver.run(steps, f"stop {self.name}"):
                return
        except Refusal as refusal:
            log.info("stop not carried on", channel=self.name, detail=refusal.detail)
        await self._pause(self.place.channel.retry.short_ms / 1000)

    def _candidates(self) -> list[str]:
        """Members that can run it, best first; the first is another one each time it has failed."""
        office = self.office
        me = office.driver.member
        if self.place.admin == PRIVATE:
            load = office.own_load()
            return [me] if load.initiator and not office.draining else []
        if self.place.channel.disposition == "fixed-shared":
            return [me] if office.own_load().initiator and not office.draining else []
        found = balance.ranked(office.loads(), self.name, {self.place.admin, self.place.structure})
        if self._elsewhere and me in found and len(found) > 1:
            found = [m for m in found if m != me] + [me]
        return found

    async def _pursue(self, entry: pb.ChannelStatus) -> None:
        """RECOVERING, RETRYING or INITIALIZING under our name: start requests, choosing anew each time, until the entry changes (H5)."""
        loop = asyncio.get_running_loop()
        if self._not_before > loop.time() and not await self._pause(self._not_before - loop.time()):
            return
        candidates = self._candidates()
        if not candidates:
            await self._pause(IDLE_S)
            return
        if len(candidates) > 1 and self._elsewhere:
            others = len(candidates) - 1
            turn = entry.short_retries_left % others
            candidates = [*candidates[turn:others], *candidates[:turn], candidates[-1]]
        for target in candidates:
            if await self._ask(target, entry):
                return
        self._refusals += 1
        await self._pause(min(REFUSED_S[0] * 2 ** min(self._refusals, 5), REFUSED_S[1]))

    async def _ask(self, target: str, entry: pb.ChannelStatus) -> bool:
        """Whether `target` has taken it, or the entry is no longer what we read."""
        office = self.office
        try:
            if target == office.driver.member:
                await self._begin(Occasion("own", self._now()))
                return True
            assert office.peers is not None
            request = peer_pb2.StartChannel(channel=self.name, cause=entry.takeover.cause)
            setattr(request, "from", office.driver.member)
            if self.passage is not None:
                request.detect_ms = self.passage.detect_ms
                request.since_ms = round(1000 * (asyncio.get_running_loop().time() - self.passage.since))
            await office.peers.request(target, peer_pb2.Request(start=request))
            log.info("start request accepted", channel=self.name, member=target)
            return True
        except Refusal as refusal:
            log.info("start request refused", channel=self.name, member=target, reason=refusal.reason.name, detail=refusal.detail)
            if refusal.reason is not Reason.CHANGED_MEANWHILE:
                return False
            self._refusals += 1
            await self._pause(min(CHANGED_S * self._refusals, IDLE_S))
            return True
        except PeerUnreachable as error:
            log.info("start request not answered", channel=self.name, member=target, error=str(error))
            return False

    async def _ask_blindly(self) -> None:
        """Scenario 1: the entry cannot be written from here, so the others are asked, again and again, to take it from us."""
        while not self.table.structure.reachable and not self.table.structure.fenced.is_set() and self.office.peers is not None:
            for target in self._candidates():
                if target == self.office.driver.member:
                    continue
                request = peer_pb2.StartChannel(channel=self.name, cause="status table out of reach")
                setattr(request, "from", self.office.driver.member)
                try:
                    await self.office.peers.request(target, peer_pb2.Request(start=request))
                    log.warning("another member has taken it from us", channel=self.name, member=target)
                    return
                except (Refusal, PeerUnreachable) as error:
                    log.info("start request failed", channel=self.name, member=target, error=str(error))
            await asyncio.sleep(REFUSED_S[1])

    async def _pause(self, seconds: float) -> bool:
        """Waits, or until something has changed; whether the time has passed."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return True
        self._wake.clear()
        return False


def _outcome(task: asyncio.Task[Outcome]) -> Outcome:
    if task.cancelled():
        return Ended("failed", Reason.STRUCTURE_NOT_AVAILABLE, "given up")
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, Fenced | OutcomeUnknown):
        return Ended("fenced", Reason.FENCED, repr(error))
    log.error("sender failed", error=repr(error), exc_info=error)
    return Ended("failed", Reason.UNEXPECTED_ERROR, repr(error))


def _milliseconds(takeover: pb.Takeover) -> dict[str, object]:
    return {
        "from_member": getattr(takeover, "from"),
        "cause": takeover.cause,
        "detect_ms": round(takeover.detect_ms, 1),
        "claim_ms": round(takeover.claim_ms, 1),
        "resume_ms": round(takeover.resume_ms, 1),
    }
