"""A sender by hand, on a session to R of `support.channel_pair`: for tests of what a receiver does with what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from qsg.manager.link import Session, SessionFailed
from qsg.pb import channel_pb2, initiator_pb2
from qsg.rules.batches import BatchBuilder, Loaded
from qsg.rules.definitions import Channel
from qsg.rules.lanes import SegmentAt
from qsg.rules.negotiate import offer
from qsg.rules.reasons import Reason
from support.channel_pair import STREAM, Rig
from support.channel_segments import NOW, segment

WRAP = 999_999_999


def request(epoch: int = 1, instance: int = 1, **values: object) -> channel_pb2.Bind:
    bind = channel_pb2.Bind(channel="X.TO.R", sender="QSG", stream=STREAM, epoch=epoch, instance=instance)
    bind.parameters.CopyFrom(offer(Channel(name="X.TO.R", type="receiver")))
    bind.MergeFrom(channel_pb2.Bind(**values))  # type: ignore[arg-type]
    return bind


@dataclass
class Script:
    """A sender by hand."""

    session: Session
    number: int = 0
    sequence: int = 0
    counter: int = 0
    sent: list[channel_pb2.Batch] = field(default_factory=list)

    def segment(self, texts: Sequence[str], destination: tuple[str, str] = ("TARGET", "R"), size: int = 0) -> SegmentAt:
        self.counter += 1
        return segment(self.counter, list(texts), destination=destination, size=size)[0]

    def batch(self, *segments: SegmentAt) -> channel_pb2.Batch:
        builder = BatchBuilder(9_999, 64 << 20)
        for one in segments:
            assert builder.add(Loaded(one, b""), NOW) is None
        self.number += 1
        built = builder.finish(self.number, f"L{self.number}", self.sequence, WRAP)
        self.sequence = built.last_sequence
        self.sent.append(built.batch)
        return built.batch

    async def send(self, batch: channel_pb2.Batch) -> None:
        await self.session.send(channel_pb2.FRAME_BATCH, batch)

    async def confirm(self) -> channel_pb2.Confirm:
        while True:
            kind, payload = await asyncio.wait_for(self.session.receive(), 3)
            if kind == channel_pb2.FRAME_CONFIRM:
                return channel_pb2.Confirm.FromString(payload)

    async def refusal(self) -> Reason:
        with pytest.raises(SessionFailed) as failed:
            async with asyncio.timeout(10):
                while True:
                    await asyncio.wait_for(self.session.receive(), 3)
        return failed.value.reason


async def connect(
    two: Rig, bind: channel_pb2.Bind | None = None, *, address: str = "R:1414", ping: bool = False, query: bool = False
) -> Script:
    bind = bind or request()
    order = initiator_pb2.Open(channel="X.TO.R", addresses=[address], bind=bind, silence_ms=1500, ping=ping, query=query)
    return Script(await two.xp.link.open(order))


async def refused(two: Rig, bind: channel_pb2.Bind, *, ping: bool = False) -> SessionFailed:
    with pytest.raises(SessionFailed) as failed:
        await connect(two, bind, ping=ping)
    return failed.value
