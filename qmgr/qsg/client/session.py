"""One connection to one member: handshake, requests and their answers, heartbeats.

Invariant: a session that is lost stays lost, and every request on it ends, with its answer or with `SessionLost`. Requests are sent in the
order in which `call` was entered. Does not reconnect (`qsg.client.link`) and repeats nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from google.protobuf.message import DecodeError

from qsg.client.errors import ProtocolError, error_for
from qsg.endings import ended, to_the_end
from qsg.pb import client_pb2 as pb
from qsg.rules.announce import LEAVING, announcement, grace_s
from qsg.rules.reasons import Reason
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Stream, Transport, TransportError

SERVICE = "qsg.v1.Client"
HEARTBEAT_S = 0.35
MISSES_MAX = 4
"""Heartbeats without a frame after which the member counts as gone: noticed within 1.4 s."""
BEAT_EVERY = 8
"""Of so many heartbeats that are due from the member we send one: an application counts as gone only after 15 s."""


class SessionLost(Exception):
    """The session ended. `sent` False: the request provably never left."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


class Session:
    def __init__(self, stream: Stream, address: str, connected: pb.Connected) -> None:
        self.address = address
        self.queue_manager = connected.queue_manager
        self.member = connected.member
        self.left = asyncio.Event()
        """Set once no new call should go here: the session is lost, or the member takes no new work."""
        self.leaving = asyncio.Event()
        """Set once the member says that it is to end: it serves on for a moment, in which the next session can be made."""
        self.why = ""
        self.units = 0
        """Units of work that are open on this session."""
        self._lost = False
        self._idle = asyncio.Event()
        self._stream = stream
        self._next_id = 0
        self._pending: dict[int, asyncio.Future[pb.ClientResponse]] = {}
        self._send_lock = asyncio.Lock()
        self._frames = 0
        self._grace_s = 0.0
        self._tasks = {asyncio.create_task(self._read(), name=f"qsg client reader {address}")}
        self._misses, self._seen, self._looks = 0, 0, 0
        self._next_look = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._look)

    @classmethod
    async def open(cls, transport: Transport, address: str, connect: pb.Connect, timeout_s: float) -> Session:
        """Connects and introduces us. Raises TransportError, or QsgError when the member refuses."""
        try:
            async with asyncio.timeout(timeout_s):
                stream = await transport.connect(address, SERVICE, timeout_s=timeout_s)
                try:
                    connected = await cls._introduce(stream, connect)
                except BaseException:
                    await to_the_end(stream.close())
                    raise
        except TimeoutError as timeout:
            raise TransportError(f"{address}: no answer within {timeout_s:g} s") from timeout
        return cls(stream, address, connected)

    @staticmethod
    async def _introduce(stream: Stream, connect: pb.Connect) -> pb.Connected:
        await stream.send(encode(pb.CLIENT_CONNECT, connect))
        frame = await stream.receive()
        if not frame or frame[0] != pb.CLIENT_CONNECTED:
            raise ProtocolError("the answer to CONNECT is something else: is this a queue manager's client port?")
        try:
            connected = pb.Connected.FromString(frame[1:])
        except DecodeError as problem:
            raise ProtocolError(f"the answer to CONNECT cannot be read: {problem}") from problem
        if connected.reason:
            raise error_for(connected.reason, connected.detail)
        return connected

    @property
    def lost(self) -> bool:
        return self._lost

    async def call(self, request: pb.ClientRequest) -> pb.ClientResponse:
        """The answer, whatever its reason. Sets `request.id`. Raises SessionLost; on any other exception nothing was sent.

        When the caller is cancelled, a waiting get is cancelled at the member too.
        """
        if self._lost:
            raise SessionLost(self.why, sent=False)
        self._next_id += 1
        request.id = number = self._next_id
        answer: asyncio.Future[pb.ClientResponse] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            await self._send(pb.CLIENT_REQUEST, request.SerializeToString())
            response = await answer
            if not response.reason and not _fits(request, response):
                self.end(f"{self.address}: an answer that does not fit its request")
                raise SessionLost(self.why, sent=True)
            return response
        except asyncio.CancelledError:
            self.give_up(request)
            raise
        finally:
            self._pending.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # fetched: when the send fails, nobody waits for it, and the loop would complain
            self._check_idle()

    def give_up(self, request: pb.ClientRequest) -> None:
        """A get that waits at the member waits there no more; it is answered all the same."""
        if request.HasField("get") and request.get.wait_ms:
            self._post(pb.ClientRequest(id=request.id, cancel=pb.Cancel(request=request.id)))

    def tell(self, request: pb.ClientRequest) -> None:
        """Sends without waiting for an answer, behind what was sent before. Sets `request.id`."""
        self._next_id += 1
        request.id = self._next_id
        self._post(request)

    def _post(self, request: pb.ClientRequest) -> None:
        """Sends without waiting; nothing is lost with it."""
        if not self._lost:
            self._in_background(self._send_quietly(pb.CLIENT_REQUEST, request.SerializeToString()))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, kind: int, payload: bytes) -> None:
        async with self._send_lock:
            if self._lost:
                raise SessionLost(self.why, sent=False)
            try:
                if large := announcement(len(payload)):
                    await self._stream.send(large)
                await self._stream.send(encode(kind, payload))
            except Closed as closed:
                self.end(f"{self.address}: {closed}")
                raise SessionLost(self.why, sent=True) from closed

    async def _send_quietly(self, kind: int, payload: bytes) -> None:
        try:
            await self._send(kind, payload)
        except SessionLost:
            return

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._stream.receive()
                self._frames += 1
                self._grace_s = grace_s(frame)
                if frame and frame[0] == pb.CLIENT_RESPONSE:
                    self._answer(pb.ClientResponse.FromString(frame[1:]))
                elif not frame or frame[0] != pb.CLIENT_BEAT:
                    self.end(f"{self.address}: a frame that is not for a client")
                    return
                elif frame[1:] == LEAVING:
                    self.leaving.set()
        except Closed as closed:
            self.end(f"{self.address}: {closed}")
        except DecodeError as problem:
            self.end(f"{self.address}: an answer that cannot be read: {problem}")

    def _answer(self, response: pb.ClientResponse) -> None:
        if not response.id:
            self.end(f"{self.address}: {response.detail}")
            return
        answer = self._pending.get(response.id)
        if answer is not None and not answer.done():
            answer.set_result(response)

    def _look(self) -> None:
        """Counts heartbeats of the member, and now and then sends one.

        Beats are counted and not timed: when our own event loop stands still, one late beat is one miss.
        """
        self._misses = 0 if self._frames != self._seen else self._misses + 1
        self._seen = self._frames
        if self._misses >= MISSES_MAX + self._grace_s / HEARTBEAT_S:
            self.end(f"{self.address}: silent for {self._misses * HEARTBEAT_S:.1f} s")
            return
        self._looks += 1
        if self._looks % BEAT_EVERY == 0 and not self._send_lock.locked():
            self._in_background(self._send_quietly(pb.CLIENT_BEAT, b""))
        self._next_look = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._look)

    def end(self, why: str) -> None:
        """Gives the session up: whatever is unanswered was perhaps done."""
        if self._lost:
            return
        self.why = why
        self._lost = True
        self._next_look.cancel()
        self.left.set()
        self._idle.set()
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(SessionLost(why, sent=True))

    def retire(self, why: str) -> None:
        """New calls go elsewhere; calls that are out and units of work may still end here."""
        if not self.left.is_set():
            self.why = why
            self.left.set()
            self._check_idle()

    def _check_idle(self) -> None:
        if self.left.is_set() and not self._pending and not self.units:
            self._idle.set()

    def end_unit(self) -> None:
        """A unit of work on this session has ended."""
        self.units -= 1
        self._check_idle()

    async def idle(self) -> None:
        """Returns once a session that was left has nothing to wait for."""
        await self._idle.wait()

    async def close(self) -> None:
        """Ends the stream and our tasks. Never raises."""
        self.end("closed")
        await to_the_end(self._close([task for task in self._tasks if task is not asyncio.current_task()]))

    async def _close(self, tasks: list[asyncio.Task[None]]) -> None:
        await ended(*tasks)
        await self._stream.close()


def _fits(request: pb.ClientRequest, response: pb.ClientResponse) -> bool:
    """A put is answered with an id for each message, a get with at least one message."""
    if request.HasField("put"):
        return len(response.message_ids) == len(request.put.messages)
    return bool(response.messages) if request.HasField("get") else True


def connect_frame(application: str, queue_manager: str, producer: str) -> pb.Connect:
    return pb.Connect(application=application, queue_manager=queue_manager, producer=producer, heartbeat_ms=int(HEARTBEAT_S * 1000))


RETRY_ELSEWHERE = frozenset(
    int(reason) for reason in (Reason.CONNECTION_BROKEN, Reason.Q_MGR_QUIESCING, Reason.Q_MGR_STOPPING, Reason.FENCED, Reason.DRAINING)
)
"""Reasons of a member that did nothing and will do nothing more: the same call goes to another member."""
