"""What holds for a stream of every transport."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from qsg.transport.contract import Closed, Refused, Stream
from support.transports import WIRES, Wire


@pytest.fixture(params=list(WIRES))
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    async with WIRES[request.param]() as wire:
        yield wire


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


class Accepted:
    """A handler that hands its stream to the test and waits until the test is through with it."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.release = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, stream: Stream) -> None:
        self.streams.put_nowait(stream)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def pair(wire: Wire) -> tuple[Stream, Stream, Accepted]:
    accepted = Accepted()
    await wire.listen(accepted)
    here = await wire.connect()
    there = await asyncio.wait_for(accepted.streams.get(), 5)
    return here, there, accepted


async def test_frames_arrive_whole_and_in_order_both_ways(wire: Wire) -> None:
    await wire.listen(echo)
    stream = await wire.connect()
    frames = [b"", b"a", b"\x00\xff" * 10, b"x" * 70_000, b"y" * 1_000_000, b"end"] + [b"%d" % i for i in range(200)]

    async def sending() -> None:
        for frame in frames:
            await stream.send(frame)

    task = asyncio.create_task(sending())
    assert [await asyncio.wait_for(stream.receive(), 10) for _ in frames] == frames
    await task
    await stream.close()


async def test_a_frame_of_many_mebibytes(wire: Wire) -> None:
    await wire.listen(echo)
    stream = await wire.connect()
    frame = bytes(range(256)) * (20 * 4096)
    await stream.send(frame)
    assert await asyncio.wait_for(stream.receive(), 20) == frame
    await stream.close()


async def test_many_streams_at_once_do_not_mix(wire: Wire) -> None:
    await wire.listen(echo)

    async def one(name: bytes) -> list[bytes]:
        stream = await wire.connect()
        for i in range(20):
            await stream.send(b"%s %d" % (name, i))
        got = [await asyncio.wait_for(stream.receive(), 10) for _ in range(20)]
        await stream.close()
        return got

    names = [b"stream-%d" % i for i in range(10)]
    results = await asyncio.gather(*(one(name) for name in names))
    assert results == [[b"%s %d" % (name, i) for i in range(20)] for name in names]


async def test_nobody_listens(wire: Wire) -> None:
    with pytest.raises(Refused):
        await wire.connect()


async def test_after_the_listener_closed_connections_are_refused(wire: Wire) -> None:
    listener = await wire.listen(echo)
    await (await wire.connect()).close()
    await listener.close()
    with pytest.raises(Refused):
        await wire.connect()
    await wire.listen(echo)  # and the address is free again
    stream = await wire.connect()
    await stream.send(b"again")
    assert await asyncio.wait_for(stream.receive(), 5) == b"again"
    await stream.close()


async def test_close_here_ends_there_after_what_was_sent(wire: Wire) -> None:
    here, there, _ = await pair(wire)
    for i in range(50):
        await here.send(b"%d" % i)
    await here.close()
    assert [await asyncio.wait_for(there.receive(), 5) for _ in range(50)] == [b"%d" % i for i in range(50)]
    with pytest.raises(Closed):
        await asyncio.wait_for(there.receive(), 5)
    with pytest.raises(Closed):
        await asyncio.wait_for(there.receive(), 5)  # and again
    with pytest.raises(Closed):
        for _ in range(1000):
            await there.send(b"x" * 100_000)


async def test_close_there_ends_here_after_what_was_sent(wire: Wire) -> None:
    here, there, _ = await pair(wire)
    for i in range(50):
        await there.send(b"%d" % i)
    await there.close()
    assert [await asyncio.wait_for(here.receive(), 5) for _ in range(50)] == [b"%d" % i for i in range(50)]
    with pytest.raises(Closed):
        await asyncio.wait_for(here.receive(), 5)
    with pytest.raises(Closed):
        for _ in range(1000):
            await here.send(b"x" * 100_000)
    await here.close()


