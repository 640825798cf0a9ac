"""One connection of an application: handshake, heartbeats, requests, units of work. Invariants: see `qsg.manager.clients`."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Coroutine, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import structlog
from google.protobuf.message import DecodeError

from qsg.bell import Once
from qsg.endings import ended, to_the_end
from qsg.manager import calls
from qsg.manager.client_backout import back_out, give_back
from qsg.manager.client_port import ID_BYTES, MESSAGES_MAX, Got, Work
from qsg.manager.client_room import Room, Share
from qsg.manager.producers import ProducerNumber
from qsg.pb import client_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules.announce import LEAVING, announcement, grace_s
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.requests import arguments, changes, only_waits, order
from qsg.rules.unit import CompareFailed, Fenced, OutcomeUnknown
from qsg.store.contract import StoreError
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Stream
from qsg.transport.hearing import Hearing

if TYPE_CHECKING:
    from qsg.manager.clients import ClientService

log = structlog.get_logger()


class ProtocolViolation(Exception):
    """Bytes or frames that the protocol does not have; the connection ends."""


class Connection:
    """One stream of one application."""

    def __init__(self, service: ClientService, stream: Stream, name: str) -> None:
        self._service = service
        self._backend = service.backend
        self._limits = service.limits
        self._stream = stream
        self.name = name
        self.application = ""
        self._producer = ""
        self._heartbeat_s = 0.5
        self._send_lock = asyncio.Lock()
        self._sent = 0
        self._room = Room(self._limits)
        self._cancels: dict[int, Once] = {}
        self._ids: set[int] = set()
        self._units: dict[int, Work] = {}
        self._backouts: list[asyncio.Task[None]] = []
        """Of units that were open when the connection ended. Nobody cancels them."""
        self._epochs: dict[tuple[str, str], int] = {}
        self._chains: dict[Hashable, deque[tuple[pb.ClientRequest, Share | None]]] = {}
        """A get that waits takes no share of the room."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._commands: set[calls.Call] = set()
        self._greeted = False
        self._closing = False
        self._ending = False

    # ---- life

    async def run(self) -> None:
        try:
            connected = await self._hello()
        except Closed as closed:
            log.info("a connection without CONNECT has ended", connection=self.name, peer=self._stream.peer, detail=str(closed))
            return
        if not connected:
            await self._stream.close()
            return
        self._greeted = True
        if self._service.leaving:
            self.tell_leaving()
        beats = asyncio.create_task(self._beat(), name=f"{self.name} beats")
        try:
            await self._read()
        except Closed as closed:
            log.debug("client gone", connection=self.name, application=self.application, detail=str(closed))
        except TimeoutError:
            log.info("client silent", connection=self.name, application=self.application)
        finally:
            await self._end(beats)

    async def _hello(self) -> bool:
        """Reads CONNECT and answers it; False when it was refused."""
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                frame = await self._stream.receive()
            if not frame or frame[0] != pb.CLIENT_CONNECT:
                raise ProtocolViolation("the first frame is not CONNECT")
            connect = pb.Connect.FromString(frame[1:])
        except TimeoutError:
            await self._connected(Reason.PROTOCOL_ERROR, "no CONNECT in time")
            return False
        except (ProtocolViolation, DecodeError) as problem:
            await self._connected(Reason.PROTOCOL_ERROR, str(problem))
            return False
        if self._service.allowed and self._stream.identity not in self._service.allowed:
            await self._connected(Reason.NOT_AUTHORIZED, f"certificate name {self._stream.identity!r} is not allowed here")
            return False
        if connect.queue_manager and connect.queue_manager not in self._service.names:
            asked = f"this is {self._service.member} of {self._service.name}, not {connect.queue_manager}"
            await self._connected(Reason.Q_MGR_NAME_ERROR, asked)
            return False
        if self._service.leaving or self._service.draining:
            await self._connected(Reason.Q_MGR_QUIESCING, f"{self._service.member} is draining")
            return False
        self.application = connect.application
        self._producer = connect.producer
        if connect.heartbeat_ms:
            self._heartbeat_s = min(max(connect.heartbeat_ms / 1000, 0.05), 5.0)
        local = connect.queue_manager == self._service.member
        await self._connected(Reason.NONE, "", self._service.member if local else self._service.name)
        return True

    async def _connected(self, reason: Reason, detail: str, name: str = "") -> None:
        if reason:
            log.warning("connection refused", connection=self.name, peer=self._stream.peer, reason=reason.name, detail=detail)
        answer = pb.Connected(queue_manager=name or self._service.name, member=self._service.member, reason=int(reason), detail=detail)
        await self._send(pb.CLIENT_CONNECTED, answer.SerializeToString())

    async def _end(self, beats: asyncio.Task[None]) -> None:
        """What only waits is cancelled, what else is begun runs to its end (unless cancelled). Units of work are given back meanwhile."""
        self._ending = True
        for call in self._commands:
            call.wanted = False
        for cancel in self._cancels.values():
            cancel.set()
        self._give_back()
        try:
            await ended(beats)
            await self._stream.close()
            if self._tasks and not self._service.closing:
                await asyncio.wait(self._tasks)
        finally:
            await to_the_end(self._clear())

    async def _clear(self) -> None:
        await ended(*self._tasks)
        await self._stream.close()
        self._give_back()
        await asyncio.gather(*self._backouts)

    def _give_back(self) -> None:
        """Backs out the units of work that no request is under way in. What takes long elsewhere holds up no claims."""
        for number in [number for number in self._units if ("unit", number) not in self._chains]:
            self._backouts.append(asyncio.create_task(give_back(self._units.pop(number), self._service, self.name)))

    def tell_leaving(self) -> None:
        """The queue manager is to end: the application does well to connect to another one now."""
        if self._greeted:
            self._task(self._send(pb.CLIENT_BEAT, LEAVING))

    def quiesce(self) -> None:
        """The queue manager drains: no new work, what only waits ends; the stream is closed once nothing is left."""
        for cancel in self._cancels.values():
            cancel.set()
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self._service.draining and not (self._ending or self._closing or self._tasks or self._units):
            self._closing = True
            self._task(self._stream.close())

    # ---- frames

    async def _send(self, kind: int, payload: bytes) -> None:
        async with self._send_lock:
            self._sent += 1
            if large := announcement(len(payload)):
                await self._stream.send(large)
            await self._stream.send(encode(kind, payload))

    async def _beat(self) -> None:
        """Something is sent at least once per heartbeat, so that the client notices a queue manager that is frozen or cut off."""
        try:
            while True:
                before = self._sent
                await asyncio.sleep(self._heartbeat_s)
                if self._sent == before:
                    await self._send(pb.CLIENT_BEAT, b"")
        except Closed:
            return

    async def _read(self) -> None:
        hearing = Hearing(self._stream, self._limits.silence_s)
        while True:
            frame = await hearing.receive()
            hearing.silence_s = self._limits.silence_s + grace_s(frame)
            try:
                await self._accept(frame)
            except (ProtocolViolation, DecodeError) as problem:
                log.warning("protocol error", connection=self.name, peer=self._stream.peer, problem=str(problem))
                await self._send(
                    pb.CLIENT_RESPONSE, pb.ClientResponse(reason=int(Reason.PROTOCOL_ERROR), detail=str(problem)).SerializeToString()
                )
                return

    async def _accept(self, frame: bytes) -> None:
        if not frame:
            raise ProtocolViolation("empty frame")
        if frame[0] == pb.CLIENT_BEAT:
            return
        if frame[0] != pb.CLIENT_REQUEST:
            raise ProtocolViolation(f"frame type {frame[0]} is not for a queue manager")
        request = pb.ClientRequest.FromString(frame[1:])
        kind = request.WhichOneof("kind")
        if kind is None or not request.id:
            raise ProtocolViolation("a request without id or kind")
        if kind == "cancel":
            if cancel := self._cancels.get(request.cancel.request):
                cancel.set()
            return
        if request.id in self._ids:
            raise ProtocolViolation(f"request id {request.id} is in use")
        key, waits = order(request), kind == "get" and request.get.wait_ms > 0
        share = None if waits else await self._room.enter(len(frame), held=self._held_up(key))
        self._ids.add(request.id)
        if only_waits(request):
            self._cancels[request.id] = Once()
        self._start(key, request, share)

    def _held_up(self, key: Hashable) -> bool:
        """Whether a request with this key stands behind a get that waits, or behind who did as it came."""
        if (chain := self._chains.get(key)) is None:
            return False
        _, before = chain[-1]
        return before is None or before.held

    # ---- requests

    def _start(self, key: Hashable, request: pb.ClientRequest, share: Share | None) -> None:
        if key is None:
            self._task(self._serve(request, share))
            return
        chain = self._chains.get(key)
        if chain is not None:
            chain.append((request, share))
            return
        self._chains[key] = deque([(request, share)])
        self._task(self._work(key))

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None and not isinstance(problem, Closed):
            log.error("client request failed", connection=self.name, problem=repr(problem))
        self._close_if_drained()

    async def _work(self, key: Hashable) -> None:
        chain = self._chains[key]
        try:
            while chain and not self._ending:
                await self._serve(*chain[0])
                chain.popleft()
        finally:
            del self._chains[key]
            if self._ending:
                self._give_back()

    async def _serve(self, request: pb.ClientRequest, share: Share | None) -> None:
        response = pb.ClientResponse(id=request.id)
        kind = request.WhichOneof("kind") or ""
        try:
            await self._perform(kind, request, response)
        except Exception as problem:
            self._forget_unit(request.get.unit if kind == "get" else request.put.unit)
            response = self._refusal(request, problem)
        try:
            await self._answer(request, response)
        except Closed:
            log.debug("answer lost", connection=self.name, kind=kind, id=request.id)
        finally:
            self._ids.discard(request.id)
            self._cancels.pop(request.id, None)
            if share is not None:
                self._room.leave(share)

    async def _answer(self, request: pb.ClientRequest, response: pb.ClientResponse) -> None:
        """Who asked waits for an answer as long as the connection lives."""
        try:
            await self._send(pb.CLIENT_RESPONSE, response.SerializeToString())
        except Closed:
            raise
        except Exception as problem:  # nothing was sent: it is more than a frame carries
            await self._send(pb.CLIENT_RESPONSE, self._refusal(request, problem).SerializeToString())

    def _refusal(self, request: pb.ClientRequest, problem: Exception) -> pb.ClientResponse:
        reason, detail = self._reason(request, problem)
        # A name from a command's JSON may have what no text can carry (half a surrogate pair).
        return pb.ClientResponse(id=request.id, reason=int(reason), detail=detail.encode(errors="backslashreplace").decode())

    def _forget_unit(self, number: int) -> None:
        """A call that did nothing leaves no unit of work that has nothing in it: the application need not end it."""
        work = self._units.get(number)
        if work is not None and work.empty:
            del self._units[number]

    def _reason(self, request: pb.ClientRequest, problem: Exception) -> tuple[Reason, str]:
        """What the client is told. Only what provably changed nothing may be told as a refusal."""
        match problem:
            case Refusal():
                return problem.reason, problem.detail
            case Fenced():
                return Reason.CONNECTION_BROKEN, "this queue manager was replaced; nothing was changed"
            case OutcomeUnknown():
                return Reason.CALL_INTERRUPTED, str(problem) or "the outcome is unknown"
            case CompareFailed():
                return Reason.CHANGED_MEANWHILE, str(problem)
        log.error("request failed", connection=self.name, kind=request.WhichOneof("kind"), exc_info=problem)
        if changes(request):
            return Reason.CALL_INTERRUPTED, f"the outcome is unknown: {problem!r}"
        if isinstance(problem, StoreError):
            return Reason.STRUCTURE_NOT_AVAILABLE, str(problem)
        return Reason.UNEXPECTED_ERROR, repr(problem)

    async def _perform(self, kind: str, request: pb.ClientRequest, response: pb.ClientResponse) -> None:
        if self._service.draining and not self._ends_something(kind, request):
            raise Refusal(Reason.Q_MGR_QUIESCING, f"{self._service.member} is draining")
        match kind:
            case "put":
                await self._put(request.put, response)
            case "get":
                await self._get(request, response)
            case "end_unit":
                await self._end_unit(request.end_unit)
            case "browse":
                messages, response.cursor = await self._backend.browse(request.browse)
                _tell(response, messages)
            case "open_producer":
                await self._open_producer(request.open_producer, response)
            case "inquire":
                response.result = json.dumps(await self._backend.inquire(request.inquire.object, request.inquire.name))
            case "command":
                self._commands.add(call := calls.begin(wanted=not self._ending))
                try:
                    response.result = json.dumps(await self._command(request))
                finally:
                    self._commands.discard(call)

    async def _command(self, request: pb.ClientRequest) -> object:
        work = self._backend.command(request.command.name, arguments(request.command.arguments))
        cancel = self._cancels.get(request.id)
        if cancel is None:
            return await work
        polling = asyncio.ensure_future(work)
        cancel.listen(polling.cancel)
        try:
            await asyncio.wait([polling])
            if polling.cancelled():
                raise Refusal(Reason.Q_MGR_QUIESCING if self._service.draining else Reason.CALL_INTERRUPTED, "it was given up")
            return polling.result()
        finally:
            await ended(polling)

    def _ends_something(self, kind: str, request: pb.ClientRequest) -> bool:
        """Requests that belong to an open unit of work go on while the queue manager drains."""
        match kind:
            case "end_unit":
                return True
            case "open_producer":
                return bool(self._units)
            case "put":
                return request.put.unit in self._units
            case "get":
                return request.get.unit in self._units
        return False

    def _unit(self, number: int) -> Work | None:
        """The unit of work `number`, begun when it is first named; None for 0."""
        if not number:
            return None
        work = self._units.get(number)
        if work is None:
            if len(self._units) >= self._limits.units:
                raise Refusal(Reason.HANDLE_NOT_AVAILABLE, f"more than {self._limits.units} units of work")
            work = self._units[number] = self._backend.begin()
        return work

    async def _put(self, put: pb.Put, response: pb.ClientResponse) -> None:
        if not 1 <= len(put.messages) <= MESSAGES_MAX:
            raise Refusal(Reason.OPTIONS_ERROR, f"a put carries 1 to {MESSAGES_MAX} messages")
        if put.unit and put.producer_number:
            raise Refusal(Reason.OPTIONS_ERROR, "in a unit of work the commit carries the producer number")
        now_ms = self._service.world.wall_ms()
        for message in put.messages:
            self._describe(message, now_ms, put.expires_in_ms)
        producer = self._numbered(self._producer, put.structure, put.producer_number, len(put.messages))
        affinity = f"producer {self._producer}" if producer else self.name
        response.message_ids.extend(await self._backend.put(put, work=self._unit(put.unit), affinity=affinity, producer=producer))

    def _describe(self, message: records.Message, now_ms: int, expires_in_ms: int) -> None:
        """Checks the descriptor and sets what an application may not set."""
        for value in (message.message_id, message.correlation_id):
            if value and len(value) != ID_BYTES:
                raise Refusal(Reason.MD_ERROR, f"message and correlation ids have {ID_BYTES} bytes")
        if message.priority > 9:
            raise Refusal(Reason.PRIORITY_ERROR, f"priority {message.priority} is not 0 to 9")
        message.put_at_ms = now_ms
        message.put_application = self.application
        message.hops = 0
        message.origin = ""
        message.ClearField("dead_letter")
        if expires_in_ms:
            message.expires_at_ms = now_ms + expires_in_ms

    def _numbered(self, producer: str, structure: str, first: int, count: int) -> ProducerNumber | None:
        if not first:
            return None
        epoch = self._epochs.get((producer, structure))
        if epoch is None:
            raise Refusal(Reason.OPTIONS_ERROR, f"producer {producer!r} was not opened in structure {structure!r} by this connection")
        return ProducerNumber(producer, structure, epoch, first, count)

    async def _get(self, request: pb.ClientRequest, response: pb.ClientResponse) -> None:
        get, cancel = request.get, self._cancels[request.id]
        if not 1 <= get.messages_max <= MESSAGES_MAX:
            raise Refusal(Reason.OPTIONS_ERROR, f"a get asks for 1 to {MESSAGES_MAX} messages")
        for value in (get.message_id, get.correlation_id):
            if value and len(value) != ID_BYTES:
                raise Refusal(Reason.MD_ERROR, f"message and correlation ids have {ID_BYTES} bytes")
        if len(self._cancels) > self._limits.waiting_gets:
            raise Refusal(Reason.HANDLE_NOT_AVAILABLE, f"more than {self._limits.waiting_gets} gets wait")
        try:
            _tell(response, await self._backend.get(get, work=self._unit(get.unit), cancel=cancel))
        except Refusal as refusal:
            if refusal.reason == Reason.NO_MSG_AVAILABLE and self._service.draining:
                raise Refusal(Reason.Q_MGR_QUIESCING, f"{self._service.member} is draining") from refusal
            raise

    async def _open_producer(self, opening: pb.OpenProducer, response: pb.ClientResponse) -> None:
        if not opening.producer:
            opening.producer = self._producer
        if not opening.producer:
            raise Refusal(Reason.OPTIONS_ERROR, "a producer needs a name")
        opened = await self._backend.open_producer(opening, lambda: not self._ending)
        self._epochs[opening.producer, opened.structure] = opened.epoch
        response.producer_epoch, response.producer_last, response.structure = opened.epoch, opened.last, opened.structure

    async def _end_unit(self, end: pb.EndUnit) -> None:
        work = self._units.get(end.unit)
        if work is None:
            if end.commit:
                raise Refusal(Reason.BACKED_OUT, "there is no such unit of work on this connection")
            return
        if end.commit:
            try:
                producer = self._numbered(end.producer or self._producer, end.structure, end.producer_number, 1)
                await work.commit(producer)
            except Exception:
                # Also when its outcome is unknown: what was committed is no longer claimed, and is left alone.
                await give_back(work, self._service, self.name)
                self._units.pop(end.unit, None)
                raise
        else:
            await back_out(work, self._service, self.name)
        self._units.pop(end.unit, None)


def _tell(response: pb.ClientResponse, messages: Sequence[Got]) -> None:
    for message in messages:
        told = response.messages.add()
        told.message.ParseFromString(message.raw)
        told.backouts = message.backouts
