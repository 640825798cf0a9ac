"""The receiving side of channels: inbound sessions bound, their batches committed with the record of their stream, and confirmed.

Owns one `Receiver` per inbound session (patent: inbound shared channels, adoption by another member). Invariants: a batch's messages and
the stream's record commit in one transaction that compares the fence of this bind, so an old instance commits nothing; a batch is
confirmed only when it is committed; batches that were accepted commit in order or not at all.
Does not guarantee that a partner hears a confirmation; it finds the record at its next bind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from qsg.failpoint import task_failpoint
from qsg.manager.inflow import Bond, Inflow, ReceiverCounters
from qsg.manager.link import InboundSession, SessionFailed
from qsg.manager.placing import Placer
from qsg.manager.structure import Structure
from qsg.pb import channel_pb2, records_pb2
from qsg.rules import keys, negotiate, steps
from qsg.rules import receiver as rules
from qsg.rules.definitions import PRIVATE, Channel
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.receiver import BindRefused, Holder
from qsg.rules.records import read_record
from qsg.rules.unit import Cell, CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.rules.world import World
from qsg.store.contract import StoreError
from qsg.transport.codec import ProtocolError, parse

__all__ = ["InboundObserver", "Receiver", "ReceiverCounters", "ReceiverServices", "Receivers"]

log = structlog.get_logger()

ADMIN = "admin"
BIND_ATTEMPTS = 8
BIND_S = 3.0
"""A store that takes longer is out of reach: the partner goes elsewhere. A bind that is applied later only raises the fence."""
SESSION_ID_BYTES = 8
DRAIN_S = 10.0
"""A batch that takes longer, in message retry, is not confirmed: the partner sends it to whoever it binds next."""
STOPPING = "the member is stopping"


class InboundObserver(Protocol):
    """Told of inbound sessions, for the status table. Must not wait."""

    def inbound_started(self, channel: str, partner: str, stream: bytes, address: str, portal: str) -> None: ...

    def inbound_progress(self, channel: str, partner: str, stream: bytes, counters: ReceiverCounters) -> None: ...

    def inbound_ended(self, channel: str, partner: str, stream: bytes, reason: Reason, detail: str) -> None: ...


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


class Receivers:
    """All inbound sessions of a member: `accept` is the link's `on_accept`."""

    def __init__(self, services: ReceiverServices) -> None:
        self.services = services
        self.draining = False
        self._running: dict[Receiver, None] = {}
        """In the order in which they came: that of a set differs from process to process."""
        self._active: dict[bytes, Receiver] = {}
        """By stream: those that are bound, or about to be."""

    @property
    def active(self) -> list[Receiver]:
        return list(self._active.values())

    async def accept(self, session: InboundSession) -> None:
        """Runs one inbound session to its end."""
        receiver = Receiver(session, self.services, self)
        self._running[receiver] = None
        try:
            await receiver.run()
        finally:
            del self._running[receiver]

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
        """Refuses binds; sessions end once what they have received is confirmed, or in `DRAIN_S`, and their partners go elsewhere."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await asyncio.gather(*(receiver.finish() for receiver in self._running))


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
        self._inflow: Inflow | None = None
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._displaced = False

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
        """Ends once everything received by now is confirmed, or when cancelled; what is not bound yet is refused."""
        if self._inflow is None:
            await self._refuse(Reason.DRAINING, STOPPING)
            await self._ended.wait()
            return
        waits = [asyncio.ensure_future(self._inflow.finish()), asyncio.ensure_future(self._ended.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._session.close(Reason.DRAINING, STOPPING)
            for wait in waits:
                wait.cancel()
        await self._ended.wait()

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
        bound = self._bound(read_record(records_pb2.Progress, progress.value or b"", progress.key), parameters)
        bound.epoch = read_record(records_pb2.ReceiverFence, fence.value or b"", fence.key).epoch
        await self._session.send(channel_pb2.FRAME_BOUND, bound)
        await self._session.close()

    def _bound(self, record: records_pb2.Progress, parameters: channel_pb2.Parameters) -> channel_pb2.Bound:
        return channel_pb2.Bound(receiver=self._our_name(), member=self._services.member, record=record, parameters=parameters)

    async def _bind_and_run(
        self, structure: Structure, definition: Channel, request: channel_pb2.Bind, parameters: channel_pb2.Parameters
    ) -> None:
        if self._registry.draining:
            raise Refusal(Reason.DRAINING, STOPPING)
        try:
            async with asyncio.timeout(BIND_S):
                revision, progress = await self._bind(structure, request, parameters.sequence_wrap)
        except TimeoutError:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, f"structure {structure.name} does not answer") from None
        record = read_record(records_pb2.Progress, progress.value or b"", progress.key)
        self.counters.epoch, self.counters.instance, self.counters.parameters = request.epoch, request.instance, parameters
        self.counters.sequence, self.counters.luwid = record.sequence, record.luwid
        bound = self._bound(record, parameters)
        bound.epoch = request.epoch
        try:
            await self._registry.adopt(request.stream, self)
            await task_failpoint("receiver.after_bind_before_answer")
            await self._session.send(channel_pb2.FRAME_BOUND, bound)
            if request.fence_only:
                await self._session.close()
                return
            bond = Bond(definition, parameters, structure, keys.receiver_fence(request.stream), revision, request.stream.hex())
            self._inflow = Inflow(self._session, bond, progress, self._services.placer, self.counters, self._tell)
            await self._observed(self._inflow)
        finally:
            self._registry.leave(request.stream, self)

    async def _bind(self, structure: Structure, request: channel_pb2.Bind, wrap: int) -> tuple[int, Cell]:
        """Raises the fence in one transaction; answers its revision, and the progress behind it (M1: nothing old comes later)."""
        services = self._services
        fence, progress = Cell(keys.receiver_fence(request.stream)), Cell(keys.receiver_progress(request.stream))
        session = services.world.id(SESSION_ID_BYTES)
        holder = Holder(services.member, structure.incarnation, self._session.initiator, session, services.world.wall_ms())
        for _ in range(BIND_ATTEMPTS):
            await structure.refresh(fence, progress)
            seen = None if fence.value is None else read_record(records_pb2.ReceiverFence, fence.value, fence.key)
            known = None if progress.value is None else read_record(records_pb2.Progress, progress.value, progress.key)
            accepted = rules.bind(request, seen, known, holder, wrap)
            # Compared with what was read also where another bind of this member goes before it in one transaction (P14).
            unit = Unit("bind", changes=[steps.swap(fence, steps.record(accepted.fence))])
            if accepted.record_changed:
                unit.changes.append(steps.swap(progress, steps.record(accepted.record)))
            try:
                committed = await structure.commit(unit, affinity=request.stream.hex())
            except CompareFailed:
                continue
            except Refusal as refusal:
                if refusal.reason is not Reason.CHANGED_MEANWHILE:
                    raise
                continue
            if accepted.lost is not None:
                raise accepted.lost
            await structure.refresh(progress)
            self.counters.takeovers = accepted.fence.takeovers
            self.counters.takeover = accepted.fence.takeover if accepted.fence.HasField("takeover") else None
            return committed.revision, progress
        raise Refusal(Reason.CHANGED_MEANWHILE, "other binds of this stream came between, again and again")

    # Batches

    async def _observed(self, inflow: Inflow) -> None:
        """Runs the batches; the status table is told of begin and end."""
        observer, session = self._services.observer, self._session
        reason, detail = Reason.UNEXPECTED_ERROR, ""
        if observer is not None:
            observer.inbound_started(self.channel, self.partner, self.stream, session.address, session.portal)
            self._tell()  # epoch and record are known before the first batch
        try:
            await inflow.run()
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

    def _tell(self) -> None:
        if self._services.observer is not None:
            self._services.observer.inbound_progress(self.channel, self.partner, self.stream, self.counters)
