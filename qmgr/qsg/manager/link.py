"""The queue manager's side of the socket to its channel initiator (patent: queue manager X paired with channel initiator X).

Owns: which initiator is joined, its incarnation (the modification revision of `ci/<member>`), and the sessions that run in it.
Invariant: at most one initiator is joined; when its socket ends, or is silent for 1.5 s, every session ends at once, the old process is
ended if it may still live, and its incarnation is overwritten before another one joins (patent, scenario 3).
Does not guarantee that an old initiator has stopped talking to partners: locks, fences and epochs keep what it does from counting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from google.protobuf.message import Message

from qsg.endings import ended
from qsg.manager.structure import Structure
from qsg.pb import channel_pb2, initiator_pb2, records_pb2
from qsg.rules import keys
from qsg.rules.internal import ADDRESS
from qsg.rules.reasons import Reason, Refusal, reason_of
from qsg.rules.unit import Cell, Change, CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.store.contract import StoreError
from qsg.transport.codec import ProtocolError, decode, encode, parse
from qsg.transport.contract import Stream, TransportError
from qsg.transport.mux import LinkLost, Mux, SessionOver, last_word

log = structlog.get_logger()


class SessionFailed(Exception):
    """A session could not be opened, or has ended. `epoch_seen`, `instance_seen`: what the partner saw, when it refused an old instance."""

    def __init__(self, reason: Reason, detail: str = "", epoch_seen: int = 0, instance_seen: int = 0) -> None:
        super().__init__(f"{reason.name}: {detail}")
        self.reason, self.detail = reason, detail
        self.epoch_seen, self.instance_seen = epoch_seen, instance_seen

    @classmethod
    def of(cls, end: initiator_pb2.End | channel_pb2.Refused) -> SessionFailed:
        return cls(reason_of(end.reason) if end.reason else Reason.PARTNER_CLOSED, end.detail, end.epoch_seen, end.instance_seen)


class Carrier(Protocol):
    """What carries the frames of one session: see `qsg.transport.mux.MuxSession`."""

    over: initiator_pb2.End | None

    async def send(self, frame: bytes) -> None: ...
    async def receive(self) -> bytes: ...
    def send_last(self, frame: bytes) -> None: ...
    def end(self, end: initiator_pb2.End) -> None: ...


class Session:
    """A channel session with a partner, relayed by the initiator (or within the queue manager: internal channels)."""

    def __init__(self, mux: Carrier, initiator: int, address: str = "", bound: channel_pb2.Bound | None = None) -> None:
        self.initiator = initiator
        """Incarnation of the initiator that runs it."""
        self.address = address
        self.bound = bound or channel_pb2.Bound()
        self.ping_bytes = 0
        """Of a ping: so many came back, as they were sent."""
        self._mux = mux

    async def send(self, kind: int, payload: Message | bytes = b"") -> None:
        """Waits while the session has too much under way. Raises `SessionFailed`."""
        try:
            await self._mux.send(encode(kind, payload))
        except SessionOver as e:
            raise SessionFailed.of(e.end) from None

    async def receive(self) -> tuple[int, bytes]:
        """(frame type, payload). A refusal or a close by the partner, and every other end, raises `SessionFailed`."""
        try:
            kind, payload = decode(await self._mux.receive())
            if kind == channel_pb2.FRAME_REFUSED:
                raise SessionFailed.of(parse(channel_pb2.Refused, payload))
            if kind == channel_pb2.FRAME_CLOSE:
                close = parse(channel_pb2.Close, payload)
                raise SessionFailed(reason_of(close.reason) if close.reason else Reason.PARTNER_CLOSED, close.detail)
        except SessionOver as e:
            raise SessionFailed.of(e.end) from None
        except ProtocolError as e:
            raise SessionFailed(Reason.PROTOCOL_ERROR, str(e)) from None
        return kind, payload

    async def close(self, reason: Reason = Reason.NONE, detail: str = "") -> None:
        """An orderly end, told to the partner behind what was sent. Never raises, never waits for the partner."""
        self.abort(channel_pb2.FRAME_CLOSE, channel_pb2.Close(reason=int(reason), detail=detail))

    async def refuse(self, refused: channel_pb2.Refused) -> None:
        """Tells the partner why not, and ends."""
        self.abort(channel_pb2.FRAME_REFUSED, refused)

    def abort(self, kind: int = 0, last: Message | bytes = b"") -> None:
        """Ends the session now, behind a last frame if one is given."""
        if self._mux.over is None and kind:
            self._mux.send_last(encode(kind, last))
        self._mux.end(initiator_pb2.End(orderly=bool(kind)))

    @property
    def over(self) -> bool:
        return self._mux.over is not None


class InboundSession(Session):
    """A session that a partner opened. Its first frame is still to be received."""

    def __init__(self, mux: Carrier, initiator: int, accept: initiator_pb2.Accept) -> None:
        super().__init__(mux, initiator, accept.address)
        self.portal = accept.portal
        self.identity = accept.identity


@dataclass(eq=False)
class _Joined:
    """One initiator process."""

    mux: Mux
    pid: int
    initiator: int = 0
    opening: dict[int, asyncio.Future[initiator_pb2.Opened]] = field(default_factory=dict)
    inbound: set[asyncio.Task[None]] = field(default_factory=set)


class Internal(Protocol):
    """Sessions of internal channels: `qsg.manager.moving`."""

    async def open(self, order: initiator_pb2.Open, initiator: int) -> Session: ...
    def lose(self) -> None: ...


Accepting = Callable[[InboundSession], Awaitable[None]]


class InitiatorLink:
    """`structure` holds `ci/<member>`: the admin structure, outside a group the private one. `serve` handles each socket connection.

    `kill` ends a process by its pid (None: there are no processes, as in a simulation). Callbacks may be set until `serve` is first called;
    they run in the event loop and must not wait.
    """

    def __init__(self, structure: Structure, *, group: str = "", kill: Callable[[int], None] | None = None) -> None:
        self.on_accept: Accepting | None = None
        self.internal: Internal | None = None
        self.on_joined: Callable[[int], None] = lambda initiator: None
        self.on_lost: Callable[[int, str], None] = lambda initiator, cause: None
        self.cell = Cell(keys.initiator(structure.member))
        """`ci/<member>`; its modification revision is the initiator's incarnation."""
        self._structure = structure
        self._group = group
        self._kill = kill
        self._current: _Joined | None = None
        self._next_id = 0
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def joined(self) -> bool:
        return self._current is not None

    @property
    def initiator(self) -> int:
        """Incarnation of the joined initiator, 0 = none."""
        return self._current.initiator if self._current is not None else 0

    async def open(self, order: initiator_pb2.Open) -> Session:
        """Has the initiator open a session; returns after the partner's BOUND (or PONG). Raises `SessionFailed`."""
        current = self._current
        if current is None:
            raise SessionFailed(Reason.NO_INITIATOR, "no channel initiator is joined")
        if self.internal is not None and list(order.addresses) == [ADDRESS]:
            return await self.internal.open(order, current.initiator)
        self._next_id += 1
        session = current.mux.session(self._next_id)
        opened: asyncio.Future[initiator_pb2.Opened] = asyncio.get_running_loop().create_future()
        current.opening[session.id] = opened

        def ended(end: initiator_pb2.End) -> None:
            if not opened.done():
                opened.set_exception(SessionFailed.of(end))

        session.on_over = ended
        current.mux.put(initiator_pb2.LOCAL_OPEN, session.id, order)
        try:
            answer = await opened
        except asyncio.CancelledError:
            session.end(initiator_pb2.End(detail="given up"))
            raise
        finally:
            current.opening.pop(session.id, None)
        made = Session(session, current.initiator, answer.address, answer.bound)
        made.ping_bytes = answer.ping_bytes
        return made

    async def ask(self, order: initiator_pb2.Open) -> tuple[channel_pb2.Bound, str]:
        """Query or fence-only bind: the partner's answer and address. Raises `SessionFailed`."""
        session = await self.open(order)
        await session.close()
        return session.bound, session.address

    async def ping(self, order: initiator_pb2.Open) -> tuple[str, int]:
        """The address that answered, and how many bytes came back. Raises `SessionFailed`."""
        session = await self.open(order)
        await session.close()
        return session.address, session.ping_bytes

    async def prepare(self, order: initiator_pb2.Open) -> None:
        """Has the initiator connect ahead of a session that follows soon. Raises `SessionFailed`."""
        if self.internal is None or list(order.addresses) != [ADDRESS]:
            await (await self.open(order)).close()

    async def serve(self, stream: Stream) -> None:
        """Handles one connection to the socket, until it is lost."""
        joining: asyncio.Future[initiator_pb2.Join] = asyncio.get_running_loop().create_future()
        mux = Mux(stream, lambda kind, number, payload: self._control(current, joining, kind, number, payload))
        current = _Joined(mux, getattr(stream, "pid", 0))
        mux.on_lost = lambda error: self._link_lost(current, error)
        greeter = asyncio.get_running_loop().create_task(self._greet(current, joining), name="greet initiator")
        try:
            await mux.run()
        except LinkLost as e:
            if e.bad:
                log.warning("bad bytes on the initiator's socket", pid=current.pid, detail=str(e))
                await _dismiss(stream, Reason.PROTOCOL_ERROR, str(e))
            elif not joining.done():
                log.warning("a connection that never joined has ended", pid=current.pid, detail=str(e))
        finally:
            await ended(greeter)

    async def settled(self) -> None:
        """Returns once no incarnation of a lost initiator is left in the structure."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Ends every session; a later connection is not served."""
        self._closed = True
        current = self._current
        if current is not None:
            self._lose("the queue manager ends", end_process=False)
            await current.mux.stream.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Joining

    async def _greet(self, current: _Joined, joining: asyncio.Future[initiator_pb2.Join]) -> None:
        join = await joining
        if self._closed or join.member != self._structure.member:
            detail = f"this is the socket of {self._structure.member}, not of {join.member[:64]!r}"
            log.warning("an initiator of another member was refused", pid=current.pid, detail=detail)
            await _dismiss(current.mux.stream, Reason.NOT_AUTHORIZED, detail)
            return
        current.pid = current.pid or join.pid
        record = records_pb2.InitiatorRecord(member=join.member, incarnation=self._structure.incarnation, process=join.process)
        self._replace(current)
        while True:
            await self.settled()
            try:
                initiator = await self._write(record)
            except asyncio.CancelledError:
                self._replace(current)  # it may be written all the same
                raise
            if not initiator or current.mux.closed:
                await current.mux.stream.close()
                return
            if self._current is None and not self._tasks:
                break
            self._replace(current)  # it has joined while this was written, over its record
        current.initiator = initiator
        self._current = current
        welcome = initiator_pb2.Welcome(member=join.member, group=self._group, incarnation=self._structure.incarnation, initiator=initiator)
        current.mux.put(initiator_pb2.LOCAL_WELCOME, 0, welcome)
        log.info("initiator joined", initiator=initiator, pid=current.pid)
        self.on_joined(initiator)

    def _replace(self, current: _Joined) -> None:
        if self._current is not None:
            self._lose("another initiator joined", end_process=self._current.pid != current.pid)

    def _link_lost(self, current: _Joined, error: LinkLost) -> None:
        if self._current is current:
            self._lose(str(error), end_process=error.silent)

    def _lose(self, cause: str, *, end_process: bool) -> None:
        lost = self._current
        assert lost is not None
        self._current = None
        log.warning("initiator lost", initiator=lost.initiator, pid=lost.pid, cause=cause)
        lost.mux.abandon()
        if self.internal is not None:
            self.internal.lose()
        for task in lost.inbound:
            task.cancel()
        if end_process and self._kill is not None and lost.pid:
            self._kill(lost.pid)
        task = asyncio.get_running_loop().create_task(self._overwrite(), name="forget initiator")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.on_lost(lost.initiator, cause)

    async def _overwrite(self) -> None:
        await self._write(records_pb2.InitiatorRecord(member=self._structure.member, incarnation=self._structure.incarnation))

    async def _write(self, record: records_pb2.InitiatorRecord) -> int:
        """The new incarnation; 0 when this member is no longer the one that writes it."""
        async with self._writing:
            value = record.SerializeToString()
            for _ in range(3):
                try:
                    if not self.cell.seen:
                        await self._structure.refresh(self.cell)
                    committed = await self._structure.commit(Unit("initiator", changes=[Change(self.cell, lambda _: value)]))
                    return committed.revision
                except CompareFailed:
                    continue  # the cell is as just read
                except (Fenced, OutcomeUnknown, StoreError, Refusal) as e:
                    log.warning("initiator's incarnation cannot be written", error=repr(e))
                    return 0
            return 0

    # Frames

    def _control(self, current: _Joined, joining: asyncio.Future[initiator_pb2.Join], kind: int, number: int, payload: bytes) -> None:
        if kind == initiator_pb2.LOCAL_JOIN:
            if not joining.done():
                joining.set_result(initiator_pb2.Join.FromString(payload))
        elif kind == initiator_pb2.LOCAL_OPENED:
            opened = current.opening.get(number)
            if opened is not None and not opened.done():
                opened.set_result(initiator_pb2.Opened.FromString(payload))
        elif kind == initiator_pb2.LOCAL_ACCEPT:
            if not current.initiator:
                raise LinkLost("a session was offered before joining", bad=True)
            self._accept(current, number, initiator_pb2.Accept.FromString(payload))
        else:
            raise LinkLost(f"unknown frame of type {kind}", bad=True)

    def _accept(self, current: _Joined, number: int, accept: initiator_pb2.Accept) -> None:
        session = InboundSession(current.mux.session(number), current.initiator, accept)
        task = asyncio.get_running_loop().create_task(self._inbound(session), name=f"inbound session from {accept.address}")
        current.inbound.add(task)
        task.add_done_callback(current.inbound.discard)

    async def _inbound(self, session: InboundSession) -> None:
        try:
            if self.on_accept is None:
                await session.refuse(channel_pb2.Refused(reason=int(Reason.Q_MGR_NOT_AVAILABLE), detail="not ready"))
            else:
                await self.on_accept(session)
        except SessionFailed as e:
            log.info("inbound session ended", address=session.address, reason=e.reason.name, detail=e.detail)
        except Exception:
            log.exception("inbound session failed", address=session.address)
            await session.refuse(channel_pb2.Refused(reason=int(Reason.UNEXPECTED_ERROR), detail="internal error"))
        finally:
            session.abort()


async def _dismiss(stream: Stream, reason: Reason, detail: str) -> None:
    """Tells a process that is no initiator of ours why, and closes."""
    try:
        await stream.send(last_word(reason, detail))
    except TransportError as e:
        log.debug("a dismissal was not taken", detail=str(e))
    await stream.close()
