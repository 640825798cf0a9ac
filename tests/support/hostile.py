"""What a hostile peer needs: frames of a partner made by hand, connections to each door, and what is answered there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Channel
from qsg.rules.negotiate import offer
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Stream
from qsg.transport.grpc_ import GrpcTransport
from support.group import READY_S, ConfiguredGroup
from support.patient import HEARTBEAT_MS

CHANNEL = "HOSTILE"
TARGET = "VICTIM"


@asynccontextmanager
async def partner(group: ConfiguredGroup, at: str) -> AsyncIterator[Stream]:
    """Where a partner comes in: R's local listener, and a member's group listener."""
    listener = group.config(at)["local_listener" if at == "R" else "group_listener"]
    stream = await GrpcTransport().connect(str(listener), "qsg.v1.Channel", timeout_s=READY_S)
    try:
        yield stream
    finally:
        await stream.close()


@asynccontextmanager
async def service(group: ConfiguredGroup, at: str, name: str) -> AsyncIterator[Stream]:
    stream = await GrpcTransport().connect(group.addresses[at], name, timeout_s=READY_S)
    try:
        yield stream
    finally:
        await stream.close()


def bind(stream: bytes = b"hostile", epoch: int = 1, instance: int = 1, **values: Any) -> channel_pb2.Bind:
    made = channel_pb2.Bind(channel=CHANNEL, sender="EVIL", stream=stream, epoch=epoch, instance=instance)
    made.parameters.CopyFrom(offer(Channel(name=CHANNEL, type="receiver", heartbeat_ms=HEARTBEAT_MS)))
    for name, value in values.items():
        if name == "parameters":
            made.parameters.MergeFrom(value)
        else:
            setattr(made, name, value)
    return made


def message(text: str) -> bytes:
    return pb.Message(message_id=text.encode().ljust(24, b"."), payload=text.encode()).SerializeToString()


def wire(texts: Sequence[str], *, revision: int = 100, queue: str = TARGET, queue_manager: str = "") -> channel_pb2.WireSegment:
    header = pb.SegmentHeader(destinations=[pb.Destination(queue=queue, queue_manager=queue_manager)])
    bodies = b""
    for text in texts:
        body = message(text)
        header.entries.add(message_id=text.encode().ljust(24, b"."), size=len(body), offset=len(bodies), payload_size=len(text))
        bodies += body
    header.bodies_size = len(bodies)
    return channel_pb2.WireSegment(
        create_revision=revision,
        suffix=keys.suffix("X.0", 7, revision),
        header=header.SerializeToString(),
        bodies=bodies,
        last_index=len(texts) - 1,
    )


def batch(*segments: channel_pb2.WireSegment, number: int = 1, first: int = 1, messages: int | None = None) -> channel_pb2.Batch:
    count = sum(len(pb.SegmentHeader.FromString(s.header).entries) for s in segments) if messages is None else messages
    return channel_pb2.Batch(number=number, luwid=f"L{number}", first_sequence=first, messages=count, segments=segments)


async def answer(stream: Stream, *wanted: int, timeout_s: float = READY_S) -> tuple[int, bytes]:
    """The next frame of a wanted type."""
    async with asyncio.timeout(timeout_s):
        while True:
            frame = await stream.receive()
            if frame[0] in wanted:
                return frame[0], frame[1:]


async def refusal(stream: Stream) -> channel_pb2.Refused:
    """What the partner is refused with; the stream ends behind it."""
    _, payload = await answer(stream, channel_pb2.FRAME_REFUSED)
    refused = channel_pb2.Refused.FromString(payload)
    with pytest.raises(Closed):
        await answer(stream, channel_pb2.FRAME_CONFIRM)
    return refused


async def bound(stream: Stream, request: channel_pb2.Bind) -> channel_pb2.Bound:
    await stream.send(encode(channel_pb2.FRAME_BIND, request))
    kind, payload = await answer(stream, channel_pb2.FRAME_BOUND, channel_pb2.FRAME_REFUSED)
    assert kind == channel_pb2.FRAME_BOUND, channel_pb2.Refused.FromString(payload)
    return channel_pb2.Bound.FromString(payload)


async def confirmed(stream: Stream, number: int) -> None:
    while True:
        _, payload = await answer(stream, channel_pb2.FRAME_CONFIRM)
        if channel_pb2.Confirm.FromString(payload).number >= number:
            return


def is_logged(group: ConfiguredGroup, at: str, text: str) -> Callable[[], bool]:
    def found() -> bool:
        lines = group.logged(at=at, level=lambda level: level in ("warning", "error"))
        return any(text in str(value) for line in lines for value in line.values())

    return found


async def all_of(cases: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Several at a time; what failed is told together."""
    few = asyncio.Semaphore(6)

    async def one(case: Coroutine[Any, Any, None]) -> None:
        async with few:
            await case

    found = await asyncio.gather(*(one(case) for case in cases), return_exceptions=True)
    problems = [problem for problem in found if problem is not None]
    assert not problems, "\n".join(map(repr, problems))
