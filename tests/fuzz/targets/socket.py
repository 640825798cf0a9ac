"""The socket between a queue manager and its channel initiator, at either end."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from fuzz import wire
from fuzz.target import Loop, Target, Violation, mutate_frames
from fuzz.targets.plain import bind, conversation
from qsg.initiator import Initiator
from qsg.manager.link import InboundSession, InitiatorLink, SessionFailed
from qsg.pb import channel_pb2
from qsg.pb import initiator_pb2 as pb
from qsg.rules.definitions import Channel
from qsg.rules.negotiate import offer
from qsg.transport.contract import Closed, Stream
from qsg.transport.memory import MemoryNetwork
from qsg.transport.mux import INBOUND
from support.members import Group

HEAD = struct.Struct(">BQ")
ENDS_S = 60.0
"""In virtual time."""


def frame(kind: int, session: int = 0, payload: Any = b"") -> bytes:
    return HEAD.pack(kind, session) + (payload if isinstance(payload, bytes) else payload.SerializeToString())


class _QueueManager:
    """What comes in takes the place of an initiator; another one may join afterwards."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.network = MemoryNetwork()
        self.group = Group()
        self.link: InitiatorLink
        self.loop.run(self._start())

    async def _start(self) -> None:
        member = await self.group.member("X")
        self.link = InitiatorLink(member.structures["admin"], group="G")
        self.link.on_accept = self._accept
        await self.network.transport("qm").listen("qm:1", {"socket": self.link.serve})

    async def _accept(self, session: InboundSession) -> None:
        await session.receive()
        await session.send(channel_pb2.FRAME_PONG, channel_pb2.Ping())
        await session.close()

    def check(self, data: bytes) -> None:
        self.loop.hold(self._check(wire.split(data)))

    async def _check(self, frames: list[bytes]) -> None:
        stream = await self.network.transport("i").connect("qm:1", "socket")
        opening = None
        try:
            for number, one in enumerate(frames):
                await stream.send(one)
                await asyncio.sleep(0.01)
                if not number and self.link.joined:
                    opening = asyncio.ensure_future(self.link.open(pb.Open(channel="C", addresses=["a:1"], bind=bind())))
            await asyncio.sleep(0.05)
        except Closed:
            pass
        await stream.close()
        async with asyncio.timeout(ENDS_S):
            if opening is not None:
                try:
                    (await opening).abort()
                except SessionFailed as failed:
                    if not str(failed):
                        raise Violation("a session failed without a reason") from failed
            await self.link.settled()
            while self.link.joined:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def queue_manager() -> Target:
    made = _QueueManager()
    made.link._next_id = 0
    bound = channel_pb2.Bound(receiver="R", parameters=offer(Channel(name="C", type="receiver")))
    join = frame(pb.LOCAL_JOIN, 0, pb.Join(member="X", process="p", pid=0))
    accept = frame(pb.LOCAL_ACCEPT, INBOUND + 1, pb.Accept(portal="group", address="a:1"))
    seeds = [
        wire.join([join, frame(pb.LOCAL_OPENED, 1, pb.Opened(address="a:1", bound=bound)), frame(pb.LOCAL_BEAT)]),
        wire.join(
            [join, accept, *(frame(pb.LOCAL_RELAY, INBOUND + 1, one) for one in conversation()), frame(pb.LOCAL_END, INBOUND + 1, pb.End())]
        ),
        wire.join([join, frame(pb.LOCAL_BEAT, 1, (5).to_bytes(8, "big")), frame(pb.LOCAL_END, 0, pb.End(reason=2009, detail="x"))]),
    ]
    return Target("socket", seeds, made.check, mutate_frames(HEAD.size), made.loop.close)


class _Initiator:
    """What comes in takes the place of a queue manager."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.network = MemoryNetwork()
        self.frames: list[bytes] = []
        self.served = asyncio.Event()
        self.initiator: Initiator
        self.loop.run(self._start())

    async def _start(self) -> None:
        world = (await Group().member("X")).world
        transport = self.network.transport("i")
        await self.network.transport("qm").listen("qm:1", {"socket": self._answer})
        await self.network.transport("p").listen("p:1", {"qsg.v1.Channel": self._partner})
        self.initiator = Initiator(
            world, transport, lambda: transport.connect("qm:1", "socket"), member="X", local_listener="i:1414", aliases={"r": "p:1"}
        )
        await self.initiator.start()

    async def _answer(self, stream: Stream) -> None:
        frames, self.frames = self.frames, []
        try:
            for one in frames:
                await stream.send(one)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
        except Closed:
            pass
        self.served.set()

    async def _partner(self, stream: Stream) -> None:
        try:
            await stream.receive()
            await stream.send(bytes((channel_pb2.FRAME_BOUND,)) + channel_pb2.Bound(receiver="R").SerializeToString())
            await stream.receive()
        except Closed:
            return

    def check(self, data: bytes) -> None:
        self.frames = wire.split(data)
        self.loop.hold(self._check())

    async def _check(self) -> None:
        self.served.clear()
        running = asyncio.ensure_future(self.initiator.run())
        async with asyncio.timeout(ENDS_S):
            await self.served.wait()
            await asyncio.sleep(0.2)
            if running.done():
                raise Violation(f"the initiator ended: {running.exception()!r}")
            running.cancel()
            await asyncio.wait([running])
            while self.initiator._sessions or self.initiator._accepted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        if self.initiator.joined.is_set():
            raise Violation("joined to nobody")


def initiator() -> Target:
    made = _Initiator()
    welcome = frame(pb.LOCAL_WELCOME, 0, pb.Welcome(member="X", group="G", incarnation=7, initiator=8))
    order = pb.Open(channel="C", addresses=["r"], bind=bind(), silence_ms=300, connect_timeout_ms=100, heartbeat_ms=100)
    ping = pb.Open(channel="C", addresses=["nobody:1", "r"], ping=True, bind=bind())
    seeds = [
        wire.join(
            [welcome, frame(pb.LOCAL_OPEN, 1, order), *(frame(pb.LOCAL_RELAY, 1, one) for one in conversation()[1:]), frame(pb.LOCAL_BEAT)]
        ),
        wire.join([welcome, frame(pb.LOCAL_OPEN, 2, ping), frame(pb.LOCAL_END, 2, pb.End(orderly=True))]),
        wire.join([frame(pb.LOCAL_END, 0, pb.End(reason=2035, detail="no"))]),
    ]
    return Target("socket-initiator", seeds, made.check, mutate_frames(HEAD.size), made.loop.close)
