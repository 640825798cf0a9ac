"""Bytes at a gRPC port: what a client of ours says, recorded and changed, at a listener of ours and at `qsg store`."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from fuzz.target import Loop, Target, Violation
from fuzz.wire import mutate_bytes
from qsg.serving import CHECK_S
from qsg.store.etcd import EtcdStore
from qsg.store.serve import StoreServer
from qsg.store.sqlite import SqliteStore
from qsg.transport.contract import Closed, Stream
from qsg.transport.grpc_ import GrpcListener, GrpcTransport

SERVICE = "qsg.v1.Channel"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ANSWER_S = 5.0


class _Ports:
    def __init__(self) -> None:
        self.loop = Loop(virtual=False, known=(UnicodeDecodeError,))
        self.folder = tempfile.TemporaryDirectory()
        self.listener: GrpcListener
        self.store: StoreServer
        self.recorded: list[bytes] = []
        self.number = 0
        self.loop.run(self._start())

    async def _start(self) -> None:
        self.listener = await GrpcTransport().listen("127.0.0.1:0", {SERVICE: self._echo})
        self.store = StoreServer(SqliteStore(Path(self.folder.name) / "store.db"), "127.0.0.1:0")
        await self.store.start()
        self.recorded = [await self._recorded(self.listener.address), await self._recorded(self.store.address)]

    async def _echo(self, stream: Stream) -> None:
        try:
            while True:
                await stream.send(await stream.receive())
        except Closed:
            return

    async def _recorded(self, address: str) -> bytes:
        """What a client says to `address`, through a proxy that writes it down."""
        host, _, port = address.rpartition(":")
        said = bytearray()

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keep: bool) -> None:
            while data := await reader.read(65_536):
                if keep:
                    said.extend(data)
                writer.write(data)
            writer.close()

        async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(carry(reader, back, keep=True), carry(there, writer, keep=False), return_exceptions=True)

        proxy = await asyncio.start_server(both, "127.0.0.1", 0)
        at = "127.0.0.1:" + str(proxy.sockets[0].getsockname()[1])
        if address == self.listener.address:
            await self._talk(at)
        else:
            await self._ask(at)
        proxy.close()
        return bytes(said)

    async def _talk(self, address: str) -> None:
        stream = await GrpcTransport().connect(address, SERVICE, timeout_s=ANSWER_S)
        await stream.send(b"hello")
        if await asyncio.wait_for(stream.receive(), ANSWER_S) != b"hello":
            raise Violation("the listener answers something else")
        await stream.close()

    async def _ask(self, address: str) -> None:
        store = EtcdStore([address])
        await asyncio.wait_for(store.status(), ANSWER_S)
        await store.close()

    def check(self, data: bytes) -> None:
        self.loop.hold(self._check(data))

    async def _check(self, data: bytes) -> None:
        for address in (self.listener.address, self.store.address):
            host, _, port = address.rpartition(":")
            reader, writer = await self._connected(host, int(port))
            try:
                writer.write(data)
                writer.write_eof()
                async with asyncio.timeout(ANSWER_S):
                    await reader.read()
            except OSError:
                pass  # reset: as good an answer as there is below HTTP
            finally:
                writer.close()
        self.number += 1
        if self.number % 20 == 1:
            for address in (self.listener.address, self.store.address):
                (await self._connected(*address.split(":")))[1].close()  # type: ignore[arg-type]
            await self._talk(self.listener.address)
            await self._ask(self.store.address)
            if len(asyncio.all_tasks()) > 100:
                raise Violation(f"{len(asyncio.all_tasks())} tasks are left")

    async def _connected(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An input may end the server, which is started again."""
        async with asyncio.timeout(ANSWER_S):
            while True:
                try:
                    return await asyncio.open_connection(host, port)
                except ConnectionRefusedError:
                    await asyncio.sleep(CHECK_S / 4)

    def close(self) -> None:
        self.loop.run(self._end())
        self.loop.close()
        self.folder.cleanup()

    async def _end(self) -> None:
        await self.listener.close()
        await self.store.stop()
        await asyncio.sleep(0)


def grpc_bytes() -> Target:
    made = _Ports()
    seeds = [*made.recorded, PREFACE + bytes.fromhex("000000040000000000"), b"GET / HTTP/1.1\r\n\r\n"]
    return Target("grpc", seeds, made.check, lambda data, seeds, random: mutate_bytes(data, random), made.close)
