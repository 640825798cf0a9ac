"""The batches of one bound inbound session: received, put, committed with the stream's record, confirmed.

Owns the run of batches between bind and end. Invariants: a batch's messages and the record that covers them are one unit (or successive
prefixes of it), which compares the fence of this bind and that the record is the one that the batch follows; units are handed in in
order, and when one fails all behind it fail and are built anew in order; a batch is confirmed behind its commit.
A session does not outlive its store: with the store out of reach no progress is reported, and the partner goes elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from qsg.endings import ended, to_the_end
from qsg.failpoint import task_failpoint
from qsg.manager.delivering import Deliverer
from qsg.manager.link import Session
from qsg.manager.placing import Placement, Placer, release
from qsg.manager.structure import Structure
from qsg.pb import channel_pb2, records_pb2
from qsg.rules import receiver as rules
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.receiver import Arrival, BindRefused, Course
from qsg.rules.records import read_record
from qsg.rules.unit import Cell, Change, Committed, CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.store.contract import Compare, StoreError, unchanged
from qsg.transport.codec import ProtocolError, parse

log = structlog.get_logger()

PROGRESS_S = 0.3
REDO_MAX = 5
INBOX = 72
"""Frames waiting to be handled; the partner's window bounds its batches, parts wait on the way."""
TIDY_S = 2.0


@dataclass
class ReceiverCounters:
    epoch: int = 0
    instance: int = 0
    messages: int = 0
    bytes: int = 0
    batches: int = 0
    dead_letters: int = 0
    sequence: int = 0
    luwid: str = ""
    last_message_at_ms: int = 0
    paused: bool = False
    """Waiting for a message-retry interval."""
    takeovers: int = 0
    takeover: records_pb2.Takeover | None = None
    """The last adoption by another member."""
    parameters: channel_pb2.Parameters = field(default_factory=channel_pb2.Parameters)
    """As negotiated."""


@dataclass(frozen=True)
class Bond:
    """What a bind has made: the definition and parameters of the session, and the fence that all its writes compare."""

    definition: Channel
    parameters: channel_pb2.Parameters
    structure: Structure
    fence: bytes
    fence_revision: int
    affinity: str

    def ours(self) -> list[Compare]:
        """The fence is that of our bind: part of everything that this session writes."""
        return [unchanged(self.fence, self.fence_revision)]


@dataclass
class _Pending:
    """A batch, or a prefix of one, on its way into the store."""

    arrivals: list[Arrival]
    before: records_pb2.Progress
    after: records_pb2.Progress
    confirm: int = 0
    """Number of the batch that is complete with it, 0 = none."""
    task: asyncio.Task[Committed] | None = None
    placements: list[Placement] = field(default_factory=list)
    """What they reserve is released when the outcome is known."""

    def release(self, *, committed: bool) -> None:
        placements, self.placements = self.placements, []
        release(placements, committed=committed)


