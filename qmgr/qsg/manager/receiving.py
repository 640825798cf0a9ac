"""The receiving side of channels: inbound sessions bound, their batches committed with the record of their stream, and confirmed.

Owns one `Receiver` per inbound session (patent: inbound shared channels, adoption by another member). Invariants: a batch's messages and
the stream's record commit in one transaction that compares the fence of this bind, so an old instance commits nothing; a batch is
confirmed only when it is committed; batches that were accepted commit in order or not at all.
Does not guarantee that a partner hears a confirmation; it finds the record at its next bind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from qsg.manager.delivering import Deliverer
from qsg.manager.link import InboundSession, SessionFailed
from qsg.manager.placing import Placer
from qsg.manager.structure import Structure
from qsg.pb import channel_pb2, records_pb2
from qsg.rules import keys, negotiate, segments
from qsg.rules import receiver as rules
from qsg.rules.definitions import PRIVATE, Channel
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.receiver import Arrival, BindRefused, Course, Holder
from qsg.rules.unit import Cell, Change, Committed, CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.rules.world import World
from qsg.store.contract import Compare, StoreError, unchanged
from qsg.transport.codec import ProtocolError, parse

log = structlog.get_logger()

ADMIN = "admin"
PROGRESS_S = 0.3
BIND_ATTEMPTS = 8
BIND_S = 3.0
"""A store that takes longer is out of reach: the partner goes elsewhere. A bind that is applied later only raises the fence."""
UNIT_BYTES = 900_000
"""Bodies of one unit: what a batch holds beyond this is committed in successive prefixes."""
UNIT_SEGMENTS = 24
REDO_MAX = 5
INBOX = 72
"""Frames waiting to be handled; the partner's window bounds its batches, parts wait on the way."""
TIDY_S = 2.0
SESSION_ID_BYTES = 8


class InboundObserver(Protocol):
    """Told of inbound sessions, for the status table. Must not wait."""

    def inbound_started(self, channel: str, partner: str, stream: bytes, address: str, portal: str) -> None: ...

    def inbound_progress(self, channel: str, partner: str, stream: bytes, counters: ReceiverCounters) -> None: ...

    def inbound_ended(self, channel: str, partner: str, stream: bytes, reason: Reason, detail: str) -> None: ...


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


@dataclass
class ReceiverServices:
    """What receivers stand on. `structures` by name; `group` blank outside a group."""

    world: World
    structures: Mapping[str, Structure]
    placer: Placer
    channel: Callable[[str], Channel | None]
    member: str
    group: str = ""
    observer: InboundObserver | None = None


@dataclass
class _Pending:
    """A batch, or a prefix of one, on its way into the store."""

    arrivals: list[Arrival]
    before: records_pb2.Progress
    after: records_pb2.Progress
    confirm: int = 0
    """Number of the batch that is complete with it, 0 = none."""
    task: asyncio.Task[Committed] | None = None


class Receivers:
    """All inbound sessions of a member: `accept` is the link's `on_accept`."""

    def __init__(self, services: ReceiverServices) -> None:
        self.services = services
        self.draining = False
        self._active: dict[bytes, Receiver] = {}

    @property
    def active(self) -> list[Receiver]:
        return list(self._active.values())

    async def accept(self, session: InboundSession) -> None:
        """Runs one inbound session to its end."""
        await Receiver(session, self.services, self).run()

    async def adopt(self, stream: bytes, receiver: Receiver) -> None:
        """A newer bind of the stream replaces the session that this member had, at once."""
        old = self._active.get(stream)
        if old is not None and old.order > receiver.order:
            raise BindRefused(Reason.EPOCH_TOO_LOW, "a newer bind came in here", *old.order)
        self._active[stream] = receiver
        if old is not None and old is not receiver:
            await old.displace()

    def leave(self, stream: bytes, receiver: Receiver) -> None:
        if self._active.get(stream) is receiver:
            del self._active[stream]

    async def drain(self) -> None:
        """Refuses further binds; sessions end once what they have received is confirmed, and their partners go elsewhere."""
        self.draining = True
        await asyncio.gather(*(receiver.finish() for receiver in self.active))


