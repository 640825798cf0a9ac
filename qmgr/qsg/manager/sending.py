"""The sending side of a channel: reads a transmission queue under its lock and moves it to the partner in confirmed batches.

Owns one instance of a channel, from its bind to its end (patent: MCA of a shared outbound channel; exactly once by watermark).
Invariants: the queue is read in position order per priority; only what the partner confirmed is deleted, each delete in one unit with the
progress record, comparing lock and fence by revision; so whoever takes the channel next finds all that the partner does not have.
Does not guarantee that a message moves while the partner is away; the supervisor decides what follows an `Outcome`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import structlog

from qsg.bell import Bell
from qsg.endings import ended
from qsg.failpoint import task_failpoint
from qsg.manager.flight import Flight, Mark, progress_after, within
from qsg.manager.grants import Grant, Outcome, SenderCounters, open_order
from qsg.manager.link import InitiatorLink, Session, SessionFailed
from qsg.manager.prefetch import Prefetch, SeenTaken
from qsg.manager.raised_fence import until_raised
from qsg.manager.resync import bound_unit, ours
from qsg.pb import channel_pb2, records_pb2
from qsg.rules import batches, keys, negotiate
from qsg.rules.batches import BatchBuilder, Piece
from qsg.rules.lanes import Position
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Change, Committed, CompareFailed, Fenced, OutcomeUnknown, Taken, Unit
from qsg.store.contract import Compare, Get, StoreError
from qsg.transport.codec import ProtocolError, parse

__all__ = ["Grant", "Outcome", "Sender", "SenderCounters", "SenderObserver", "open_order"]

log = structlog.get_logger()

UNSETTLED_BATCHES = 4
"""Confirmed batches that wait to be deleted, in windows, before sending pauses."""
SETTLE_EVERY_S = 0.05
"""What is confirmed within this time is deleted together: at low rates that saves the store a transaction for each small batch."""


class SenderObserver(Protocol):
    def sender_bound(self, sender: Sender) -> None:
        """The partner has answered; `sender.counters` shows its name and address."""
        ...

    def sender_progress(self, sender: Sender) -> None:
        """Batches were confirmed."""
        ...


class _Ended(Exception):
    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.detail)
        self.outcome = outcome


class Sender:
    """One instance. `run` once; `stop` ends it, finishing what is in flight (quiesce) or at once (force).

    `leave_last`: the last deletes are left to whoever releases the lock, so that both are one transaction.
    """

    def __init__(self, grant: Grant, link: InitiatorLink, observer: SenderObserver | None = None) -> None:
        self.grant = grant
        self.counters = SenderCounters()
        self.bound = asyncio.Event()
        self._link = link
        self._observer = observer
        self._structure = grant.structure
        self._queue = grant.channel.transmission_queue
        self._flight = Flight()
        self._changed = Bell()
        self._to_settle = asyncio.Event()
        self._hurry = Bell()
        self._progress_at = 0.0
        self._idle_since = 0.0
        self._stopping = False
        self._leave_last = False
        self._giving = False
        self._force = asyncio.Event()
        self._parameters = channel_pb2.Parameters()
        self._number = 0
        self._sent_sequence = 0

    def stop(self, *, force: bool, leave_last: bool = False) -> None:
        self._stopping = True
        self._leave_last = leave_last
        self._changed.set()
        self._hurry.set()
        self._to_settle.set()
        if force:
            self._force.set()

    async def begin_giving(self) -> None:
        """The channel is about to be another member's: what is sent from now on is for that one to settle. Returns once no delete is out.

        It goes on until the partner ends it for the next owner's bind: a raised fence in the store does not.
        """
        self._giving = True
        while self._flight.settling:
            self._changed.clear()
            await self._changed.wait()

    def end_giving(self) -> None:
        """It was not given away."""
        self._giving = False
        self._to_settle.set()

    @property
    def in_flight(self) -> int:
        """Batches sent and not confirmed."""
        return len(self._flight.sent)

    async def run(self) -> Outcome:
        """From bind to end."""
        reading = Prefetch(self._structure, self._queue, on_settled=self._settled_before, on_loaded=self._changed.set)
        opening = asyncio.ensure_future(self._link.open(open_order(self.grant)))
        preparing = asyncio.ensure_future(self._prepare(reading))
        try:
            return await self._bound_and_run(opening, preparing, reading)
        finally:
            await ended(preparing)

    async def _prepare(self, reading: Prefetch) -> None:
        if self.grant.instance > 1:
            # Under the same lock the instance before may have a delete out: what it deletes must not be read, and counted, once more.
            await self._structure.commit(Unit("after another", compares=self._ours()), slot=0)
        await reading.prepare()

    async def _bound_and_run(self, opening: asyncio.Future[Session], preparing: asyncio.Future[None], reading: Prefetch) -> Outcome:
        forced = asyncio.ensure_future(self._force.wait())
        try:
            waits: list[asyncio.Future[Any]] = [opening, forced]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                return Outcome("stopped", detail="stopped while binding")
            session = opening.result()
        except SessionFailed as e:
            return Outcome("failed", e.reason, e.detail, epoch_seen=e.epoch_seen, instance_seen=e.instance_seen)
        except asyncio.CancelledError:
            opening.add_done_callback(_abort)  # it may be open already
            raise
        finally:
            forced.cancel()
            if not opening.done():
                await ended(opening)
        try:
            outcome = await self._run(session, preparing, reading)
        except BaseException:
            session.abort()
            raise
        await session.close(outcome.reason, outcome.detail)
        return outcome

    async def _run(self, session: Session, preparing: asyncio.Future[None], reading: Prefetch) -> Outcome:
        loop = asyncio.get_running_loop()
        self._progress_at = self._idle_since = loop.time()
        record = session.bound.record
        reading.start_from({priority: Position.of(p) for priority, p in record.confirmed.items()})
        try:
            await task_failpoint("sender.after_bind_before_delete")
            settled = await self._resynchronise(session)
            await preparing
        except Exception as e:
            return await self._outcome(e)
        works = {
            "send": self._send(session, reading),
            "receive": self._receive(session),
            "settle": self._settle(settled),
            "watch": self._watch(),
            "force": self._obey_force(reading),
            "read": reading.run(),
            "fence": self._watch_fence(),
        }
        tasks = [loop.create_task(work, name=f"{self.grant.channel.name} {name}") for name, work in works.items()]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
            return await self._outcome(next(e for e in errors if e is not None))
        finally:
            await ended(*tasks)

    async def _outcome(self, error: BaseException) -> Outcome:
        """What ended a task, as the supervisor is told."""
        self.counters.in_doubt = bool(self._flight.sent)
        match error:
            case _Ended():
                return error.outcome
            case SessionFailed():
                return Outcome("failed", error.reason, error.detail, epoch_seen=error.epoch_seen, instance_seen=error.instance_seen)
            case CompareFailed():
                if not isinstance(error, SeenTaken):
                    log.warning("writes refused", channel=self.grant.channel.name, epoch=self.grant.epoch, units=1)
                try:
                    await self._structure.refresh(self.grant.lock, self.grant.fence)
                except StoreError as e:
                    log.info("lock and fence cannot be read", channel=self.grant.channel.name, error=repr(e))
                return Outcome("fenced", Reason.CHANGED_MEANWHILE, "lock or fence were taken over")
            case Fenced():
                return Outcome("fenced", Reason.FENCED, "this member was replaced")
            case StoreError() | OutcomeUnknown():
                return Outcome("failed", Reason.STRUCTURE_NOT_AVAILABLE, str(error))
            case ProtocolError():
                return Outcome("failed", Reason.PROTOCOL_ERROR, str(error))
            case Refusal():
                return Outcome("failed", error.reason, error.detail)
        raise error

    # Bind and resynchronise

    def _ours(self) -> list[Compare]:
        return ours(self.grant)

    async def _resynchronise(self, session: Session) -> Unit | None:
        """Takes the partner's record over as our progress; what it covers is deleted as the queue is read.

        Sending need not wait for the unit that this answers: whoever binds next is told the record again. Deleting must.
        """
        bound = session.bound
        self._parameters = self.counters.parameters = negotiate.negotiate(negotiate.offer(self.grant.channel), bound.parameters)
        self.counters.address, self.counters.partner, self.counters.partner_member = session.address, bound.receiver, bound.member
        unit, at_once, covered = bound_unit(self.grant, bound)
        if at_once:
            await self._structure.commit(unit, slot=0)
            unit.changes = []
        log.info("resynchronised", channel=self.grant.channel.name, epoch=self.grant.epoch, partner=bound.receiver, covered=covered)
        counters = self.counters
        counters.sequence = counters.current_sequence = self._sent_sequence = bound.record.sequence
        counters.luwid = counters.current_luwid = bound.record.luwid
        self.bound.set()
        if self._observer is not None:
            self._observer.sender_bound(self)
        return unit if unit.changes else None

    def _settled_before(self, piece: Piece) -> None:
        """The partner had this before we bound."""
        self._flight.settle.append(piece)
        self._to_settle.set()

    # Sending

    async def _send(self, session: Session, reading: Prefetch) -> None:
        loop = asyncio.get_running_loop()
        builder = self._builder()
        began = 0.0
        while True:
            self._changed.clear()
            if self._stopping:
                last = await self._finish(reading)
                raise _Ended(Outcome("stopped", Reason.STOPPED_BY_COMMAND, clean=True, last=last))
            fresh = not builder.pieces
            self._fill(builder, reading)
            if fresh and builder.pieces:
                began = loop.time()
            # With nothing under way a batch need not wait for what is still being read.
            empty = not reading.loaded and (reading.caught_up or not self._flight.sent)
            interval_ms = self.grant.channel.batch_interval_ms
            waited_ms = (loop.time() - began) * 1000
            if self._window_open() and batches.ends(
                builder, queue_empty=empty, waited_ms=waited_ms, interval_ms=interval_ms, stopping=False
            ):
                await self._send_batch(session, builder)
                builder = self._builder()
                continue
            timeout_s = None
            if builder.pieces and empty and interval_ms > waited_ms:
                timeout_s = (interval_ms - waited_ms) / 1000
            elif not builder.pieces and reading.caught_up and not reading.loaded and not self._busy():
                timeout_s = self._idle_left()
            await within(self._changed, timeout_s)

    def _builder(self) -> BatchBuilder:
        return BatchBuilder(self._parameters.batch_messages, self._parameters.batch_bytes)

    def _fill(self, builder: BatchBuilder, reading: Prefetch) -> None:
        now_ms = self._structure.world.wall_ms()
        while reading.loaded and not builder.full:
            rest = builder.add(reading.take(), now_ms)
            if rest is not None:
                reading.give_back(rest)

    def _window_open(self) -> bool:
        window = self._parameters.batch_window
        return len(self._flight.sent) < window and self._flight.unsettled < UNSETTLED_BATCHES * window

    def _busy(self) -> bool:
        return bool(self._flight.sent or self._flight.settle or self._flight.settling or self._flight.announcing)

    def _idle_left(self) -> float | None:
        """Seconds until the disconnect interval ends; None: it never does. Raises when it has."""
        interval_s = self.grant.channel.disconnect_interval_s
        if not interval_s:
            return None
        left = self._idle_since + interval_s - asyncio.get_running_loop().time()
        if left <= 0:
            raise _Ended(Outcome("idle", detail=f"nothing to send for {interval_s:g} s", clean=True))
        return left

    async def _finish(self, reading: Prefetch) -> Unit | None:
        """Waits until everything sent is confirmed, and all that the partner has is deleted: only then may applications get the rest.

        Answers what is left to delete together with the lock.
        """
        flight = self._flight
        reading.only_settle()
        await reading.passed.wait()
        while self._busy():
            if self._leave_last and not (flight.sent or flight.settling or flight.announcing):
                pieces, marks = flight.next_to_settle()
                if not flight.settle:
                    return self._settlement(pieces, marks)
                await self._structure.commit(self._settlement(pieces, marks), slot=0)
                continue
            await self._changed.wait()
            self._changed.clear()
        return None

    async def _send_batch(self, session: Session, builder: BatchBuilder) -> None:
        self._number += 1
        structure = self._structure
        luwid = f"{structure.member}.{structure.incarnation:x}.{self.grant.epoch:x}.{self.grant.instance:x}.{self._number:x}"
        built = builder.finish(self._number, luwid, self._sent_sequence, self._parameters.sequence_wrap)
        if not self._flight.sent:
            self._progress_at = asyncio.get_running_loop().time()
        if built.staged:
            self._flight.announcing = True
            for entry, _, destination in built.staged:
                await self._send_parts(session, entry, destination)
            self._flight.announcing = False
        self._sent_sequence = built.last_sequence
        self._flight.sent.append(built)
        counters = self.counters
        counters.current_sequence, counters.current_luwid, counters.in_doubt = built.last_sequence, luwid, True
        await session.send(channel_pb2.FRAME_BATCH, built.batch)
        await task_failpoint("sender.after_batch_before_confirm")

    async def _send_parts(self, session: Session, entry: records_pb2.Entry, destination: records_pb2.Destination) -> None:
        """Announces a large message chunk by chunk."""
        if entry.payload_size > self._parameters.message_bytes_max:
            raise Refusal(
                Reason.MSG_TOO_BIG_FOR_Q_MGR, f"{entry.payload_size} bytes; the partner takes {self._parameters.message_bytes_max}"
            )
        for index in range(entry.chunks):
            _, (result,) = await self._structure.read(Get(keys.chunk(self._queue, entry.stage, index)))
            if result.first is None:
                raise Refusal(Reason.LARGE_MESSAGE_INCOMPLETE, f"chunk {index} of {entry.chunks} is missing")
            part = channel_pb2.Part(stage=entry.stage, index=index, chunks=entry.chunks, data=result.first.value, destination=destination)
            await session.send(channel_pb2.FRAME_PART, part)

    # Confirmations

    async def _receive(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        while True:
            kind, payload = await session.receive()
            self._progress_at = loop.time()
            if kind == channel_pb2.FRAME_CONFIRM:
                self._confirmed(parse(channel_pb2.Confirm, payload))
            elif kind != channel_pb2.FRAME_PROGRESS:
                raise ProtocolError(f"frame of type {kind} from a receiver")

    def _confirmed(self, confirm: channel_pb2.Confirm) -> None:
        flight = self._flight
        if not flight.sent or not flight.sent[0].batch.number <= confirm.number <= flight.sent[-1].batch.number:
            raise ProtocolError(f"batch {confirm.number} was confirmed, which is not under way")
        counters = self.counters
        while flight.sent and flight.sent[0].batch.number <= confirm.number:
            built = flight.sent.popleft()
            flight.settle.extend(built.pieces)
            flight.settle.append(Mark(built))
            flight.unsettled += 1
            counters.messages += built.messages
            counters.bytes += built.bytes
            counters.batches += 1
            counters.sequence, counters.luwid = built.last_sequence, built.batch.luwid
            built.batch.ClearField("segments")
        counters.in_doubt = bool(flight.sent)
        counters.last_message_at_ms = self._structure.world.wall_ms()
        self._idle_since = self._progress_at
        if self._pressing:
            self._hurry.set()
        self._to_settle.set()
        self._changed.set()
        if self._observer is not None:
            self._observer.sender_progress(self)

    @property
    def _pressing(self) -> bool:
        """So much waits to be deleted that sending would soon pause for it."""
        return 2 * self._flight.unsettled >= UNSETTLED_BATCHES * self._parameters.batch_window

    async def _settle(self, first: Unit | None) -> None:
        """Deletes what is confirmed, behind `first`; what comes together shares a unit."""
        flight = self._flight
        if first is not None:
            flight.settling = True
            await self._structure.commit(first, slot=0)
            flight.settling = False
            self._changed.set()
        while True:
            while not flight.settle or self._leave_last or self._giving:
                self._to_settle.clear()
                await self._to_settle.wait()
            pieces, marks = flight.next_to_settle()
            flight.settling = True
            await task_failpoint("sender.after_confirm_before_delete")
            await self._commit_settled(pieces, marks)
            flight.settling = False
            flight.unsettled -= len(marks)
            self._changed.set()
            if not self._stopping:
                self._hurry.clear()
            if not self._pressing:
                await within(self._hurry, SETTLE_EVERY_S)

    async def _commit_settled(self, pieces: list[Piece], marks: list[Mark]) -> Committed:
        return await self._structure.commit(self._settlement(pieces, marks), slot=0)

    def _settlement(self, pieces: list[Piece], marks: list[Mark]) -> Unit:
        settlement = batches.settle(self._queue, pieces)
        unit = Unit("confirmed", compares=self._ours(), ops=settlement.ops)
        if settlement.messages:
            unit.taken.append(Taken(self._queue, settlement.messages, settlement.bytes))
        if marks:
            value = progress_after(self.grant.progress.value, marks).SerializeToString(deterministic=True)
            unit.changes.append(Change(self.grant.progress, lambda _: value))
        return unit

    # Watching

    async def _watch(self) -> None:
        """A partner that makes no progress with what is in flight is given up."""
        loop = asyncio.get_running_loop()
        silence_s = self.grant.channel.silence_ms / 1000
        while True:
            waiting = bool(self._flight.sent) or self._flight.announcing
            left = self._progress_at + silence_s - loop.time() if waiting else silence_s
            if left <= 0:
                raise _Ended(
                    Outcome("failed", Reason.PARTNER_SILENT, f"no progress for {silence_s:g} s with {self.in_flight} batches in flight")
                )
            await asyncio.sleep(left)

    async def _watch_fence(self) -> None:
        """A raised fence ends this instance also when it has nothing to write."""
        await until_raised(self.grant, lambda: self._giving)

    async def _obey_force(self, reading: Prefetch) -> None:
        """Clean only once all that the partner's record covers was read: until then some of it may be on the queue (N1)."""
        await self._force.wait()
        raise _Ended(Outcome("stopped", Reason.STOPPED_BY_COMMAND, "stopped by force", clean=reading.passed.is_set() and not self._busy()))


def _abort(opening: asyncio.Future[Session]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abort()
