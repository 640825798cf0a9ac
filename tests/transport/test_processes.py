"""A process at the other end that dies, or stands still: told apart, and the first within milliseconds."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qsg.transport.contract import Closed, Refused, Stream, Unreachable
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.unix import UnixStream, connect_unix
from support.transports import SERVICE

CHILD = """
import asyncio, sys
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.unix import listen_unix

async def echo(stream):
    while True:
        await stream.send(await stream.receive())

async def main(path):
    await listen_unix(path, echo)
    listener = await GrpcTransport().listen("127.0.0.1:0", {"qsg.v1.Channel": echo})
    print(listener.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


class Child:
    def __init__(self, process: asyncio.subprocess.Process, path: str, address: str) -> None:
        self.process = process
        self.path = path
        self.address = address

    async def connect(self, kind: str, timeout_s: float = 5.0) -> Stream:
        if kind == "unix":
            return await connect_unix(self.path, timeout_s=timeout_s)
        return await GrpcTransport().connect(self.address, SERVICE, timeout_s=timeout_s)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    path = str(tmp_path / "s")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, path, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    address = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
    yield Child(process, path, address)
    if process.returncode is None:
        process.send_signal(signal.SIGCONT)
        process.kill()
    await process.wait()
    process._transport.close()  # type: ignore[attr-defined]


async def exchange(stream: Stream, frame: bytes) -> bytes:
    await stream.send(frame)
    return await asyncio.wait_for(stream.receive(), 5)


@pytest.mark.parametrize("kind", ["unix", "grpc"])
async def test_a_killed_process_ends_its_streams_and_refuses(child: Child, kind: str) -> None:
    stream = await child.connect(kind)
    assert await exchange(stream, b"alive") == b"alive"
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(stream.receive())
    await asyncio.sleep(0)
    killed = loop.time()
    child.signal(signal.SIGKILL)
    with pytest.raises(Closed):
        await asyncio.wait_for(waiting, 5)
    await child.process.wait()  # while it is torn down, its listening socket may outlive its streams by an instant
    with pytest.raises(Refused):
        await child.connect(kind)
    assert loop.time() - killed < 2.0  # milliseconds when the machine is idle; no back-off or keepalive may be in it
    with pytest.raises(Closed):
        await stream.send(b"x")
    await asyncio.wait_for(stream.close(), 5)


async def test_a_process_that_stands_still_is_unreachable_not_refused(child: Child) -> None:
    """The kernel accepts for it: only time can tell."""
    stream = await child.connect("grpc")
    child.signal(signal.SIGSTOP)
    with pytest.raises(Unreachable):
        await child.connect("grpc", timeout_s=0.3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await stream.receive()
    child.signal(signal.SIGCONT)
    assert await exchange(stream, b"still there") == b"still there"
    await stream.close()


async def test_the_pid_at_the_other_end(child: Child) -> None:
    stream = await child.connect("unix")
    assert isinstance(stream, UnixStream)
    assert stream.pid == child.process.pid != os.getpid()
    await stream.close()


async def test_a_killed_client_ends_its_streams_at_the_server(tmp_path: Path) -> None:
    """Both transports: a handler's receive raises, rather than that the handler is cancelled."""
    from qsg.transport.unix import listen_unix

    ended: asyncio.Queue[str] = asyncio.Queue()

    async def handler(stream: Stream) -> None:
        try:
            await stream.send(await stream.receive())
            await stream.receive()
        except Closed:
            ended.put_nowait("closed")
        except asyncio.CancelledError:
            ended.put_nowait("cancelled")
            raise

    path = str(tmp_path / "s")
    unix = await listen_unix(path, handler)
    network = await GrpcTransport().listen("127.0.0.1:0", {SERVICE: handler})
    code = f"""
import asyncio
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.unix import connect_unix
async def main():
    streams = [await connect_unix({path!r}, timeout_s=5), await GrpcTransport().connect({network.address!r}, {SERVICE!r}, timeout_s=5)]
    for stream in streams:
        await stream.send(b"hello")
        await stream.receive()
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
    process.kill()
    assert [await asyncio.wait_for(ended.get(), 5) for _ in range(2)] == ["closed", "closed"]
    await process.wait()
    process._transport.close()  # type: ignore[attr-defined]
    await unix.close()
    await network.close()
