"""A client notices a silent member at once, and tells it often enough that it lives itself."""

from __future__ import annotations

import asyncio

import pytest

from qsg.client.session import HEARTBEAT_S, MISSES_MAX, Session
from qsg.manager.client_port import ClientLimits
from qsg.pb import client_pb2 as pb
from qsg.transport.codec import encode
from support.virtual_time import run


class Member:
    """A stream whose other end sends a heartbeat in each interval, until it is `silent`."""

    peer, identity = "member", ""

    def __init__(self) -> None:
        self.silent = False
        self.beats: list[float] = []

    async def send(self, frame: bytes) -> None:
        assert frame == encode(pb.CLIENT_BEAT, b"")
        self.beats.append(asyncio.get_running_loop().time())

    async def receive(self) -> bytes:
        await asyncio.sleep(0.9 * HEARTBEAT_S)
        if self.silent:
            await asyncio.get_running_loop().create_future()
        return encode(pb.CLIENT_BEAT, b"")

    async def close(self) -> None:
        return


def test_it_beats_now_and_then_and_counts_those_of_the_member() -> None:
    async def main() -> None:
        member = Member()
        session = Session(member, "member:1416", pb.Connected())
        await asyncio.sleep(60.0)
        assert not session.lost
        pauses = [after - before for before, after in zip([0.0, *member.beats], member.beats, strict=False)]
        assert max(pauses) < ClientLimits().silence_s / 3, "two may be late or lost, and it still counts as alive"
        assert len(member.beats) < 60.0 / HEARTBEAT_S / 4
        member.silent = True
        began = asyncio.get_running_loop().time()
        await session.left.wait()
        assert asyncio.get_running_loop().time() - began == pytest.approx(MISSES_MAX * HEARTBEAT_S, abs=2 * HEARTBEAT_S)
        beats = len(member.beats)
        await asyncio.sleep(10.0)
        assert len(member.beats) == beats, "who has given it up says nothing more"
        await session.close()

    run(main())
