"""What is particular to Unix sockets."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from pathlib import Path

import pytest

from qsg.transport.contract import Closed, Refused, Stream, Unreachable
from qsg.transport.unix import connect_unix, listen_unix


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def test_only_the_owner_can_connect_and_the_socket_goes_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = await listen_unix(str(path), echo)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await listener.close()
    assert not path.exists()


async def test_a_left_over_socket_is_refused_and_replaced(tmp_path: Path) -> None:
    import socket

    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(Refused):
        await connect_unix(path)
    listener = await listen_unix(path, echo)
    stream = await connect_unix(path)
    assert stream.pid == os.getpid()
    await stream.close()
    await listener.close()


async def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = await listen_unix(path, echo)
    second = await listen_unix(path, echo)
    await first.close()
    stream = await connect_unix(path)
    await stream.send(b"second")
    assert await asyncio.wait_for(stream.receive(), 5) == b"second"
    await stream.close()
    await second.close()


async def test_a_path_that_is_too_long_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        await connect_unix(str(tmp_path / ("x" * 200)))


@pytest.mark.parametrize("garbage", [b"\xff" * 100, struct.pack(">I", (128 << 20) + 1)])
async def test_an_impossible_length_ends_the_stream_only(tmp_path: Path, garbage: bytes) -> None:
    path = str(tmp_path / "s")
    listener = await listen_unix(path, echo)
    good = await connect_unix(path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(garbage)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await writer.wait_closed()
    await good.send(b"fine")
    assert await asyncio.wait_for(good.receive(), 5) == b"fine"
    await good.close()
    await listener.close()


async def test_an_end_in_the_middle_of_a_frame_delivers_no_part_of_it(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    got: asyncio.Queue[bytes | str] = asyncio.Queue()

    async def handler(stream: Stream) -> None:
        try:
            while True:
                got.put_nowait(await stream.receive())
        except Closed as e:
            got.put_nowait(str(e))

    listener = await listen_unix(path, handler)
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(struct.pack(">I", 5) + b"whole" + struct.pack(">I", 100) + b"part")
    writer.close()
    await writer.wait_closed()
    assert await asyncio.wait_for(got.get(), 5) == b"whole"
    assert "in the middle of a frame" in str(await asyncio.wait_for(got.get(), 5))
    await listener.close()


async def test_frames_cut_at_every_byte(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(stream: Stream) -> None:
        while True:
            got.put_nowait(await stream.receive())

    listener = await listen_unix(path, handler)
    frames = [b"", b"one", b"", b"three" * 5]
    wire = b"".join(struct.pack(">I", len(f)) + f for f in frames)
    for cut in range(1, len(wire)):
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(wire[:cut])
        await asyncio.sleep(0.001)
        writer.write(wire[cut:])
        assert [await asyncio.wait_for(got.get(), 5) for _ in frames] == frames
        writer.close()
        await writer.wait_closed()
    await listener.close()


async def test_what_can_be_sent_at_once_is_and_the_rest_waits(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    reads = asyncio.Event()
    got: list[bytes] = []

    async def handler(stream: Stream) -> None:
        await reads.wait()
        while True:
            got.append(await stream.receive())

    listener = await listen_unix(path, handler)
    stream = await connect_unix(path)
    frames = [b"%4d" % n + bytes(100_000) for n in range(200)]
    at_once = 0
    while stream.send_nowait(frames[at_once]):  # nobody reads
        at_once += 1
    assert 0 < at_once < len(frames) - 1
    reads.set()
    async with asyncio.timeout(5):
        for frame in frames[at_once:]:
            await stream.send(frame)
        while len(got) < len(frames):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert got == frames
    await stream.close()
    assert not stream.send_nowait(b"closed")
    await listener.close()
