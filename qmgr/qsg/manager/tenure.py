"""A channel while this member holds its lock: its sender, what follows when that ends, and what the table shows of it.

Owns what was taken (`held`), the sender's task and the instances of this epoch. Invariant: a sender runs only while `held` is in hand;
each way out releases it, or leaves the lock to whoever reaches the queue (scenario 1b). Decides nothing that another member could not
decide anew from the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from qsg.endings import ended
from qsg.failpoint import task_failpoint
from qsg.manager.asking import candidates
from qsg.manager.care import Care
from qsg.manager.office import Ended, Outcome, Passage, RunningSender, SenderCounters
from qsg.manager.preparing import tell_given
from qsg.pb import records_pb2 as pb
from qsg.rules import retry, status
from qsg.rules.handover import give, left_behind, receiver
from qsg.rules.ownership import Alter, Held, alter_entry, raise_epoch, release, release_idle
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Sight, Steps
from qsg.rules.stopping import StopOrder, ask_stop
from qsg.rules.unit import Fenced, OutcomeUnknown
from qsg.store.contract import Compare, StoreError, unchanged

log = structlog.get_logger()

REPORT_S = 1.0
FATAL = frozenset({Reason.SEQUENCE_ERROR, Reason.NO_RECORD, Reason.SEQUENCE_WRAP_MISMATCH, Reason.MSG_TOO_BIG_FOR_Q_MGR})
"""Errors that no retry mends: the channel becomes STOPPED."""
REBINDS = 20
"""Binds in a row to a partner whose members are ending: behind one name for all of them it may be any that answers, for a second or two."""
GOING = frozenset({Reason.HOST_UNREACHABLE, Reason.PARTNER_CLOSED, Reason.Q_MGR_NOT_AVAILABLE})
"""What a bind meets at a member that was ending, and is gone by now."""
REBIND_S = (0.01, 0.1)
"""First and longest pause between them; there is none before the first."""
EPOCH_TRIES = STOP_TRIES = 3
GIVEN_S = 0.5
"""How long a sender whose channel was given away goes on, unless the partner ends it for the next owner's bind."""


