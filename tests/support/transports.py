"""Every transport behind one face, for tests that hold for all of them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from qsg.transport.contract import Handler, Stream
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.memory import MemoryNetwork
from qsg.transport.unix import connect_unix, listen_unix

SERVICE = "qsg.v1.Channel"


class Closable(Protocol):
    async def close(self) -> None: ...


class Wire:
    """One address: `listen(handler)` there, `connect()` to it."""

    def __init__(self, listen: Callable[[Handler], Awaitable[Closable]], connect: Callable[[], Awaitable[Stream]]) -> None:
        self._listen = listen
        self.connect = connect
        self._listeners: list[Closable] = []

    async def listen(self, handler: Handler) -> Closable:
        listener = await self._listen(handler)
        self._listeners.append(listener)
        return listener

    async def close(self) -> None:
        for listener in self._listeners:
            await listener.close()


@asynccontextmanager
async def unix_wire() -> AsyncIterator[Wire]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "s")
        wire = Wire(lambda handler: listen_unix(path, handler), lambda: connect_unix(path))
        yield wire
        await wire.close()


@asynccontextmanager
async def grpc_wire() -> AsyncIterator[Wire]:
    transport = GrpcTransport()
    address = "127.0.0.1:0"

    async def listen(handler: Handler) -> Closable:
        nonlocal address
        listener = await transport.listen(address, {SERVICE: handler})
        address = listener.address
        return listener

    async def connect() -> Stream:
        return await transport.connect(address if not address.endswith(":0") else "127.0.0.1:1", SERVICE)

    wire = Wire(listen, connect)
    yield wire
    await wire.close()


@asynccontextmanager
async def memory_wire() -> AsyncIterator[Wire]:
    network = MemoryNetwork()
    here, there = network.transport("a"), network.transport("b")
    wire = Wire(lambda handler: there.listen("b:1414", {SERVICE: handler}), lambda: here.connect("b:1414", SERVICE))
    yield wire
    await wire.close()


WIRES = {"unix": unix_wire, "grpc": grpc_wire, "memory": memory_wire}
