"""The TCP pass-through: what passes, what a harmed path does, and what comes after healing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from qsg.process.children import free_ports
from qsg.process.proxy import Proxy
from support.group import READY_S, eventually

QUIET_S = 0.15


@dataclass
class Echo:
    """Answers each line with its name and the line."""

    name: str
    lines: list[bytes] = field(default_factory=list)
    server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                self.lines.append(line)
                writer.write(self.name.encode() + b" " + line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)


@pytest.fixture
async def echoes() -> AsyncIterator[list[tuple[Echo, str]]]:
    servers = [Echo("a"), Echo("b")]
    yield [(server, await server.start()) for server in servers]
    for server in servers:
        await server.stop()


@pytest.fixture
async def proxy(echoes: list[tuple[Echo, str]]) -> AsyncIterator[Proxy]:
    proxy = await Proxy.start("127.0.0.1:0", [echoes[0][1]])
    yield proxy
    await proxy.close()


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def to(cls, proxy: Proxy) -> Client:
        host, port = proxy.address.split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line)
        async with asyncio.timeout(READY_S):
            return await self.reader.readline()

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(QUIET_S):
                await self.reader.readline()
        except TimeoutError:
            return True
        return False


Connect = Callable[[Proxy], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects to a proxy; what is left open is broken off at the end."""
    made: list[Client] = []

    async def to(proxy: Proxy) -> Client:
        made.append(await Client.to(proxy))
        return made[-1]

    yield to
    for client in made:
        client.writer.transport.abort()
    await asyncio.sleep(0)


async def test_passes_lines_and_the_end_of_each_side(proxy: Proxy, connect: Connect) -> None:
    client = await connect(proxy)
    assert await client.ask(b"1\n") == b"a 1\n"
    client.writer.write_eof()
    assert await client.reader.read() == b""
    client.writer.close()
    async with asyncio.timeout(READY_S):
        while proxy.connections:  # noqa: ASYNC110 - polled on purpose: nothing to wait for in a test's subject
            await asyncio.sleep(0.01)


async def test_large_transfer_arrives_whole_and_in_order(proxy: Proxy, connect: Connect) -> None:
    client = await connect(proxy)
    lines = [b"%07d" % i + b"x" * 1000 + b"\n" for i in range(5000)]

    async def send() -> None:
        for line in lines:
            client.writer.write(line)
            await client.writer.drain()

    sending = asyncio.create_task(send())
    for line in lines:
        assert await client.reader.readline() == b"a " + line
    await sending
    client.writer.close()


async def test_connections_go_to_the_targets_in_turn_and_past_one_that_refuses(echoes: list[tuple[Echo, str]], connect: Connect) -> None:
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    proxy = await Proxy.start("127.0.0.1:0", [echoes[0][1], dead, echoes[1][1]])
    clients = [await connect(proxy) for _ in range(4)]
    answers = [await client.ask(b"x\n") for client in clients]
    assert {answers[0], answers[1]} == {b"a x\n", b"b x\n"}
    assert answers[0] != answers[1]
    await proxy.close()


async def test_without_any_target_the_connection_is_reset(connect: Connect) -> None:
    proxy = await Proxy.start("127.0.0.1:0", [f"127.0.0.1:{free_ports(1)[0]}"])
    client = await connect(proxy)
    with pytest.raises(ConnectionError):
        await client.reader.readexactly(1)
    await proxy.close()


async def test_cut_is_silent_and_heals_without_loss(proxy: Proxy, echoes: list[tuple[Echo, str]], connect: Connect) -> None:
    client = await connect(proxy)
    assert await client.ask(b"1\n") == b"a 1\n"
    proxy.cut()
    client.writer.write(b"2\n")
    assert await client.hears_nothing()
    assert echoes[0][0].lines == [b"1\n"]
    proxy.heal()
    assert await client.ask(b"3\n") == b"a 2\n"
    assert await client.ask(b"4\n") == b"a 3\n"


async def test_a_cut_path_does_not_tell_that_the_other_side_is_gone(proxy: Proxy, echoes: list[tuple[Echo, str]], connect: Connect) -> None:
    client = await connect(proxy)
    assert await client.ask(b"1\n") == b"a 1\n"
    proxy.cut()
    await echoes[0][0].stop()
    assert await client.hears_nothing()
    proxy.heal()
    async with asyncio.timeout(READY_S):
        try:
            assert await client.reader.read() == b""
        except ConnectionError:
            pass  # the end may also be told by a reset


@pytest.mark.parametrize(("direction", "arrives"), [("to_target", False), ("from_target", True)])
async def test_cut_one_way(proxy: Proxy, echoes: list[tuple[Echo, str]], direction: str, arrives: bool, connect: Connect) -> None:
    client = await connect(proxy)
    assert await client.ask(b"1\n") == b"a 1\n"
    proxy.cut(direction=direction)  # type: ignore[arg-type]
    client.writer.write(b"2\n")
    assert await client.hears_nothing()
    if arrives:
        await eventually(lambda: b"2\n" in echoes[0][0].lines, what="it arrives")
    assert (b"2\n" in echoes[0][0].lines) is arrives
    proxy.heal()
    assert await client.ask(b"3\n") == b"a 2\n"


async def test_a_new_connection_to_a_cut_target_stays_silent_until_healed(proxy: Proxy, connect: Connect) -> None:
    proxy.cut()
    client = await connect(proxy)
    client.writer.write(b"1\n")
    assert await client.hears_nothing()
    proxy.heal()
    assert await client.ask(b"2\n") == b"a 1\n"


async def test_cut_of_one_target_leaves_the_others(echoes: list[tuple[Echo, str]], connect: Connect) -> None:
    proxy = await Proxy.start("127.0.0.1:0", [address for _, address in echoes])
    clients = [await connect(proxy) for _ in range(2)]
    for client in clients:
        await client.ask(b"1\n")
    proxy.cut(echoes[0][1])
    clients[0].writer.write(b"2\n")
    assert await clients[0].hears_nothing()
    assert await clients[1].ask(b"2\n") == b"b 2\n"
    await proxy.close()


async def test_delay_holds_lines_back_in_order(proxy: Proxy, connect: Connect) -> None:
    client = await connect(proxy)
    await client.ask(b"0\n")
    proxy.delay(0.1)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for i in range(1, 6):
        client.writer.write(b"%d\n" % i)
        await asyncio.sleep(0.01)
    assert [await client.reader.readline() for _ in range(5)] == [b"a %d\n" % i for i in range(1, 6)]
    assert loop.time() - started >= 0.2
    proxy.heal()
    assert await client.ask(b"6\n") == b"a 6\n"


async def test_reset_breaks_the_connection_and_the_next_one_works(proxy: Proxy, connect: Connect) -> None:
    client = await connect(proxy)
    await client.ask(b"1\n")
    proxy.reset()
    with pytest.raises(ConnectionError):
        await client.reader.readexactly(1)
    assert await (await connect(proxy)).ask(b"2\n") == b"a 2\n"