class Tenure:
    """From taking the lock to letting it go (`held` is None)."""

    def __init__(self, care: Care, held: Held, initiator: int) -> None:
        self.care = care
        self.held: Held | None = held
        self.sender: RunningSender | None = None
        self.gift = b""
        """The request in the entry that is to give it away."""
        self._sender_task: asyncio.Task[Outcome] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._initiator = initiator
        self._instance = 1
        self._epoch_tries = self._rebinds = 0

    def stop(self, *, force: bool) -> None:
        self.care.order_stop(force=force)
        if self.sender is not None:
            self.sender.stop(force=bool(self.care.stop), leave_last=self.care.handing_over)

    async def give(self, target: str) -> bool:
        """Gives the channel to a member that is ready, while it runs. False: not done, it is to be stopped and handed over."""
        held, sender, running, loop = self.held, self.sender, self._sender_task, asyncio.get_running_loop()
        if held is None or sender is None or running is None or not sender.bound.is_set():
            return False
        self.gift = self.care.office.world.id()
        began = loop.time()
        told = None
        try:
            if await _before(sender.begin_giving(), running):
                await ended(*([self._reporting] if self._reporting is not None else []))
                told = await self._given_to(held, target)
        except (TimeoutError, StoreError, Refusal, Fenced, OutcomeUnknown) as error:
            log.warning("not given away", channel=self.care.name, member=target, error=repr(error))
        if told is None:
            self.gift = b""
            sender.end_giving()
            return False
        if self.held is held:
            self.held = None
        await task_failpoint("handover.after_gift")
        await tell_given(self.care, target, told, began)
        await asyncio.wait([running], timeout=GIVEN_S)
        running.cancel()
        return True

    async def _given_to(self, held: Held, target: str) -> Sight | None:
        to = await self.care.run(receiver(held, target))
        if to is None:
            return None
        takeover = self.care.takeover(self.care.move_cause)
        return await self.care.run(give(held, to, self.gift, self.care.now(), takeover), f"give {self.care.name} to {target}")

    def cut_off(self) -> None:
        """The sender may hang in a commit."""
        if self._sender_task is not None:
            self._sender_task.cancel()

    async def run(self) -> None:
        """One instance of the sender, and what follows when it ends."""
        held = self.held
        assert held is not None
        sender = self.care.office.make_sender(held, self._instance)
        self.sender = sender
        if self.care.stop is not None:
            sender.stop(force=self.care.stop, leave_last=self.care.handing_over)
        loop = asyncio.get_running_loop()
        running = self._sender_task = loop.create_task(sender.run(), name=f"sender {self.care.name}")
        reporting = self._reporting = loop.create_task(self._report(held, sender), name=f"status of {self.care.name}")
        try:
            await asyncio.wait([running])
        finally:
            self.sender = self._sender_task = self._reporting = None
            await ended(running, reporting)
        outcome = _outcome(running)
        log.info(
            "sender ended",
            channel=self.care.name,
            kind=outcome.kind,
            reason=outcome.reason.name,
            detail=outcome.detail,
            clean=outcome.clean,
        )
        await self._after(held, sender.counters, outcome)

    async def _after(self, held: Held, counters: SenderCounters, outcome: Outcome) -> None:
        if self.held is None:
            return  # given away meanwhile
        if outcome.kind == "idle" and self.care.stop is None:
            await self._idle(held, counters)
        elif outcome.kind == "fenced":
            self.held = None
            await self.care.pause(0.0)
        elif self.care.handing_over and outcome.kind in ("stopped", "handed-over", "idle"):
            takeover = self.care.takeover(self.care.move_cause)
            await self._release(held, lambda e: status.altered(e, pb.RECOVERING, self.care.now(), takeover=takeover), outcome)
            self.care.passage = Passage(asyncio.get_running_loop().time())
        elif outcome.kind in ("stopped", "handed-over", "idle"):
            # The entry is STOPPING, by whoever ordered it; the rest of the stop follows from it.
            await self._release(held, lambda e: status.altered(e, e.state, self.care.now()), outcome)
            self.care.stop = None
        else:
            await self._failed(held, counters, outcome)

    async def _idle(self, held: Held, counters: SenderCounters) -> None:
        released = await self._answered(release_idle(held), f"end idle {self.care.name}")
        if released is None:
            await self._failed(held, counters, Ended("failed", Reason.STRUCTURE_NOT_AVAILABLE, "not ended idle"))
            return
        if released:
            self.held = None
            return
        entry = await self.care.table.read(self.care.name)
        if entry is None or entry.request != held.request:
            await self._release(held, lambda e: None, Ended("idle", clean=True))
        self._instance += 1  # a message came meanwhile: on with the same lock

    async def _answered(self, steps: Steps[bool], label: str) -> bool | None:
        """None: the queue's structure does not answer, and the table does: what follows is written there (scenario 1b)."""
        try:
            return await self.care.run(steps, label)
        except (TimeoutError, StoreError) as error:
            if self.care.place.together or not self.care.table.structure.reachable:
                raise
            log.warning("its queue does not answer", channel=self.care.name, structure=self.care.place.structure, error=repr(error))
            return None

    async def _failed(self, held: Held, counters: SenderCounters, outcome: Outcome) -> None:
        driver = self.care.office.driver
        if (outcome.reason is Reason.DRAINING or (self._rebinds and outcome.reason in GOING)) and self._rebinds < REBINDS:
            # A planned move at the other end: another member of it answers now, and the lock is ours.
            if self._rebinds:
                await self.care.pause(min(REBIND_S[0] * 2**self._rebinds, REBIND_S[1]))
            self._rebinds += 1
            self._instance += 1
            return
        if outcome.epoch_seen >= held.epoch and self._epoch_tries < EPOCH_TRIES:
            self._epoch_tries += 1
            if await self._answered(raise_epoch(driver.me, held, outcome.epoch_seen), f"raise epoch of {self.care.name}"):
                self._instance = 1
                return
        if not held.named:  # who has changed it goes on
            await self._release(held, lambda e: None, outcome)
        elif driver.link.initiator != self._initiator:
            await self._initiator_lost(held, outcome)
        elif outcome.reason in FATAL:
            await self._stop_for(outcome.reason, outcome.detail, held)
        else:
            await self._retry(held, counters.messages > 0, outcome)

    async def _initiator_lost(self, held: Held, outcome: Outcome) -> None:
        """Scenario 3, for a channel whose sender noticed: confirmed by comparing the dead initiator's record, which is overwritten."""
        link = self.care.office.driver.link
        await link.settled()
        self.care.passage = Passage(asyncio.get_running_loop().time())
        takeover = self.care.takeover("channel initiator failed")
        extra = (unchanged(link.cell.key, link.cell.mod_revision),) if self.care.place.admin == self.care.office.initiators else ()
        initiator = link.initiator

        def alter(entry: pb.ChannelStatus) -> pb.ChannelStatus:
            return status.altered(
                entry, pb.RECOVERING, self.care.now(), takeover=takeover, takeovers=entry.takeovers + 1, owner_initiator=initiator
            )

        await self._release(held, alter, outcome, extra)

    async def _retry(self, held: Held, got_through: bool, outcome: Outcome) -> None:
        """Scenario 2: unlock, then start requests, first to others at once, then by the retry timers."""
        entry = held.status
        rules = self.care.place.channel.retry
        full = retry.Attempts.full(rules)
        left = full if got_through else retry.Attempts(entry.short_retries_left, entry.long_retries_left)
        planned = retry.next_delay(rules, left, self.care.office.world.random)
        if planned is None:
            await self._stop_for(outcome.reason, f"retries exhausted: {outcome.detail}", held)
            return
        delay_ms, after = planned
        first = left.within(rules) == full
        silent_ms = self.care.place.channel.silence_ms if outcome.reason is Reason.PARTNER_SILENT else 0
        self.care.passage = Passage(asyncio.get_running_loop().time(), detect_ms=silent_ms)
        takeover = self.care.takeover("communications failed")
        alive = status.altered

        def alter(entry: pb.ChannelStatus) -> pb.ChannelStatus:
            return alive(
                entry,
                pb.RETRYING,
                self.care.now(),
                reason=int(outcome.reason),
                detail=outcome.detail[:500],
                short_retries_left=after.short,
                long_retries_left=after.long,
                takeover=takeover,
                in_doubt=not outcome.clean and held.fence_record.bound_before,
            )

        self.care.elsewhere = True
        others = [m for m in candidates(self.care) if m != self.care.office.driver.member]
        self.care.not_before = asyncio.get_running_loop().time() + (0.0 if first and others else delay_ms / 1000)
        await self._release(held, alter, outcome)

    async def _stop_for(self, reason: Reason, detail: str, held: Held) -> None:
        """An error that needs a command: the stop list, begun by ourselves."""
        driver, draw = self.care.office.driver, self.care.office.world.id
        order = StopOrder(pb.STOPPED, False, self.care.now(), int(reason), detail[:500])
        for _ in range(STOP_TRIES):  # a report of ours may still have been on its way
            try:
                await driver.run(ask_stop(driver.me, self.care.place, order, draw, mine=held.request), f"stop {self.care.name}")
                break
            except Refusal as refusal:
                log.info("entry changed before the stop", channel=self.care.name, detail=refusal.detail)
                if refusal.reason is not Reason.CHANGED_MEANWHILE:
                    break
        await self._release(held, lambda e: None, Ended("failed", reason))

    async def _release(self, held: Held, alter: Alter, outcome: Outcome, extra: tuple[Compare, ...] = ()) -> None:
        self.held = None
        self.care.wake.clear()
        if await self._released(held, alter, outcome, extra):
            self.care.written, self.care.written_at = status.parse(held.entry.value), held.entry.mod_revision
            self.care.left = left_behind(held)

    async def _released(self, held: Held, alter: Alter, outcome: Outcome, extra: tuple[Compare, ...]) -> bool:
        structures = self.care.office.driver.structures
        if structures[self.care.place.structure].reachable or self.care.place.together:
            try:
                steps = release(held, alter, clean=outcome.clean, extra=extra, last=outcome.last)
                return await self.care.run(steps, f"release {self.care.name}")
            except (TimeoutError, StoreError):
                log.warning("release does not come through", channel=self.care.name, structure=self.care.place.structure)
                if self.care.place.together or not structures[self.care.place.admin].reachable:
                    raise
        # Scenario 1b: the lock stays; a member that reaches the queue takes it over at our request.
        return await self.care.run(alter_entry(held, alter, extra), f"entry of {self.care.name}")

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
                    await self.care.run(alter_entry(held, lambda e: self._running(e, held, sender)))
                except (TimeoutError, StoreError) as error:
                    # Scenario 1: losing the table ends no running channel.
                    log.warning("status not written", channel=self.care.name, error=repr(error))

    async def _entered(self, held: Held, alter: Alter) -> bool:
        try:
            if await self.care.run(alter_entry(held, alter)):
                if self.care.passage is not None:
                    log.info("channel resumed", channel=self.care.name, **_milliseconds(held.status.takeover))
                self.care.passage = None
                self.care.elsewhere = False
                self._rebinds = 0
                return True
            log.info("entry changed while binding", channel=self.care.name)
            entry = await self.care.table.read(self.care.name)
            mine = entry is not None and entry.owner == self.care.office.driver.member and entry.state == pb.STOPPING
            self.stop(force=not mine or (entry is not None and entry.stop_force))
        except (TimeoutError, StoreError) as error:
            # Scenario 1: a change of state that cannot be written ends the channel.
            log.warning("the status table does not take RUNNING", channel=self.care.name, error=repr(error))
            self.care.elsewhere = True
            self.stop(force=True)
        return False

    def _running(self, entry: pb.ChannelStatus, held: Held, sender: RunningSender) -> pb.ChannelStatus:
        counters = sender.counters
        after = status.altered(entry, pb.RUNNING, self.care.now(), epoch=held.epoch, instance=self._instance, address=counters.address)
        if entry.state != pb.RUNNING:
            after.reason, after.detail = 0, ""
        after.messages, after.bytes, after.batches = counters.messages, counters.bytes, counters.batches
        after.current_sequence, after.last_sequence = counters.current_sequence, counters.sequence
        after.current_luwid, after.last_luwid = counters.current_luwid, counters.luwid
        after.in_doubt, after.last_message_at_ms = counters.in_doubt, counters.last_message_at_ms
        after.partner = counters.partner or after.partner
        agreed = counters.parameters
        after.batch_messages, after.heartbeat_ms, after.message_bytes_max = (
            agreed.batch_messages,
            agreed.heartbeat_ms,
            agreed.message_bytes_max,
        )
        if counters.messages:
            full = retry.Attempts.full(self.care.place.channel.retry)
            after.short_retries_left, after.long_retries_left = full.short, full.long
        if self.care.passage is not None and after.HasField("takeover"):
            now = asyncio.get_running_loop().time()
            after.takeover.to = self.care.office.driver.member
            after.takeover.detect_ms = self.care.passage.detect_ms
            after.takeover.claim_ms = 1000 * (self.care.passage.claimed - self.care.passage.since)
            after.takeover.resume_ms = 1000 * (now - self.care.passage.since)
        return after

    def _progress(self, sender: RunningSender) -> tuple[object, ...]:
        c = sender.counters
        return c.messages, c.bytes, c.batches, c.sequence, c.in_doubt, self._instance


async def _before(work: Coroutine[Any, Any, None], end: asyncio.Task[Outcome]) -> bool:
    """Whether the work is done while the sender runs: what it waits for may never come once that has ended."""
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait([doing, end], return_when=asyncio.FIRST_COMPLETED)
        return not end.done()
    finally:
        await ended(doing)


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