class Receiver:
    """One inbound session. `run` once."""

    def __init__(self, session: InboundSession, services: ReceiverServices, registry: Receivers) -> None:
        self.counters = ReceiverCounters()
        self.channel = ""
        self.partner = ""
        self.stream = b""
        self._session = session
        self._services = services
        self._registry = registry
        self._pending: deque[_Pending] = deque()
        self._inbox: asyncio.Queue[channel_pb2.Batch | channel_pb2.Part] = asyncio.Queue(INBOX)
        self._staging = False
        self._in_hand = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._to_confirm = asyncio.Event()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._displaced = False
        self._fence_revision = 0
        self._affinity = ""

    async def run(self) -> None:
        self._task = asyncio.current_task()
        try:
            await self._first()
        except SessionFailed as e:
            log.info("inbound session ended", channel=self.channel, address=self._session.address, reason=e.reason.name, detail=e.detail)
        except BindRefused as e:
            await self._refuse(e.reason, e.detail, e.epoch_seen, e.instance_seen)
        except Refusal as e:
            await self._refuse(e.reason, e.detail)
        except ProtocolError as e:
            await self._refuse(Reason.PROTOCOL_ERROR, str(e))
        except (Fenced, OutcomeUnknown, StoreError) as e:
            await self._refuse(Reason.STRUCTURE_NOT_AVAILABLE, repr(e))
        except asyncio.CancelledError:
            if not self._displaced:
                raise
        finally:
            self._ended.set()

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, instance) of its bind."""
        return self.counters.epoch, self.counters.instance

    async def displace(self) -> None:
        """Another session has taken over: this one ends at once."""
        self._displaced = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await self._ended.wait()

    async def finish(self) -> None:
        """Ends once everything received is confirmed."""
        waits = [asyncio.ensure_future(self._idle.wait()), asyncio.ensure_future(self._ended.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await self._session.close(Reason.DRAINING, "the member is stopping")
            await waits[1]
        finally:
            for wait in waits:
                wait.cancel()

    async def _refuse(self, reason: Reason, detail: str, epoch_seen: int = 0, instance_seen: int = 0) -> None:
        log.warning("inbound session refused", channel=self.channel, address=self._session.address, reason=reason.name, detail=detail)
        refused = channel_pb2.Refused(reason=int(reason), detail=detail, epoch_seen=epoch_seen, instance_seen=instance_seen)
        await self._session.refuse(refused)

    # Bind

    async def _first(self) -> None:
        kind, payload = await self._session.receive()
        if kind == channel_pb2.FRAME_PING:
            ping = parse(channel_pb2.Ping, payload)
            self._definition(ping.channel)
            await self._session.send(channel_pb2.FRAME_PONG, ping)
            return
        request = parse(channel_pb2.Bind, payload)
        self.channel, self.partner, self.stream = request.channel, request.sender, request.stream
        definition = rules.check_names(request, self._services.channel(request.channel), self._our_name(), self._session.identity)
        parameters = negotiate.negotiate(negotiate.offer(definition), request.parameters)
        structure = self._home(definition)
        if kind == channel_pb2.FRAME_QUERY:
            await self._answer_query(structure, request, parameters)
        elif kind == channel_pb2.FRAME_BIND:
            await self._bind_and_run(structure, definition, request, parameters)
        else:
            raise Refusal(Reason.PROTOCOL_ERROR, f"frame of type {kind} in place of a bind")

    def _definition(self, name: str) -> Channel:
        channel = self._services.channel(name)
        if channel is None:
            raise Refusal(Reason.UNKNOWN_CHANNEL_NAME, f"no channel {name!r} here")
        if channel.type != "receiver":
            raise Refusal(Reason.CHANNEL_TYPE_ERROR, f"{name} is not a receiver here")
        return channel

    @property
    def _shared(self) -> bool:
        """Through the group portal of a member of a group: GROUP NAME, shared records."""
        return self._session.portal == "group" and bool(self._services.group)

    def _our_name(self) -> str:
        return self._services.group if self._shared else self._services.member

    def _home(self, definition: Channel) -> Structure:
        name = (definition.structure or ADMIN) if self._shared else PRIVATE
        structure = self._services.structures.get(name)
        if structure is None or structure.fenced.is_set():
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, f"structure {name} is not available on this member")
        if not structure.reachable:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, f"structure {name} is out of reach of this member")
        return structure

    async def _answer_query(self, structure: Structure, request: channel_pb2.Bind, parameters: channel_pb2.Parameters) -> None:
        fence, progress = Cell(keys.receiver_fence(request.stream)), Cell(keys.receiver_progress(request.stream))
        await structure.refresh(fence, progress)
        bound = self._bound(records_pb2.Progress.FromString(progress.value or b""), parameters)
        bound.epoch = records_pb2.ReceiverFence.FromString(fence.value or b"").epoch
        await self._session.send(channel_pb2.FRAME_BOUND, bound)
        await self._session.close()

    def _bound(self, record: records_pb2.Progress, parameters: channel_pb2.Parameters) -> channel_pb2.Bound:
        return channel_pb2.Bound(receiver=self._our_name(), member=self._services.member, record=record, parameters=parameters)

    async def _bind_and_run(
        self, structure: Structure, definition: Channel, request: channel_pb2.Bind, parameters: channel_pb2.Parameters
    ) -> None:
        if self._registry.draining:
            raise Refusal(Reason.DRAINING, "the member is stopping")
        self._affinity = request.stream.hex()
        try:
            async with asyncio.timeout(BIND_S):
                progress = await self._bind(structure, request, parameters.sequence_wrap)
        except TimeoutError:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, f"structure {structure.name} does not answer") from None
        record = records_pb2.Progress.FromString(progress.value or b"")
        self.counters.epoch, self.counters.instance = request.epoch, request.instance
        self.counters.sequence, self.counters.luwid = record.sequence, record.luwid
        bound = self._bound(record, parameters)
        bound.epoch = request.epoch
        await self._registry.adopt(request.stream, self)
        try:
            await self._session.send(channel_pb2.FRAME_BOUND, bound)
            if request.fence_only:
                await self._session.close()
                return
            await self._observed(structure, definition, record, progress, parameters)
        finally:
            self._registry.leave(request.stream, self)

    async def _bind(self, structure: Structure, request: channel_pb2.Bind, wrap: int) -> Cell:
        """Raises the fence in one transaction; answers the progress as it is behind that (M1: nothing of an old instance comes later)."""
        services = self._services
        fence, progress = Cell(keys.receiver_fence(request.stream)), Cell(keys.receiver_progress(request.stream))
        holder = Holder(services.member, structure.incarnation, self._session.initiator, services.world.id(SESSION_ID_BYTES))
        for _ in range(BIND_ATTEMPTS):
            await structure.refresh(fence, progress)
            seen = None if fence.value is None else records_pb2.ReceiverFence.FromString(fence.value)
            known = None if progress.value is None else records_pb2.Progress.FromString(progress.value)
            accepted = rules.bind(request, seen, known, holder, wrap)
            unit = Unit("bind", changes=[_write(fence, accepted.fence)])
            if accepted.record_changed:
                unit.changes.append(_write(progress, accepted.record))
            try:
                committed = await structure.commit(unit, affinity=self._affinity)
            except CompareFailed:
                continue
            self._fence_revision = committed.revision
            await structure.refresh(progress)
            return progress
        raise Refusal(Reason.CHANGED_MEANWHILE, "other binds of this stream came between, again and again")

    # Batches

    async def _observed(
        self,
        structure: Structure,
        definition: Channel,
        record: records_pb2.Progress,
        progress: Cell,
        parameters: channel_pb2.Parameters,
    ) -> None:
        observer, session = self._services.observer, self._session
        reason, detail = Reason.UNEXPECTED_ERROR, ""
        if observer is not None:
            observer.inbound_started(self.channel, self.partner, self.stream, session.address, session.portal)
        try:
            await self._run(structure, definition, record, progress, parameters)
            reason = Reason.NONE
        except (SessionFailed, Refusal) as e:
            reason, detail = e.reason, e.detail
            raise
        except (Fenced, OutcomeUnknown, StoreError) as e:
            reason, detail = Reason.STRUCTURE_NOT_AVAILABLE, repr(e)
            raise
        except ProtocolError as e:
            reason, detail = Reason.PROTOCOL_ERROR, str(e)
            raise
        except asyncio.CancelledError:
            reason, detail = Reason.NO_INITIATOR, "the session was replaced, or its initiator is gone"
            raise
        finally:
            if observer is not None:
                observer.inbound_ended(self.channel, self.partner, self.stream, reason, detail)

    async def _run(
        self,
        structure: Structure,
        definition: Channel,
        record: records_pb2.Progress,
        progress: Cell,
        parameters: channel_pb2.Parameters,
    ) -> None:
        loop = asyncio.get_running_loop()
        work = _Work(
            structure, progress, record, parameters, Course.after(record, parameters), self._deliverer(structure, definition, parameters)
        )
        tasks = [
            loop.create_task(self._read(parameters.batch_window), name=f"{self.channel} read"),
            loop.create_task(self._commit(work), name=f"{self.channel} commit"),
            loop.create_task(self._confirm(work), name=f"{self.channel} confirm"),
            loop.create_task(self._report(structure), name=f"{self.channel} progress"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
            raise next(e for e in errors if e is not None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Units that are out settle by themselves, comparing the fence.
            units = [p.task for p in self._pending if p.task is not None]
            for unit in units:
                unit.cancel()
            await asyncio.gather(*units, return_exceptions=True)
            await self._tidy(work)

    async def _tidy(self, work: _Work) -> None:
        try:
            async with asyncio.timeout(TIDY_S):
                await work.deliverer.discard()
        except (Fenced, OutcomeUnknown, StoreError, TimeoutError) as e:
            log.info("staged parts are left to the cleaner", channel=self.channel, error=repr(e))

    def _deliverer(self, structure: Structure, definition: Channel, parameters: channel_pb2.Parameters) -> Deliverer:
        return Deliverer(
            self._services.placer,
            structure,
            definition,
            self._services.world,
            ours=self._ours,
            initiator=self._session.initiator,
            message_bytes_max=parameters.message_bytes_max,
            paused=self._paused,
        )

    def _ours(self) -> list[Compare]:
        """The fence is that of our bind: part of everything that this session writes."""
        return [unchanged(keys.receiver_fence(self.stream), self._fence_revision)]

    def _paused(self, paused: bool) -> None:
        if self.counters.paused != paused:
            self.counters.paused = paused
            self._tell()

    def _tell(self) -> None:
        if self._services.observer is not None:
            self._services.observer.inbound_progress(self.channel, self.partner, self.stream, self.counters)

    async def _read(self, window: int) -> None:
        """Takes frames in; more batches than agreed are a protocol error, parts wait until they are staged."""
        while True:
            kind, payload = await self._session.receive()
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

    async def _commit(self, work: _Work) -> None:
        """Stages parts and hands batches to the store, in order, several at once."""
        while True:
            item = await self._inbox.get()
            if isinstance(item, channel_pb2.Part):
                self._staging = True
                await self._fenced_off(work.deliverer.part(item), work)
            else:
                self._staging = False
                await self._batch(work, item)

    async def _batch(self, work: _Work, batch: channel_pb2.Batch) -> None:
        arrivals = work.course.accept(batch)
        groups = _prefixes(arrivals)
        for position, group in enumerate(groups, start=1):
            last = position == len(groups)
            after = rules.record_after(work.record, group, work.parameters.sequence_wrap, luwid=batch.luwid if last else "")
            pending = _Pending(group, work.record, after, batch.number if last else 0)
            work.record = after
            async with work.building:
                unit = await self._unit(work, pending)
                pending.task = asyncio.get_running_loop().create_task(work.structure.commit(unit, affinity=self._affinity))
                self._pending.append(pending)
                self._to_confirm.set()

    async def _unit(self, work: _Work, pending: _Pending) -> Unit:
        """The messages and the record that covers them, in one unit."""
        unit = Unit("batch", compares=self._ours())
        await self._fenced_off(work.deliverer.fill(unit, pending.arrivals), work)
        value = pending.after.SerializeToString(deterministic=True)
        before = pending.before

        def apply(present: bytes | None) -> bytes:
            record = None if present is None else records_pb2.Progress.FromString(present)
            if not rules.is_base(record, before):
                raise Refusal(Reason.CHANGED_MEANWHILE, "the record is not the one that this batch follows")
            return value

        unit.changes.append(Change(work.progress, apply))
        return unit

    async def _fenced_off(self, work_to_do: Awaitable[None], work: _Work) -> None:
        """Staging that fails its compare: either the queue changed, or a newer bind has fenced this session off."""
        try:
            await work_to_do
        except CompareFailed as e:
            await self._check_fence(work)
            work.deliverer.forget()
            raise Refusal(Reason.OBJECT_CHANGED, f"a queue changed while a large message was staged: {e}") from e

    async def _check_fence(self, work: _Work) -> None:
        fence = await work.structure.cell(keys.receiver_fence(self.stream))
        if fence.mod_revision != self._fence_revision:
            seen = records_pb2.ReceiverFence.FromString(fence.value or b"")
            raise BindRefused(Reason.EPOCH_TOO_LOW, f"a newer bind came in at {seen.member}", seen.epoch, seen.instance)

    # Confirming

    async def _confirm(self, work: _Work) -> None:
        while True:
            while not self._pending:
                self._to_confirm.clear()
                await self._to_confirm.wait()
            head = self._pending[0]
            assert head.task is not None
            await asyncio.wait([head.task])
            if head.task.exception() is not None:
                async with work.building:
                    await self._redo(work)
            done: list[_Pending] = []
            while self._pending and (task := self._pending[0].task) is not None and task.done() and task.exception() is None:
                done.append(self._pending.popleft())
            await self._committed(work, done)

    async def _committed(self, work: _Work, done: Sequence[_Pending]) -> None:
        counters = self.counters
        number = 0
        for pending in done:
            counters.messages += pending.after.messages - pending.before.messages
            counters.bytes += pending.after.bytes - pending.before.bytes
            counters.sequence = pending.after.sequence
            work.deliverer.published(pending.arrivals)
            if pending.confirm:
                number = pending.confirm
                counters.batches += 1
                counters.luwid = pending.after.luwid
                self._in_hand -= 1
        if not number:
            return
        used = work.deliverer.dead_letters > counters.dead_letters
        counters.dead_letters = work.deliverer.dead_letters
        counters.last_message_at_ms = self._services.world.wall_ms()
        confirm = channel_pb2.Confirm(number=number, luwid=counters.luwid, sequence=counters.sequence, dead_letter_used=used)
        await self._session.send(channel_pb2.FRAME_CONFIRM, confirm)
        if not self._in_hand:
            self._idle.set()
        self._tell()

    async def _redo(self, work: _Work) -> None:
        """A unit failed, and with it all behind it: they are built anew, one after the other, or the session ends."""
        for pending in self._pending:
            assert pending.task is not None
            await asyncio.wait([pending.task])
        for pending in self._pending:
            assert pending.task is not None
            if pending.task.exception() is not None:
                committed = await self._again(work, pending, pending.task.exception())
                pending.task = _done(committed)

    async def _again(self, work: _Work, pending: _Pending, error: BaseException | None) -> Committed:
        retries = self._services.channel(self.channel)
        left = retries.message_retry_count if retries is not None else 0
        for _ in range(REDO_MAX + left):
            match error:
                case CompareFailed():
                    await self._check_fence(work)
                    work.deliverer.forget()
                    await work.structure.refresh(work.progress)
                case Refusal(reason=Reason.CHANGED_MEANWHILE):
                    await work.structure.refresh(work.progress)
                case Refusal(reason=Reason.SYNCPOINT_LIMIT_REACHED):
                    return await self._halves(work, pending)
                case Refusal(reason=Reason.STORAGE_NOT_AVAILABLE) if left > 0 and retries is not None:
                    left -= 1
                    self._paused(True)
                    await asyncio.sleep(retries.message_retry_ms / 1000)
                case None:
                    pass
                case _:
                    raise error
            try:
                committed = await work.structure.commit(await self._unit(work, pending), affinity=self._affinity)
                self._paused(False)
                return committed
            except (CompareFailed, Refusal) as e:
                error = e
        assert error is not None
        raise error

    async def _halves(self, work: _Work, pending: _Pending) -> Committed:
        """More than one transaction holds: in two prefixes."""
        first, second = _halve(pending.arrivals)
        middle = rules.record_after(pending.before, first, work.parameters.sequence_wrap)
        await self._again(work, _Pending(first, pending.before, middle), None)
        return await self._again(work, _Pending(second, middle, pending.after), None)

    async def _report(self, structure: Structure) -> None:
        """Tells the partner that we are still at it, as long as the store answers."""
        beats = 0
        while True:
            await asyncio.sleep(PROGRESS_S)
            if (self._in_hand or self._staging) and structure.reachable:
                beats += 1
                await self._session.send(
                    channel_pb2.FRAME_PROGRESS, channel_pb2.Beat(number=beats, note="paused" if self.counters.paused else "")
                )


@dataclass
class _Work:
    """What the tasks of one bound session share."""

    structure: Structure
    progress: Cell
    record: records_pb2.Progress
    """Behind everything handed to the store."""
    parameters: channel_pb2.Parameters
    course: Course
    deliverer: Deliverer
    building: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a unit is built and handed in: a redo must not be overtaken."""


