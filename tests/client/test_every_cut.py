"""A session of an application, cut at every single frame: before it is sent, after it was sent, or as it is received.

Heartbeats apart, the same frames pass in every run (virtual time), so that counting frames reaches every point.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

import qsg
from qsg.transport.contract import Closed, Stream, Transport
from support.client_group import ClientGroup
from support.virtual_time import run


@dataclass
class Cutter:
    """Cuts at frame number `at` (counting those sent and received), once. `how`: "unsent", "sent" or "received"."""

    at: int
    how: str
    frames: int = 0
    done: bool = False

    def due(self, how: str) -> bool:
        self.frames += how != "sent"
        if self.done or self.how != how or self.frames != self.at:
            return False
        self.done = True
        return True


@dataclass
class CutStream:
    inner: Stream
    cutter: Cutter
    broken: bool = False
    peer: str = ""
    identity: str = ""

    async def _break(self) -> None:
        self.broken = True
        await self.inner.close()
        raise Closed("cut")

    async def send(self, frame: bytes) -> None:
        if self.broken:
            raise Closed("cut")
        if self.cutter.due("unsent"):
            await self._break()
        await self.inner.send(frame)
        if self.cutter.due("sent"):
            await asyncio.sleep(0.001)
            await self._break()

    async def receive(self) -> bytes:
        if self.broken:
            raise Closed("cut")
        frame = await self.inner.receive()
        if self.cutter.due("received"):
            await self._break()
        return frame

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class CutTransport:
    inner: Transport
    cutter: Cutter
    listen: object = field(default=None)

    async def connect(self, address: str, service: str, *, timeout_s: float = 1.0) -> CutStream:
        return CutStream(await self.inner.connect(address, service, timeout_s=timeout_s), self.cutter)


@dataclass
class Told:
    plain: str = ""
    unit: str = ""
    got: bytes = b""


async def session(cutter: Cutter, producer: str) -> tuple[Told, ClientGroup]:
    told = Told()
    async with ClientGroup("XY") as group:
        transport = CutTransport(group.network.transport("app"), cutter)
        async with qsg.connect(
            ["X:1416", "Y:1416"],
            transport=transport,  # type: ignore[arg-type]
            world=group.world,
            producer=producer,
        ) as qmgr:
            waiting = asyncio.create_task(qmgr.get("LATER", wait_ms=60_000))
            try:
                await asyncio.gather(qmgr.put("A", b"1"), qmgr.put("B", b"2"))
                await qmgr.put("A", b"3")
                told.plain = "done"
            except qsg.OutcomeUnknown:
                told.plain = "unknown"
            told.unit = await _unit(qmgr)
        # By somebody whose connection is never cut, so that what the waiting get shows is the waiting get's.
        async with group.connect() as other:
            waiting.cancel()
            await other.put("LATER", b"x")
        await asyncio.gather(waiting, return_exceptions=True)
    return told, group


async def _unit(qmgr: qsg.QueueManager) -> str:
    try:
        async with qmgr.unit() as unit:
            await unit.put("OUT", b"u1")
            await unit.put("OUT", b"u2")
    except qsg.BackedOut:
        return "backed out"
    except qsg.OutcomeUnknown:
        return "unknown"
    return "committed"


def frames_of(producer: str) -> int:
    cutter = Cutter(-1, "")
    run(session(cutter, producer))
    return cutter.frames


@pytest.mark.parametrize("how", ["unsent", "sent", "received"])
@pytest.mark.parametrize("producer", ["P", ""])
def test_every_cut(how: str, producer: str) -> None:
    cut = 0
    for at in range(1, frames_of(producer) + 1):
        cutter = Cutter(at, how)
        told, group = run(session(cutter, producer))
        cut += cutter.done
        where = f"frame {at} {how}"
        if producer:
            assert told.plain == "done", where
        if told.plain == "done":
            assert (group.payloads("A"), group.payloads("B")) == ([b"1", b"3"], [b"2"]), where
        assert len(group.payloads("A")) == len(set(group.payloads("A"))), where
        expected = {"committed": [b"u1", b"u2"], "backed out": []}
        assert told.unit in expected, where
        assert group.payloads("OUT") == expected[told.unit], where
        assert group.payloads("LATER") == [b"x"], where
    assert cut >= 8
