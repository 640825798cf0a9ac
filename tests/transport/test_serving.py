"""A request that ends grpc.aio's serving loop: the port is served again at once, and calls that were under way go on."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from qsg.store.contract import Get, Put
from qsg.store.etcd import EtcdStore
from qsg.store.serve import StoreServer
from qsg.store.sqlite import SqliteStore
from qsg.transport.contract import Closed, Stream
from qsg.transport.grpc_ import GrpcTransport

SERVICE = "qsg.v1.Channel"
AGAIN_S = 5.0
"""Much more than it takes."""


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    return bytes((0, len(name))) + name + bytes((len(value),)) + value


def deadly(path: bytes) -> bytes:
    """A request whose `:path` is not UTF-8."""
    headers = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"))
    rest = ((b"content-type", b"application/grpc"), (b"te", b"trailers"))
    block = b"".join(_header(*pair) for pair in (*headers, *rest))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0) + _frame(1, 4 | 1, 1, block)


async def say(address: str, data: bytes) -> None:
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()


async def refused(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return True
    writer.close()
    return False


@pytest.fixture(autouse=True)
async def quiet() -> None:
    """grpc leaves the error in tasks that nobody asks."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)


async def test_a_listener_is_served_again_and_streams_go_on() -> None:
    async def echo(stream: Stream) -> None:
        try:
            while True:
                await stream.send(await stream.receive())
        except Closed:
            return

    transport = GrpcTransport()
    listener = await transport.listen("127.0.0.1:0", {SERVICE: echo})
    before = await transport.connect(listener.address, SERVICE, timeout_s=AGAIN_S)
    for number in range(3):
        await say(listener.address, deadly(b"/qsg.v1.Channel\xafSession"))
        async with asyncio.timeout(AGAIN_S):
            while await refused(listener.address):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        after = await transport.connect(listener.address, SERVICE, timeout_s=AGAIN_S)
        for stream in (before, after):
            await stream.send(b"%d" % number)
            assert await asyncio.wait_for(stream.receive(), AGAIN_S) == b"%d" % number
        await after.close()
    await before.close()
    await listener.close()
    assert await refused(listener.address)


async def test_the_embedded_store_is_served_again(tmp_path: Path) -> None:
    async with StoreServer(SqliteStore(tmp_path / "store.db"), "127.0.0.1:0") as server:
        store = EtcdStore([server.address])
        await store.txn([], [Put(b"a", b"1")], timeout_s=AGAIN_S)
        await say(server.address, deadly(b"/etcdserverpb.KV\xff/Put"))
        async with asyncio.timeout(AGAIN_S):
            while await refused(server.address):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        other = EtcdStore([server.address])
        for one in (store, other):
            found = await one.get(Get(b"a"))
            assert found.first is not None and found.first.value == b"1"
            await one.close()
