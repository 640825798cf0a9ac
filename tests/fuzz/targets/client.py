"""Client frames: at the client service of a queue manager over stores in memory, and at the client library."""

from __future__ import annotations

import asyncio
from typing import Any

import qsg
from fuzz import wire
from fuzz.target import Loop, Target, Violation, mutate_frames
from qsg.manager.administration import Administration
from qsg.manager.backend import QueueManagerBackend
from qsg.manager.clients import SERVICE, ClientService
from qsg.pb import client_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules.reasons import Reason
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Stream
from qsg.transport.memory import MemoryNetwork
from support.members import Group, Member, shared

DEFINED = ("A", "B")
ANSWER_S = 60.0
"""In virtual time."""


def _request(number: int, **kind: Any) -> bytes:
    return encode(pb.CLIENT_REQUEST, pb.ClientRequest(id=number, **kind))


def _seeds() -> list[bytes]:
    hello = encode(pb.CLIENT_CONNECT, pb.Connect(application="a", producer="P", heartbeat_ms=500))
    message = records.Message(payload=b"x", priority=3, properties={"k": "v"}, reply_to_queue="B", correlation_id=bytes(24))
    put = pb.Put(queue="A", messages=[message, message])
    opening = pb.OpenProducer(producer="P", queue="A", lifetime_ms=1000)
    return [
        wire.join([hello, _request(1, put=put), _request(2, get=pb.Get(queue="A", messages_max=1)), encode(pb.CLIENT_BEAT)]),
        wire.join(
            [
                hello,
                _request(1, put=pb.Put(queue="A", messages=[message], unit=1)),
                _request(2, get=pb.Get(queue="A", messages_max=2, unit=1, wait_ms=50)),
                _request(3, end_unit=pb.EndUnit(unit=1, commit=True)),
                _request(4, end_unit=pb.EndUnit(unit=1)),
            ]
        ),
        wire.join(
            [
                hello,
                _request(1, open_producer=opening),
                _request(2, put=pb.Put(queue="A", messages=[message], producer_number=1, structure="app1")),
                _request(3, browse=pb.Browse(queue="A", messages_max=3, headers_only=True)),
                _request(4, get=pb.Get(queue="B", messages_max=1, wait_ms=5000)),
                _request(5, cancel=pb.Cancel(request=4)),
            ]
        ),
        wire.join(
            [
                hello,
                _request(1, inquire=pb.Inquire(object="queue", name="A")),
                _request(2, command=pb.Command(name="define", arguments='{"kind": "queue", "definition": {"name": "N"}}')),
                _request(3, command=pb.Command(name="delete", arguments='{"kind": "queue", "name": "N"}')),
                _request(4, inquire=pb.Inquire(object="channels")),
            ]
        ),
    ]


class _Service:
    def __init__(self) -> None:
        self.loop = Loop()
        self.network = MemoryNetwork()
        self.group = Group()
        self.member: Member
        self.clients: ClientService
        self.loop.run(self._start())

    async def _start(self) -> None:
        self.member = await self.group.member("X")
        administration = Administration(self.member.catalog, self.member.queues)
        backend = QueueManagerBackend(self.member.queues, administration.commands(), administration.inquiries())
        self.clients = ClientService(member="X", group="G", backend=backend, world=self.member.world)
        await self.network.transport("X").listen("X:1416", {SERVICE: self.clients.handler})
        for name in DEFINED:
            await self.member.queues.define(shared(name))

    def check(self, data: bytes) -> None:
        self.loop.hold(self._check(wire.split(data)))

    async def _check(self, frames: list[bytes]) -> None:
        stream = await self.network.transport("app").connect("X:1416", SERVICE)
        reading = asyncio.ensure_future(_read(stream))
        try:
            for frame in frames:
                await stream.send(frame)
        except Closed:
            pass
        await asyncio.sleep(0.2)
        await stream.close()
        async with asyncio.timeout(ANSWER_S):
            responses = await reading
            while self.clients.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for response in responses:
            if response.reason == Reason.UNEXPECTED_ERROR:
                raise Violation(f"{Reason(response.reason).name}: {response.detail!r}")
        await self._as_before()

    async def _as_before(self) -> None:
        """The queues are there, and everything in them can be got: no unit of work of the connection is left."""
        for name in DEFINED:
            queue = self.member.catalog.queue(name)
            if queue is None or queue != shared(name):
                await self.member.queues.define(shared(name))
            depth = (await self.member.queues.depth(name)).messages
            if depth > 5:
                got = await self.member.get(name, 1000)
                if len(got) != depth:
                    raise Violation(f"{len(got)} of {depth} messages can be got")


async def _read(stream: Stream) -> list[pb.ClientResponse]:
    found = []
    try:
        while True:
            frame = await stream.receive()
            if frame[0] == pb.CLIENT_RESPONSE:
                found.append(pb.ClientResponse.FromString(frame[1:]))
    except Closed:
        return found


def service() -> Target:
    made = _Service()
    return Target("client", _seeds(), made.check, mutate_frames(1), made.loop.close)


# The library


class _Library:
    """A member that answers with what it is given; the application's calls end with an answer or one of the library's errors."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.network = MemoryNetwork()
        self.frames: list[bytes] = []
        self.loop.run(self._start())

    async def _start(self) -> None:
        await self.network.transport("X").listen("X:1416", {SERVICE: self._answer})

    async def _answer(self, stream: Stream) -> None:
        frames, self.frames = self.frames, []  # the next connection gets no answer
        for frame in frames:
            await stream.receive()
            await stream.send(frame)
        await asyncio.sleep(0.1)

    def check(self, data: bytes) -> None:
        self.frames = wire.split(data)
        self.loop.hold(self._check())

    async def _check(self) -> None:
        options: dict[str, Any] = {"connect_s": 0.5, "reconnect_s": 0.5}
        try:
            async with qsg.connect(["X:1416"], transport=self.network.transport("app"), **options) as queue_manager:
                for call in (
                    lambda: queue_manager.put("A", b"x"),
                    lambda: queue_manager.get("A"),
                    lambda: queue_manager.command("status"),
                    lambda: queue_manager.inquire_queue("A"),
                ):
                    async with asyncio.timeout(ANSWER_S):
                        await _tried(call)
        except qsg.QsgError as error:
            if not str(error):
                raise Violation("an error without words") from error


async def _tried(call: Any) -> None:
    try:
        await call()
    except qsg.QsgError as error:
        if not str(error):
            raise Violation("an error without words") from error


def library() -> Target:
    connected = encode(pb.CLIENT_CONNECTED, pb.Connected(queue_manager="G", member="X"))
    got = pb.GotMessage(message=records.Message(message_id=bytes(24), payload=b"x", properties={"a": "b"}), backouts=2)
    answers = [
        connected,
        encode(pb.CLIENT_RESPONSE, pb.ClientResponse(id=1, message_ids=[bytes(24)])),
        encode(pb.CLIENT_RESPONSE, pb.ClientResponse(id=2, messages=[got])),
        encode(pb.CLIENT_RESPONSE, pb.ClientResponse(id=3, result='{"a": [1]}')),
        encode(pb.CLIENT_RESPONSE, pb.ClientResponse(id=4, result='{"depth": 3}', reason=0)),
    ]
    refusing = [connected, *(encode(pb.CLIENT_RESPONSE, pb.ClientResponse(id=i, reason=2085, detail="no")) for i in (1, 2, 3, 4))]
    made = _Library()
    return Target("client-library", [wire.join(answers), wire.join(refusing)], made.check, mutate_frames(1), made.loop.close)