async def test_a_handler_that_returns_or_fails_ends_its_stream(wire: Wire) -> None:
    async def handler(stream: Stream) -> None:
        if await stream.receive() == b"fail":
            raise ValueError("defect")
        await stream.send(b"bye")

    await wire.listen(handler)
    first, second = await wire.connect(), await wire.connect()
    await first.send(b"return")
    assert await asyncio.wait_for(first.receive(), 5) == b"bye"
    await second.send(b"fail")
    for stream in (first, second):
        with pytest.raises(Closed):
            await asyncio.wait_for(stream.receive(), 5)
        await stream.close()


async def test_closing_the_listener_cancels_handlers_and_ends_streams(wire: Wire) -> None:
    here, there, accepted = await pair(wire)
    await wire.close()
    assert accepted.cancelled == 1
    with pytest.raises(Closed):
        await asyncio.wait_for(here.receive(), 5)
    with pytest.raises(Closed):
        await there.send(b"late")
    await here.close()


async def test_cancelled_receive_breaks_nothing(wire: Wire) -> None:
    here, there, _ = await pair(wire)
    for stream in (here, there):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await stream.receive()
    await here.send(b"there")
    await there.send(b"back")
    assert await asyncio.wait_for(there.receive(), 5) == b"there"
    assert await asyncio.wait_for(here.receive(), 5) == b"back"
    await here.close()


@pytest.mark.parametrize("end", ["here", "there"])
async def test_a_slow_reader_stops_the_sender_and_loses_nothing(wire: Wire, end: str) -> None:
    """Flow control: the sender waits; a send that was cancelled while waiting breaks nothing and sends its frame at most once."""
    here, there, _ = await pair(wire)
    sender, reader = (here, there) if end == "here" else (there, here)
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            async with asyncio.timeout(0.3):
                await sender.send(b"%08d" % sent + b"x" * 100_000)
            sent += 1
            assert sent < 1000, "nothing holds the sender back"
    got: list[int] = []
    while len(got) < sent:
        got.append(int((await asyncio.wait_for(reader.receive(), 5))[:8]))
    assert got == list(range(sent))
    await here.close()


async def test_close_twice_and_use_after_close(wire: Wire) -> None:
    here, there, _ = await pair(wire)
    await here.close()
    await here.close()
    with pytest.raises(Closed):
        await here.send(b"x")
    with pytest.raises(Closed):
        await here.receive()
    await there.close()


async def test_close_while_the_other_side_does_not_read(wire: Wire) -> None:
    """Ends within its bound, whatever the other side does."""
    here, _there, _ = await pair(wire)
    with pytest.raises(TimeoutError):
        while True:
            async with asyncio.timeout(0.2):
                await here.send(b"x" * 100_000)
    await asyncio.wait_for(here.close(), 5)
    with pytest.raises(Closed):
        await here.send(b"x")


async def test_peers_are_named(wire: Wire) -> None:
    here, there, _ = await pair(wire)
    assert here.peer and there.peer
    assert here.identity == there.identity == ""
    await here.close()


async def test_connects_and_closes_leave_nothing_behind(wire: Wire) -> None:
    """Tasks and file descriptors return to where they were, whoever closes, and for refusals too."""

    async def handler(stream: Stream) -> None:
        if await stream.receive() == b"return":
            return
        await stream.receive()

    async def one(i: int) -> None:
        stream = await wire.connect()
        await stream.send(b"return" if i % 2 else b"stay")
        if i % 2:
            with pytest.raises(Closed):
                await asyncio.wait_for(stream.receive(), 5)
        await stream.close()

    async def settled() -> tuple[int, int]:
        """What is in use once it no longer falls."""
        seen = []
        for _ in range(20):
            await asyncio.sleep(0.02)
            seen.append((len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))))
        return min(t for t, _ in seen), min(f for _, f in seen)

    listener = await wire.listen(handler)
    await asyncio.gather(*(one(i) for i in range(4)))
    tasks, files = await settled()
    for _ in range(10):
        await asyncio.gather(*(one(i) for i in range(6)))
    after = await settled()
    assert after[0] <= tasks
    assert after[1] <= files + 3
    await listener.close()
    for _ in range(20):
        with pytest.raises(Refused):
            await wire.connect()
    assert (await settled())[1] <= files + 3