class Inflow:
    """`run` until the session ends, which raises why. `tell` is called when `counters` have changed."""

    def __init__(
        self, session: Session, bond: Bond, progress: Cell, placer: Placer, counters: ReceiverCounters, tell: Callable[[], None]
    ) -> None:
        self._idle = asyncio.Event()
        """Everything taken in is confirmed."""
        self._idle.set()
        self._finishing = False
        self._session = session
        self._definition = bond.definition
        self._parameters = bond.parameters
        self._structure = bond.structure
        self._fence = bond.fence
        self._fence_revision = bond.fence_revision
        self._affinity = bond.affinity
        self._ours = bond.ours
        self._progress = progress
        self._record = read_record(records_pb2.Progress, progress.value or b"", progress.key)
        """Behind everything handed to the store."""
        self._course = Course.after(self._record, bond.parameters)
        self._deliverer = Deliverer(
            placer,
            bond.structure,
            bond.definition,
            bond.structure.world,
            ours=bond.ours,
            initiator=session.initiator,
            ahead_bytes_max=max(bond.parameters.message_bytes_max, bond.parameters.batch_bytes),
            paused=self.paused,
        )
        self._counters = counters
        self._tell = tell
        self._pending: deque[_Pending] = deque()
        self._inbox: asyncio.Queue[channel_pb2.Batch | channel_pb2.Part] = asyncio.Queue(INBOX)
        self._staging = False
        self._in_hand = 0
        self._to_confirm = asyncio.Event()
        self._building = asyncio.Lock()
        """Held while a unit is built and handed in: a redo must not be overtaken."""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._read(self._parameters.batch_window), name=f"{self._definition.name} read"),
            loop.create_task(self._commit(), name=f"{self._definition.name} commit"),
            loop.create_task(self._confirm(), name=f"{self._definition.name} confirm"),
            loop.create_task(self._report(), name=f"{self._definition.name} progress"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
            raise next(e for e in errors if e is not None)
        finally:
            await to_the_end(self._clear(tasks))

    async def finish(self) -> None:
        """Takes nothing more in, and returns once all before is confirmed. A partner that is busy always has a batch under way."""
        self._finishing = True
        await self._idle.wait()

    async def _clear(self, tasks: list[asyncio.Task[None]]) -> None:
        await ended(*tasks)
        # Units that are out settle by themselves, comparing the fence.
        await ended(*(p.task for p in self._pending if p.task is not None))
        for pending in self._pending:
            pending.release(committed=False)
        await self._tidy()

    async def _tidy(self) -> None:
        try:
            async with asyncio.timeout(TIDY_S):
                await self._deliverer.discard()
        except (Fenced, OutcomeUnknown, StoreError, TimeoutError) as e:
            log.info("staged parts are left to the cleaner", channel=self._definition.name, error=repr(e))

    def paused(self, paused: bool) -> None:
        if self._counters.paused != paused:
            self._counters.paused = paused
            self._tell()

    async def _read(self, window: int) -> None:
        """Takes frames in; more batches than agreed are a protocol error, parts wait until they are staged."""
        while True:
            kind, payload = await self._session.receive()
            if self._finishing:
                continue  # the partner sends it to whoever it binds next
            if kind == channel_pb2.FRAME_BATCH:
                if self._in_hand >= window:
                    raise ProtocolError(f"more than {window} batches in flight")
                self._in_hand += 1
                self._idle.clear()
                await self._inbox.put(parse(channel_pb2.Batch, payload))
            elif kind == channel_pb2.FRAME_PART:
                await self._inbox.put(parse(channel_pb2.Part, payload))
            else:
                raise ProtocolError(f"frame of type {kind} from a sender")

    async def _commit(self) -> None:
        """Stages parts and hands batches to the store, in order, several at once."""
        while True:
            item = await self._inbox.get()
            if isinstance(item, channel_pb2.Part):
                self._staging = True
                await self._fenced_off(self._deliverer.part(item))
            else:
                self._staging = False
                await self._batch(item)

    async def _batch(self, batch: channel_pb2.Batch) -> None:
        arrivals = self._course.accept(batch)
        self._deliverer.expect(arrivals)
        groups = rules.prefixes(arrivals)
        for position, group in enumerate(groups, start=1):
            last = position == len(groups)
            after = rules.record_after(self._record, group, self._parameters.sequence_wrap, luwid=batch.luwid if last else "")
            pending = _Pending(group, self._record, after, batch.number if last else 0)
            self._record = after
            async with self._building:
                pending.task = asyncio.get_running_loop().create_task(await self._committing(pending))
                self._pending.append(pending)
                self._to_confirm.set()

    async def _committing(self, pending: _Pending) -> Coroutine[Any, Any, Committed]:
        """What commits it. A batch that must be cut in two fails at once: it is its turn only behind those before it."""
        try:
            unit = await self._unit(pending)
        except Refusal as refusal:
            if refusal.reason is not Reason.SYNCPOINT_LIMIT_REACHED:
                raise
            return _refused(refusal)
        await task_failpoint("receiver.before_commit")
        return self._handed_in(pending, unit)

    async def _handed_in(self, pending: _Pending, unit: Unit) -> Committed:
        """One that fails holds no room: the batch behind it may wait for just this, and until it is handed in nothing is built anew."""
        try:
            return await self._structure.commit(unit, affinity=self._affinity)
        except BaseException:
            pending.release(committed=False)
            raise

    async def _unit(self, pending: _Pending) -> Unit:
        """The messages and the record that covers them, in one unit."""
        unit = Unit("batch", compares=self._ours())
        pending.release(committed=False)
        await self._fenced_off(self._fill(unit, pending))
        value = pending.after.SerializeToString(deterministic=True)
        before = pending.before

        def apply(present: bytes | None) -> bytes:
            record = None if present is None else read_record(records_pb2.Progress, present)
            if not rules.is_base(record, before):
                raise Refusal(Reason.CHANGED_MEANWHILE, "the record is not the one that this batch follows")
            return value

        unit.changes.append(Change(self._progress, apply))
        return unit

    async def _fill(self, unit: Unit, pending: _Pending) -> None:
        pending.placements = await self._deliverer.fill(unit, pending.arrivals)

    async def _fenced_off(self, work_to_do: Awaitable[None]) -> None:
        """Staging that fails its compare: either the queue changed, or a newer bind has fenced this session off."""
        try:
            await work_to_do
        except CompareFailed as e:
            await self._check_fence()
            self._deliverer.forget()
            raise Refusal(Reason.OBJECT_CHANGED, f"a queue changed while a large message was staged: {e}") from e

    async def _check_fence(self) -> None:
        fence = await self._structure.cell(self._fence)
        if fence.mod_revision != self._fence_revision:
            seen = read_record(records_pb2.ReceiverFence, fence.value or b"", fence.key)
            log.warning("writes refused", channel=self._definition.name, epoch=self._counters.epoch, units=max(1, self._refused_units()))
            raise BindRefused(Reason.EPOCH_TOO_LOW, f"a newer bind came in at {seen.member}", seen.epoch, seen.instance)

    def _refused_units(self) -> int:
        """Of batches handed in together each is refused by itself."""
        known = [p.task for p in self._pending if p.task is not None and p.task.done() and not p.task.cancelled()]
        return sum(isinstance(task.exception(), CompareFailed) for task in known)

    # Confirming

    async def _confirm(self) -> None:
        while True:
            while not self._pending:
                self._to_confirm.clear()
                await self._to_confirm.wait()
            head = self._pending[0]
            assert head.task is not None
            await asyncio.wait([head.task])
            if head.task.exception() is not None:
                async with self._building:
                    await self._redo()
            done: list[_Pending] = []
            while self._pending and (task := self._pending[0].task) is not None and task.done() and task.exception() is None:
                done.append(self._pending.popleft())
            await task_failpoint("receiver.after_commit_before_confirm")
            await self._committed(done)

    async def _committed(self, done: Sequence[_Pending]) -> None:
        counters = self._counters
        number = 0
        for pending in done:
            pending.release(committed=True)
            counters.messages += pending.after.messages - pending.before.messages
            counters.bytes += pending.after.bytes - pending.before.bytes
            counters.sequence = pending.after.sequence
            self._deliverer.published(pending.arrivals)
            if pending.confirm:
                number = pending.confirm
                counters.batches += 1
                counters.luwid = pending.after.luwid
                self._in_hand -= 1
        if not number:
            return
        used = self._deliverer.dead_letters > counters.dead_letters
        counters.dead_letters = self._deliverer.dead_letters
        counters.last_message_at_ms = self._structure.world.wall_ms()
        confirm = channel_pb2.Confirm(number=number, luwid=counters.luwid, sequence=counters.sequence, dead_letter_used=used)
        await self._send_confirm(confirm)
        if not self._in_hand:
            self._idle.set()
        self._tell()

    async def _send_confirm(self, confirm: channel_pb2.Confirm) -> None:
        await self._session.send(channel_pb2.FRAME_CONFIRM, confirm)

    async def _redo(self) -> None:
        """A unit failed, and with it all behind it: they are built anew, one after the other, or the session ends."""
        for pending in self._pending:
            assert pending.task is not None
            await asyncio.wait([pending.task])  # those that fail hold no room then, for which those before them may wait
        for pending in self._pending:
            assert pending.task is not None
            if pending.task.exception() is not None:
                committed = await self._again(pending, pending.task.exception())
                pending.task = _done(committed)

    async def _again(self, pending: _Pending, error: BaseException | None) -> Committed:
        left = self._definition.message_retry_count
        for _ in range(REDO_MAX + left):
            match error:
                case CompareFailed():
                    await self._check_fence()
                    self._deliverer.forget()
                    await self._structure.refresh(self._progress)
                case Refusal(reason=Reason.CHANGED_MEANWHILE):
                    await self._structure.refresh(self._progress)
                case Refusal(reason=Reason.SYNCPOINT_LIMIT_REACHED):
                    return await self._halves(pending)
                case Refusal(reason=Reason.STORAGE_NOT_AVAILABLE) if left > 0:
                    left -= 1
                    self.paused(True)
                    await asyncio.sleep(self._definition.message_retry_ms / 1000)
                case None:
                    pass
                case _:
                    raise error
            try:
                committed = await self._structure.commit(await self._unit(pending), affinity=self._affinity)
                self.paused(False)
                pending.release(committed=True)
                return committed
            except (CompareFailed, Refusal) as e:
                error = e
        assert error is not None
        raise error

    async def _halves(self, pending: _Pending) -> Committed:
        """More than one transaction holds: in two prefixes."""
        first, second = rules.halve(pending.arrivals)
        middle = rules.record_after(pending.before, first, self._parameters.sequence_wrap)
        await self._half(_Pending(first, pending.before, middle))
        return await self._half(_Pending(second, middle, pending.after))

    async def _half(self, half: _Pending) -> Committed:
        try:
            return await self._again(half, None)
        finally:
            half.release(committed=False)  # unless it was committed

    async def _report(self) -> None:
        """Tells the partner that we are still at it, as long as the store answers."""
        beats = 0
        while True:
            await asyncio.sleep(PROGRESS_S)
            if (self._in_hand or self._staging) and self._structure.reachable:
                beats += 1
                await self._session.send(
                    channel_pb2.FRAME_PROGRESS, channel_pb2.Beat(number=beats, note="paused" if self._counters.paused else "")
                )


def _done(committed: Committed) -> asyncio.Task[Committed]:
    async def answer() -> Committed:
        return committed

    return asyncio.get_running_loop().create_task(answer())


async def _refused(refusal: Refusal) -> Committed:
    raise refusal
