"""Peer links: what another member, or somebody who is none, says to us, on its link and on ours."""

from __future__ import annotations

import asyncio

from fuzz import wire
from fuzz.target import Loop, Target, Violation, mutate_frames
from qsg.manager.members import Members
from qsg.manager.peers import SERVICE, PeerLinks
from qsg.pb import peer_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules import keys
from qsg.rules.balance import Load, ranked
from qsg.rules.reasons import Reason, Refusal
from qsg.store.contract import Put
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Stream
from qsg.transport.memory import MemoryNetwork
from support.members import Group, Member

ENDS_S = 60.0
"""In virtual time."""


class _Peer:
    """X among W and Y. Input is said to X by a stranger on its own link, and by Y as it answers X's link."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.network = MemoryNetwork()
        self.group = Group(names=("admin",))
        self.frames: list[bytes] = []
        self.answered = asyncio.Event()
        self.asked: list[pb.Request] = []
        self.x: Member
        self.links: PeerLinks
        self.loop.run(self._start())

    async def _start(self) -> None:
        self.x = await self.group.member("X")
        for name in "WY":
            record = records.MemberRecord(member=name, process=name, peer_address=f"{name}:1")
            await self.x.stores["admin"].txn([], [Put(keys.member(name), record.SerializeToString())])
        members = Members("X", {"admin": self.x.structures["admin"]}, "admin")
        await members.start()
        await self.network.transport("Y").listen("Y:1", {SERVICE: self._answer})
        structure = self.x.structures["admin"]
        load = Load("X", 1, 10, True)
        transport = self.network.transport("X")
        self.links = PeerLinks(members, structure.incarnation, transport, self.x.world, group="G", own_load=lambda: load)
        self.links.requests["start"] = self._start_channel
        members.execute = lambda *verdict: None  # type: ignore[method-assign]
        await self.network.transport("X").listen("X:1", {SERVICE: self.links.serve})
        await self.links.start()

    async def _start_channel(self, member: str, request: pb.Request) -> str:
        if member not in "WXY":
            raise Violation(f"{member!r} is nobody's name")
        raise Refusal(Reason.CHANNEL_NOT_FOUND, "no such channel")

    async def _answer(self, stream: Stream) -> None:
        frames, self.frames = self.frames, []
        try:
            for frame in frames:
                await stream.send(frame)
            await asyncio.sleep(0.3)
        except Closed:
            pass
        if frames:
            self.answered.set()

    def check(self, data: bytes) -> None:
        self.loop.hold(self._check(wire.split(data)))

    async def _check(self, frames: list[bytes]) -> None:
        self.answered.clear()
        self.frames = list(frames)
        stream = await self.network.transport("evil").connect("X:1", SERVICE)
        try:
            for frame in frames:
                await stream.send(frame)
            await asyncio.sleep(0.3)
        except Closed:
            pass
        await stream.close()
        async with asyncio.timeout(ENDS_S):
            if frames:
                await self.answered.wait()
            await asyncio.sleep(0.1)
            while self.links._accepted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        # What the beats said is used for choosing and for the status.
        ranked(self.links.loads(), "C", {"admin"})
        self.links.status()
        if any(link.task is None or link.task.done() for link in self.links._links.values()):
            raise Violation("a link is kept by nobody")


def serving() -> Target:
    made = _Peer()
    incarnation = made.x.structures["admin"].incarnation
    hello = encode(pb.PEER_HELLO, pb.Hello(member="Y", incarnation=incarnation, group="G"))
    silence = pb.Silence(member="W", incarnation=incarnation, silent_ms=1600, refused=False)
    beat = pb.PeerBeat(silences=[silence], channels=3, channels_max=10, initiator=True, structures=["admin"])
    start = pb.Request(id=1, start=pb.StartChannel(channel="C", cause="trigger", detect_ms=1.5, since_ms=5))
    cut_off = pb.Request(id=2, cut_off=pb.CutOff(structure="admin", incarnation=5))
    requests = [encode(pb.PEER_REQUEST, one) for one in (start, cut_off)]
    seeds = [
        wire.join([hello, encode(pb.PEER_BEAT, beat), *requests]),
        wire.join([hello, encode(pb.PEER_REPLY, pb.Reply(id=1, reason=4032, detail="no")), encode(pb.PEER_BEAT, beat)]),
    ]
    return Target("peer", seeds, made.check, mutate_frames(1), made.loop.close)