def _write(cell: Cell, record: records_pb2.ReceiverFence | records_pb2.Progress) -> Change:
    value = record.SerializeToString(deterministic=True)
    return Change(cell, lambda _: value)


def _done(committed: Committed) -> asyncio.Task[Committed]:
    async def answer() -> Committed:
        return committed

    return asyncio.get_running_loop().create_task(answer())


def _prefixes(arrivals: list[Arrival]) -> list[list[Arrival]]:
    """Successive parts of a batch, each for one transaction; at least one, be it empty."""
    groups: list[list[Arrival]] = [[]]
    size = 0
    for arrival in arrivals:
        more = len(arrival.wire.bodies) + len(arrival.wire.header)
        if groups[-1] and (size + more > UNIT_BYTES or len(groups[-1]) >= UNIT_SEGMENTS):
            groups.append([])
            size = 0
        groups[-1].append(arrival)
        size += more
    return groups


def _halve(arrivals: list[Arrival]) -> tuple[list[Arrival], list[Arrival]]:
    """Two prefixes of about half the messages; a single segment is cut. Raises `Refusal` when there is nothing to cut."""
    if len(arrivals) > 1:
        middle = len(arrivals) // 2
        return arrivals[:middle], arrivals[middle:]
    arrival = arrivals[0]
    count = len(arrival.header.entries)
    if count < 2:
        raise Refusal(Reason.SYNCPOINT_LIMIT_REACHED, "one message needs more than a transaction holds")
    indexes = list(arrival.wire.indexes) or [arrival.wire.first_index + i for i in range(count)]
    half = count // 2
    return [_cut(arrival, indexes[:half], range(half), indexes[half - 1])], [
        _cut(arrival, indexes[half:], range(half, count), arrival.wire.last_index)
    ]


def _cut(arrival: Arrival, indexes: list[int], keep: Sequence[int], last: int) -> Arrival:
    header, bodies = segments.cut(arrival.header, arrival.wire.bodies, keep)
    wire = channel_pb2.WireSegment(
        priority=arrival.wire.priority,
        create_revision=arrival.wire.create_revision,
        suffix=arrival.wire.suffix,
        first_index=indexes[0],
        bodies=bodies,
        indexes=indexes,
        last_index=last,
    )
    return Arrival(wire, header)
